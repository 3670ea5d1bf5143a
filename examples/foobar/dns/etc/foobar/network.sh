#!/bin/sh -e
# dns: the name server of foobar.com
# On Debian the same belongs into /etc/network/interfaces; here it is a script, to be run once at boot.
ip address add 203.0.113.53/24 dev eth0
ip address add 2001:db8:53::53/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 203.0.113.1
ip route add default via 2001:db8:53::1 dev eth0
