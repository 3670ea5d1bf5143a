#!/bin/sh -e
# An empty database directory, as the package makes one; root may log in from this host.
mariadb-install-db --user=mysql --datadir=/var/lib/mysql --skip-test-db --auth-root-authentication-method=socket
