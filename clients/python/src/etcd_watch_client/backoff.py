"""When and where to connect next. Pure: the random numbers are passed in."""

from __future__ import annotations

LONGEST_WAIT = 300.0  # seconds; the gateway never asks for more
LONGEST_BACKOFF = 30.0
_SPREAD = 1.0  # on top of what is asked for: Retry-After has whole seconds, which are the same for many clients


class Backoff:
    """Chooses the gateway of each attempt, and the seconds before it.

    The gateways are tried one after the other. Without success the delay grows after each round of all gateways:
    0.1 to 2 seconds after the first round, at most 30 seconds. The delay is random, so that a thousand clients do not
    reconnect at the same moment.
    """

    def __init__(self, gateways: int, draw: float) -> None:
        """*draw*, from 0 to 1, chooses the first gateway, so that many clients spread."""
        self._gateways = gateways
        self._failures = 0
        self.index = min(int(draw * gateways), gateways - 1)

    def succeed(self) -> None:
        """The stream is in order: the next failure is the first one."""
        self._failures = 0

    def delay(self, asked: float, draw: float) -> float:
        """The attempt has ended: move to the next gateway, and return the seconds to wait before it is asked.

        *asked* is what the gateway asked for, 0 if it did not; *draw* is a random number from 0 to 1.
        """
        self.index = (self.index + 1) % self._gateways
        self._failures += 1
        rounds, others = divmod(self._failures, self._gateways)
        if others:  # another gateway has not been asked yet
            return draw * (min(asked, 1.0) or 0.1)
        if asked > 0:
            return min(asked + draw * _SPREAD, LONGEST_WAIT)
        return (0.1 + 0.9 * draw) * min(LONGEST_BACKOFF, 2.0 ** min(rounds, 5))
