#!/bin/sh
# Prints the path of a Python >= 3.11 that can make a venv. If there is none, says what is missing.
# As root on Debian it installs Python; elsewhere it changes nothing. $PYTHON names the Python to use.
set -eu

able() {  # run it: a shim of pyenv may exist and still fail, and Debian's Python comes without ensurepip
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for name in ${PYTHON:-python3.13 python3.12 python3.14 python3.11 python3}; do
        if able "$name"; then
            # Of a venv, the Python that it was made with: the venv may be the one that is about to be replaced.
            "$name" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return 0
        fi
    done
    return 1
}

find_python && exit 0

if [ -z "${PYTHON:-}" ] && [ -f /etc/debian_version ] && [ "$(id -u)" = 0 ]; then
    echo "installing python3 and python3-venv" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >&2
    find_python && exit 0
fi

{
    echo "Missing: Python >= 3.11 with venv and ensurepip${PYTHON:+ (PYTHON=$PYTHON is not)}. Found:"
    for name in ${PYTHON:-python3.13 python3.12 python3.14 python3.11 python3}; do
        command -v "$name" >/dev/null 2>&1 || continue
        if ! version=$("$name" --version 2>/dev/null); then
            echo "  $name: does not start"
        elif ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "  $name: $version, too old"
        else
            echo "  $name: $version, without venv or ensurepip (Debian: the package $name-venv)"
        fi
    done
    echo "Debian: apt-get install python3 python3-venv. macOS: brew install python@3.13, or python.org."
    echo "If Python is not on the PATH: make PYTHON=/path/to/python"
} >&2
exit 1
