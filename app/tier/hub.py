"""The hub as a worker sees it: the same gateway in another process, so of the same tier and with the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..core.backoff import Backoff
from ..core.errors import (
    AnswerCutError,
    AnswerRevokedError,
    EtcdRefusedError,
    GatewayError,
    OverCapacityError,
    RangesNeedPinError,
    TooLargeError,
    TransientError,
    UnavailableError,
)
from ..core.selection import Selection
from ..ports import Clock, Draw, Hub
from .client import Answer, Begin, Client, at_once, refusal, tier_of
from .dial import unix
from .upstream import GatewayUpstream

_BY_CODE: Mapping[str, type[GatewayError]] = {
    one.code: one for one in (TooLargeError, RangesNeedPinError, UnavailableError)
}
_BY_STATUS: Mapping[int, type[GatewayError]] = {
    429: OverCapacityError,
    502: EtcdRefusedError,
    503: TransientError,
}


class HubUpstream(GatewayUpstream):
    """See the module.

    Args:
        hub: also says that it is alive. A stopped hub makes its workers stale as soon as a stopped etcd would.
    """

    # The hub cannot be followed yet, because etcd has never answered. The worker waits, too.
    down = "connecting"

    def __init__(
        self,
        hub: Hub,
        epoch_of: Callable[[int, Selection], str],
        *,
        stale_after: float,
        clock: Clock,
        draw: Draw,
    ) -> None:
        client = partial(Client, ["http://hub"], lambda: None, lambda: "", dial=lambda _tls: unix(hub.socket))
        super().__init__(client, epoch_of, stale_after=stale_after, clock=clock, draw=draw)
        self._hub = hub
        # The hub is there as long as the worker is. Only its etcd may be out of reach, and it says so.
        self._backoff = Backoff(0.02, 0.25)

    def admit(self, headers: Mapping[str, str], status: int) -> int:
        """Return the hub's own tier: its worker is a part of the same gateway.

        Raises:
            ForeignAnswerError: the hub does not know it yet.
        """
        return tier_of(headers, status)

    def alive_at(self, heard_at: float, silence: float) -> float:
        """Return when the hub has last said that it is alive: it does so every second, and its streams say "stale"."""
        del heard_at, silence
        return self._hub.heard_at

    def reach(self, most: int) -> int:
        """See ``app.ports.Etcd``: nine tenths of what the hub reads, because the tip of the hub may be ahead."""
        return int(most * 0.9 ** ((self.tier or 0) + 1))

    async def _read(self, query: str, begin: Begin = at_once) -> Answer:
        """Return the hub's answer. The hub cuts one short only if its feeds need the memory, or when it ends."""
        try:
            return await super()._read(query, begin)
        except AnswerCutError as error:
            raise AnswerRevokedError(cause=error.cause) from None

    @staticmethod
    def refusal(answer: Answer, problem: Mapping[str, Any]) -> GatewayError:
        """Return the same error as the hub has."""
        code, detail = str(problem.get("code", "")), str(problem.get("detail", ""))
        kind = _BY_CODE.get(code) or _BY_STATUS.get(answer.status)
        if kind is None or not code:
            return refusal(answer, problem)
        return kind(detail, code=code)
