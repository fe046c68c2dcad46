# The runner. From the repository's root: docker build -f deploy/docker/runner.Dockerfile -t stoker-runner .
#
# For other processors: publish.sh, or docker buildx build --platform linux/amd64,linux/arm64 …; what is installed below runs as that
# processor does then, which takes an emulator.
# Functions without a root directory of their own see this image's files, so what they need (Python, Node, …) is installed here.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim
# Where it is built and what for, as BuildKit says.
FROM --platform=${BUILDPLATFORM:-linux/amd64} ${BUILD_IMAGE} AS build
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
COPY . .
RUN deploy/docker/build.sh stoker-runner /built

FROM ${BASE_IMAGE}
ARG FUNCTION_PACKAGES="python3"
RUN apt-get update \
 && apt-get install -y --no-install-recommends ${FUNCTION_PACKAGES} \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /built/stoker-runner /usr/local/bin/stoker-runner
# It makes sandboxes, so it is root here; functions are not: each runs as a user of its own without any capability.
ENV STOKER_LISTEN=0.0.0.0:7170 STOKER_ADMIN_LISTEN=0.0.0.0:7190 STOKER_STATE=/var/lib/stoker
VOLUME /var/lib/stoker
EXPOSE 7170 7190
STOPSIGNAL SIGTERM
ENTRYPOINT ["stoker-runner"]
