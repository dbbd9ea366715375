"""The facts about etcd on which the gateway relies, one test each, on the fake and on every real etcd here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aetcd import rpc

from tests.contract.conftest import FRAGMENT_BYTES, Etcd, Stream, transaction

PUT, DELETE = 0, 1


def end_of(prefix: bytes) -> bytes:
    """The range end of a prefix that does not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def told(events: list[Any]) -> list[tuple[int, bytes, int]]:
    """The parts of events that identify them."""
    return [(event.type, event.kv.key, event.kv.mod_revision) for event in events]


def put(key: bytes, value: bytes = b"") -> Any:
    return rpc.PutRequest(key=key, value=value)


# --- Creating ----------------------------------------------------------------------------------------------------


async def test_created_echoes_our_id(etcd: Etcd, prefix: bytes) -> None:
    stream = etcd.stream()

    answer = await stream.created(prefix, range_end=end_of(prefix), watch_id=7)

    assert answer.watch_id == 7
    assert not answer.canceled
    assert not answer.events
    assert answer.header.cluster_id
    assert answer.header.revision > 0


async def test_an_id_in_use_is_refused(etcd: Etcd, prefix: bytes) -> None:
    """The refusal has no id; the watch with that id goes on, and so does the stream."""
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix), watch_id=7)

    answer = await stream.created(prefix, range_end=end_of(prefix), watch_id=7)

    assert answer.canceled
    assert answer.watch_id == -1
    assert answer.compact_revision == 0
    assert "duplicate watch ID" in answer.cancel_reason
    revision = await etcd.put(prefix)
    assert told((await stream.read()).events) == [(PUT, prefix, revision)]


async def test_an_empty_range_is_refused(etcd: Etcd) -> None:
    answer = await etcd.stream().created(b"b", range_end=b"a", watch_id=7)

    assert answer.canceled
    assert answer.watch_id == -1


async def test_start_revision_zero_is_from_now(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"before")
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix))

    revision = await etcd.put(prefix + b"after")

    answer = await stream.read()
    assert told(answer.events) == [(PUT, prefix + b"after", revision)]
    assert answer.header.revision == revision


async def test_start_revision_in_the_past_is_inclusive(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"a")
    first = await etcd.put(prefix + b"b")
    second = await etcd.delete(prefix + b"a")
    stream = etcd.stream()

    await stream.created(prefix, range_end=end_of(prefix), start_revision=first)

    expected = [(PUT, prefix + b"b", first), (DELETE, prefix + b"a", second)]
    assert told(await stream.read_events(2)) == expected


async def test_start_revision_in_the_future_is_accepted_and_mute_until_then(etcd: Etcd, prefix: bytes) -> None:
    now = await etcd.put(prefix)
    stream = etcd.stream()
    answer = await stream.created(prefix, start_revision=now + 3)
    assert not answer.canceled
    assert answer.header.revision == now

    await etcd.put(prefix)
    await etcd.put(prefix)
    awaited = await etcd.put(prefix)

    assert told((await stream.read()).events) == [(PUT, prefix, awaited)]


async def test_restarting_at_the_last_revision_brings_it_again(etcd: Etcd, prefix: bytes) -> None:
    """A restart at the last revision brings that revision again, by which the gateway proves that nothing was lost: a
    put, a delete, a whole transaction.
    """
    await etcd.put(prefix + b"a")
    last_put = await etcd.put(prefix + b"b")
    assert told(await again(etcd, prefix, last_put)) == [(PUT, prefix + b"b", last_put)]

    last_delete = await etcd.delete(prefix + b"b")
    assert told(await again(etcd, prefix, last_delete)) == [(DELETE, prefix + b"b", last_delete)]

    last = await etcd.txn(put(prefix + b"c"), rpc.DeleteRangeRequest(key=prefix + b"a"))
    expected = [(PUT, prefix + b"c", last), (DELETE, prefix + b"a", last)]
    assert told(await again(etcd, prefix, last)) == expected


async def again(etcd: Etcd, prefix: bytes, revision: int) -> list[Any]:
    """The first events of a new watch from *revision* on."""
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix), start_revision=revision)
    return list((await stream.read_whole()).events)


# --- Events ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["live", "catching-up"])
async def test_events_of_a_transaction_come_in_one_response(etcd: Etcd, prefix: bytes, late: bool) -> None:
    stream = etcd.stream()
    watched = {"key": prefix, "range_end": end_of(prefix)}
    if not late:
        await stream.created(**watched)
    revision = await etcd.txn(*(put(prefix + bytes([ord("a") + number])) for number in range(5)))
    if late:
        await stream.created(**watched, start_revision=revision)

    answer = await stream.read_whole()

    assert len(answer.events) == 5
    assert {event.kv.mod_revision for event in answer.events} == {revision}


