#!/bin/sh -e
# app1: application server
# On Debian the same belongs into /etc/network/interfaces; here it is a script, to be run once at boot.
ip address add 10.0.2.11/24 dev eth0
ip address add 2001:db8:2::11/64 dev eth0 nodad
ip link set eth0 up mtu 1600    # room for the header that the balancers put in front (28 bytes)
ip route add default via 10.0.2.1 mtu 1500
ip route add default via 2001:db8:2::1 dev eth0 mtu 1500

# The address of the application tier; see web1 for the reasons.
ip address add 10.0.0.10/32 dev lo
sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0
lbctl decap attach eth0 --from 10.0.0.2 10.0.0.3
