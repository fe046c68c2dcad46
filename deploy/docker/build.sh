#!/bin/sh
# Builds a program for the processor that BuildKit names in TARGETARCH, on the one in BUILDARCH: by a compiler for that one, since an emulated one takes hours.
# Without them it is for this machine.
#   build.sh PROGRAM DIRECTORY
set -eu
program=$1
directory=$2
mkdir -p "$directory"
if [ "${TARGETARCH:-}" = "${BUILDARCH:-}" ]; then
  cargo build --profile dist --locked -p "$program" --bin "$program"
  cp "target/dist/$program" "$directory/"
  exit
fi
case $TARGETARCH in
  amd64)
    target=x86_64-unknown-linux-gnu
    compiler=x86_64-linux-gnu-gcc
    packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross"
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=$compiler
    ;;
  arm64)
    target=aarch64-unknown-linux-gnu
    compiler=aarch64-linux-gnu-gcc
    packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$compiler
    ;;
  *)
    echo "there are images for amd64 and arm64, and none for $TARGETARCH" >&2
    exit 1
    ;;
esac
if ! command -v "$compiler" >/dev/null; then
  apt-get update
  # shellcheck disable=SC2086
  apt-get install -y --no-install-recommends $packages
fi
if command -v rustup >/dev/null; then
  rustup target add "$target"
fi
cargo build --profile dist --locked --target "$target" -p "$program" --bin "$program"
cp "target/$target/dist/$program" "$directory/"
