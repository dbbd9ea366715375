"""Which worker gets the next connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Seconds within which a worker takes a connection that was passed to it. A worker that takes longer is stopped, or has
# much to do, and gets no other connection meanwhile: with the kernel's own choice among several listeners
# (SO_REUSEPORT), 56 of 100 connections hung while one of two workers was stopped.
PROMPT = 0.25
# Connections that are on the way to one worker at most. The socket between the two takes about 270.
MOST_PASSED = 128


@dataclass(frozen=True, slots=True)
class Load:
    """What one worker has.

    Args:
        streams: that the hub has admitted for it.
        connections: that are open there, as far as it has said.
        passed: connections that were passed to it and that it has not taken yet.
        waiting: seconds that the oldest of these waits, or that a ping is not answered.
    """

    streams: int
    connections: int
    passed: int = 0
    waiting: float = 0.0


def least_loaded(loads: Sequence[Load]) -> int | None:
    """Return the index of the worker that gets the next connection; None if none takes connections now.

    That is the one with the fewest streams, and among equals the one with the fewest connections. What it has not
    taken yet counts as a stream: a herd must not go to one worker until its first stream is counted.
    """
    prompt = [index for index, load in enumerate(loads) if load.waiting < PROMPT and load.passed < MOST_PASSED]
    return min(prompt, key=lambda index: _key(loads[index]), default=None)


def _key(load: Load) -> tuple[int, int]:
    return load.streams + load.passed, load.connections + load.passed
