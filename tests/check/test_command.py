"""``etcd-watch-gateway check``, run as a command against real gateways and etcds: its exit status and its reasons."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from aetcd import rpc

from app.cli import main
from app.dev.etcd import LOOPBACK_OPTIONS
from tests.integration.test_operations import commands
from tests.support.certificates import Ca
from tests.support.connections import serving
from tests.support.embedded import EmbeddedCluster, EmbeddedEtcd
from tests.support.gateway import QUICK, UNPROVEN_SOON, GatewayProcess, environment, gateway, run, start
from tests.support.leaks import LEAKS
from tests.support.metrics import etcd_metric, gateway_metric
from tests.support.streams import watch
from tests.support.waiting import HANG, eventually

pytestmark = pytest.mark.etcd

NOWHERE = "http://127.0.0.1:1"


async def check(
    *flags: str | bytes,
    prefix: str | bytes = "/svc/",
    settings: dict[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
) -> tuple[int, str]:
    """Run the command to its end; return exit status and output. *on_line* is called with each line as it comes."""
    process = await run("app", "check", "--prefix", prefix, *flags, settings=settings, merged=True)
    lines = []
    try:
        async with asyncio.timeout(HANG):
            assert process.stdout is not None
            async for line in process.stdout:
                lines.append(line.decode())
                on_line(lines[-1])
            return await process.wait(), "".join(lines)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def rows(output: str) -> dict[str, list[int]]:
    """The rows of the table."""
    found = re.findall(r"^(before|round \d, (?:open|gone)) +([\d ]+)$", output, re.MULTILINE)
    return {name: [int(number) for number in numbers.split()] for name, numbers in found}


def verdict(output: str) -> str:
    """The last line: the verdict."""
    return output.splitlines()[-1]


# --- 0: all back ------------------------------------------------------------------------------------------------------


async def test_a_healthy_gateway(server: GatewayProcess) -> None:
    """100 streams cost one watcher and one stream at etcd, three times, and nothing is left."""
    status, output = await check("--url", server.base)

    assert status == 0, output
    assert rows(output) == {
        "before": [0] * 9,
        **{f"round {number}, open": [1, 1, 1, 1, 1, 75, 1, 75, 0] for number in (1, 2, 3)},
        **{f"round {number}, gone": [0] * 9 for number in (1, 2, 3)},
    }
    assert verdict(output).startswith(
        "all back: in 3 rounds, 75 open streams cost etcd one watcher, which was released;"
    )


async def test_the_documented_command(server: GatewayProcess) -> None:
    """The command in docs/operations.md works."""
    program, command, *flags = commands("check").replace("http://127.0.0.1:8080", server.base).split()
    prefix = flags[flags.index("--prefix") + 1]
    status, output = await check(*flags, "--rounds", "1", prefix=prefix)

    assert (program, command) == ("etcd-watch-gateway", "check")
    assert status == 0, output


async def test_beside_others(etcd: EmbeddedEtcd) -> None:
    """Other followed ranges and other watches at etcd do not disturb; a prefix is bytes; URLs may end with a slash."""
    settings = {"GATEWAY_LINGER": "0", "GATEWAY_ALLOW_PREFIXES": "/svc/,/a+%25%26%c3%bc%ff/"}
    async with (
        gateway(etcd.endpoint, settings=settings) as server,
        await watch(server.base, "prefix=/svc/") as other,
        grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel,
    ):
        await other.until("synced")
        call = rpc.WatchStub(channel).Watch()
        await call.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/elsewhere")))
        await call.read()
        flags = ("--url", f"{server.base}/", "--streams", "1", "--rounds", "1", "--etcd-metrics")
        status, output = await check(*flags, f"{etcd.endpoint}/metrics", prefix="/a+%&ü".encode() + b"\xff/x")
        call.cancel()

    assert status == 0, output
    assert output.startswith("prefix=/a%2B%25%26%C3%BC%FF/x at ")
    assert rows(output) == {
        "before": [2, 2, 1, 1, 1, 1, 0, 0, 0],
        "round 1, open": [3, 2, 2, 1, 2, 2, 1, 1, 0],
        "round 1, gone": [2, 2, 1, 1, 1, 1, 0, 0, 0],
    }
    assert verdict(output) == (
        "all back: in 1 round, 1 open stream cost etcd one watcher, which was released; etcd counts 2 watchers and "
        "2 watch streams, of which the gateway holds 1 and 1"
    )


@pytest.mark.parametrize("prefix", ["/svc/", "/svc/inside/"])
async def test_a_pinned_range(etcd: EmbeddedEtcd, prefix: str) -> None:
    """A pin's watch stays after its streams: that is not a leak."""

    async def history_read() -> bool:
        """It begins when the feed becomes live, and has a watch and a stream of its own."""
        if await gateway_metric(http, "etcd_history_watchers"):
            return False
        held = [
            await etcd_metric(etcd.endpoint, f"etcd_debugging_mvcc_{name}_total")
            for name in ("watch_stream", "watcher")
        ]
        return held == [1, 1]

    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/svc/", **UNPROVEN_SOON}) as server,
        httpx.AsyncClient(base_url=server.base) as http,
    ):
        await server.logged("feed live")
        await eventually(history_read)
        status, output = await check("--url", server.base, "--streams", "8", "--rounds", "2", prefix=prefix)

    assert status == 0, output
    assert rows(output) == {
        "before": [1, 1, 1, 1, 1, 0, 0, 0, 0],
        **{f"round {number}, open": [1, 1, 1, 1, 1, 6, 1, 6, 0] for number in (1, 2)},
        **{f"round {number}, gone": [1, 1, 1, 1, 1, 0, 0, 0, 0] for number in (1, 2)},
    }
    assert verdict(output).startswith(
        "all back: in 2 rounds, 6 open streams cost etcd no watcher: the range is pinned;"
    )


