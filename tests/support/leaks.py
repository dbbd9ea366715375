"""Leaks to inject into a gateway: an alert that does not fire on a leak is useless.

Usage: ``python -m tests.support.leaks watches serve …`` runs a gateway with that leak. Each leak replaces one part of
the product in that process; the product knows nothing about the leaks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from app import cli
from app.core.refcounts import RefCounts
from app.etcd.stream import WatchStream
from app.etcd.watches import EtcdWatch
from app.watch.subscriber import Subscriber


def _replace(owner: object, name: str, new: object) -> None:
    setattr(owner, name, new)


def watches() -> None:
    """A feed ends, but does not cancel its watch."""

    def forget(self: EtcdWatch) -> None:
        self.callback = None
        self._watches.forget(self)

    _replace(EtcdWatch, "cancel", forget)


def streams() -> None:
    """The last watch of a stream is released and the stream is forgotten, but the stream's call is not cancelled."""
    close = WatchStream.close

    def forget(self: WatchStream, error: BaseException | None = None) -> None:
        if error is not None:
            close(self, error)
        else:
            self._on_end(self, None)

    _replace(WatchStream, "close", forget)


def leases() -> None:
    """A stream ends, but its subscriber is not released: the second half of the outage."""
    _replace(Subscriber, "release", lambda _self: None)


def lingers() -> None:
    """A feed lingers, and its linger time does not end it."""
    _replace(RefCounts, "expire", lambda _self, _key: False)


LEAKS: dict[str, Callable[[], None]] = {function.__name__: function for function in (watches, streams, leases, lingers)}


if __name__ == "__main__":
    LEAKS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
