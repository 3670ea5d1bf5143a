#!/bin/sh -e
# Makes this server the primary: it takes what it has already received of the old one, and then writes.
# Be sure that the old primary is dead or read-only. lbd finds the new one by its checks.
mariadb -e "STOP SLAVE IO_THREAD" 2>/dev/null || true
# What was received but not carried out yet is acknowledged writing of users.
for _ in $(seq 100); do
    state=$(mariadb -E -e "SHOW SLAVE STATUS")
    case $state in
    "" | *"Slave has read all relay log"*) break ;;
    esac
    sleep 0.1
done
mariadb -e "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0"
echo "$(hostname) takes writes now"
