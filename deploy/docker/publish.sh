#!/bin/sh
# Builds images for amd64 and arm64, pushes each, and pushes an index of both: whoever pulls REGISTRY/stoker-lb:TAG is given the one for its processor.
#   publish.sh REGISTRY TAG IMAGE... [-- OPTION...]
# IMAGE is lb or runner; what follows -- goes to `docker build`. Such as
#   deploy/docker/publish.sh registry.example/team 1.0 lb runner
# What is not for this machine's processor is compiled here by a compiler for the other one (build.sh). Installing packages into the runner's image runs as
# that processor does, which takes an emulator that the kernel knows (Debian: qemu-user-static, binfmt-support).
set -eu
if [ $# -lt 3 ]; then
  sed -n 's/^# \{0,1\}//; 2,5p' "$0" >&2
  exit 2
fi
registry=$1
tag=$2
shift 2
images=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  if [ ! -f "$(dirname "$0")/$1.Dockerfile" ]; then
    echo "there is no image \`$1\`: lb and runner are ours" >&2
    exit 2
  fi
  images="$images $1"
  shift
done
if [ $# -gt 0 ]; then
  shift
fi
# The builder of before knows no other processor's images.
export DOCKER_BUILDKIT=1
# Registries on this machine speak without TLS, as docker itself has it.
insecure=
case $registry in localhost[:/]* | 127.*) insecure=--insecure ;; esac
cd "$(dirname "$0")/../.."
for image in $images; do
  name=$registry/stoker-$image
  members=
  for architecture in amd64 arm64; do
    docker build --platform "linux/$architecture" -f "deploy/docker/$image.Dockerfile" -t "$name:$tag-$architecture" "$@" .
    docker push "$name:$tag-$architecture"
    members="$members $name:$tag-$architecture"
  done
  # An index of before may be known here by the same name.
  docker manifest rm "$name:$tag" >/dev/null 2>&1 || true
  # shellcheck disable=SC2086
  docker manifest create $insecure "$name:$tag" $members
  for architecture in amd64 arm64; do
    docker manifest annotate --os linux --arch "$architecture" "$name:$tag" "$name:$tag-$architecture"
  done
  docker manifest push $insecure "$name:$tag"
done
