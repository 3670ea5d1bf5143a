#!/bin/sh -e
# mon: monitoring
# On Debian the same belongs into /etc/network/interfaces; here it is a script, to be run once at boot.
ip address add 10.0.4.10/24 dev eth0
ip address add 2001:db8:4::10/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 10.0.4.1
ip route add default via 2001:db8:4::1 dev eth0
