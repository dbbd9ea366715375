"""``app.api.kv_etcd``: linearizable reads, all of one revision."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.kv_etcd import ATTEMPTS, EtcdReads
from app.api.kv_request import parse
from app.core.budget import ANSWERS_SHARE, Use
from app.core.errors import PageExpiredError, RevisionNotReachedError, UnavailableError
from app.gateway import Gateway
from tests.support.fake_etcd import FakeEtcd


async def read(gateway: Gateway, query: str) -> dict[str, Any]:
    """The answer to a query."""
    body = await EtcdReads(gateway).read(parse(query.encode()))
    found: dict[str, Any] = json.loads(b"".join(body.parts or ()) + body.tail(""))
    assert found["revision"] == body.revision
    return found


@pytest.mark.parametrize("query", ["prefix=/a/&prefix=/b/&key=/c", "prefix=/a/&prefix=/b/&key=/c&count_only=1"])
async def test_only_the_first_range_decides_the_revision(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """A transaction between two Ranges is seen in all of its keys or in none: all are of the first one's revision."""
    fake.txn([(b"/a/1", b"old"), (b"/b/1", b"old"), (b"/c", b"old")])
    asked = []
    answer = fake._read

    def answer_and_write(request: Any) -> Any:
        asked.append((request.revision, request.serializable))
        found = answer(request)
        fake.txn([(b"/a/1", b"new"), (b"/b/1", None), (b"/b/2", b"new"), (b"/b/3", b"new"), (b"/c", None)])
        return found

    await EtcdReads(gateway).read(parse(b"key=/warm"))
    monkeypatch.setattr(fake, "_read", answer_and_write)
    found = await read(gateway, query)

    assert asked[0] == (0, False)
    assert {revision for revision, _ in asked[1:]} == {found["revision"]}
    assert [item["value"] for item in found["kvs"]] == ([] if "count_only" in query else ["old"] * 3)
    assert found["count"] == 3


async def test_a_page_continues_in_its_range(gateway: Gateway, fake: FakeEtcd) -> None:
    """A page reads nothing of the ranges before its start, except their counts."""
    fake.txn([(f"/{name}/{number}".encode(), b"") for name in "abc" for number in range(2)])
    first = await read(gateway, "prefix=/a/&prefix=/b/&prefix=/c/&limit=3")
    second = await read(gateway, f"prefix=/a/&prefix=/b/&prefix=/c/&limit=3&page={first['next_page']}")

    assert [item["key"] for item in first["kvs"]] == ["/a/0", "/a/1", "/b/0"]
    assert [item["key"] for item in second["kvs"]] == ["/b/1", "/c/0", "/c/1"]
    assert "next_page" not in second
    assert (first["count"], second["count"]) == (6, 6)


async def test_an_empty_range_does_not_end_the_list(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other reads wait for memory. A list that ended after the empty range would have a next page without a start."""
    fake.txn([(b"/b/1", b"")])
    answer, others = fake._read, []

    def answer_while_others_wait(request: Any) -> Any:
        others.append(gateway.budget.ask(Use.ANSWER, gateway.budget.limit // ANSWERS_SHARE))
        return answer(request)

    monkeypatch.setattr(fake, "_read", answer_while_others_wait)
    found = await read(gateway, "prefix=/a/&prefix=/b/")
    for one in others:
        one.release()
    assert [item["key"] for item in found["kvs"]] == ["/b/1"]
    assert "next_page" not in found


@pytest.mark.parametrize("query", ["prefix=/a/&prefix=/b/", "prefix=/a/&prefix=/b/&count_only=1"])
@pytest.mark.parametrize("times", [ATTEMPTS - 1, ATTEMPTS])
async def test_a_compaction_while_a_list_is_read(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch, query: str, times: int
) -> None:
    """The client has pinned no revision: the read begins again, at a newer one. Nobody is told to drop a page."""
    fake.txn([(b"/a/1", b""), (b"/b/1", b"")])
    answer = fake._read
    compacted: list[int] = []

    def answer_and_compact(request: Any) -> Any:
        found = answer(request)
        if not request.revision and len(compacted) < times:
            compacted.append(fake.put(b"/b/1", b"again"))
            fake.compact(compacted[-1])
        return found

    await EtcdReads(gateway).read(parse(b"key=/warm"))
    monkeypatch.setattr(fake, "_read", answer_and_compact)
    if times < ATTEMPTS:
        found = await read(gateway, query)
        assert (found["revision"], found["count"]) == (compacted[-1], 2)
    else:
        with pytest.raises(UnavailableError, match="compacts its history"):
            await read(gateway, query)


@pytest.mark.parametrize("query", ["prefix=/a/&prefix=/b/", "prefix=/a/&prefix=/b/&count_only=1", "prefix=/a/"])
@pytest.mark.parametrize("times", [ATTEMPTS - 1, ATTEMPTS])
async def test_a_restore_while_a_list_is_read(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch, query: str, times: int
) -> None:
    """No Range fails, because the new history has passed the revision. No answer may have keys of both histories."""
    backup, keys = fake.revision, 20
    answer, restored = fake._read, 0

    def fill(history: bytes) -> None:
        fake.txn([(b"/%s/%d" % (side, number), history) for side in (b"a", b"b") for number in range(keys)])

    def answer_and_restore(request: Any) -> Any:
        nonlocal restored
        found = answer(request)
        if not request.revision and restored < times:
            restored += 1
            fake.store.go_back(backup)
            fake.raft_term -= 1
            fill(b"%d" % restored)
        return found

    fill(b"0")
    await EtcdReads(gateway).read(parse(b"key=/warm"))
    fake.raft_term += ATTEMPTS
    monkeypatch.setattr(fake, "_read", answer_and_restore)
    if times < ATTEMPTS:
        found = await read(gateway, query)
        assert {item["value"] for item in found["kvs"]} <= {str(times)}, "keys of both histories"
        assert found["count"] == keys * query.count("prefix")
    else:
        with pytest.raises(UnavailableError, match="restored"):
            await read(gateway, query)


async def test_a_restore_while_a_later_page_is_read(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client begins anew: nothing else can have the rest of what it has."""
    fake.txn([(b"/a/%d" % number, b"old") for number in range(40)])
    page = (await read(gateway, "prefix=/a/&limit=1"))["next_page"]
    fake.raft_term += 1
    await EtcdReads(gateway).read(parse(b"key=/warm"))
    answer = fake._read

    def answer_and_restore(request: Any) -> Any:
        found = answer(request)
        fake.raft_term -= 1
        return found

    monkeypatch.setattr(fake, "_read", answer_and_restore)
    with pytest.raises(PageExpiredError, match="restored"):
        await read(gateway, f"prefix=/a/&page={page}")


async def test_a_page_of_another_cluster(gateway: Gateway, fake: FakeEtcd) -> None:
    """A foreign token is refused before etcd is asked."""
    fake.txn([(b"/a/1", b""), (b"/a/2", b"")])
    page = (await read(gateway, "prefix=/a/&limit=1"))["next_page"]
    asked = gateway.etcd.reads.ranges_total
    with pytest.raises(PageExpiredError):
        await read(gateway, f"prefix=/a/&encoding=base64&page={page}")
    assert gateway.etcd.reads.ranges_total == asked


async def test_a_revision_that_does_not_come(gateway: Gateway, fake: FakeEtcd) -> None:
    """The error says how far etcd is, and the first answer is released before the wait."""
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": 0.01})
    with pytest.raises(RevisionNotReachedError):
        await read(gateway, f"prefix=/svc/&min_revision={fake.revision + 1}")
    assert gateway.budget.of(Use.ANSWER) == 0
