#!/bin/sh
# Compares the locks with the known vulnerabilities of PyPI's advisory database. Fails if a package has one, or if the
# database cannot be asked: a mirror of the package index usually has none.
set -eu
pip_audit_version=2.10.1
tools=.cache/audit

if ! "$tools/bin/pip-audit" --version 2>/dev/null | grep -qF " $pip_audit_version"; then
    rm -rf "$tools"
    "$(sh "$(dirname "$0")/python.sh")" -m venv "$tools"
    "$tools/bin/python" -m pip --disable-pip-version-check install --quiet "pip-audit==$pip_audit_version"
fi

status=0
for lock in requirements.txt requirements-dev.txt requirements-build.txt; do
    echo "$lock:"
    # --strict: a package that the database does not know is an error, and not a pass.
    "$tools/bin/pip-audit" --strict --disable-pip --progress-spinner off -r "$lock" || status=1
done
if [ "$status" != 0 ]; then
    echo "NOT PASSED: see above. 'could not be audited' means that the database was not reached, not that a package is bad."
fi
exit "$status"