async def test_a_revision_may_write_a_key_twice(etcd: Etcd, prefix: bytes) -> None:
    """A revision may write a key twice.

    Either by a nested put and a nested delete after it, or by a put after a delete of all keys from this key on.
    """
    stream = etcd.stream()
    await stream.created(prefix)
    await etcd.put(prefix)
    await stream.read()

    gone = await etcd.txn(transaction(put(prefix)), transaction(rpc.DeleteRangeRequest(key=prefix)))
    assert told((await stream.read_whole()).events) == [(PUT, prefix, gone), (DELETE, prefix, gone)]

    begins = await etcd.put(prefix)
    assert told((await stream.read()).events) == [(PUT, prefix, begins)]

    anew = await etcd.txn(rpc.DeleteRangeRequest(key=prefix, range_end=b"\0"), put(prefix))
    deleted, there = (await stream.read_whole()).events
    assert told([deleted, there]) == [(DELETE, prefix, anew), (PUT, prefix, anew)]
    assert (there.kv.create_revision, there.kv.version) == (anew, 1), "the version counts from the new creation"


async def test_a_delete_carries_key_and_mod_revision_only(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix, b"value")
    stream = etcd.stream()
    await stream.created(prefix)

    revision = await etcd.delete(prefix)

    (event,) = (await stream.read()).events
    assert event.type == DELETE
    assert event.kv == rpc.KeyValue(key=prefix, mod_revision=revision)
    assert not event.HasField("prev_kv")


async def test_a_put_carries_all(etcd: Etcd, prefix: bytes) -> None:
    created = await etcd.put(prefix, b"1")
    stream = etcd.stream()
    await stream.created(prefix)

    revision = await etcd.put(prefix, b"2")

    (event,) = (await stream.read()).events
    expected = rpc.KeyValue(key=prefix, value=b"2", create_revision=created, mod_revision=revision, version=2)
    assert event.kv == expected


async def test_a_put_of_the_same_value_is_an_event(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix, b"same")
    stream = etcd.stream()
    await stream.created(prefix)

    revision = await etcd.put(prefix, b"same")

    assert told((await stream.read()).events) == [(PUT, prefix, revision)]


async def test_catching_up_says_the_current_revision_with_every_response(etcd: Etcd, prefix: bytes) -> None:
    """Every response has the current revision, although older events are still to come.

    So a cursor must not use that revision.
    """
    revisions = list[int]()
    for _ in range(11):
        revisions += await asyncio.gather(*(etcd.put(prefix, b"%d" % number) for number in range(100)))
    stream = etcd.stream()
    await stream.created(prefix, start_revision=min(revisions))

    answer = await stream.read()

    assert answer.header.revision == max(revisions)
    assert len(answer.events) == 1000
    assert len(await stream.read_events(100)) == 100


async def test_fragments_of_one_response(etcd: Etcd, prefix: bytes) -> None:
    """The fragments have the same header, and all but the last are marked.

    A cut may divide a revision; joined, they are complete.
    """
    pairs, value = 30, b"x" * 30_000
    revisions = [await etcd.txn(put(prefix + b"a", value), put(prefix + b"b", value)) for _ in range(pairs)]
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix), start_revision=revisions[0], fragment=True, watch_id=3)

    pieces = [await stream.read()]
    while pieces[-1].fragment:
        pieces.append(await stream.read())

    assert len(pieces) == 1 + (2 * pairs * len(value)) // FRAGMENT_BYTES
    assert {piece.watch_id for piece in pieces} == {3}
    assert {piece.header.revision for piece in pieces} == {revisions[-1]}
    joined = [event for piece in pieces for event in piece.events]
    expected = [(PUT, prefix + name, revision) for revision in revisions for name in (b"a", b"b")]
    assert told(joined) == expected
    assert any(len(piece.events) % 2 for piece in pieces)


async def test_one_large_revision_is_cut_as_well(etcd: Etcd, prefix: bytes) -> None:
    """A single large revision is split, too: a small delete of many long keys."""
    keys, padding = 60, b"k" * 15_000
    for number in range(keys):
        await etcd.put(prefix + padding + bytes([number]))
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix), fragment=True)

    revision = await etcd.delete(prefix, end_of(prefix))

    first = await stream.read()
    second = await stream.read()
    assert (first.fragment, second.fragment) == (True, False)
    assert len(first.events) + len(second.events) == keys
    assert {event.kv.mod_revision for piece in (first, second) for event in piece.events} == {revision}


