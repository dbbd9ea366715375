"""A stream of another gateway, read as a watch."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed_messages import Batches, Created, Lost, Progress, Refused, Reset, WatchInput
from app.core.frames import batch_frame, comment, control
from app.core.gateway_watch import LONGEST_LINE, GatewayWatch, StreamError, parse_item

EPOCH = "81e932e5"


def line(kind: str, cursor: int | None = None, **members: Hashable) -> bytes:
    """One control event."""
    return control("ndjson", kind, members, None if cursor is None else f"{EPOCH}-{cursor}")


def put(revision: int, *, more: bool = False, key: str = "/a") -> bytes:
    """One put of a revision."""
    found = {"type": "put", "key": key, "value": "v", "create_revision": 1, "mod_revision": revision, "version": 2}
    found |= {"more": True} if more else {"cursor": f"{EPOCH}-{revision}"}
    return json.dumps(found).encode() + b"\n"


def synced(revision: int) -> bytes:
    """The event that ends a resume."""
    return line("synced", revision, revision=revision, heartbeat=7)


def read(watch: GatewayWatch, *chunks: bytes) -> list[WatchInput]:
    """All inputs that the chunks make."""
    return [given for chunk in chunks for given in watch.receive(chunk)]


def published(inputs: Iterable[WatchInput]) -> list[tuple[int, Sequence[Event]]]:
    """The revisions among the inputs, with their events."""
    return [(one.revision, one.events) for found in inputs if isinstance(found, Batches) for one in found.batches]


names = st.binary(max_size=6)
leases = st.sampled_from([0, 1, (1 << 63) - 1, -1, -(1 << 63)])


@st.composite
def histories(draw: st.DrawFn) -> list[Batch]:
    """Revisions of a range, each with one event or more."""
    found, revision = [], 10
    for _ in range(draw(st.integers(0, 6))):
        revision += draw(st.integers(1, 3))
        events: list[Event] = []
        for _ in range(draw(st.integers(1, 3))):
            key = draw(names)
            events.append(
                Delete(key, revision)
                if draw(st.booleans())
                else KeyValue(key, draw(names), draw(st.integers(1, revision)), revision, 3, draw(leases))
            )
        found.append(Batch(revision, events))
    return found


@given(histories(), st.sampled_from(["auto", "base64"]), st.data())
def test_what_a_gateway_writes_is_read_exactly(found: list[Batch], encoding: str, data: st.DataObject) -> None:
    """However the bytes are divided: the revisions of a stream are those that the upstream published."""
    sent = b"".join(batch_frame(one, "ndjson", encoding, EPOCH) + comment("ndjson", "waiting") for one in found)
    last = found[-1].revision if found else 10
    sent += synced(last) + line("bookmark", last + 5, revision=last + 5, state="stale")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    watch = GatewayWatch(11, EPOCH)
    chunks = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    inputs = read(watch, *chunks)

    assert published(inputs) == [(one.revision, one.events) for one in found]
    assert inputs[0] == Created(found[0].revision if found else 10)
    assert inputs[-1] == Progress(last + 5, trusted=True)
    assert (watch.state, watch.revision, watch.silence) == ("stale", last + 5, 21)


def test_the_head_says_how_far_the_upstream_was() -> None:
    """A watch that has come as far as the upstream's tip has caught up: the head of the response states the tip."""
    watch = GatewayWatch(5, EPOCH)
    assert list(watch.accepted(9)) == [Created(9)]
    assert not watch.synced
    assert published(read(watch, put(6), synced(9))) != []
    assert watch.synced


def test_an_upstream_without_a_state_is_created_by_its_first_line() -> None:
    """Nothing is created before the upstream knows where it is."""
    watch = GatewayWatch(0, EPOCH)
    assert list(watch.accepted(0)) == []
    assert read(watch, b"\n\n", line("status", state="stale", ranges=())) == []
    assert watch.state == "stale"
    assert read(watch, synced(12)) == [Created(12), Progress(12, trusted=True)]
    assert str(watch.state) == "live"


def test_which_cursors_may_be_of_an_ended_history() -> None:
    """The upstream says so before anything that a client could resume in. An older version does not say it."""
    watch = GatewayWatch(0, EPOCH)
    chunk = line("synced", 12, revision=12, heartbeat=7, ended_revision=9) + put(13)
    assert [watch.ended_revision for _ in watch.receive(chunk)] == [9, 9, 9]
    older = GatewayWatch(0, EPOCH)
    read(older, synced(12))
    assert older.ended_revision == 0


def test_a_stream_that_begins_stale_is_never_live() -> None:
    """``synced`` says so itself: the ``status`` that follows may come in another chunk."""
    watch = GatewayWatch(12, EPOCH)
    inputs = watch.receive(line("synced", 12, revision=12, heartbeat=7, state="stale") + put(13))
    states = [watch.state for _ in inputs]
    assert states == ["stale"] * 3


