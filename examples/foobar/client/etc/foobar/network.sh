#!/bin/sh -e
# client: somebody on the internet
# On Debian the same belongs into /etc/network/interfaces; here it is a script, to be run once at boot.
ip address add 198.51.100.10/24 dev eth0
ip address add 2001:db8:c::10/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 198.51.100.1
ip route add default via 2001:db8:c::1 dev eth0
