#!/bin/sh
# Writes the locks: with hashes, for every platform and every supported Python, without a host name.
# Versions stay unless pyproject.toml requires others or UPGRADE is set.
set -eu
uv_version=0.13.9
tools=.cache/uv

if ! "$tools/bin/uv" --version 2>/dev/null | grep -qF " $uv_version"; then
    rm -rf "$tools"
    "$(sh "$(dirname "$0")/python.sh")" -m venv "$tools"
    "$tools/bin/python" -m pip --disable-pip-version-check install --quiet "uv==$uv_version"
fi

compile() {
    "$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --custom-compile-command "make lock" ${UPGRADE:+--upgrade} "$@"
}

compile pyproject.toml -o requirements.txt
compile pyproject.toml --extra embedded -c requirements.txt -o requirements-run.txt
compile pyproject.toml --extra embedded --extra leak -c requirements-run.txt -o requirements-leak.txt
compile pyproject.toml --extra embedded --extra leak --extra dev -c requirements-leak.txt -o requirements-dev.txt
compile tests/matrix/requirements.in -o tests/matrix/requirements.txt

# The build requirements of pyproject.toml, and setuptools for etcd3, which has no wheel.
{
    "$tools/bin/python" - <<'PYTHON'
import re
text = open("pyproject.toml", encoding="utf-8").read()
for quoted in re.findall(r'"([^"]+)"', re.search(r"^requires = \[(.*?)\]", text, re.M | re.S)[1]):
    print(quoted)
PYTHON
    echo setuptools
} > .cache/requirements-build.in
compile --no-annotate .cache/requirements-build.in -o requirements-build.txt
rm .cache/requirements-build.in
