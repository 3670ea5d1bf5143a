#!/bin/sh -e
# dns: the name server of foobar.com
# foobar-network.service runs it at boot; running it again does no harm.
ip address replace 203.0.113.53/24 dev eth0
ip address replace 2001:db8:53::53/64 dev eth0 nodad
ip link set eth0 up
ip route replace default via 203.0.113.1
ip route replace default via 2001:db8:53::1 dev eth0
sysctl -q -p /etc/sysctl.d/60-foobar.conf    # at boot it may have been read before eth0 was there
