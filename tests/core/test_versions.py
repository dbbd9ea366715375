"""``app.core.versions``: which etcd's behaviour can be trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.versions import (
    UNKNOWN,
    Version,
    known_to_diverge,
    known_to_lose_events,
    parse_version,
    progress_is_trusted,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.5.16", (3, 5, 16)),
        ("v3.6.0", (3, 6, 0)),
        ("3.6.0-rc.2", (3, 6, 0)),
        ("3.5.1+git", (3, 5, 1)),
        ("10.20.30", (10, 20, 30)),
        ("3.5", UNKNOWN),
        ("", UNKNOWN),
        ("etcd 3.5.1", UNKNOWN),
    ],
)
def test_versions_are_read(text: str, version: Version) -> None:
    """A pre-release counts as the version that it precedes; an unreadable text is unknown."""
    assert parse_version(text) == version


@given(st.text())
def test_no_version_raises(text: str) -> None:
    """An etcd may report any text as its version."""
    parse_version(text)


@pytest.mark.parametrize(
    ("text", "diverges"),
    [("3.4.23", False), ("3.5.0", True), ("3.5.2", True), ("3.5.3", False), ("3.6.0", False), ("unreadable", False)],
)
def test_members_that_differ_after_a_crash(text: str, diverges: bool) -> None:
    """The members of etcd 3.5.0 to 3.5.2 may differ after a crash."""
    assert known_to_diverge(parse_version(text)) == diverges


@pytest.mark.parametrize(
    ("text", "trusted", "loses"),
    [
        ("3.3.27", False, True),
        ("3.4.23", False, True),
        ("3.4.24", False, True),
        ("3.4.25", True, True),
        ("3.4.35", True, True),
        ("3.4.36", True, False),
        ("3.5.0", False, True),
        ("3.5.1", False, True),
        ("3.5.7", False, True),
        ("3.5.8", True, True),
        ("3.5.17", True, True),
        ("3.5.18", True, False),
        ("3.6.0", True, False),
        ("4.0.0", True, False),
        ("unreadable", False, False),
    ],
)
def test_trust_has_a_version(text: str, trusted: bool, loses: bool) -> None:
    """On-demand progress is trusted from 3.4.25 and 3.5.8 on.

    An unknown version is not trusted, but is not suspected of losing deletes either.
    """
    version = parse_version(text)
    assert (progress_is_trusted(version), known_to_lose_events(version)) == (trusted, loses)
