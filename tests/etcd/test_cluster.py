"""Which cluster the gateway follows: when it refuses another cluster, and when another replaces the present one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.core.witnessed_history import HistoryProgress, WitnessedHistory
from app.etcd.cluster import Cluster, ForeignClusterError


class Time:
    """A clock that stands still until a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def header(cluster: int, revision: int = 1, term: int = 2) -> Any:
    """The header of an answer."""
    return SimpleNamespace(cluster_id=cluster, revision=revision, raft_term=term)


@pytest.fixture(name="time")
def _time() -> Time:
    return Time()


@pytest.fixture(name="told")
def _told() -> list[int]:
    """The revisions at which a new history began."""
    return []


@pytest.fixture(name="cluster")
def _cluster(time: Time, told: list[int]) -> Cluster:
    cluster = Cluster(replace_after=60, clock=time)
    cluster.on_restored(lambda: told.append(cluster.revision))
    assert cluster.admit(header(7, 50), tried_all=False) is None
    return cluster


def test_the_first_is_ours(cluster: Cluster) -> None:
    """The cluster of the first answer is the gateway's."""
    assert (cluster.id, cluster.revision) == (7, 50)


def test_an_answer_of_another_is_not_used(cluster: Cluster, told: list[int]) -> None:
    """Nothing of another cluster's answer is used, not even its revision."""
    with pytest.raises(ForeignClusterError, match="another cluster, 8; this gateway follows 7"):
        cluster.note(header(8, 999))

    assert (cluster.id, cluster.revision, told) == (7, 50, [])


def test_a_header_without_a_cluster(cluster: Cluster) -> None:
    """Some answers have no cluster id: such an answer is taken for one of the followed cluster."""
    cluster.note(header(0, 51))

    assert cluster.revision == 51


def test_only_after_a_while_and_when_all_were_tried(cluster: Cluster, time: Time, told: list[int]) -> None:
    """Another cluster is followed only after a while and after all endpoints were tried.

    Then its history begins at its revision.
    """
    assert cluster.admit(header(8, 3), tried_all=True) is not None
    time.now += 59
    assert cluster.admit(header(8, 3), tried_all=True) is not None
    time.now += 1
    assert cluster.admit(header(8, 3), tried_all=False) is not None
    assert told == []
    assert cluster.admit(header(8, 3), tried_all=True) is None

    assert (cluster.id, cluster.revision, told) == (8, 3, [3])
    assert cluster.admit(header(7, 60), tried_all=True) is not None  # the gateway does not switch to and fro


def test_ours_starts_the_time_anew(cluster: Cluster, time: Time) -> None:
    """Every answer of the followed cluster starts the wait anew."""
    time.now += 59
    cluster.note(header(7))
    time.now += 59

    assert cluster.admit(header(8), tried_all=True) is not None


def test_unknown_is_not_foreign(cluster: Cluster) -> None:
    """If no permitted request names the cluster, the cluster is unknown, not foreign: the first answer will name it."""
    assert cluster.admit(None, tried_all=False) is None


@pytest.mark.parametrize("answer", [header(7, 49, 2), header(7, 60, 1)], ids=["revision", "term"])
def test_a_restore(cluster: Cluster, told: list[int], answer: Any) -> None:
    """A linearizable revision or term of the same cluster that falls means a restore."""
    cluster.note_linearizable(cluster.known, header(7, 50, 2))
    cluster.note_linearizable(cluster.known, answer)

    assert told == [answer.revision]
    # The old history had reached 50, and what is known of the new one begins at the answer.
    assert cluster.ended.revision(7) == max(50, answer.revision - 1)


def compare_first(cluster: Cluster, answer: Any, applied: int = 9, committed: int = 9) -> None:
    """Compare the first answer of a new connection. The member's raft indexes were reported after it."""
    before = cluster.highest
    if answer is not None:
        cluster.note(answer)
    cluster.compare_first(before, answer, applied=applied, committed=committed, asked_at=100.0)


