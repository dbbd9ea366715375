#!/bin/sh
# Makes the venv $1 anew with everything in the locks: usage: tools/venv.sh .venv
set -eu
venv=$1
python=$(sh "$(dirname "$0")/python.sh")

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --require-hashes "$@"
}

echo "making $venv with $python"
rm -rf "$venv"
"$python" -m venv "$venv"
# The build backends first: what comes only as source (etcd3) is then built with locked ones, too.
install -r requirements-build.txt
install --no-build-isolation --use-pep517 -r requirements-dev.txt
