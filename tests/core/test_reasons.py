"""``app.core.reasons``: the reasons of the wire contract never change."""

from __future__ import annotations

from app.core import errors
from app.core.reasons import CLOSE_REASONS, END_REASONS, REFUSAL_REASONS, RESET_REASONS


def test_the_words_of_the_wire_stay() -> None:
    """Clients compare these reasons, and dashboards and alerts use them.

    A reason may be added here, but none may change.
    """
    assert RESET_REASONS == ("initial", "lagged", "compacted", "cursor-lost", "restored", "unproven")
    assert set(CLOSE_REASONS) == {
        "drain", "max-age", "unavailable", "overloaded", "too-large", "too-slow", "revoked",
        "revision-not-reached", "expired", "scope-changed",
    }  # fmt: skip
    assert set(END_REASONS) == {
        "client", "drain", "max-age", "unavailable", "too-large", "too-slow", "revoked", "revision-not-reached",
        "expired", "scope-changed", "send-timeout", "error", "shutdown", "cancelled",
    }  # fmt: skip
    assert set(REFUSAL_REASONS) == {
        "too-many-subscribers", "too-many-feeds", "too-many-channels", "too-many-connections", "draining",
        "etcd-unavailable", "pin-unavailable", "too-large", "ranges-need-pin", "selection-too-wide", "unauthorized",
        "forbidden", "cross-origin", "invalid-parameter", "prefix-too-short",
        "identity-streams", "identity-selections", "identity-feeds", "identity-joins", "identity-reads",
        "address-streams", "address-joins", "address-reads",
    }  # fmt: skip


def test_no_reason_is_there_twice() -> None:
    """No reason is listed twice: a duplicate label is an error at scrape time."""
    for reasons in (RESET_REASONS, CLOSE_REASONS, END_REASONS, REFUSAL_REASONS):
        assert len(set(reasons)) == len(reasons)


def test_a_refused_stream_is_closed_for_a_reason_of_the_contract() -> None:
    """An EventSource gets the reason in a ``close``; other clients get a status."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    transient = [kind for kind in kinds if issubclass(kind, errors.TransientError)]
    assert len(transient) > 5
    assert {kind.close_reason for kind in transient} <= set(CLOSE_REASONS)
