# Built in two stages: the first has pip and the build backend, the second only what runs.
# The name of the base is written twice on purpose: an ARG in FROM would hide it from tools that look for updates.
FROM python:3.13-slim-trixie AS build

# `make release` sets it to the commit's date. Python then writes bytecode that is checked by a hash: the date of each
# source becomes the commit's, and bytecode that is checked by the date would be stale.
ARG SOURCE_DATE_EPOCH

WORKDIR /src
# Wheels only: nothing is compiled here, so no compiler is needed. Bytecode is written now, because the root
# file system of the running container is read-only.
COPY requirements.txt requirements-build.txt ./
RUN python3 -m venv /opt/venv --without-pip \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r requirements.txt \
    && python3 -m venv /opt/build --without-pip \
    && python3 -m pip --python /opt/build/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r requirements-build.txt

COPY pyproject.toml README.md LICENSE ./
COPY app ./app
# --no-deps: the lock has them all. No index is asked.
RUN python3 -m pip --python /opt/build/bin/python wheel --no-cache-dir --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /dist/*.whl


FROM python:3.13-slim-trixie

# The base image's own pip, and what could bring it back: a container that serves needs no installer.
RUN rm -rf /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/site-packages/pip* /usr/local/bin/pip*

COPY --from=build /opt/venv /opt/venv

# GATEWAY_HOST: a container that listens on loopback cannot be reached. With it, `serve` refuses to start until
# GATEWAY_ALLOW_PREFIXES says which prefixes may be read ('' is all): wanted, so that nobody publishes an etcd by accident.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0

# A number, so that Kubernetes can check runAsNonRoot; 65532 is the "nonroot" of distroless images.
USER 65532:65532
WORKDIR /
EXPOSE 8080
# serve drains on TERM; exec form, so that it is pid 1 and gets it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["etcd-watch-gateway"]
CMD ["serve"]
