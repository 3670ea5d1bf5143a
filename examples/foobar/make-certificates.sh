#!/bin/sh -e
# A certificate authority of your own (ten years), and the certificate of www.foobar.com (397 days): make-certificates.sh DIRECTORY
# Called again it keeps the authority and makes another certificate: so one renews it. ca.key stays where nobody gets at it.
# For the real site take one that browsers know (Let's Encrypt); the web servers alone have the key.
[ $# = 1 ] || { echo "usage: make-certificates.sh DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
cd "$1"
umask 077
[ -e ca.key ] && [ -e ca.pem ] ||
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=foobar test authority" \
        -keyout ca.key -out ca.pem 2>/dev/null
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=www.foobar.com" \
    -keyout www.foobar.com.key -out www.foobar.com.csr 2>/dev/null
printf 'subjectAltName = DNS:www.foobar.com\nextendedKeyUsage = serverAuth\n' > extensions
openssl x509 -req -in www.foobar.com.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 397 -extfile extensions \
    -out www.foobar.com.pem 2>/dev/null
rm -f www.foobar.com.csr extensions
chmod 644 ca.pem www.foobar.com.pem
