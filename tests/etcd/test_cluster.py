"""Which cluster we follow, as values: when another one is refused, and when it takes the place of ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.etcd.cluster import Cluster, ForeignClusterError


class Time:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def header(cluster: int, revision: int = 1, term: int = 2) -> Any:
    """Of some answer."""
    return SimpleNamespace(cluster_id=cluster, revision=revision, raft_term=term)


@pytest.fixture(name="time")
def _time() -> Time:
    return Time()


@pytest.fixture(name="told")
def _told() -> list[int]:
    """A new history was begun at these revisions."""
    return []


@pytest.fixture(name="cluster")
def _cluster(time: Time, told: list[int]) -> Cluster:
    cluster = Cluster(patience=60, clock=time)
    cluster.on_restored(lambda: told.append(cluster.revision))
    assert cluster.admit(header(7, 50), tried_all=False) is None
    return cluster


def test_the_first_is_ours(cluster: Cluster) -> None:
    """Whoever answers first."""
    assert (cluster.id, cluster.revision) == (7, 50)


def test_an_answer_of_another_is_not_used(cluster: Cluster, told: list[int]) -> None:
    """Not even its revision."""
    with pytest.raises(ForeignClusterError, match="another cluster, 8; this gateway follows 7"):
        cluster.note(header(8, 999))

    assert (cluster.id, cluster.revision, told) == (7, 50, [])


def test_a_header_without_a_cluster(cluster: Cluster) -> None:
    """Some answers have none: they are of whom we speak to."""
    cluster.note(header(0, 51))

    assert cluster.revision == 51


def test_only_after_a_while_and_when_all_were_tried(cluster: Cluster, time: Time, told: list[int]) -> None:
    """Both, and then its history begins where it is."""
    assert cluster.admit(header(8, 3), tried_all=True) is not None
    time.now += 59
    assert cluster.admit(header(8, 3), tried_all=True) is not None
    time.now += 1
    assert cluster.admit(header(8, 3), tried_all=False) is not None
    assert told == []
    assert cluster.admit(header(8, 3), tried_all=True) is None

    assert (cluster.id, cluster.revision, told) == (8, 3, [3])
    assert cluster.admit(header(7, 60), tried_all=True) is not None  # nothing goes to and fro


def test_ours_starts_the_time_anew(cluster: Cluster, time: Time) -> None:
    """Every answer of it does."""
    time.now += 59
    cluster.note(header(7))
    time.now += 59

    assert cluster.admit(header(8), tried_all=True) is not None


def test_unknown_is_not_foreign(cluster: Cluster) -> None:
    """Where nothing that we may ask names the cluster, the first answer will."""
    assert cluster.admit(None, tried_all=False) is None


@pytest.mark.parametrize("answer", [header(7, 49, 2), header(7, 60, 1)], ids=["revision", "term"])
def test_a_restore(cluster: Cluster, told: list[int], answer: Any) -> None:
    """The same cluster, and a linearizable revision or term that fell."""
    cluster.note_linearizable((50, 2), answer)

    assert told == [answer.revision]
