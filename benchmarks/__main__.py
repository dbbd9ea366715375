"""Run every benchmark: ``python -m benchmarks [--rounds 5] [--only single,burst] [--small] [--report FOLDER]``.

In every round each side is measured once, in random order, so that a disturbance of the machine disturbs all sides
alike. The figures are kept in ``.cache/bench.json``; ``docs/benchmarks.md`` and its plots are made from them. With
``--only`` those comparisons are measured again, and replace the kept figures. Exit status 1 if a goal is not reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path

from benchmarks import suite
from benchmarks.load import DeliveryError, build, raise_limit
from benchmarks.measure import Figures
from benchmarks.peers.hubs import missing
from benchmarks.report import goals_table, write_report

KEPT = Path(".cache/bench.json")
# How often another product is measured that does not deliver.
TRIES = 3


async def run(chosen: list[suite.Comparison], rounds: int) -> dict[str, dict[str, list[Figures]]]:
    """Measure every side of every comparison once per round."""
    found: dict[str, dict[str, list[Figures]]] = {
        comparison.name: {side: [] for side in comparison.sides} for comparison in chosen
    }
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        for comparison in chosen:
            sides = list(comparison.sides)
            random.shuffle(sides)
            for side in sides:
                try:
                    figures = await measure(comparison, side)
                except Exception as error:
                    error.add_note(f"while {comparison.name} was measured: {side}")
                    raise
                found[comparison.name][side].append(figures)
                shown = ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())
                print(f"  {comparison.name:8} {side:40} {shown}", flush=True)
    return found


async def measure(comparison: suite.Comparison, side: str) -> Figures:
    """Measure one side. Of another product, again if it did not deliver: Pushpin closes a client now and then."""
    for _ in range(TRIES - 1):
        try:
            return await comparison.sides[side]()
        except DeliveryError as error:
            if side not in suite.OTHER_PRODUCTS:
                raise
            print(f"  {comparison.name:8} {side:40} {error}: measured again", flush=True)
    return await comparison.sides[side]()


def main() -> int:
    """Measure, keep the figures, write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="comparisons, separated by commas")
    parser.add_argument("--small", action="store_true", help="only show that all works; the figures mean nothing")
    parser.add_argument("--report", type=Path, default=Path("docs"), help="the folder for the report")
    given = parser.parse_args()
    if lacking := missing():
        print(f"missing: {' '.join(lacking)} (Debian: apt-get install {' '.join(lacking)})", file=sys.stderr)
        return 2
    size = suite.SMALL if given.small else suite.FULL
    every = suite.comparisons(size)
    chosen = [one for one in every if not given.only or one.name in given.only.split(",")]
    if not chosen:
        parser.error(f"--only: there are {', '.join(one.name for one in every)}")
    raise_limit()
    build()
    found = asyncio.run(run(chosen, given.rounds))
    kept = KEPT.with_stem("bench-small") if given.small else KEPT
    if given.only and kept.exists():
        found = json.loads(kept.read_text()) | found
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found))
    if any(one.name not in found for one in every):
        return 0
    goals = suite.goals(found, size)
    write_report(given.report, every, found, goals, given.rounds)
    print(goals_table(goals))
    return 0 if given.small or all(goal.reached for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
