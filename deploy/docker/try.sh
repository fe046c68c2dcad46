#!/usr/bin/env bash
# Tries the images and the compose file for real, without a registry of images: deploy/docker/try.sh PROGRAMS [DIRECTORY]
#
#   cargo build --profile dist --workspace --bins
#   deploy/docker/try.sh target/dist
#
# As root, with docker.io, docker-compose, debootstrap, etcd-server, prometheus, iproute2, iptables and curl from Debian. It has a Docker daemon and a network of its
# own, in DIRECTORY (a new one in /tmp), and leaves nothing behind. What it does:
#
# - The base image is made by debootstrap; the image that programs are built in has a `cargo` that hands out PROGRAMS instead of building them. All other
#   instructions of the Dockerfiles run as they stand.
# - `docker-compose` 1.29 of Debian does not know `name` and `cgroup` in a compose file: it gets a copy without them. Tempo, Loki and Grafana cannot be had without a
#   registry and are not started.
# - Two balancers and three runners serve calls by every port that is published; a runner is drained, one is stopped, a balancer is stopped; then everything is.
# - The balancer runs with a read-only root, without any capability, as nobody.
# - A runner runs with the capabilities that deploy/README.md lists, and with each of those that a call needs taken away in turn.
set -euo pipefail

if [ $# -lt 1 ]; then
  sed -n 's/^# \{0,1\}//; 2,5p' "$0" >&2
  exit 2
fi
if [ -z "${STOKER_TRY_APART:-}" ]; then
  directory=${2:-$(mktemp -d /tmp/stoker-try-XXXXXX)}
  mkdir -p "$directory"
  # What stands for debian:bookworm-slim. STOKER_TRY_BASE is one that was made before.
  if [ ! -f "${STOKER_TRY_BASE:-}" ]; then
    export STOKER_TRY_BASE=$directory/base.tar
    echo "making a base image"
    debootstrap --variant=minbase --include=python3,ca-certificates,etcd-server,etcd-client bookworm "$directory/base" >"$directory/debootstrap.log" 2>&1 ||
      { tail -n 5 "$directory/debootstrap.log"; exit 1; }
    # Installing again what is there needs no archive.
    : >"$directory/base/etc/apt/sources.list"
    rm -rf "$directory"/base/var/cache/apt/archives/*.deb "$directory"/base/etc/apt/sources.list.d/*
    tar -C "$directory/base" -cf "$STOKER_TRY_BASE" .
    rm -rf "$directory/base"
  fi
  # A network and mounts of its own, and an end for everything in it.
  STOKER_TRY_APART=1 exec unshare --net --mount --pid --fork --mount-proc --kill-child "$0" "$(realpath "$1")" "$directory"
fi

programs=$1 directory=$2
repository=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$directory"
cd "$directory"
export DOCKER_HOST=unix://$directory/socket DOCKER_BUILDKIT=0 COMPOSE_PROJECT_NAME=stoker HOME=$directory
passed=0 failed=0
needed=$(sed -n '/^### What a runner may/,/^## /p' "$repository/deploy/README.md" | grep '^| `' | cut -d'|' -f2 | tr -d '` ' | tr ',\n' '  ')
# Whether there are all capabilities, which is what privileged means. Where one is missing, runners have those that are documented.
privileged=yes cgroups=private
if [ "$(awk '/^CapBnd/ { print $2 }' /proc/self/status)" != "$(printf %016x $((2 ** ($(cat /proc/sys/kernel/cap_last_cap) + 1) - 1)))" ]; then
  privileged=no cgroups=host
fi
step() { printf '\n== %s\n' "$*"; }
good() { passed=$((passed + 1)); echo "ok: $*"; }
bad() { failed=$((failed + 1)); echo "FAILED: $*"; }
# A check, with what it said where it fails.
holds() {
  local what=$1
  shift
  if "$@" >"$directory/said" 2>&1; then good "$what"; else bad "$what"; tail -n 20 "$directory/said"; fi
}
says() {
  local what=$1 text=$2
  shift 2
  # An error may be what is expected.
  "$@" >"$directory/said" 2>&1 || true
  if grep -qF -- "$text" "$directory/said"; then good "$what"; else bad "$what: no '$text' in:"; tail -n 20 "$directory/said"; fi
}

end() {
  local status=$?
  trap - EXIT
  docker ps -aq 2>/dev/null | xargs -r docker rm -f >/dev/null 2>&1 || true
  if [ -n "${daemon:-}" ]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  cd /
  awk -v d="$directory" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r umount -l
  find /sys/fs/cgroup -depth -type d -path "*/stoker-try-$$/*" -exec rmdir {} + 2>/dev/null || true
  find /sys/fs/cgroup -depth -maxdepth 2 -type d -name "stoker-try-$$" -exec rmdir {} + 2>/dev/null || true
  rm -rf "$directory"
  printf '\n%s passed, %s failed\n' "$passed" "$failed"
  if [ "$status" = 0 ] && [ "$failed" = 0 ]; then exit 0; fi
  exit 1
}
trap end EXIT

step "a Docker daemon of its own"
ip link set lo up
mkfifo log.pipe
echo '{}' >config.json
dockerd --config-file="$directory/config.json" --data-root="$directory/data" --exec-root="$directory/exec" --pidfile="$directory/pid" \
  --host="$DOCKER_HOST" --cgroup-parent="/stoker-try-$$" --default-cgroupns-mode="$cgroups" >log.pipe 2>&1 &
daemon=$!
# It says when it listens.
exec {log}<log.pipe
while IFS= read -r line <&"$log"; do
  echo "$line" >>daemon.log
  case "$line" in *"API listen on"*) break ;; esac
done
cat <&"$log" >>daemon.log &
docker version --format 'server {{.Server.Version}}, client {{.Client.Version}}'

step "base images"
docker import "$STOKER_TRY_BASE" try-debian >/dev/null
mkdir build
cp "$programs/stoker-lb" "$programs/stoker-runner" build/
cat >build/cargo <<'CARGO'
#!/bin/sh
# Hands out what was built elsewhere.
mkdir -p target/dist
while [ "$1" != --bin ]; do shift; done
cp "/built/$2" target/dist/
CARGO
chmod +x build/cargo
printf 'FROM try-debian\nCOPY . /built/\nRUN mv /built/cargo /usr/local/bin/\n' >build/Dockerfile
docker build -q -t try-build build >/dev/null
# Prometheus as Debian builds it, in the place of its own image.
mkdir prometheus
"$repository/deploy/docker/root.sh" /usr/bin/prometheus prometheus/root >/dev/null
mkdir -m 1777 prometheus/root/tmp
printf 'FROM scratch\nCOPY root /\nENTRYPOINT ["prometheus"]\n' >prometheus/Dockerfile
docker build -q -t prom/prometheus:v2.55.1 prometheus >/dev/null
good "debian, build and prometheus"

step "the images of deploy/docker"
arguments=(--build-arg BUILD_IMAGE=try-build --build-arg BASE_IMAGE=try-debian)
for image in lb runner; do
  holds "docker build of stoker-$image" docker build -f "$repository/deploy/docker/$image.Dockerfile" -t "stoker-$image" "${arguments[@]}" "$repository"
done
holds "docker build of etcd" docker build -f "$repository/deploy/docker/etcd.Dockerfile" -t stoker_etcd --build-arg BASE_IMAGE=try-debian "$repository"
docker images --format 'stoker images: {{.Repository}} {{.Size}}' | grep 'stoker' | sort -u
[ "$failed" = 0 ]

step "compose: etcd, two balancers, three runners, Prometheus"
mkdir -p copy/deploy copy/examples
cp -r "$repository/deploy/compose" copy/deploy/
cp -r "$repository/examples" copy/
# Images are there: nothing is built again.
sed -i '/^name:/d; /^  cgroup:/d; /^  build: /,/^    dockerfile/d; s|^    build: {context.*etcd.*|    image: stoker_etcd|' copy/deploy/compose/compose.yaml
if [ "$privileged" = no ]; then
  echo "this machine has not all capabilities to give: runners have those of deploy/README.md in the place of privileged"
  sed -i "s|^  privileged: true|  cap_drop: [ALL]\n  cap_add: [$(echo $needed | tr ' ' ,)]\n  security_opt: [seccomp=unconfined, apparmor=unconfined]|; s|^    - ../../examples:/examples:ro|&\n    - /sys/fs/cgroup:/sys/fs/cgroup:rw|" copy/deploy/compose/compose.yaml
fi
compose() { docker-compose -f "$directory/copy/deploy/compose/compose.yaml" "$@"; }
holds "docker-compose up" compose up -d --no-build etcd balancer-1 balancer-2 runner-1 runner-2 runner-3 prometheus
[ "$failed" = 0 ]
stoker() { "$programs/stoker" "$@"; }
export STOKER_SERVER=http://127.0.0.1:7070
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }
ready() { curl -fsS --retry "${2:-30}" --retry-delay 1 --retry-all-errors "http://$(address "$1"):${3:-7090}/readyz"; }
for n in 1 2; do holds "/readyz of balancer $n" ready "stoker_balancer-${n}_1"; done
for n in 1 2 3; do holds "/readyz of runner $n" ready "stoker_runner-${n}_1" 30 7190; done
sed 's/^app: demo/app: try/' "$repository/examples/functions.yaml" >copy/examples/try.yaml
# Runners see the examples at /examples.
sed "s|workdir: |workdir: /examples/|" copy/examples/try.yaml >try.yaml
holds "functions are applied" stoker apply -f try.yaml
says "a call by the first balancer" "Hello, Ada" stoker call try/hello --data Ada
says "a call by the second" "Hello, Ada" stoker --server http://127.0.0.1:7071 call try/hello --data Ada
says "HTTP by the first" "Ada" curl -sS -d Ada http://127.0.0.1:7080/invoke/try/hello
says "HTTP by the second" "Ada" curl -sS -d Ada http://127.0.0.1:7081/invoke/try/hello
says "a hot function in Python" "hello" stoker call try/echo-python --data hello
says "three runners" "runner-3" stoker runners
stoker runners || true
says "the sandbox is native" native docker logs stoker_runner-1_1
says "Prometheus has read both kinds of servers" '"5"' curl -sS --retry 20 --retry-delay 2 --retry-all-errors \
  "http://$(address stoker_prometheus_1):9090/api/v1/query" --data-urlencode 'query=sum(up{job=~"stoker-.*"})'

step "draining, stopping"
holds "a runner is drained" stoker drain runner-1
stoker bench try/echo-python -c 4 -d 8 >bench.out 2>&1 & load=$!
holds "a runner is stopped under load" compose stop runner-2
says "and has ended well" 0 docker inspect -f '{{.State.ExitCode}}' stoker_runner-2_1
holds "it is started again" compose start runner-2
holds "a drained runner is uncordoned" stoker uncordon runner-1
wait "$load" || true
holds "no call has failed" grep -F ", 0 failed" bench.out
cat bench.out
holds "a balancer is stopped" compose stop balancer-1
says "and has ended well" 0 docker inspect -f '{{.State.ExitCode}}' stoker_balancer-1_1
says "the other one serves" "Hello, Ada" stoker --server http://127.0.0.1:7071 call try/hello --data Ada
holds "everything is stopped" compose stop balancer-2 runner-1 runner-2 runner-3
for server in balancer-2 runner-1 runner-2 runner-3; do
  says "$server has ended well" "0 false" docker inspect -f '{{.State.ExitCode}} {{.State.OOMKilled}}' "stoker_${server}_1"
done
compose rm -f balancer-1 balancer-2 runner-1 runner-2 runner-3 >/dev/null 2>&1

step "the balancer, with nothing that it does not need"
network=stoker_default
locked=(--network "$network" -e STOKER_ETCD=http://etcd:2379 -e STOKER_INSECURE=true)
docker run -d --name bare-lb "${locked[@]}" --read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 64 --memory 128m stoker-lb >/dev/null
ip=$(address bare-lb)
holds "read-only, no capability, nobody: ready" ready bare-lb
says "its user is nobody's" 10001:10001 docker inspect -f '{{.Config.User}}' bare-lb
says "it can do nothing" "CapEff:	0000000000000000" cat "/proc/$(docker inspect -f '{{.State.Pid}}' bare-lb)/status"

step "a runner with the capabilities that are documented, and no others"
echo "documented: $needed"
# The same calls by a runner that has only these.
runs_with() {
  local capability
  local flags=(--cap-drop ALL)
  for capability in $1; do flags+=(--cap-add "$capability"); done
  docker rm -f bare-runner >/dev/null 2>&1 || true
  # What a capability is not enough for: a container's own filter. Cgroups are the machine's.
  docker run -d --name bare-runner "${locked[@]}" -e STOKER_NAME=bare -e STOKER_ADVERTISE=http://bare-runner:7170 -e STOKER_SANDBOX=native -e STOKER_MEMORY=1GiB -e STOKER_CPU=1 \
    "${flags[@]}" --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
    --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw -v "$repository/examples:/examples:ro" stoker-runner >/dev/null
  ready bare-runner 8 7190 >"$directory/called" 2>&1 || return 1
  stoker --server "http://$ip:7070" call try/hello --data Ada --timeout 15s >"$directory/called" 2>&1 &&
    stoker --server "http://$ip:7070" call try/echo-python --data hello --timeout 15s >>"$directory/called" 2>&1
}
if runs_with "$needed"; then good "calls are answered"; else bad "calls are answered"; cat called; docker logs bare-runner 2>&1 | tail -n 10; fi
for without in SYS_ADMIN SETUID SETGID CHOWN MKNOD NET_ADMIN; do
  # shellcheck disable=SC2001
  if runs_with "$(echo " $needed " | sed "s/ $without / /")"; then
    bad "without $without calls fail"
  else
    why=$(docker logs bare-runner 2>&1 | grep -iE 'error|cannot|did not start|permission|not permitted' | tail -n 1 | cut -c1-300 || true)
    if [ -n "$why" ]; then good "without $without: $why"; else bad "without $without it fails, and does not say why"; docker logs bare-runner 2>&1 | tail -n 5; fi
  fi
done
