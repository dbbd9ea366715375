"""Which cluster we follow, and how far its history is known: what every answer of etcd is compared with.

A linearizable revision or raft term below the highest that was known when it was asked for means that the history is
another one: etcd was restored, and every feed is told. Another cluster's id is not taken for that at once. An endpoint
that leads elsewhere (a wrong list, a name or an address that was given to others) must not swap everybody's mirror for
other data, nor be changed with the right ones in turn: it is skipped. Only when nobody of our cluster was to be had for
a while is the other one believed to have replaced it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from ..ports import Clock

logger = logging.getLogger("gateway.etcd")


class ForeignClusterError(ConnectionError):
    """An answer of a cluster that we do not follow; nothing in it is to be used."""


class Cluster:
    """See the module.

    Args:
        patience: seconds without our cluster after which another one may take its place.
    """

    def __init__(self, *, patience: float, clock: Clock) -> None:
        self._patience = patience
        self._clock = clock
        self._seen_at = -math.inf
        self._restored: list[Callable[[], None]] = []
        self.id = 0
        # The highest heard of, in this history.
        self.revision = 0
        self.term = 0
        # The highest raft index that a member was heard to have applied.
        self.applied = 0

    @property
    def known(self) -> tuple[int, int]:
        """The highest (revision, raft term) heard of."""
        return self.revision, self.term

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Have *callback* called whenever the history turns out to be another one."""
        self._restored.append(callback)

    def note(self, header: Any) -> None:
        """The header of any answer.

        Raises:
            ForeignClusterError: it is not ours.
        """
        if header.cluster_id:
            if not self.id:
                self.id = header.cluster_id
            if header.cluster_id != self.id:
                raise ForeignClusterError(self._foreign(header))
            self._seen_at = self._clock()
        self.revision = max(self.revision, header.revision)

    def note_linearizable(self, before: tuple[int, int], header: Any) -> None:
        """A linearizable answer, and the highest (revision, term) that was known when it was asked for.

        Neither can have fallen since, unless etcd was restored. Raises as ``note``.
        """
        self.note(header)
        if header.revision < before[0] or header.raft_term < before[1]:
            logger.warning("etcd went back: it was restored", extra={"revision": header.revision, "was": before[0]})
            self._start_anew(header)
        self.term = max(self.term, header.raft_term)

    def note_applied(self, index: int) -> None:
        """What a member has applied; 0 when it does not say."""
        self.applied = max(self.applied, index)

    def compare_applied(self, before: int, index: int, header: Any) -> None:
        """What a member had applied *after* a linearizable read there, and the highest known before that read.

        The read made it apply all that anybody had. A restore begins a new raft log, so this tells also of one whose
        revision has passed ours again: a feed that knows no event of its range has nothing else to tell by.
        """
        if 0 < index < before:
            logger.warning("etcd's raft log begins anew: it was restored", extra={"applied": index, "was": before})
            self._start_anew(header)
        self.note_applied(index)

    def admit(self, header: Any, *, tried_all: bool) -> str | None:
        """Whether a new link's member may be used: None, or why not. *tried_all*: no other endpoint had ours either."""
        if header is None:
            return None
        if header.cluster_id not in (0, self.id) and self.id:
            if not tried_all or self._clock() - self._seen_at < self._patience:
                return self._foreign(header)
            logger.warning(
                "another cluster has taken the place of ours",
                extra={"was": f"{self.id:x}", "is": f"{header.cluster_id:x}"},
            )
            self.id = header.cluster_id
            self._start_anew(header)
        self.note(header)
        return None

    def _foreign(self, header: Any) -> str:
        return f"it is of another cluster, {header.cluster_id:x}; this gateway follows {self.id:x}"

    def _start_anew(self, header: Any) -> None:
        self.revision, self.term, self.applied = header.revision, header.raft_term, 0
        for callback in self._restored:
            callback()
