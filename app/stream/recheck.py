"""The check of all open streams after the access rules have changed: streams that may no longer read are closed.

Streams that begin after the change have been checked by the new rules.
"""

from __future__ import annotations

import logging
from functools import partial

from ..core.reasons import DENIALS, CloseReason
from ..ports import Clock, Permit
from ..watch.registry import Registry
from ..watch.subscriber import Subscriber
from .slices import Slices

logger = logging.getLogger("gateway.stream")


class Recheck:
    """See the module. A change during a pass starts the pass anew."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._pass: Slices[Subscriber] | None = None

    @property
    def running(self) -> bool:
        """Whether a pass is not over yet."""
        return self._pass is not None and self._pass.running

    def begin(self) -> None:
        """Check all streams that are open now, beginning with the first slice at once."""
        if self._pass is not None:
            self._pass.stop()
        # The outcomes are those of this pass: equal permits have the same outcome.
        self._pass = Slices(self._registry.readers(), partial(_check, {}), self._clock)

    def end_session(self, session: str) -> None:
        """Close the streams that a browser's session has opened. Finding them among 20,000 streams takes 1 ms.

        In slices, too: each close costs the stream's last event, and lines in two logs.
        """
        found = self._registry.readers()
        Slices((one for one in found if one.permit is not None and one.permit.session == session), _revoke, self._clock)


def _check(outcomes: dict[Permit, Permit | CloseReason], subscriber: Subscriber) -> None:
    permit = subscriber.permit
    if permit is None or subscriber.released or subscriber.closing in DENIALS:
        return
    outcome = outcomes.get(permit)
    if outcome is None:
        outcome = outcomes[permit] = _renewed(permit)
    if isinstance(outcome, str):
        subscriber.close(outcome)
    else:
        subscriber.renew(outcome)


def _revoke(subscriber: Subscriber) -> None:
    if not subscriber.released:
        subscriber.close("revoked")


def _renewed(permit: Permit) -> Permit | CloseReason:
    try:
        return permit.renewed()
    except Exception:  # a defect in a check must not let anybody go on reading, nor keep the others from being checked
        logger.exception("a permit could not be checked: its streams are closed")
        return "revoked"
