"""``etcd-watch-gateway check``: opens and aborts streams at a running gateway, reads what it and etcd count meanwhile,
and says whether every watch came back. What the counts prove is decided by ``app.check.verdict``.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.access.token import read_token
from app.check.verdict import (
    GRACE,
    Checked,
    EtcdCounts,
    GatewayCounts,
    Outcome,
    Round,
    Sample,
    Verdict,
    judge,
    returned,
)
from app.core.keys import KeyRange

# As in ``app.metrics``, which would bring gRPC and FastAPI into a pod that has to bear this process, too.
NAMESPACE = "etcd_watch_gateway"
# Seconds between two looks; a look is three requests.
PAUSE = 0.5
# Seconds for one request.
REQUEST_TIMEOUT = 10.0
# Streams that are being opened at a time.
AT_A_TIME = 100
AGENT = f"etcd-watch-gateway-check/{__version__}"
WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"
WORDS = {Outcome.BACK: "all back", Outcome.LEAK: "LEAK", Outcome.UNKNOWN: "cannot tell"}


class UnreachableError(Exception):
    """What could not be reached, or did not answer as it must, and why."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's flags. URLs are without a slash at the end."""

    prefix: bytes
    url: str
    admin_url: str
    etcd_metrics: tuple[str, ...]  # none: what the gateway names
    token: str
    streams: int
    rounds: int
    timeout: float


class Departure(Enum):
    """The ways that a client goes, in turn."""

    CLOSE = "closed"
    RESET = "reset"
    HALF_CLOSE = "half-closed"
    UNREAD = "gone before the first byte"


# --- HTTP -------------------------------------------------------------------------------------------------------------


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if url.isascii() and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            parts.hostname.encode("idna")  # as the name is looked up: a label may be too long, or empty
            return parts
    except ValueError:
        pass
    raise UnreachableError(f"{url!r} is no URL: write it like http://127.0.0.1:8080")


