#!/bin/sh -e
# web2: web server
# foobar-network.service runs it at boot; running it again does no harm.
ip address replace 10.0.1.12/24 dev eth0
ip address replace 2001:db8:1::12/64 dev eth0 nodad
ip link set eth0 up mtu 1600    # room for the header that the balancers put in front (28 bytes)
ip route replace default via 10.0.1.1 mtu 1500
ip route replace default via 2001:db8:1::1 dev eth0 mtu 1500

# The public addresses are on the loopback, where nobody else sees them: packets for them arrive from the balancers
# in a GUE tunnel, answers go straight to the client.
for vip in 192.0.2.10/32 192.0.2.20/32 2001:db8:d::10/128 2001:db8:d::20/128; do
    ip address replace $vip dev lo
done
sysctl -q -p /etc/sysctl.d/60-foobar.conf    # at boot it may have been read before eth0 was there
# Takes the tunnel's header off, of packets of the two balancers only.
lbctl decap attach eth0 --from 10.0.0.2 10.0.0.3
