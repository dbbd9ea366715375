"""A permit: what lets a stream read. It holds for as long as the stream lives, or until the files change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from ..core.errors import ForbiddenError, ScopeChangedError, UnauthorizedError
from ..core.reasons import CloseReason
from ..core.selection import Ranges
from . import audit
from .audit import Decision
from .bearer import INSUFFICIENT_SCOPE, INVALID_TOKEN
from .identity import Identity
from .policy import Grants


class Rules(Protocol):
    """The access rules as they are now: ``AccessControl``."""

    generation: int  # grows with each change
    guarded: bool  # whether the audit log is written

    def current(self, identity: Identity) -> Identity | None:
        """Return the identity as it is now; None if its token would be refused now."""

    def grants(self, identity: Identity) -> Grants:
        """Return what *identity* may read now."""

    def rule(self, identity: Identity, ranges: Ranges, *, keys_only: bool) -> str:
        """Return what permits a read, for the audit log."""

    def wall(self) -> float:
        """Return the wall clock's seconds."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission of one identity to read one selection. Equal permits have the same fate after a reload.

    ``AccessControl.permit`` makes permits.
    """

    identity: Identity
    asked: Ranges  # what the client has asked for
    ranges: Ranges  # what is left of ``asked``, with ``scope=permitted``
    keys_only: bool
    permitted_only: bool  # ``scope=permitted``: the permitted parts of ``asked`` suffice
    rules: Rules = field(compare=False, repr=False)
    # Wall-clock seconds at which the stream must end; None: never.
    expires: float | None = field(compare=False)
    # The generation of the rules by which this was checked.
    generation: int = field(compare=False)

    @property
    def session(self) -> str:
        """The id of the browser's session that has opened the stream; empty if a session has not."""
        return self.identity.session.id if self.identity.session is not None else ""

    def renewed(self) -> Permit | CloseReason:
        """Return the permit as it is after the files have changed, or why the stream must be closed."""
        rules = self.rules
        identity = rules.current(self.identity)
        if identity is None:
            return "revoked"
        now = rules.wall()
        if identity.expired(now):
            return "expired"
        grants = rules.grants(identity)
        if self.permitted_only:
            left = grants.permitted(self.asked, keys_only=self.keys_only)
            if not left:
                return "revoked"
            if not all(any(one.covers(part) for one in left) for part in self.ranges):
                return "scope-changed"
        elif not all(grants.permit(one, keys_only=self.keys_only) for one in self.ranges):
            return "revoked"
        return replace(self, identity=identity, expires=identity.ends_at(now), generation=rules.generation)

    def note(self, decision: Decision, *, address: str, request_id: str) -> None:
        """Write a line in the audit log: the stream has joined, or must end."""
        if not (self.rules.guarded and audit.enabled()):
            return
        if decision == "joined":
            rule = self.rules.rule(self.identity, self.ranges, keys_only=self.keys_only)
        elif decision == "expired" or self.rules.current(self.identity) is None:
            rule = "credentials"
        else:
            rule = "etcd" if isinstance(self.renewed(), Permit) else "policy"
        audit.write(decision, self.identity, self.ranges, rule=rule, address=address, request_id=request_id)

    def check(self) -> None:
        """Check the permit again: the request has waited, and the rules may have changed, or its credentials expired.

        Raises:
            UnauthorizedError: the credentials would be refused now.
            ForbiddenError: the credentials are still good, and no longer permit the read.
            ScopeChangedError: the permit holds for a part of the ranges.
        """
        if self.generation == self.rules.generation and not self.identity.expired(self.rules.wall()):
            return
        outcome = self.renewed()
        if isinstance(outcome, Permit):
            return
        identity = self.rules.current(self.identity)
        if identity is None or identity.expired(self.rules.wall()):
            gone = UnauthorizedError("the credentials have ended while the request waited; get new credentials")
            gone.headers = INVALID_TOKEN
            raise gone
        changed = f"what {self.identity.name} may read has changed while the request waited; send the request again"
        if outcome == "scope-changed":
            raise ScopeChangedError(changed)
        error = ForbiddenError(changed)
        error.headers = INSUFFICIENT_SCOPE
        raise error
