"""``app.api.kv_answer``: the values, 304, or 404, and the headers of each."""

from __future__ import annotations

import pytest

from app.api.kv_answer import KvAnswers
from app.api.kv_request import parse
from app.api.kv_response import KvBody
from app.core.budget import Budget, Use
from app.core.errors import NotFoundError
from app.core.etag import ETag, IfNoneMatch

TAG, ABSENT = ETag("3f9ac17b", 40, 1), ETag("3f9ac17b", 0, 0)


def answers(query: bytes, known: str | None, wait: int = 0) -> KvAnswers:
    """The answers to a client that sends this ``If-None-Match``."""
    return KvAnswers(parse(query), None if known is None else IfNoneMatch(known), wait, 60.0)


def body(tag: ETag | None, *parts: bytes) -> KvBody:
    """A body; without parts, that of an absent key."""
    return KvBody(41, parts or None, Budget(1 << 20).hold(Use.ANSWER), tag)


def test_the_values() -> None:
    """A client that has another state, or says nothing, gets the values."""
    for known in (None, '"x"'):
        response = answers(b"key=/a", known).of(body(TAG, b"{}"))

        assert response.status_code == 200
        assert dict(response.headers) == {
            "x-etcd-revision": "41",
            "cache-control": "no-store",
            "etag": 'W/"3f9ac17b-40-1"',
            "content-length": "2",
            "content-type": "application/json",
        }


def test_not_modified() -> None:
    """A client that has the state gets the headers only."""
    response = answers(b"key=/a", str(TAG), 30).of(body(TAG, b"{}"), "stale")

    assert response.status_code == 304
    assert dict(response.headers) == {
        "x-etcd-revision": "41",
        "cache-control": "no-store",
        "etag": 'W/"3f9ac17b-40-1"',
        "x-gateway-state": "stale",
        "preference-applied": "wait=30",
    }


@pytest.mark.parametrize("known", [None, "*", str(ABSENT), '"x"'])
def test_an_absent_key_is_never_a_304(known: str | None) -> None:
    """No body can show that a key is absent, so the client is told each time."""
    asked = answers(b"key=/a", known)
    with pytest.raises(NotFoundError) as missing:
        asked.of(body(ABSENT))

    assert missing.value.headers["ETag"] == str(ABSENT)
    assert missing.value.headers["X-Etcd-Revision"] == "41"
    assert asked.has(ABSENT) == (known == str(ABSENT))


def test_an_empty_list_exists() -> None:
    """An empty list is a state like any other."""
    for known in ("*", str(ABSENT)):
        assert answers(b"prefix=/a/", known).of(body(ABSENT, b"{}")).status_code == 304


def test_no_client_has_a_part() -> None:
    """What has no ``ETag`` is never a 304."""
    response = answers(b"prefix=/a/", "*").of(body(None, b"{}"))

    assert response.status_code == 200
    assert "etag" not in response.headers


def test_what_the_client_has_seen() -> None:
    """The greatest revision of its tags; nothing if it sends none."""
    assert answers(b"key=/a", str(TAG)).newest("3f9ac17b") == 40
    assert answers(b"key=/a", None).newest("3f9ac17b") == 0
