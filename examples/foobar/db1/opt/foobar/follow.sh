#!/bin/sh -e
# Makes this server a replica: follow.sh ADDRESS-OF-THE-PRIMARY
# For a new server with no data, and for an old primary that comes back after another one was promoted. A transaction
# that it had not given to anybody (nobody was told it was done) stops replication with an error: then empty
# /var/lib/mysql, set it up anew and follow again.
[ $# = 1 ] || { echo "usage: follow.sh ADDRESS-OF-THE-PRIMARY" >&2; exit 2; }
mariadb -e "
    SET GLOBAL read_only = 1;
    STOP SLAVE;
    SET GLOBAL gtid_slave_pos = @@gtid_current_pos;
    CHANGE MASTER TO master_host = '$1', master_user = 'replica', master_password = 'change-me-replica',
        master_use_gtid = slave_pos, master_connect_retry = 2;
    START SLAVE"
echo "$(hostname) follows $1"