# --- Ending ------------------------------------------------------------------------------------------------------


async def test_create_and_cancel_back_to_back(etcd: Etcd, prefix: bytes) -> None:
    """With its own id, a client need not wait for created before it cancels."""
    stream = etcd.stream()
    await stream.create(prefix, watch_id=5)
    await stream.cancel(5)

    created, canceled = await stream.read(), await stream.read()

    assert (created.created, created.canceled, created.watch_id) == (True, False, 5)
    assert (canceled.created, canceled.canceled, canceled.watch_id) == (False, True, 5)
    assert canceled.compact_revision == 0
    await etcd.until_counted(watchers=0, streams=1)


async def test_a_cancelled_watch_is_mute_and_the_others_go_on(etcd: Etcd, prefix: bytes) -> None:
    stream = etcd.stream()
    await stream.created(prefix, watch_id=1)
    await stream.created(prefix, watch_id=2)
    await stream.cancel(1)
    assert (await stream.read()).canceled

    await etcd.put(prefix)

    assert (await stream.read()).watch_id == 2
    await etcd.until_counted(watchers=1)


async def test_half_close_frees_nothing_and_cancelling_the_call_all(etcd: Etcd, prefix: bytes) -> None:
    stream = etcd.stream()
    for watch_id in (1, 2, 3):
        await stream.created(prefix, watch_id=watch_id)

    await stream.call.done_writing()

    revision = await etcd.put(prefix)
    for _ in range(3):
        assert told((await stream.read()).events) == [(PUT, prefix, revision)]
    assert await etcd.watchers() == 3

    stream.call.cancel()

    await etcd.until_counted(watchers=0, streams=0)


# --- Compaction --------------------------------------------------------------------------------------------------


async def test_compaction_cancels_after_created(etcd: Etcd, prefix: bytes) -> None:
    first, compacted = await compact(etcd, prefix)
    stream = etcd.stream()
    created = await stream.created(prefix, start_revision=first, watch_id=4)

    canceled = await stream.read()

    assert not created.canceled
    assert (canceled.canceled, canceled.created, canceled.watch_id) == (True, False, 4)
    assert canceled.compact_revision == compacted
    assert canceled.cancel_reason == ""
    assert canceled.header.revision == 0
    assert canceled.header.cluster_id == created.header.cluster_id


async def test_a_watch_that_compaction_cancelled_still_needs_our_cancel(etcd: Etcd, prefix: bytes) -> None:
    first, _ = await compact(etcd, prefix)
    stream = etcd.stream()
    await stream.created(prefix, start_revision=first, watch_id=4)
    assert (await stream.read()).compact_revision
    assert await etcd.watchers() == 1

    again = await stream.created(prefix, watch_id=4)
    assert again.canceled  # the watch's id is in use, too

    await stream.cancel(4)

    assert (await stream.read()).canceled
    await etcd.until_counted(watchers=0, streams=1)


async def test_a_watch_may_start_at_the_compacted_revision(etcd: Etcd, prefix: bytes) -> None:
    _, compacted = await compact(etcd, prefix)
    stream = etcd.stream()
    await stream.created(prefix, start_revision=compacted)

    assert told(await stream.read_events(2)) == [(PUT, prefix, compacted), (PUT, prefix, compacted + 1)]


async def test_a_delete_at_the_compacted_revision(etcd: Etcd, prefix: bytes) -> None:
    """A delete at the compacted revision is silently lost until 3.4.34 and 3.5.16 (etcd #18089): so a Range request
    must prove a resume there.

    The further fix of 3.4.36 and 3.5.18 (etcd #19179) matters only after a restart in the middle of a compaction.
    """
    await etcd.put(prefix + b"a")
    deleted = await etcd.delete(prefix + b"a")
    later = await etcd.put(prefix + b"b")
    await etcd.compact(deleted)
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix), start_revision=deleted)

    events = told(list((await stream.read()).events))

    lost = not etcd.fixed_in((3, 4, 34), (3, 5, 16))
    assert events[-1] == (PUT, prefix + b"b", later)
    assert events[:-1] == ([] if lost else [(DELETE, prefix + b"a", deleted)])


async def compact(etcd: Etcd, key: bytes) -> tuple[int, int]:
    """Write *key* three times.

    Return the key's first revision, which is compacted, and its second, the first one that can be read.
    """
    first = await etcd.put(key)
    second = await etcd.put(key)
    await etcd.put(key)
    await etcd.compact(second)
    return first, second