def test_a_state_that_changes_is_told_at_once() -> None:
    """A feed looks at the state only when something comes, and once a second."""
    watch = GatewayWatch(12, EPOCH)
    stale, live = (line("status", state=state, ranges=()) for state in ("stale", "live"))
    assert read(watch, stale) == []
    assert read(watch, synced(12), stale, live)[2:] == [Progress(12, trusted=True)] * 2


def test_the_revisions_of_a_chunk_are_one_step() -> None:
    """A chunk of many revisions is one input, so that the feed counts its memory once."""
    (batches,) = read(GatewayWatch(2, EPOCH), synced(2) + put(3) + put(4) + put(5))[2:]
    assert isinstance(batches, Batches)
    assert [one.revision for one in batches.batches] == [3, 4, 5]


def test_a_revision_is_whole() -> None:
    """The events of one revision wait for the last of them."""
    watch = GatewayWatch(2, EPOCH)
    assert read(watch, synced(2), put(3, more=True)) == [Created(2), Progress(2, trusted=True)]
    assert [(revision, len(events)) for revision, events in published(read(watch, put(3, key="/b")))] == [(3, 2)]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("lagged", "lagged"),
        ("compacted", "compacted"),
        ("restored", "restored"),
        ("unproven", "unproven"),
        ("cursor-lost", "unproven"),
        ("initial", "unproven"),
        ("of-a-later-version", "unproven"),
    ],
)
def test_a_reset_is_the_end_and_says_why(reason: str, told: str) -> None:
    """After a reset, nothing of the stream counts: the state that follows is not asked for here."""
    watch = GatewayWatch(5, EPOCH)
    assert read(watch, line("reset", 0, reason=reason, ranges=()) + synced(9) + put(10), put(11)) == [Reset(told)]  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", ["drain", "max-age", "expired", "too-slow", "of-a-later-version"])
def test_a_close_loses_the_stream(reason: str) -> None:
    """The next stream goes on where this one ended."""
    assert read(GatewayWatch(5, EPOCH), line("close", reason=reason, retry_ms=1)) == [
        Lost(f"the upstream gateway: {reason}")
    ]


def test_a_revoked_range_is_denied() -> None:
    """What this gateway may not read any more, its clients may not read either."""
    assert read(GatewayWatch(5, EPOCH), line("close", reason="revoked", retry_ms=1)) == [
        Refused("the upstream gateway: revoked", denied=True)
    ]


def test_additions_to_the_contract_are_ignored() -> None:
    """An event of a later version, and a member of a later version, change nothing."""
    watch = GatewayWatch(5, EPOCH)
    assert read(watch, line("news", text="hello"), line("synced", 7, revision=7, heartbeat=1, more_news=1)) == [
        Created(7),
        Progress(7, trusted=True),
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"<html>\n",
        b"[]\n",
        b"7\n",
        b"[" * 200_000 + b"\n",
        put(9).replace(b'"version": 2', b'"version": 1e999'),
        b'{"type":"put"}\n',
        b'{"type":"synced","revision":7,"heartbeat":1}\n',
        line("synced", 7, revision=7),
        put(9).replace(EPOCH.encode(), b"00000000"),
        put(9).replace(b"-9", b"-8"),
        put(4),
        put(9, more=True) + put(10),
        put(9, more=True) + synced(9),
        put(9) + synced(8),
        put(9).replace(b'"cursor": "81e932e5-9"', b'"state": 1'),
        put(9).replace(b'"key": "/a"', b'"key": "!", "key_encoding": "base64"'),
        put(9).replace(b'"/a"', b'"\\ud800"'),
    ],
)
def test_what_cannot_be_read_breaks_the_stream(sent: bytes) -> None:
    """Nothing of a line counts that is not of the wire contract, of this epoch, or in order."""
    watch = GatewayWatch(5, EPOCH)
    with pytest.raises(StreamError):
        read(watch, sent)
    assert watch.revision in (4, 9)


def test_a_line_has_an_end() -> None:
    """An upstream cannot fill the memory with one line. The next stream would bring it again, so the state comes."""
    watch = GatewayWatch(5, EPOCH)
    piece = b"x" * (LONGEST_LINE // 4)
    given = read(watch, put(6) + piece, *[piece] * 5, piece + b"\n" + put(7))
    assert [type(one) for one in given] == [Created, Batches, Reset]
    assert given[-1] == Reset("lagged")


def test_an_epoch_that_is_not_known_is_not_compared() -> None:
    """Before the cluster is known, any cursor counts."""
    assert published(read(GatewayWatch(5, ""), put(6))) != []


def test_a_lease_is_signed_as_in_etcd() -> None:
    """The wire has etcd's hex, whose top bit may be set."""
    found = {"key": "a", "value": "", "create_revision": 1, "mod_revision": 1, "version": 1, "lease": "f" * 16}
    assert parse_item(found).lease == -1
