#!/bin/sh -e
# Makes this server the primary: promote.sh [--lose]
# Be sure that the old primary is dead or read-only. lbd finds the new one by its checks.
# What was received of the old primary but not carried out here yet may be acknowledged writing of users, and is thrown
# away by a promotion. So it ends with status 1, and changes nothing, while there is such; --lose gives it up.
case "$*" in "") lose= ;; --lose) lose=1 ;; *) echo "usage: promote.sh [--lose]" >&2; exit 2 ;; esac

status() { # what replication says now, into $state
    state=$(mariadb -E -e "SHOW SLAVE STATUS") || { echo "promote.sh: MariaDB does not answer here: nothing was changed" >&2; exit 1; }
    received=$(value Gtid_IO_Pos)
    carried=$(mariadb -N -e "SELECT @@gtid_slave_pos")
    # Of the server's own log, too: there is what somebody has carried out by hand (see below).
    logged=$(mariadb -N -e "SELECT @@gtid_binlog_pos")
}
value() { printf '%s\n' "$state" | sed -n "s/^ *$1: //p"; }
complete() { # whether all that was received is carried out
    status
    if [ -n "$received" ]; then
        [ "$received" = "$carried" ] || [ "$received" = "$logged" ]
    else
        case $(value Slave_SQL_Running_State) in "Slave has read all relay log"*) ;; *) false ;; esac
    fi
}
wait_for_it() { # 10 seconds; a thread that does not run will not get there
    for _ in $(seq 100); do
        if complete; then return; fi
        [ "$(value Slave_SQL_Running)" = Yes ] || return 1
        sleep 0.1
    done
    return 1
}
refuse() {
    cat >&2 <<END
promote.sh: NOT promoted: this server has received writes that it has not carried out; a promotion would lose them.
    Slave_SQL_Running:  $(value Slave_SQL_Running) $(value Slave_SQL_Running_State)
    Last_SQL_Error:     $(value Last_SQL_Error)
    Slave_IO_Running:   $(value Slave_IO_Running)
    received up to      $received
    carried out up to   $carried ($(value Seconds_Behind_Master) seconds behind)
END
    case $(value Slave_SQL_Running)/$(value Slave_IO_Running) in
    Yes/*) echo "It is at work on them: wait, and run this again." ;;
    # Where neither thread runs, MariaDB empties the relay log at the next START SLAVE.
    */No) cat >&2 <<END
Do not START SLAVE and do not restart MariaDB: either throws the received writes away. Carry them out, then run this again:
    cd $(mariadb -N -e "SELECT @@datadir") && mariadb-binlog --start-position=$(value Relay_Log_Pos) \$(sed -n '/$(value Relay_Log_File)/,\$p' relay.index) | mariadb
END
        ;;
    *) cat >&2 <<END
Mend what Last_SQL_Error says, if it says anything, then
    mariadb -e "START SLAVE SQL_THREAD"
and run this again. Do not STOP SLAVE and do not restart MariaDB before: the next start would throw the received away.
END
        ;;
    esac >&2
    echo "To give them up for good: promote.sh --lose" >&2
    exit 1
}

status
if [ -z "$state" ]; then
    if [ "$(mariadb -N -e "SELECT @@read_only")" = 0 ]; then
        echo "$(hostname) is the primary already: nothing to do"
        exit 0
    fi
    echo "$(hostname) follows nobody: there is nothing to wait for"
elif [ -n "$lose" ]; then
    complete || echo "$(hostname) gives up what it received after $carried, up to $received"
else
    wait_for_it || refuse
    # Nothing more comes in now; what came meanwhile counts, too.
    mariadb -e "STOP SLAVE IO_THREAD"
    if ! wait_for_it; then
        # With the other thread at work this empties nothing.
        if [ "$(value Slave_SQL_Running)" = Yes ]; then mariadb -e "START SLAVE IO_THREAD"; fi
        refuse
    fi
fi
mariadb -e "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0"
echo "$(hostname) takes writes now"
