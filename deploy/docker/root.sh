#!/bin/sh
# Makes the root directory of an image: one program, the libraries that it is linked with, the authorities that the system trusts, and no more.
#   root.sh PROGRAM DIRECTORY
set -eu
program=$1
root=$2
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs"
cp "$program" "$root/usr/local/bin/"
ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# The C library finds hosts by files and by DNS without any other library.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