def _explained(status: int, body: bytes) -> str:
    """A refusal: a problem's own words, or the beginning of the body."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        problem = json.loads(body)
        return f"{status} {problem['code']}: {problem['detail']}"
    return f"{status} {body[:200].decode('utf-8', 'replace').strip()}".strip()


def _get(url: str, headers: dict[str, str], tls: ssl.SSLContext | None) -> bytes:
    """The body of a 200. Raises UnreachableError for all else."""
    parts = _split(url)
    assert parts.hostname is not None
    connection = (
        http.client.HTTPConnection(parts.hostname, parts.port, timeout=REQUEST_TIMEOUT)
        if tls is None
        else http.client.HTTPSConnection(parts.hostname, parts.port, timeout=REQUEST_TIMEOUT, context=tls)
    )
    with contextlib.closing(connection):
        try:
            connection.request("GET", parts._replace(scheme="", netloc="").geturl() or "/", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UnreachableError(f"{url}: {_why(error)}") from None
    if answer.status != http.client.OK:
        raise UnreachableError(f"{url}: {_explained(answer.status, body)}")
    return body


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _metrics(url: str, body: bytes) -> dict[str, float]:
    """Values by name, summed over labels, and by name and label values: ``feeds live``."""
    found: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                for name in {sample.name, " ".join((sample.name, *sample.labels.values()))}:
                    found[name] = found.get(name, 0.0) + sample.value
    except ValueError as error:
        raise UnreachableError(f"{url}: no metrics: {error}") from None
    return found


def _value(url: str, metrics: dict[str, float], name: str) -> int:
    try:
        return int(metrics[name])
    except KeyError:
        raise UnreachableError(f"{url}: there is no {name}") from None
    except (ValueError, OverflowError):
        raise UnreachableError(f"{url}: {name} is {metrics[name]}") from None


# --- a stream ---------------------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """One client of ours: ``open``, then ``go``."""

    url: str
    headers: dict[str, str]
    going: Departure
    tls: ssl.SSLContext | None
    address: str = ""
    _reader: asyncio.StreamReader = field(init=False)
    _writer: asyncio.StreamWriter | None = field(init=False, default=None)

    async def open(self) -> None:
        """Come, and wait for ``synced``; who is gone before the first byte goes here.

        Raises:
            UnreachableError: it can't be had.
        """
        parts = _split(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            self._reader, self._writer = await asyncio.open_connection(parts.hostname, port, ssl=self.tls)
            name = self._writer.get_extra_info("sockname")
            self.address = f"{name[0]}:{name[1]}"
            target = parts._replace(scheme="", netloc="").geturl()
            lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc}"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            if self.going is Departure.UNREAD:
                self.abort()
            else:
                await self._synced()
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
            raise UnreachableError(f"{self.url}: {_why(error)}") from None

    async def _synced(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        version, _, rest_of_line = head[0].partition(" ")
        if not version.startswith("http/1."):
            raise ValueError(f"no HTTP/1.1, but {head[0]!r}")
        status = int(rest_of_line.partition(" ")[0])
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        if status != http.client.OK:
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
            raise UnreachableError(f"{self.url}: {_explained(status, body)}")
        chunked = headers.get("transfer-encoding") == "chunked"
        rest = b""
        while True:
            if chunked:
                data = await self._reader.readexactly(int(await self._reader.readline(), 16) + 2)
                data = data[:-2]
            else:
                data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError("the stream ended before it was synced")
            *lines, rest = (rest + data).split(b"\n")
            for event in map(json.loads, filter(None, map(bytes.strip, lines))):
                if event["type"] == "synced":
                    return
                if event["type"] == "close":
                    raise EOFError(f"the stream was closed: {event['reason']}")

    async def go(self) -> None:
        """Leave, in its way."""
        writer = self._writer
        if writer is None or writer.transport.is_closing():
            return
        with contextlib.suppress(OSError, TimeoutError):
            if self.going is Departure.RESET:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.abort()
                return
            if self.going is Departure.HALF_CLOSE and writer.can_write_eof():
                writer.write_eof()
                async with asyncio.timeout(GRACE):
                    await self._reader.read(-1)  # until the gateway takes it for goodbye
            writer.close()
            async with asyncio.timeout(GRACE):
                await writer.wait_closed()

    def abort(self) -> None:
        """Leave at once."""
        if self._writer is not None:
            self._writer.transport.abort()


# --- the check --------------------------------------------------------------------------------------------------------


class Check:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._range = str(KeyRange("prefix", options.prefix))
        self._run = secrets.token_hex(4)  # by which we know our own streams among the subscribers
        # For the gateway alone, not for etcd. As bytes it is UTF-8, which headers are written as if they were Latin-1.
        token = options.token.encode(errors="surrogateescape").decode("latin-1")
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._etcd_metrics = options.etcd_metrics
        self._tls: ssl.SSLContext | None = None
        self._linger = 0.0
        self._opened = -1
        self._quiet_since = 0.0
        self._numbers = 0
        self._addresses: set[str] = set()  # of our streams, as the gateway sees them

    async def run(self) -> Verdict:
        """Do it, and say what is seen on standard output.

        Raises:
            UnreachableError: something is out of reach, and what was seen before proves no leak.
        """
        options = self._options
        before = (await self._settled(None))[-1]
        unread = sum(going is Departure.UNREAD for going in self._goings())
        _say(
            f"{self._range} at {options.url}, etcd by {', '.join(self._etcd_metrics)}",
            f"{options.streams} streams a round, {unread} of them gone before their first byte; the gateway lingers "
            f"{self._linger:g} s",
            "",
            *HEADINGS,
            _row("before", before),
        )
        if options.timeout <= self._linger + GRACE:
            raise UnreachableError(
                f"--timeout is {options.timeout:g} s, but the gateway keeps a feed for {self._linger:g} s: it must be "
                f"more than {self._linger + GRACE:g} s"
            )
        rounds: list[Round] = []
        began = time.monotonic()
        verdict = judge(before, rounds)
        if before.checked.feeds:
            return verdict
        try:
            while len(rounds) < options.rounds:
                rounds.append(await self._round(len(rounds) + 1, before))
                verdict = judge(before, rounds)
                if verdict.outcome is not Outcome.BACK and not verdict.suspicious:
                    return verdict
            if verdict.suspicious and len(rounds) > 1:
                return judge(before, rounds, await self._control(time.monotonic() - began))
        except UnreachableError:
            # With a leak it may be the gateway itself that gives up: one that forgets a watch stream hears nothing on
            # it, and takes etcd for dead.
            verdict = judge(before, rounds)
            if verdict.outcome is not Outcome.LEAK:
                raise
        return verdict

    async def _round(self, number: int, before: Sample) -> Round:
        streams = [self._stream(going) for going in self._goings()]
        held = sum(stream.going is not Departure.UNREAD for stream in streams)
        try:
            await self._open(streams)
            now_open = await self._listed(held)
            direct = self._addresses <= {stream.address for stream in streams}
            _say(_row(f"round {number}, open", now_open))
            await asyncio.gather(*(stream.go() for stream in streams))
        finally:
            for stream in streams:
                stream.abort()
        self._opened = -1  # from here on it is quiet
        looks = await self._settled(before)
        _say(_row(f"round {number}, gone", looks[-1]))
        return Round(held, now_open, looks, direct)

    def _goings(self) -> list[Departure]:
        ways = list(Departure)
        return [ways[index % len(ways)] for index in range(self._options.streams)]

    def _stream(self, going: Departure) -> Stream:
        self._numbers += 1
        headers = {
            **self._authorization,
            "Accept": "application/x-ndjson",
            "User-Agent": AGENT,
            "X-Request-Id": f"{self._run}-{self._numbers}",
        }
        url = f"{self._options.url}/v1/watch?{self._range}&format=ndjson"
        return Stream(url, headers, going, self._context(url))

    async def _open(self, streams: Sequence[Stream]) -> None:
        places = asyncio.Semaphore(AT_A_TIME)

        async def opened(stream: Stream) -> None:
            async with places:
                await stream.open()

        try:
            async with asyncio.timeout(self._options.timeout):
                results = await asyncio.gather(*map(opened, streams), return_exceptions=True)
        except TimeoutError:
            raise UnreachableError(f"{streams[0].url}: not synced in {self._options.timeout:g} s") from None
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _listed(self, held: int) -> Sample:
        """When the gateway has a feed for all that are open, and has noticed who went; or when it should have."""
        deadline = time.monotonic() + GRACE
        while True:
            sample = await self._sample()
            if (sample.checked.ours == held and sample.gateway.even) or time.monotonic() > deadline:
                return sample
            await asyncio.sleep(PAUSE)

    async def _settled(self, before: Sample | None) -> tuple[Sample, ...]:
        """Look until the range has no feed and all is as *before*, twice (a watch of somebody else that comes and goes
        would make it look so for a moment), or until that is no more to be expected. See ``Round.looks``.
        """
        now = time.monotonic()
        kept_until, back_until = now + self._options.timeout, now + GRACE
        looks: deque[Sample] = deque(maxlen=round(GRACE / PAUSE))
        while True:
            sample = await self._sample()
            now = time.monotonic()
            if looks and looks[-1].checked.feeds and not sample.checked.feeds:
                looks.clear()
            looks.append(sample)
            if sample.checked.feeds:
                back_until = now + GRACE
                done = sample.checked.others or sample.checked.stuck or now > kept_until
            else:
                twice = len(looks) > 1 and all(returned(before or looks[-2], look) for look in (looks[-2], sample))
                done = twice or now > back_until
            if done:
                return tuple(looks)
            await asyncio.sleep(PAUSE)

    async def _control(self, seconds: float) -> list[Sample]:
        """Samples of a time without streams."""
        _say(f"etcd's counts moved in step with the rounds: looking at them without streams for {seconds:.0f} s")
        until = time.monotonic() + seconds
        samples = []
        while time.monotonic() < until:
            samples.append(await self._sample())
            await asyncio.sleep(PAUSE)
        _say(_row("without streams", samples[-1]))
        return samples

    async def _sample(self) -> Sample:
        """All counts, now."""
        feeds_url = f"{self._options.admin_url}/v1/feeds?{self._range}"
        metrics_url = f"{self._options.admin_url}/metrics"
        try:
            feeds = await self._fetch(feeds_url, self._authorization)
        except UnreachableError as error:
            if "no-such-path" not in str(error):
                raise
            raise UnreachableError(f"{error}; where GATEWAY_ADMIN_PORT is set, --admin-url must name it") from None
        counted = _metrics(metrics_url, await self._fetch(metrics_url, self._authorization))

        def value(name: str) -> int:
            return _value(metrics_url, counted, f"{NAMESPACE}_{name}")

        described = _described(feeds_url, feeds)
        self._linger = float(described["linger"])
        self._etcd_metrics = self._etcd_metrics or (f"{described['etcd']['endpoint']}/metrics",)
        members = [
            _metrics(url, body)
            for url, body in zip(
                self._etcd_metrics, await asyncio.gather(*map(self._fetch, self._etcd_metrics)), strict=True
            )
        ]
        etcd = EtcdCounts(
            *(
                sum(_value(url, member, name) for url, member in zip(self._etcd_metrics, members, strict=True))
                for name in (WATCHERS, STREAMS)
            )
        )
        # Not on every platform; where it is absent, the instance must do.
        start = counted.get("process_start_time_seconds")
        gateway = GatewayCounts(
            process=described["instance"] + (f" since {start:.2f}" if start else ""),
            reconnects=value("etcd_reconnects_total"),
            opened=value("streams_opened_total"),
            feeds=value("feeds"),
            live=value("feeds live"),
            held=EtcdCounts(value("etcd_watchers"), value("etcd_watch_streams")),
            history=value("etcd_history_watchers"),
            subscribers=value("subscribers"),
            served=value("streams"),
        )
        return Sample(gateway, self._checked(described["feeds"], gateway.opened), etcd)

    def _checked(self, feeds: Sequence[dict[str, Any]], opened: int) -> Checked:
        subscribers = [each for feed in feeds for each in feed["subscriber_list"]]
        ours = [each for each in subscribers if each["request_id"].startswith(f"{self._run}-")]
        self._addresses = {each["address"] for each in ours}
        others = len(subscribers) - len(ours)
        if others or opened != self._opened:
            self._opened, self._quiet_since = opened, time.monotonic()
        return Checked(len(feeds), len(ours), others, time.monotonic() - self._quiet_since, self._linger)

    def _context(self, url: str) -> ssl.SSLContext | None:
        if not url.startswith("https://"):
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def _fetch(self, url: str, headers: dict[str, str] | None = None) -> bytes:
        return await asyncio.to_thread(_get, url, {"User-Agent": AGENT, **(headers or {})}, self._context(url))


def _described(url: str, body: bytes) -> dict[str, Any]:
    """``/v1/feeds``."""
    try:
        described = json.loads(body)
        described["linger"], described["instance"], described["etcd"]["endpoint"], described["feeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"{url}: this is not what a gateway of this version says: {error!r}") from None
    return dict(described)


# --- the command ------------------------------------------------------------------------------------------------------

HEADINGS = (
    "                     etcd's           the gateway's                         the range's",
    "                     watchers streams watchers streams feeds subscribers feeds    ours  others",
)


def _row(name: str, sample: Sample) -> str:
    gateway, checked, etcd = sample.gateway, sample.checked, sample.etcd
    return (
        f"{name:20} {etcd.watchers:8} {etcd.streams:7} {gateway.held.watchers:8} {gateway.held.streams:7} "
        f"{gateway.feeds:5} {gateway.subscribers:11} {checked.feeds:5} {checked.ours:7} {checked.others:7}"
    )


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


async def check(options: Options) -> int:
    """Run it; the exit status: 0 all back, 1 a leak, 2 cannot tell.

    Raises:
        OSError: nobody reads what is said.
    """
    try:
        verdict = await Check(options).run()
    except UnreachableError as error:
        verdict = Verdict(Outcome.UNKNOWN, (str(error),))
    _say("", f"{WORDS[verdict.outcome]}: {'; '.join(verdict.reasons)}")
    return verdict.outcome.value


def options_of(flags: dict[str, Any]) -> Options:
    """The options of the command line. Raises SettingsError when the token cannot be read."""
    url = flags["url"].rstrip("/")
    token_file: Path | None = flags["token_file"]
    return Options(
        prefix=os.fsencode(flags["prefix"]),
        url=url,
        admin_url=(flags["admin_url"] or url).rstrip("/"),
        etcd_metrics=tuple(part.strip() for each in flags["etcd_metrics"] for part in each.split(",") if part.strip()),
        token=read_token(token_file, "--token-file").get_secret_value() if token_file else "",
        streams=flags["streams"],
        rounds=flags["rounds"],
        timeout=flags["timeout"],
    )
