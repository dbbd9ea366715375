"""``etcd-watch-gateway check``: opens and aborts streams at a running gateway, reads the counts of the gateway and of
etcd meanwhile, and reports whether every watch was released. ``app.check.verdict`` decides what the counts prove.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Sequence

from ..core.keys import KeyRange
from ..stdio import say
from .client import Client, Departure, Stream, UnreachableError
from .options import Options
from .samples import Sampler
from .through import check_through
from .verdict import GRACE, Outcome, Round, Sample, Verdict, conclude, returned

# Seconds between two samples. A sample takes three requests.
PAUSE = 0.5
# Streams that the check opens at the same time.
AT_A_TIME = 100
WORDS = {Outcome.BACK: "all back", Outcome.LEAK: "LEAK", Outcome.UNKNOWN: "cannot tell"}


class Check:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._range = str(KeyRange("prefix", options.prefix))
        self._run = secrets.token_hex(4)
        self._authorization = options.authorization
        self._client = Client(options.tls)
        self._sampler = Sampler(
            self._client, options.admin_url, self._authorization, self._range, self._run, options.etcd_metrics
        )
        self._numbers = 0

    async def run(self) -> Verdict:
        """Run the check, and print each sample to standard output.

        Raises:
            UnreachableError: a server is unreachable, and the samples so far do not prove a leak.
        """
        options = self._options
        before = (await self._settled(None))[-1]
        unread = sum(departure is Departure.UNREAD for departure in self._departures())
        linger = self._sampler.linger
        self._tell(
            f"{self._range} at {options.url}, etcd by {', '.join(self._sampler.etcd_metrics)}",
            f"{options.streams} streams a round, {unread} of them gone before their first byte; the gateway keeps an "
            f"unused feed for {linger:g} s, so this takes about {options.rounds * (linger + 2):.0f} s",
            "",
            *HEADINGS,
            _row("before", before),
        )
        if options.timeout <= linger + GRACE:
            raise UnreachableError(
                f"--timeout is {options.timeout:g} s, but the gateway keeps an unused feed for {linger:g} s: "
                f"--timeout must be more than {linger + GRACE:g} s"
            )
        rounds: list[Round] = []
        began = time.monotonic()
        verdict = conclude(before, rounds)
        if before.checked.feeds:
            return verdict
        try:
            while len(rounds) < options.rounds:
                rounds.append(await self._round(len(rounds) + 1, before))
                verdict = conclude(before, rounds)
                if verdict.outcome is not Outcome.BACK and not verdict.suspicious:
                    return verdict
            if verdict.suspicious and len(rounds) > 1:
                return conclude(before, rounds, await self._control(time.monotonic() - began))
        except UnreachableError:
            # The gateway may fail because it leaks: a gateway that forgets a watch stream receives nothing on it, and
            # takes etcd for dead. So report a leak that the samples already prove.
            verdict = conclude(before, rounds)
            if verdict.outcome is not Outcome.LEAK:
                raise
        return verdict

    def _tell(self, *lines: str) -> None:
        if not self._options.json:
            say("".join(f"{line}\n" for line in lines))

    async def _round(self, number: int, before: Sample) -> Round:
        streams = [self._stream(departure) for departure in self._departures()]
        held = sum(stream.departure is not Departure.UNREAD for stream in streams)
        try:
            await self._open(streams)
            now_open = await self._listed(held)
            direct = self._sampler.addresses <= {stream.address for stream in streams}
            self._tell(_row(f"round {number}, open", now_open))
            await asyncio.gather(*(stream.leave() for stream in streams))
        finally:
            for stream in streams:
                stream.abort()
        self._sampler.begin_quiet()
        looks = await self._settled(before)
        self._tell(_row(f"round {number}, gone", looks[-1]))
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
        """Return a sample once the gateway has a feed for all open streams, and has noticed each disconnect.

        After GRACE seconds, return the sample as it is.
        """
        deadline = time.monotonic() + GRACE
        while True:
            sample = await self._sampler.sample()
            if (sample.checked.ours == held and sample.gateway.even) or time.monotonic() > deadline:
                return sample
            await asyncio.sleep(PAUSE)

    async def _settled(self, before: Sample | None) -> tuple[Sample, ...]:
        """Take samples until the range has no feed and all counts are as in *before*; see ``Round.looks``.

        Two samples in a row must agree: another client's watch may hide a leak for a moment. Stop also when the counts
        are overdue.
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
        """Take samples for *seconds*, while the check has no open streams."""
        self._tell(f"etcd's counts moved in step with the rounds: watching them without streams for {seconds:.0f} s")
        until = time.monotonic() + seconds
        samples = []
        while time.monotonic() < until:
            samples.append(await self._sampler.sample())
            await asyncio.sleep(PAUSE)
        self._tell(_row("without streams", samples[-1]))
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


async def check(options: Options) -> int:
    """Run the check and return the exit status: 0 all back, 1 a leak, 2 cannot tell.

    Raises:
        OutputError: standard output cannot be written.
    """
    if options.through:
        return await check_through(options)
    try:
        verdict = await Check(options).run()
    except UnreachableError as error:
        verdict = Verdict(Outcome.UNKNOWN, (str(error),))
    if options.json:
        report = {"status": verdict.outcome.value, "outcome": WORDS[verdict.outcome], "reasons": verdict.reasons}
        say(f"{json.dumps(report)}\n")
    else:
        say(f"\n{WORDS[verdict.outcome]}: {'; '.join(verdict.reasons)}\n")
    return verdict.outcome.value