# --- Progress ----------------------------------------------------------------------------------------------------


async def test_progress_on_demand_is_answered_for_the_whole_stream(etcd: Etcd, prefix: bytes) -> None:
    """The stream gets one answer with id -1 and the current revision, which includes other keys' events."""
    stream = etcd.stream()
    await stream.created(prefix, watch_id=1)
    await stream.created(prefix, watch_id=2)
    revision = await etcd.put(prefix + b"other")

    answer = await ask_progress(stream)

    assert answer.watch_id == -1
    assert answer.header.revision == revision
    assert is_bare(answer)


async def test_progress_without_a_watch(etcd: Etcd, prefix: bytes) -> None:
    """Trusted versions are silent: without a watch there is nothing that the progress could be true of."""
    stream = etcd.stream()
    await stream.progress()

    await stream.create(prefix, watch_id=1)

    first = await stream.read()
    assert first.created if trusted(etcd) else first.watch_id == -1


async def test_progress_with_a_watch_that_compaction_cancelled(etcd: Etcd, prefix: bytes) -> None:
    """Trusted versions are silent for the whole stream until the client cancels the watch."""
    first, _ = await compact(etcd, prefix)
    stream = etcd.stream()
    await stream.created(prefix, start_revision=first, watch_id=1)
    assert (await stream.read()).compact_revision
    await stream.created(prefix, watch_id=2)

    await stream.progress()
    await stream.cancel(1)

    answer = await stream.read()
    if not trusted(etcd):
        assert answer.watch_id == -1
        answer = await stream.read()
    assert (answer.watch_id, answer.canceled) == (1, True)
    assert (await ask_progress(stream)).watch_id == -1


async def test_progress_while_catching_up(etcd: Etcd, prefix: bytes) -> None:
    """Untrusted versions answer at once, before events that the answer covers.

    Trusted versions answer only after all events.
    """
    revisions = [await etcd.put(prefix) for _ in range(50)]

    async def catch_up() -> tuple[Stream, list[Any]]:
        stream = etcd.stream()
        if etcd.fake:
            etcd.fake.hold()
        await stream.create(prefix, start_revision=revisions[0], watch_id=1)
        await stream.progress()
        if etcd.fake:
            await etcd.fake.until(lambda: etcd.fake is not None and etcd.fake.asked.progress == 1)
            etcd.fake.release()
        return stream, [await stream.read(), await stream.read()]

    stream, answers = await catch_up()
    while not trusted(etcd) and answers[1].watch_id != -1:  # the request came late to a busy etcd
        stream, answers = await catch_up()

    assert answers[0].created
    if trusted(etcd):
        assert told(list(answers[1].events)) == [(PUT, prefix, revision) for revision in revisions]
        assert (await ask_progress(stream)).header.revision == revisions[-1]
    else:
        assert answers[1].watch_id == -1
        assert answers[1].header.revision == revisions[-1]
        assert len(await stream.read_events(50)) == 50


async def test_progress_of_the_timer_carries_the_id_of_the_watch(etcd: Etcd, prefix: bytes) -> None:
    if etcd.version < (3, 5):
        pytest.skip("3.4 has no flag for the interval, and its timer is 10 minutes")
    stream = etcd.stream()
    await stream.created(prefix, watch_id=6, progress_notify=True)
    revision = await etcd.put(prefix + b"other")
    if etcd.fake:
        etcd.fake.notify_progress()

    answer = await stream.read()
    while answer.header.revision < revision:  # a real timer may have fired before the put
        answer = await stream.read()

    assert answer.watch_id == 6
    assert is_bare(answer)


def is_bare(answer: Any) -> bool:
    """Whether the response contains only progress."""
    return not any((answer.created, answer.canceled, answer.events, answer.compact_revision))


def trusted(etcd: Etcd) -> bool:
    """Whether on-demand progress waits for events."""
    return etcd.fixed_in((3, 4, 25), (3, 5, 8))


async def ask_progress(stream: Stream) -> Any:
    """Ask until there is an answer: trusted versions do not answer while a watch lags."""
    for _ in range(100):
        await stream.progress()
        try:
            return await stream.read(0.1)
        except TimeoutError:
            continue
    pytest.fail("no progress")


# --- Range -------------------------------------------------------------------------------------------------------


