# etcd as Debian packages it: one node, for trying things. A cluster that matters has three.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends etcd-server etcd-client \
 && rm -rf /var/lib/apt/lists/*
ENV ETCDCTL_API=3
VOLUME /var/lib/etcd
EXPOSE 2379
USER etcd
ENTRYPOINT ["etcd", "--data-dir=/var/lib/etcd", "--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://etcd:2379"]
