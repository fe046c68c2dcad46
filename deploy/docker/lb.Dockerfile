# The balancer. From the repository's root: docker build -f deploy/docker/lb.Dockerfile -t stoker-lb .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p stoker-lb --bin stoker-lb --features tls

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home stoker
COPY --from=build /src/target/release/stoker-lb /usr/local/bin/stoker-lb
USER stoker
# In a container loopback reaches nobody: what may come in is decided by who publishes the ports.
ENV STOKER_LISTEN=0.0.0.0:7070 STOKER_HTTP_LISTEN=0.0.0.0:7080 STOKER_ADMIN_LISTEN=0.0.0.0:7090
EXPOSE 7070 7080 7090
STOPSIGNAL SIGTERM
ENTRYPOINT ["stoker-lb"]
