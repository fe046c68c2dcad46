# The balancer. From the repository's root: docker build -f deploy/docker/lb.Dockerfile -t stoker-lb .
# For other processors: publish.sh, or docker buildx build --platform linux/amd64,linux/arm64 …
# Another image with Rust can stand here, such as a mirror's.
ARG BUILD_IMAGE=rust:1.95-bookworm
# Where it is built and what for, as BuildKit says.
FROM --platform=${BUILDPLATFORM:-linux/amd64} ${BUILD_IMAGE} AS build
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
COPY . .
RUN deploy/docker/build.sh stoker-lb /built
RUN deploy/docker/root.sh /built/stoker-lb /image

# No shell, no package manager, no user but a number.
FROM scratch
COPY --from=build /image /
USER 10001:10001
# In a container loopback reaches nobody: what may come in is decided by who publishes the ports.
ENV STOKER_LISTEN=0.0.0.0:7070 STOKER_HTTP_LISTEN=0.0.0.0:7080 STOKER_ADMIN_LISTEN=0.0.0.0:7090
EXPOSE 7070 7080 7090
STOPSIGNAL SIGTERM
ENTRYPOINT ["stoker-lb"]
