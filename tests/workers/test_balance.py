"""``app.workers.balance``: which worker gets the next connection."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.workers.balance import MOST_PASSED, PROMPT, Load, least_loaded

LOADS = st.lists(st.builds(Load, *(st.integers(0, 3),) * 3, st.sampled_from([0.0, PROMPT, 9.0])), min_size=1)


@given(LOADS)
def test_the_least_loaded_of_those_that_take_connections(loads: list[Load]) -> None:
    """No other worker that takes connections has less; there is none only if none takes any."""
    chosen = least_loaded(loads)
    prompt = [load for load in loads if load.waiting < PROMPT]
    if chosen is None:
        assert prompt == []
        return
    load = loads[chosen]
    assert load.waiting < PROMPT
    assert all((load.streams + load.passed, load.connections) <= (one.streams + one.passed, 9) for one in prompt)


@given(st.integers(1, 8), st.integers(0, 200))
def test_a_herd_spreads_evenly_before_any_of_it_is_counted(workers: int, herd: int) -> None:
    """1,000 of 1,000 go evenly, although no worker has said anything meanwhile."""
    loads = [Load(0, 0) for _ in range(workers)]
    for _ in range(herd):
        chosen = least_loaded(loads)
        if chosen is None:
            break
        loads[chosen] = replace(loads[chosen], passed=loads[chosen].passed + 1)
    passed = [load.passed for load in loads]
    assert max(passed) - min(passed) <= 1
    assert sum(passed) == min(herd, workers * MOST_PASSED)


def test_streams_count_before_idle_connections() -> None:
    """A worker with many idle connections gets the next one, if it has fewer streams."""
    assert least_loaded([Load(1, 1), Load(0, 50)]) == 1
    assert least_loaded([Load(1, 5), Load(1, 4)]) == 1


def test_a_stopped_worker_gets_one_connection() -> None:
    """It does not take it, and so it gets no other."""
    assert least_loaded([Load(0, 0, 1, 10 * PROMPT), Load(500, 500)]) == 1
    assert least_loaded([Load(0, 0, MOST_PASSED), Load(500, 500)]) == 1
    assert least_loaded([Load(0, 0, 1, 10 * PROMPT)]) is None
