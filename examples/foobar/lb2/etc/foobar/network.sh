#!/bin/sh -e
# lb2: load balancer
# On Debian the same belongs into /etc/network/interfaces; here it is a script, to be run once at boot.
ip address add 192.0.2.3/24 dev eth0
ip address add 2001:db8:d::3/64 dev eth0 nodad
# The same card in the network behind: health checks and tunnels come from here.
ip address add 10.0.0.3/24 dev eth0
ip link set eth0 up mtu 1600    # room for the header that the balancers put in front (28 bytes)
ip route add default via 192.0.2.1
ip route add default via 2001:db8:d::1 dev eth0
ip route add 10.0.0.0/16 via 10.0.0.1
ip route add 2001:db8::/32 via 2001:db8:d::1 dev eth0
