#!/bin/sh
# Makes a Debian package of programs that are built: deploy/debian/build.sh PROGRAMS DIRECTORY [VERSION]
#
#   cargo build --profile dist --workspace --bins
#   deploy/debian/build.sh target/dist .
#   apt-get install ./stoker_*.deb
#
# It needs dpkg-deb and nothing else. Its path is the last line that it writes. The same programs and version give the same package, byte by
# byte, where SOURCE_DATE_EPOCH is set.
set -eu
if [ $# -lt 2 ]; then
  sed -n 's/^# \{0,1\}//; 2p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
deploy=$(dirname "$here")
programs=$(cd "$1" && pwd)
mkdir -p "$2"
into=$(cd "$2" && pwd)
version=${3:-$("$programs/stoker" --version | cut -d' ' -f2)}
case "$version" in
  [0-9]*) ;;
  *) echo "a version begins with a number: $version" >&2; exit 2 ;;
esac
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

for program in stoker stoker-lb stoker-runner; do
  install -D -m 755 "$programs/$program" "$root/usr/bin/$program"
done
for name in lb runner; do
  install -D -m 644 "$deploy/systemd/$name.yaml" "$root/etc/stoker/$name.yaml"
  unit=$root/lib/systemd/system/stoker-$name.service
  mkdir -p "$(dirname "$unit")"
  sed 's|/usr/local/bin/|/usr/bin/|' "$deploy/systemd/stoker-$name.service" >"$unit"
  chmod 644 "$unit"
done
for shell in bash zsh fish; do
  case $shell in
    bash) file=usr/share/bash-completion/completions/stoker ;;
    zsh) file=usr/share/zsh/vendor-completions/_stoker ;;
    fish) file=usr/share/fish/vendor_completions.d/stoker.fish ;;
  esac
  mkdir -p "$root/$(dirname "$file")"
  "$programs/stoker" completions $shell >"$root/$file"
  chmod 644 "$root/$file"
done
install -D -m 644 "$deploy/../LICENSE" "$root/usr/share/doc/stoker/copyright"
install -D -m 644 "$deploy/../CHANGELOG.md" "$root/usr/share/doc/stoker/CHANGELOG.md"
install -m 644 "$deploy/../README.md" "$root/usr/share/doc/stoker/README.md"
cp -R "$deploy/../examples" "$deploy/../docs" "$root/usr/share/doc/stoker/"
chmod -R u=rwX,go=rX "$root/usr/share/doc/stoker"

# The C library that the programs ask for at least.
needed=$(grep -aho 'GLIBC_2\.[0-9]*' "$programs/stoker" "$programs/stoker-lb" "$programs/stoker-runner" | sort -u -t. -k2n | tail -n 1)
# Counted before the package's own files are there: they are not installed.
size=$(du -sk --apparent-size "$root" | cut -f1)
mkdir "$root/DEBIAN"
for script in postinst prerm postrm; do
  install -m 755 "$here/$script" "$root/DEBIAN/$script"
done
(cd "$root" && find etc -type f | sort | sed 's|^|/|') >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<END
Package: stoker
Version: $version
Architecture: $architecture
Maintainer: The Stoker authors <stoker@localhost>
Installed-Size: $size
Depends: libc6 (>= ${needed#GLIBC_}), libgcc-s1, ca-certificates, passwd
Suggests: etcd-server, crun, docker.io
Section: admin
Priority: optional
Homepage: https://github.com/stoker-project/stoker
Description: serverless functions, kept hot
 A stateless load balancer, runners that own hot, sandboxed containers, and the
 command that runs a whole fleet on one machine or speaks to any other.
 .
 The two services are installed and not started: /etc/stoker/lb.yaml and
 /etc/stoker/runner.yaml have to say first where etcd is.
END
chmod 644 "$root/DEBIAN/control" "$root/DEBIAN/conffiles"
find "$root" -type d -exec chmod 755 {} +
package=$into/stoker_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
