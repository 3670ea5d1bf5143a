#!/bin/sh -e
# db1: database server
# foobar-network.service runs it at boot; running it again does no harm.
ip address replace 10.0.3.11/24 dev eth0
ip address replace 2001:db8:3::11/64 dev eth0 nodad
ip link set eth0 up mtu 1600    # room for the header that the balancers put in front (28 bytes)
ip route replace default via 10.0.3.1 mtu 1500
ip route replace default via 2001:db8:3::1 dev eth0 mtu 1500

# The addresses of the database tier, for writing and for reading; see web1 for the reasons.
ip address replace 10.0.0.20/32 dev lo
ip address replace 10.0.0.30/32 dev lo
sysctl -q -p /etc/sysctl.d/60-foobar.conf    # at boot it may have been read before eth0 was there
lbctl decap attach eth0 --from 10.0.0.2 10.0.0.3
