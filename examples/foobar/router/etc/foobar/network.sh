#!/bin/sh -e
# router: joins the zones, each of which is a network of its own: a card that etc/systemd/network names, or a VLAN (here,
# before the zones: ip link add link eth0 name web type vlan id 11). In the scenario it is a bridge, the zone's switch.
# foobar-network.service runs it at boot; running it again does no harm.

# SET THIS: your provider's router on the network "public". Without it nobody gets an answer but this network itself, which
# is all the internet that the scenario has.
uplink=         # 198.51.100.254
uplink6=        # 2001:db8:c::fe

zone() { # NAME MTU ADDRESS...
    zone=$1
    ip link set "$zone" up mtu "$2"
    shift 2
    for address in "$@"; do
        case $address in *:*) nodad=nodad ;; *) nodad= ;; esac
        ip address replace "$address" dev "$zone" $nodad
    done
}
zone public 1500 198.51.100.1/24 2001:db8:c::1/64
zone dns    1500 203.0.113.1/24 2001:db8:53::1/64
zone lb     1600 192.0.2.1/24 10.0.0.1/24 2001:db8:d::1/64
zone web    1600 10.0.1.1/24 2001:db8:1::1/64
zone app    1600 10.0.2.1/24 2001:db8:2::1/64
zone db     1600 10.0.3.1/24 2001:db8:3::1/64
zone mon    1500 10.0.4.1/24 2001:db8:4::1/64
sysctl -q -p /etc/sysctl.d/60-foobar.conf    # at boot it may have been read before the cards were there
# What stays within a zone is its switch's matter, not the router's firewall's.
for key in bridge-nf-call-iptables bridge-nf-call-ip6tables bridge-nf-call-arptables; do
    if [ -e /proc/sys/net/bridge/$key ]; then sysctl -q -w net.bridge.$key=0; fi
done
if [ -n "$uplink" ]; then ip route replace default via "$uplink"; else ip route replace blackhole default; fi
if [ -n "$uplink6" ]; then ip -6 route replace default via "$uplink6" dev public; else ip -6 route replace blackhole default; fi
