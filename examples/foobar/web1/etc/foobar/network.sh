#!/bin/sh -e
# web1: web server
# On Debian the same belongs into /etc/network/interfaces; here it is a script, to be run once at boot.
ip address add 10.0.1.11/24 dev eth0
ip address add 2001:db8:1::11/64 dev eth0 nodad
ip link set eth0 up mtu 1600    # room for the header that the balancers put in front (28 bytes)
ip route add default via 10.0.1.1 mtu 1500
ip route add default via 2001:db8:1::1 dev eth0 mtu 1500

# The public addresses are on the loopback, where nobody else sees them: packets for them arrive from the balancers
# in a GUE tunnel, answers go straight to the client.
for vip in 192.0.2.10/32 192.0.2.20/32 2001:db8:d::10/128 2001:db8:d::20/128; do
    ip address add $vip dev lo
done
sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0
sysctl -q -w net.core.somaxconn=4096 net.ipv4.tcp_max_syn_backlog=4096 net.ipv4.tcp_syncookies=1
# Takes the tunnel's header off, of packets of the two balancers only.
lbctl decap attach eth0 --from 10.0.0.2 10.0.0.3
