# Two stages: the first has pip and the build backend, the second has only what the gateway needs at run time.
# This file names the base image twice on purpose: an ARG in FROM would hide the name from tools that look for updates.
# The tag moves with the updates of Debian and Python. So build with --pull, or with `make release`, which writes the
# base's digest into a label and can build on that digest again (docs/decisions/0034-base-image.md).
FROM python:3.13-slim-trixie AS build

# `make release` sets it to the commit's date. Python then writes hash-checked bytecode. Bytecode checked by date would
# be stale, because each source file gets the commit's date.
ARG SOURCE_DATE_EPOCH

WORKDIR /src
# Wheels only: the build compiles nothing and needs no compiler. pip writes the bytecode here, because the running
# container's root file system is read-only.
COPY requirements.txt requirements-build.txt ./
RUN python3 -m venv /opt/venv --without-pip \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r requirements.txt \
    && python3 -m venv /opt/build --without-pip \
    && python3 -m pip --python /opt/build/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r requirements-build.txt

COPY pyproject.toml README.md LICENSE ./
COPY app ./app
# --no-deps: the locked packages are already installed. --no-index: pip contacts no package index.
RUN python3 -m pip --python /opt/build/bin/python wheel --no-cache-dir --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /dist/*.whl


FROM python:3.13-slim-trixie

# Remove the base image's pip, and ensurepip, which could install pip again: the container needs no installer.
RUN rm -rf /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/site-packages/pip* /usr/local/bin/pip*

COPY --from=build /opt/venv /opt/venv

# GATEWAY_HOST: clients cannot reach a container that listens on loopback. With 0.0.0.0, `serve` refuses to start until
# GATEWAY_ALLOW_PREFIXES lists the prefixes that clients may read ('' allows every key). This is on purpose:
# nobody should publish an etcd by accident.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0

# A number, because Kubernetes can check runAsNonRoot only for a number. 65532 is "nonroot" in distroless images.
USER 65532:65532
WORKDIR /
EXPOSE 8080
# `serve` drains on SIGTERM. The exec form of ENTRYPOINT makes it pid 1, so that it receives the signal.
STOPSIGNAL SIGTERM
ENTRYPOINT ["etcd-watch-gateway"]
CMD ["serve"]
