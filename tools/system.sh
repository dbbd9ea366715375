#!/bin/sh
# What the tests need from the system. As root on Debian it is installed; elsewhere nothing is changed: what is missing
# is written to .cache/not-run, and `make test` ends with it.
set -eu

# package:command, or a file of it
DEBIAN_PACKAGES="chromium:chromium curl:curl faketime:faketime iproute2:ss iptables:iptables jq:jq openssl:openssl prometheus:promtool"
# The load generator of the benchmarks, and two of the peers that they measure; nginx is also what tests put in front.
DEBIAN_PACKAGES="$DEBIAN_PACKAGES gcc:cc libc6-dev:/usr/include/stdlib.h"
DEBIAN_PACKAGES="$DEBIAN_PACKAGES nginx:nginx libnginx-mod-nchan:/usr/lib/nginx/modules/ngx_nchan_module.so"
DEBIAN_PACKAGES="$DEBIAN_PACKAGES pushpin:pushpin zurl:zurl"
# The image is built and run without a container engine.
DEBIAN_PACKAGES="$DEBIAN_PACKAGES buildah:buildah debootstrap:debootstrap runc:runc"

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
        # The tests run their own: without this, systemd would start one on a port of every address.
        nginx | prometheus | pushpin | zurl)
            [ ! -d /run/systemd/system ] || systemctl --quiet mask "$package.service"
            ;;
        esac
    done
    apt-get update -qq
    # shellcheck disable=SC2086  # a list
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    for package in $missing; do
        echo "NOT RUN: what needs $package, which is not installed" | tee -a .cache/not-run
    done
fi
