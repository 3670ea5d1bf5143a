#!/bin/sh -e
# client: somebody on the internet
ip address replace 198.51.100.10/24 dev eth0
ip address replace 2001:db8:c::10/64 dev eth0 nodad
ip link set eth0 up
ip route replace default via 198.51.100.1
ip route replace default via 2001:db8:c::1 dev eth0
