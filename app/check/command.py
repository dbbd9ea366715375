"""``etcd-watch-gateway check``: opens and aborts streams at a running gateway, reads what it and etcd count meanwhile,
and says whether every watch came back. What the counts prove is decided by ``app.check.verdict``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..access.token import read_token
from ..core.keys import KeyRange
from .client import Client, Departure, Stream, UnreachableError
from .samples import Sampler
from .verdict import GRACE, Outcome, Round, Sample, Verdict, judge, returned

# Seconds between two looks; a look is three requests.
PAUSE = 0.5
# Streams that are being opened at a time.
AT_A_TIME = 100
WORDS = {Outcome.BACK: "all back", Outcome.LEAK: "LEAK", Outcome.UNKNOWN: "cannot tell"}


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


class Check:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._range = str(KeyRange("prefix", options.prefix))
        self._run = secrets.token_hex(4)
        # For the gateway alone, not for etcd. As bytes it is UTF-8, which headers are written as if they were Latin-1.
        token = options.token.encode(errors="surrogateescape").decode("latin-1")
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = Client()
        self._sampler = Sampler(
            self._client, options.admin_url, self._authorization, self._range, self._run, options.etcd_metrics
        )
        self._numbers = 0

    async def run(self) -> Verdict:
        """Do it, and say what is seen on standard output.

        Raises:
            UnreachableError: something is out of reach, and what was seen before proves no leak.
        """
        options = self._options
        before = (await self._settled(None))[-1]
        unread = sum(departure is Departure.UNREAD for departure in self._departures())
        _say(
            f"{self._range} at {options.url}, etcd by {', '.join(self._sampler.etcd_metrics)}",
            f"{options.streams} streams a round, {unread} of them gone before their first byte; the gateway lingers "
            f"{self._sampler.linger:g} s",
            "",
            *HEADINGS,
            _row("before", before),
        )
        linger = self._sampler.linger
        if options.timeout <= linger + GRACE:
            raise UnreachableError(
                f"--timeout is {options.timeout:g} s, but the gateway keeps a feed for {linger:g} s: it must be "
                f"more than {linger + GRACE:g} s"
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
        streams = [self._stream(departure) for departure in self._departures()]
        held = sum(stream.departure is not Departure.UNREAD for stream in streams)
        try:
            await self._open(streams)
            now_open = await self._listed(held)
            direct = self._sampler.addresses <= {stream.address for stream in streams}
            _say(_row(f"round {number}, open", now_open))
            await asyncio.gather(*(stream.leave() for stream in streams))
        finally:
            for stream in streams:
                stream.abort()
        self._sampler.begin_quiet()
        looks = await self._settled(before)
        _say(_row(f"round {number}, gone", looks[-1]))
        return Round(held, now_open, looks, direct)

    def _departures(self) -> list[Departure]:
        ways = list(Departure)
        return [ways[index % len(ways)] for index in range(self._options.streams)]

    def _stream(self, departure: Departure) -> Stream:
        self._numbers += 1
        headers = {
            **self._authorization,
            "Accept": "application/x-ndjson",
            "X-Request-Id": f"{self._run}-{self._numbers}",
        }
        url = f"{self._options.url}/v1/watch?{self._range}&format=ndjson"
        return self._client.stream(url, headers, departure)

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
            sample = await self._sampler.sample()
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
            sample = await self._sampler.sample()
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
            samples.append(await self._sampler.sample())
            await asyncio.sleep(PAUSE)
        _say(_row("without streams", samples[-1]))
        return samples


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
