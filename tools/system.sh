#!/bin/sh
# Installs the system packages that the tests need, as root on Debian; with the argument `matrix`, also those of
# `make matrix` alone. Elsewhere it changes nothing: it writes the missing packages to .cache/not-run, and `make test`
# prints them at its end.
set -eu

# package:command, or package:file
DEBIAN_PACKAGES="chromium:chromium curl:curl faketime:faketime firefox-esr:firefox-esr iproute2:ss iptables:iptables jq:jq openssl:openssl prometheus:promtool wget:wget"
# For the benchmarks: a compiler for the load generator, and two of the peers. Some tests also put nginx in front of the
# gateway.
DEBIAN_PACKAGES="$DEBIAN_PACKAGES gcc:cc libc6-dev:/usr/include/stdlib.h"
DEBIAN_PACKAGES="$DEBIAN_PACKAGES nginx:nginx libnginx-mod-nchan:/usr/lib/nginx/modules/ngx_nchan_module.so"
DEBIAN_PACKAGES="$DEBIAN_PACKAGES pushpin:pushpin zurl:zurl"
# These build and run the image without a container engine.
DEBIAN_PACKAGES="$DEBIAN_PACKAGES buildah:buildah mmdebstrap:mmdebstrap runc:runc"

# The JavaScript client's tests run in Node.
DEBIAN_PACKAGES="$DEBIAN_PACKAGES nodejs:node"

# The shells in which the completion of etcd-watch is tested; bash is always there.
DEBIAN_PACKAGES="$DEBIAN_PACKAGES fish:fish zsh:zsh"

# Proxies of docs/how-to/proxies.md (the others come from PyPI), and the program in Java of docs/clients.md.
[ "${1:-}" != matrix ] ||
    DEBIAN_PACKAGES="$DEBIAN_PACKAGES apache2:apache2 haproxy:haproxy varnish:varnishd default-jdk-headless:javac"

mkdir -p .cache
: > .cache/not-run

missing=""
for pair in $DEBIAN_PACKAGES; do
    command -v "${pair#*:}" >/dev/null 2>&1 || [ -e "${pair#*:}" ] || missing="$missing ${pair%%:*}"
done
[ -n "$missing" ] || exit 0

if [ -f /etc/debian_version ] && [ "$(id -u)" = 0 ]; then
    echo "installing$missing"
    for package in $missing; do
        case "$package" in
        # The tests start these servers themselves. Without the mask, systemd would start them on all addresses.
        apache2 | haproxy | nginx | prometheus | pushpin | varnish | zurl)
            [ ! -d /run/systemd/system ] || systemctl --quiet mask "$package.service"
            ;;
        esac
    done
    apt-get update -qq
    # shellcheck disable=SC2086  # a list
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    for package in $missing; do
        echo "NOT RUN: the tests that need $package, which is not installed" | tee -a .cache/not-run
    done
fi