async def test_paging_at_one_revision(etcd: Etcd, prefix: bytes) -> None:
    """Later pages show the old state, but their header has the current revision.

    The snapshot's revision is that of the first page.
    """
    for name in b"abcde":
        await etcd.put(prefix + bytes([name]))
    watched = {"range_end": end_of(prefix), "limit": 2}
    first = await etcd.range(prefix, **watched)
    pinned = first.header.revision
    moved = await etcd.put(prefix + b"c", b"new")
    await etcd.delete(prefix + b"d")

    second = await etcd.range(first.kvs[-1].key + b"\0", revision=pinned, **watched)
    third = await etcd.range(second.kvs[-1].key + b"\0", revision=pinned, **watched)

    assert [kv.key[-1:] for page in (first, second, third) for kv in page.kvs] == [b"a", b"b", b"c", b"d", b"e"]
    assert [page.more for page in (first, second, third)] == [True, True, False]
    assert second.kvs[0].value == b""
    assert second.header.revision == moved + 1
    assert second.header.revision > pinned


async def test_count_ignores_limit(etcd: Etcd, prefix: bytes) -> None:
    for name in b"abc":
        await etcd.put(prefix + bytes([name]))

    page = await etcd.range(prefix, range_end=end_of(prefix), limit=1)
    count = await etcd.range(prefix, range_end=end_of(prefix), count_only=True)

    assert (len(page.kvs), page.count, page.more) == (1, 3, True)
    assert (len(count.kvs), count.count) == (0, 3)


async def test_keys_only(etcd: Etcd, prefix: bytes) -> None:
    revision = await etcd.put(prefix, b"value")

    (kv,) = (await etcd.range(prefix, keys_only=True)).kvs

    assert kv == rpc.KeyValue(key=prefix, create_revision=revision, mod_revision=revision, version=1)


async def test_min_mod_revision_filters_but_not_the_count(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"a")
    revision = await etcd.put(prefix + b"b")

    answer = await etcd.range(prefix, range_end=end_of(prefix), min_mod_revision=revision)

    assert [kv.key for kv in answer.kvs] == [prefix + b"b"]
    assert answer.count == 2


async def test_a_compacted_revision_is_out_of_range(etcd: Etcd, prefix: bytes) -> None:
    first, compacted = await compact(etcd, prefix)

    with pytest.raises(rpc.AioRpcError) as caught:
        await etcd.range(prefix, revision=first)

    assert caught.value.code() is rpc.StatusCode.OUT_OF_RANGE
    assert caught.value.details() == "etcdserver: mvcc: required revision has been compacted"
    assert (await etcd.range(prefix, revision=compacted, count_only=True)).count == 1


async def test_a_future_revision_is_out_of_range(etcd: Etcd, prefix: bytes) -> None:
    revision = await etcd.put(prefix)

    with pytest.raises(rpc.AioRpcError) as caught:
        await etcd.range(prefix, revision=revision + 1)

    assert caught.value.code() is rpc.StatusCode.OUT_OF_RANGE
    assert caught.value.details() == "etcdserver: mvcc: required revision is a future revision"


# --- Transactions and leases -------------------------------------------------------------------------------------


async def test_a_transaction_compares(etcd: Etcd, prefix: bytes) -> None:
    revision = await etcd.put(prefix, b"1")
    compare = rpc.Compare(key=prefix, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision)
    request = rpc.TxnRequest(
        compare=[compare],
        success=[rpc.RequestOp(request_put=put(prefix, b"2"))],
        failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=prefix))],
    )

    first = await etcd.kv.Txn(request)
    second = await etcd.kv.Txn(request)

    assert first.succeeded
    assert not second.succeeded
    assert second.responses[0].response_range.kvs[0].value == b"2"
    assert second.header.revision == first.header.revision  # a read makes no new revision


async def test_the_end_of_a_lease_is_deletes_in_one_revision(etcd: Etcd, prefix: bytes) -> None:
    leases = rpc.LeaseStub(etcd.channel)
    lease = (await leases.LeaseGrant(rpc.LeaseGrantRequest(TTL=600))).ID
    for name in b"ab":
        await etcd.kv.Put(rpc.PutRequest(key=prefix + bytes([name]), lease=lease))
    stream = etcd.stream()
    await stream.created(prefix, range_end=end_of(prefix))

    answer = await leases.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease))

    revision = answer.header.revision
    events = told(list((await stream.read()).events))
    assert sorted(events) == [(DELETE, prefix + b"a", revision), (DELETE, prefix + b"b", revision)]


async def test_status_names_version_and_leader(etcd: Etcd) -> None:
    status = await rpc.MaintenanceStub(etcd.channel).Status(rpc.StatusRequest())

    assert tuple(int(part) for part in status.version.split(".")) == etcd.version
    assert status.leader == status.header.member_id
    assert status.header.cluster_id
