"""``etcd-watch-gateway check --through URL``: measures what is between a client and the gateway. It follows streams
through the URL and without it, and meanwhile opens and leaves others. ``app.check.findings`` says what that means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from http import HTTPStatus
from typing import Any

from ..core.keys import KeyRange
from ..stdio import say
from .client import Client, Departure, RefusedError, Stream, UnreachableError, own_refusal
from .findings import Finding, findings, status_of, summary_of
from .follower import Follower
from .measurements import Departed, Measurements, Requests, Silence, heartbeat_of, host_of
from .options import Options
from .samples import described_in, subscribers_of

# Heartbeats for which streams are followed: a client takes a connection that is silent for so long for dead.
HEARTBEATS = 3
# The longest that the gateway holds an answer back (docs/wire-contract.md, long-poll).
LONGEST = 60.0
# Seconds until a stream counts as not opened, and until clients that left count as not noticed.
OPENING = 10.0
NOTICING = 60.0
# Seconds between two looks, and between two short requests.
LOOK, PAUSE = 0.1, 0.5
# How often --put runs, and how many seconds apart: events closer together could share a delay.
PUTS, APART = 5, 1.0
EVENTS = "text/event-stream"
NDJSON = "application/x-ndjson"


class Through:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._client = Client(options.tls)
        self._range = str(KeyRange("prefix", options.prefix))
        # Nobody else follows these, and nothing in them changes.
        own = options.prefix + f"check-{secrets.token_hex(4)}".encode()
        self._quiet = str(KeyRange("prefix", own + b"-quiet/"))
        self._left = str(KeyRange("prefix", own + b"-left/"))
        self._began = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    def _clock(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> Measurements:
        """Measure everything.

        Raises:
            UnreachableError: nothing answers at the URL of the proxy.
        """
        try:
            return await self._measured()
        finally:
            for task in self._tasks:
                task.cancel()
            for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(outcome, Exception):  # a fault of the check itself: cancelled tasks have none
                    raise outcome

    async def _measured(self) -> Measurements:
        direct = self._follow(self._options.url, self._range, EVENTS)
        sse = self._follow(self._options.through, self._range, EVENTS)
        ndjson = self._follow(self._options.through, self._range, NDJSON)
        quiet = self._follow(self._options.through, self._quiet, EVENTS)
        streams = (direct, sse, ndjson, quiet)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPENING):
                await asyncio.gather(*(each.ready.wait() for each in streams))
        if not sse.connected:
            raise UnreachableError(sse.seen().ended or f"{self._options.through}: timed out")
        seen = [each.seen() for each in streams]
        is_open = any(not each.ended for each in seen)  # otherwise there is nothing to wait for
        waited = HEARTBEATS * heartbeat_of(seen) if is_open else 1.0
        lasting = max(waited + PAUSE, self._options.lasting)
        cursor = sse.seen().cursor
        resumed = self._follow(self._options.through, self._range, EVENTS, cursor) if cursor else None
        silence, departed, requests, puts, _ = await asyncio.gather(
            self._silence(min(LONGEST, math.ceil(waited))),
            self._departed(),
            self._requests(lasting),
            self._puts(),
            asyncio.sleep(lasting),
        )
        without = direct.seen()
        return Measurements(
            direct=without if without.status == HTTPStatus.OK else None,
            no_direct=without.ended or f"{self._options.url} answers {without.status}",
            sse=sse.seen(),
            ndjson=ndjson.seen(),
            quiet=quiet.seen(),
            resumed=resumed.seen() if resumed is not None else None,
            silence=silence,
            departed=departed,
            requests=requests,
            puts=puts,
            secure=self._options.through.startswith("https://"),
            protocol=await self._protocol(),
        )

    def _follow(self, url: str, range_: str, media: str, cursor: str = "") -> Follower:
        """Follow a range as a browser does, which accepts compressed answers."""
        headers = {**self._options.authorization, "Accept": media, "Accept-Encoding": "gzip, deflate"}
        if cursor:
            headers["Last-Event-ID"] = cursor
        follower = Follower(self._client.connection(f"{url}/v1/watch?{range_}", headers), self._clock)
        self._tasks.append(asyncio.create_task(follower.run()))
        return follower

    async def _silence(self, asked: float) -> Silence:
        """Ask for an answer that the gateway holds back: not a byte of it is sent before *asked* seconds are over."""
        url, headers = f"{self._options.through}/v1/kv?{self._quiet}", self._options.authorization
        try:
            first = await self._client.answer(url, headers)
        except UnreachableError as error:
            return Silence(asked, trouble=str(error))
        tag = first.headers.get("etag")
        if tag is None:
            why = own_refusal(first.status, first.body) or "the answers of /v1/kv have no ETag here"
            return Silence(asked, trouble=why)
        began = self._clock()
        headers = {**headers, "If-None-Match": tag, "Prefer": f"wait={asked:g}"}
        try:
            answer = await self._client.answer(url, headers, timeout=asked + OPENING)
        except UnreachableError:
            return Silence(asked, self._clock() - began)
        return Silence(asked, self._clock() - began, answer.status, own_refusal(answer.status, answer.body))

    async def _protocol(self) -> str:
        with contextlib.suppress(UnreachableError):  # what was measured before counts all the same
            return await self._client.protocol(self._options.through)
        return ""

    async def _requests(self, seconds: float) -> Requests:
        """Send short requests, each on its own connection. HEAD of a stream starts no watch, and names the gateway."""
        url, until = f"{self._options.through}/v1/watch?{self._quiet}", self._clock() + seconds
        headers = {**self._options.authorization, "Accept": NDJSON}
        failed: Counter[str] = Counter()
        instances = set()
        total = 0
        while self._clock() < until:
            total += 1
            try:
                answer = await self._client.answer(url, headers, method="HEAD")
            except UnreachableError as error:
                failed[str(error).removeprefix(f"{url}: ")] += 1
            else:
                instances.add(answer.headers.get("x-gateway-instance", ""))
                if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    failed[str(answer.status)] += 1
            await asyncio.sleep(PAUSE)
        return Requests(total, failed, frozenset(instances - {""}))

    async def _puts(self) -> str:
        """Run --put some times. Return "done", or why it failed."""
        if not self._options.put:
            return ""
        for _ in range(PUTS):
            process = await asyncio.create_subprocess_shell(
                self._options.put,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await process.communicate()
            if process.returncode:
                lines = errors.decode(errors="replace").split("\n")
                return f"status {process.returncode}: {lines[0][:200]}"
            await asyncio.sleep(APART)
        return "done"

    # --- clients that leave -------------------------------------------------------------------------------------------

    async def _departed(self) -> Departed:
        """Open streams through the proxy, disconnect all of them, and ask the gateway until it has none left."""
        asked = self._options.streams
        streams = [self._stream((Departure.CLOSE, Departure.RESET)[number % 2]) for number in range(asked)]
        results = await asyncio.gather(*map(_opened, streams), return_exceptions=True)
        refusals = [each for each in results if isinstance(each, BaseException)]
        refusals.sort(key=lambda each: isinstance(each, RefusedError))  # what is not the gateway's comes first
        seen = Departed(
            asked,
            asked - len(refusals),
            refusal=(str(refusals[0]) or "not synced in time") if refusals else "",
            own=bool(refusals) and isinstance(refusals[0], RefusedError),
        )
        try:
            return await self._released(seen, streams)
        except UnreachableError as error:
            return replace(seen, trouble=f"the gateway does not say who is connected: {error}")
        finally:
            for stream in streams:
                stream.abort()

    def _stream(self, departure: Departure) -> Stream:
        url = f"{self._options.through}/v1/watch?{self._left}&format=ndjson"
        return self._client.stream(url, {**self._options.authorization, "Accept": NDJSON}, departure)

    async def _released(self, seen: Departed, streams: Sequence[Stream]) -> Departed:
        instance, clients = await self._listed()
        if not clients:
            served = sorted({stream.headers.get("x-gateway-instance", "") for stream in streams} - {"", instance})
            where = f"the streams are at {', '.join(served)}" if served else "no stream came through"
            return replace(seen, trouble=f"{self._options.admin_url} is {instance}, and has none of them: {where}")
        shown = replace(
            seen,
            shown=len(clients),
            own_address=next(host_of(stream.address) for stream in streams if stream.address),
            addresses=frozenset(host_of(each) for each in clients),
        )
        await asyncio.gather(*(stream.leave() for stream in streams))
        left = self._clock()
        while clients and self._clock() - left < NOTICING:
            await asyncio.sleep(LOOK)
            now, clients = await self._listed()
            if now != instance:
                text = f"several gateways answer at {self._options.admin_url} ({instance}, {now}), or one was restarted"
                return replace(shown, trouble=text)
        waited = self._clock() - left
        return replace(shown, waited=waited, released=None if clients else waited)

    async def _listed(self) -> tuple[str, list[str]]:
        """Return the instance at --admin-url, and the addresses of its clients among the streams that leave."""
        url = f"{self._options.admin_url}/v1/feeds?{self._left}"
        described = described_in(url, await self._client.get(url, self._options.authorization))
        return described["instance"], [each["address"] for each in subscribers_of(described)]


async def _opened(stream: Stream) -> None:
    async with asyncio.timeout(OPENING):
        await stream.open()


# --- the command ------------------------------------------------------------------------------------------------------


async def check_through(options: Options) -> int:
    """Measure, print the findings, and return the exit status: 0 no fault, 1 a fault, 2 cannot tell.

    Raises:
        OutputError: standard output cannot be written.
    """
    try:
        measured = await Through(options).run()
    except UnreachableError as error:
        _print({"status": 2, "error": str(error)} if options.json else f"cannot tell: {error}")
        return 2
    found = findings(measured)
    status = status_of(found, measured)
    if options.json:
        _print({"status": status, "through": options.through, "findings": [_plain(each) for each in found]})
    else:
        head = f"{KeyRange('prefix', options.prefix)} through {options.through}, and directly at {options.url}"
        _print("\n".join([head, "", *map(_row, found), "", summary_of(found)]))
    return status


def _print(report: str | dict[str, Any]) -> None:
    say(f"{report if isinstance(report, str) else json.dumps(report)}\n")


def _row(finding: Finding) -> str:
    row = f"{finding.level.value:8} {finding.subject:20} {finding.text}"
    return f"{row}\n{' ' * 30}→ {finding.advice}" if finding.advice else row


def _plain(finding: Finding) -> dict[str, Any]:
    level = finding.level.value.lower()
    return {**asdict(finding), "level": level}
