#!/bin/sh
# Makes the root directory of an image: one program, the libraries that it is linked with, the authorities that the system trusts, and no more.
# TARGETARCH and BUILDARCH are as for build.sh.
#   root.sh PROGRAM DIRECTORY
set -eu
program=$1
root=$2
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs"
cp "$program" "$root/usr/local/bin/"
put() {
  mkdir -p "$root$(dirname "$2")"
  cp -L "$1" "$root$2"
}
if [ "${TARGETARCH:-}" = "${BUILDARCH:-}" ]; then
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
    put "$library" "$library"
  done
else
  # What runs elsewhere cannot be asked here. Its libraries are those of the compiler for it; it looks for them in /lib too.
  case $TARGETARCH in
    amd64) gnu=x86_64-linux-gnu ;;
    arm64) gnu=aarch64-linux-gnu ;;
    *) exit 1 ;;
  esac
  loader=$("$gnu-readelf" -l "$program" | sed -n 's/.*interpreter: \(.*\)]/\1/p')
  put "/usr/$gnu/lib/$(basename "$loader")" "$loader"
  with() {
    "$gnu-readelf" -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)]/\1/p' | while read -r name; do
      if [ "$name" != "$(basename "$loader")" ] && [ ! -e "$root/lib/$name" ]; then
        put "/usr/$gnu/lib/$name" "/lib/$name"
        with "/usr/$gnu/lib/$name"
      fi
    done
  }
  with "$program"
fi
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# The C library finds hosts by files and by DNS without any other library.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