async def test_with_a_token_and_an_admin_port(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """The token and the admin URL are both needed; without either the check cannot tell, and names what is missing."""
    token = tmp_path / "token"
    token.write_text("top-secret\n")
    settings = {"GATEWAY_TOKEN_FILE": str(token), "GATEWAY_ADMIN_PORT": "0"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        admin = f"http://127.0.0.1:{server.admin_port}"
        flags = ("--url", server.base, "--streams", "8", "--rounds", "2")
        status, output = await check(*flags, "--admin-url", admin, "--token-file", str(token))
        no_token = await check(*flags, "--admin-url", admin)
        no_admin = await check(*flags, "--token-file", str(token))

    assert status == 0, output
    assert verdict(output).startswith("all back: in 2 rounds, 6 open streams")
    assert "top-secret" not in output
    assert no_token[0] == no_admin[0] == 2
    assert "401 unauthorized: the bearer token is missing or wrong; send the header" in verdict(no_token[1])
    assert f"{server.base}/v1/feeds?prefix=/svc/: 404 no-such-path" in verdict(no_admin[1])
    assert "--admin-url" in verdict(no_admin[1])


async def test_several_members() -> None:
    """An etcd member counts only the watches that it serves: the check asks all, or the one that the gateway names."""
    async with EmbeddedCluster(3) as cluster, gateway(",".join(cluster.endpoints)) as server:
        metrics = [f"{endpoint}/metrics" for endpoint in cluster.endpoints]
        flags = ("--url", server.base, "--streams", "8", "--rounds", "2")
        named = await check(*flags)
        (serving,) = re.findall(r"etcd by (\S+)", named[1])
        every = await check(*flags, "--etcd-metrics", ",".join(metrics[:2]), "--etcd-metrics", metrics[2])
        wrong = await check(*flags, "--etcd-metrics", next(url for url in metrics if url != serving))

    assert named[0] == 0, named[1]
    assert every[0] == 0, every[1]
    assert rows(every[1])["round 2, open"][:2] == [1, 1]
    assert wrong[0] == 2, wrong[1]
    assert "name them all with --etcd-metrics" in verdict(wrong[1])


@contextlib.asynccontextmanager
async def tls_in_front(port: int, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """A proxy that terminates TLS: its URL, and the CA to trust."""
    authority = Ca(folder)
    pair = authority.sign("proxy")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))

    async with serving(forward, context) as front:
        yield f"https://127.0.0.1:{front}", authority.cert


async def test_with_tls(server: GatewayProcess, tmp_path: Path) -> None:
    """The certificate is verified against the system's CAs."""
    async with tls_in_front(server.port, tmp_path) as (url, ca):
        flags = ("--url", url, "--streams", "8", "--rounds", "1")
        status, output = await check(*flags, settings={"SSL_CERT_FILE": str(ca)})
        refused = await check(*flags)

    assert status == 0, output
    assert refused[0] == 2
    assert "certificate verify failed" in verdict(refused[1])


# --- 1: a leak --------------------------------------------------------------------------------------------------------

FOUND = {
    "watches": "LEAK: after round 1 the gateway had 1 watcher at etcd for 0 feeds",
    "streams": "LEAK: after round 1 the gateway had 1 watch stream at etcd without a feed",
    "leases": "LEAK: the range still has a feed, for 8 subscribers whose connection is closed, 1",
    "lingers": "LEAK: the range still has a feed, for no subscriber, 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("leak", LEAKS)
async def test_a_leak_is_found(etcd: EmbeddedEtcd, leak: str) -> None:
    """Each leak that can be put into a gateway is found, by its own sign."""
    settings = {**QUICK, "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint}
    leaky = await start(settings=settings, program=("tests.support.leaks", leak))
    try:
        await leaky.listening()
        status, output = await check("--url", leaky.base, "--streams", "8")
    finally:
        await leaky.stop(signal.SIGKILL)

    assert status == 1, output
    assert verdict(output).startswith(FOUND[leak])
    assert "round 2, open" not in output


# --- 2: cannot tell ---------------------------------------------------------------------------------------------------


async def test_out_of_reach(server: GatewayProcess) -> None:
    """An unreachable gateway, or unreachable etcd metrics, are named with the reason."""
    no_gateway = await check("--url", NOWHERE)
    no_etcd = await check("--url", server.base, "--etcd-metrics", f"{NOWHERE}/metrics")
    no_metrics = await check("--url", server.base, "--etcd-metrics", f"{server.base}/metrics")
    no_url = await check("--url", "127.0.0.1:8080")

    assert [no_gateway[0], no_etcd[0], no_metrics[0], no_url[0]] == [2, 2, 2, 2]
    assert re.search(rf"cannot tell: {NOWHERE}/v1/feeds\?prefix=/svc/: .*Connection refused", verdict(no_gateway[1]))
    assert re.search(rf"cannot tell: {NOWHERE}/metrics: .*Connection refused", verdict(no_etcd[1]))
    assert "there is no metric etcd_debugging_mvcc_watcher_total" in verdict(no_metrics[1])
    assert "is not a URL; use the form http://127.0.0.1:8080" in verdict(no_url[1])


@contextlib.asynccontextmanager
async def counting_nothing(metrics: bytes = b"") -> AsyncIterator[tuple[int, list[str]]]:
    """A server that is not etcd, but answers with *metrics*: its port, and the heads of the requests that came."""
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(metrics), metrics))
        writer.close()

    async with serving(answer) as port:
        yield port, heads


@pytest.mark.parametrize(
    "url",
    ["http://a..b", f"http://{'a' * 64}.example", "http://127.0.0.1/caf\xe9", "http://127.0.0.1:0", "http://[::1"],
    ids=["empty-label", "long-label", "not-ascii", "port-0", "bracket"],
)
def test_what_is_no_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A text that is not a URL is not a leak, either."""
    assert main(["check", "--prefix", "/svc/", "--url", url]) == 2
    assert "is not a URL; use the form http://127.0.0.1:8080" in capsys.readouterr().out


async def test_counts_that_are_no_numbers(server: GatewayProcess) -> None:
    """Counts that are not numbers are named with their text."""
    async with counting_nothing(b"etcd_debugging_mvcc_watcher_total NaN\n") as (port, _):
        status, output = await check("--url", server.base, "--etcd-metrics", f"http://127.0.0.1:{port}/metrics")

    assert status == 2
    assert verdict(output).endswith("/metrics: etcd_debugging_mvcc_watcher_total is not a finite number: nan")


async def test_a_gateway_that_is_none() -> None:
    """A server that is not a gateway is recognised: its answer has nothing of a gateway's."""
    async with counting_nothing() as (port, _):
        status, output = await check("--url", f"http://127.0.0.1:{port}")

    assert status == 2
    assert "this is not the response of a gateway of this version" in verdict(output)


async def test_the_token_is_for_the_gateway_alone(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """The token goes only to the gateway, even if etcd's URL is the gateway's plus a digit of the port."""
    token = tmp_path / "token"
    token.write_text("top-secret\n")
    while True:
        async with counting_nothing() as (port, heads):
            try:
                socket.create_server(("127.0.0.1", port // 10)).close()
            except OSError:
                continue
            settings = {"GATEWAY_TOKEN_FILE": str(token), "GATEWAY_PORT": str(port // 10)}
            async with gateway(etcd.endpoint, settings=settings) as server:
                flags = ("--url", server.base, "--etcd-metrics", f"{server.base}{port % 10}/metrics")
                status, output = await check(*flags, "--token-file", str(token))
            break

    assert status == 2
    assert "there is no metric etcd_debugging_mvcc_watcher_total" in verdict(output)
    assert heads
    assert "authorization" not in "".join(heads).lower()


async def test_nobody_reads(server: GatewayProcess) -> None:
    """A closed pipe, as after ``check … | head -1``, is not a leak."""
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app", "check", "--prefix", "/svc/", "--url", server.base),
        env=environment({}),
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    assert process.stderr is not None
    async with asyncio.timeout(HANG):
        said = await process.stderr.read()
        assert (await process.wait(), said) == (2, b"")


def test_what_nobody_expected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A defect of the check is not a leak of the gateway."""
    monkeypatch.setattr("app.check.command.Check.run", lambda _self: 1 / 0)
    assert main(["check", "--prefix", "/svc/"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_a_prefix_that_is_not_allowed(etcd: EmbeddedEtcd) -> None:
    """A refused prefix is reported with the problem's own text."""
    async with gateway(etcd.endpoint, settings={"GATEWAY_ALLOW_PREFIXES": "/svc/"}) as server:
        status, output = await check("--url", server.base, prefix="/other/")

    assert status == 2
    assert "403 forbidden: prefix=/other/ is outside the prefixes that this gateway serves" in verdict(output)


async def test_streams_that_are_refused(etcd: EmbeddedEtcd) -> None:
    """With more streams than the gateway serves, the check cannot tell, and the accepted streams are gone again."""
    async with gateway(etcd.endpoint, settings={"GATEWAY_MAX_SUBSCRIBERS": "4"}) as server:
        refused = await check("--url", server.base, "--streams", "16")
        few = await check("--url", server.base, "--streams", "2", "--rounds", "1")

    assert refused[0] == 2
    assert "429 too-many-subscribers: 4 streams are open" in verdict(refused[1])
    assert few[0] == 0, few[1]


async def test_somebody_else_on_the_range(server: GatewayProcess) -> None:
    """A range with another follower cannot be checked, because it shares its watch: the check opens nothing."""
    async with await watch(server.base, "prefix=/svc/") as other:
        await other.until("synced")
        status, output = await check("--url", server.base)

    assert status == 2
    assert verdict(output) == (
        "cannot tell: another client follows the range (1 subscriber): choose a range that nobody follows"
    )
    assert list(rows(output)) == ["before"]


@pytest.mark.slow
async def test_another_client_of_etcd(etcd: EmbeddedEtcd, server: GatewayProcess) -> None:
    """If another client of etcd opens a watch for each of our streams, as a leak would, and goes on after them, the
    check cannot tell.
    """
    async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
        call = rpc.WatchStub(channel).Watch()
        tasks = set()

        def follow(line: str) -> None:
            if " open " in line or "without streams" in line:
                create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/elsewhere"))
                tasks.add(asyncio.create_task(call.write(create)))

        status, output = await check("--url", server.base, "--streams", "8", "--rounds", "2", on_line=follow)
        await asyncio.gather(*tasks)
        call.cancel()

    assert status == 2, output
    assert "other clients of etcd came or went" in verdict(output)


@pytest.mark.slow
async def test_several_gateways_behind_one_address(etcd: EmbeddedEtcd) -> None:
    """If one gateway has the streams and another gives the counts, the check cannot tell."""
    async with gateway(etcd.endpoint) as one, gateway(etcd.endpoint) as other:
        status, output = await check("--url", one.base, "--admin-url", other.base, "--streams", "8")

    assert status == 2, output
    assert "of 6 open streams the gateway whose counts were read has 0" in verdict(output)


async def test_less_time_than_the_gateway_takes(etcd: EmbeddedEtcd) -> None:
    """Less time than the gateway needs is refused before a stream is opened."""
    async with gateway(etcd.endpoint, settings={"GATEWAY_LINGER": "5m"}) as server:
        status, output = await check("--url", server.base)

    assert status == 2
    assert (
        "--timeout is 120 s, but the gateway keeps an unused feed for 300 s: --timeout must be more than 310 s"
        in verdict(output)
    )
    assert list(rows(output)) == ["before"]


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "the following arguments are required: --prefix"),
        (["--prefix", "/", "--streams", "0"], "argument --streams: invalid"),
        (["--prefix", "/", "--timeout", "soon"], "argument --timeout: invalid duration: 'soon'"),
        (["--prefix", "/", "--linger", "1"], "unrecognized arguments: --linger 1"),
    ],
)
def test_wrong_usage(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line gives status 2 and the error."""
    with pytest.raises(SystemExit) as caught:
        main(["check", *flags])

    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_no_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token file that cannot be read is refused."""
    status = main(["check", "--prefix", "/", "--token-file", str(tmp_path)])

    assert status == 2
    assert f"--token-file: cannot read {tmp_path}" in capsys.readouterr().err


async def test_a_verdict_as_json(server: GatewayProcess) -> None:
    """One object instead of the table; the exit status is in it."""
    status, output = await check("--url", server.base, "--streams", "4", "--rounds", "1", "--json")
    report = json.loads(output)

    assert (status, report["status"], report["outcome"]) == (0, 0, "all back")
    assert report["reasons"][0].startswith("in 1 round, 3 open streams cost etcd one watcher")