@pytest.mark.parametrize(("revision", "ended"), [(49, 50), (50, 50), (60, 59)])
def test_a_raft_log_that_began_anew(cluster: Cluster, told: list[int], revision: int, ended: int) -> None:
    """A raft index that falls means a restore, also if revision and term have passed the old ones."""
    compare_first(cluster, header(7, 50))
    assert told == []  # nothing was known of the raft index
    cluster.note_applied(9)
    compare_first(cluster, None, 8, 8)
    compare_first(cluster, header(7, 50), 0, 0)
    compare_first(cluster, header(7, 50))
    assert (told, cluster.ended.revision(7)) == ([], 0)
    compare_first(cluster, header(7, revision), 8, 8)
    assert (told, cluster.revision, cluster.ended.revision(7)) == ([revision], revision, ended)


@pytest.mark.parametrize("answer", [header(7, 49, 2), header(7, 60, 1)], ids=["revision", "term"])
def test_a_restore_before_a_connection(cluster: Cluster, told: list[int], answer: Any) -> None:
    """A revision or term that falls means a restore, though the raft index has passed the old one."""
    compare_first(cluster, header(7, 50))
    cluster.note_applied(9)
    compare_first(cluster, answer, 12, 12)
    assert told == [answer.revision]


def test_a_member_that_has_caught_up_by_a_snapshot(cluster: Cluster, told: list[int]) -> None:
    """It reports its applied index and its term from before the snapshot. That is no restore, here and below."""
    compare_first(cluster, header(7, 50, 3))
    cluster.note_applied(9)
    compare_first(cluster, header(7, 50, 2), applied=4, committed=9)
    assert cluster.witnessed is not None
    assert cluster.witnessed.first == HistoryProgress(50, 0, 9)
    cluster.note_linearizable(cluster.known, header(7, 50, 2))
    assert (told, cluster.applied) == ([], 9)
    cluster.note_linearizable(cluster.known, header(7, 51, 3))
    cluster.note_linearizable(cluster.known, header(7, 51, 2))
    assert told == [51]


def test_what_was_heard_during_the_read_counts(cluster: Cluster) -> None:
    """Another answer of the old history came between a read's request and its answer: a client may hold its cursor."""
    known = cluster.known
    cluster.note(header(7, 55))
    cluster.note_linearizable(known, header(7, 40))
    assert cluster.ended.revision(7) == 55


@pytest.mark.parametrize("answer", [header(7, 49, 2), header(7, 60, 1)], ids=["revision", "term"])
def test_one_restore_for_all_reads_that_it_came_between(cluster: Cluster, told: list[int], answer: Any) -> None:
    """Each of them shows the restore. Every notice would reset every stream. The next restore is noticed again."""
    cluster.note_linearizable(cluster.known, header(7, 50, 2))
    known = cluster.known
    for _ in range(3):
        cluster.note_linearizable(known, answer)
    assert (told, cluster.replaced) == ([answer.revision], 1)
    cluster.note_linearizable(cluster.known, header(7, 40, 2))
    assert cluster.replaced == 2


def test_another_cluster_ends_no_history(cluster: Cluster, time: Time) -> None:
    """Its cursors have another epoch, and are good from the first revision on."""
    time.now += 60
    cluster.admit(header(8, 3), tried_all=True)
    assert [cluster.ended.revision(cluster_id) for cluster_id in (7, 8)] == [0, 0]


def test_what_gateways_below_are_told(cluster: Cluster, time: Time) -> None:
    """What the connection found first, and the highest that is known. A connection may find nothing."""
    assert cluster.witnessed is None
    compare_first(cluster, header(7, 50, 2))
    cluster.note_linearizable(cluster.known, header(7, 60, 3))
    cluster.note_applied(12)
    assert cluster.witnessed == WitnessedHistory(7, HistoryProgress(50, 2, 9), time(), HistoryProgress(60, 3, 12))
    compare_first(cluster, None, 0, 0)
    assert cluster.witnessed == WitnessedHistory(7, HistoryProgress(0, 0, 0), time(), HistoryProgress(60, 3, 12))


def test_no_cluster_is_known(time: Time) -> None:
    """A user who may make no call that names the cluster: gateways below cannot compare anything."""
    cluster = Cluster(replace_after=60, clock=time)
    compare_first(cluster, None, 0, 0)
    assert cluster.witnessed is None
