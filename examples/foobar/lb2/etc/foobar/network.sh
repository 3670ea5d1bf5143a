#!/bin/sh -e
# lb2: load balancer
# foobar-network.service runs it at boot; running it again does no harm.
ip address replace 192.0.2.3/24 dev eth0
ip address replace 2001:db8:d::3/64 dev eth0 nodad
# The same card in the network behind: health checks and tunnels come from here.
ip address replace 10.0.0.3/24 dev eth0
ip link set eth0 up mtu 1600    # room for the header that the balancers put in front (28 bytes)
ip route replace default via 192.0.2.1
ip route replace default via 2001:db8:d::1 dev eth0
ip route replace 10.0.0.0/16 via 10.0.0.1
ip route replace 2001:db8::/32 via 2001:db8:d::1 dev eth0
sysctl -q -p /etc/sysctl.d/60-foobar.conf    # at boot it may have been read before eth0 was there
