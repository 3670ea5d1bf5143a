#!/bin/sh -e
# router: joins the zones, each of which is a network of its own (here a bridge, the switch of the zone)
zone() { # NAME MTU ADDRESS...
    zone=$1
    ip link set "$zone" up mtu "$2"
    shift 2
    for address in "$@"; do
        case $address in *:*) ip address add "$address" dev "$zone" nodad ;; *) ip address add "$address" dev "$zone" ;; esac
    done
}
zone public 1500 198.51.100.1/24 2001:db8:c::1/64
zone dns    1500 203.0.113.1/24 2001:db8:53::1/64
zone lb     1600 192.0.2.1/24 10.0.0.1/24 2001:db8:d::1/64
zone web    1600 10.0.1.1/24 2001:db8:1::1/64
zone app    1600 10.0.2.1/24 2001:db8:2::1/64
zone db     1600 10.0.3.1/24 2001:db8:3::1/64
zone mon    1500 10.0.4.1/24 2001:db8:4::1/64
sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
# Packets for the virtual addresses come in from the zone "lb" and again, answered, from the zone of the servers.
sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lb.send_redirects=0
# What stays within a zone is its switch's matter, not the router's firewall's.
for key in bridge-nf-call-iptables bridge-nf-call-ip6tables bridge-nf-call-arptables; do
    if [ -e /proc/sys/net/bridge/$key ]; then sysctl -q -w net.bridge.$key=0; fi
done
# The rest of the internet is somewhere else.
ip route add blackhole default
ip -6 route add blackhole default
