"""The measurements as a page: tables of medians and spread, ratios, and plots."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

from benchmarks.measure import Figures
from benchmarks.suite import GATEWAY, Comparison, Goal, Rounds

HEAD = """# Benchmarks

`make bench` measures the gateway and its peers on one machine, one after the other in random order, {rounds}, and
writes this page. Every figure is the median of the rounds, followed by the minimum and the maximum. Seconds mean little
on a noisy machine, and nothing on another machine: CPU per delivery and the ratios are reliable.

The load generator (`benchmarks/load/load.c`) checks every delivery: each of its clients must get every event, in order,
once; otherwise there is no figure. CPU is the scheduler's account of the server's processes, user and system. It leaves
out etcd's CPU, except for etcd's JSON gateway, which is a part of etcd. On loopback the kernel does the receiver's work
in the sender's call, and counts it there: alike for every peer. Events are puts of 30 bytes, 130 bytes of JSON.

Measured on {cpus} cores ({model}), {system}, Python {python}.
"""


def write_report(folder: Path, chosen: Sequence[Comparison], rounds: Rounds, goals: Sequence[Goal], count: int) -> None:
    """Write ``benchmarks.md`` and ``benchmarks/*.svg``."""
    plots = folder / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    parts = [
        HEAD.format(
            rounds=f"{count} times" if count > 1 else "once",
            cpus=os.cpu_count(),
            model=_cpu_model(),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
        ),
        "## Goals\n\n" + goals_table(goals),
    ]
    for comparison in chosen:
        found = rounds[comparison.name]
        parts.append(f"## {comparison.title}\n\n{comparison.why}\n\n{_table(found)}")
        figure = next(iter(next(iter(found.values()))[0]))
        _plot(plots / f"{comparison.name}.svg", comparison.title, figure, found)
        parts.append(f"![{comparison.title}: {figure}](benchmarks/{comparison.name}.svg)\n")
    (folder / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


def goals_table(goals: Sequence[Goal]) -> str:
    """The goals as a table in Markdown."""
    rows = [
        f"| {goal.what} | {'<=' if goal.most else '>='} {goal.bound:g} | {goal.value:.2f} "
        f"| {'yes' if goal.reached else '**no**'} |"
        for goal in goals
    ]
    return "\n".join(["| | goal | measured | reached |", "|---|---|---|---|", *rows, ""])


def _table(found: Mapping[str, Sequence[Figures]]) -> str:
    names = list(dict.fromkeys(name for rounds in found.values() for name in rounds[0]))
    first = next(iter(found.values()))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for side, rounds in found.items():
        cells = [
            _cell([one[name] for one in rounds if name in one], [one[name] for one in first if name in one])
            for name in names
        ]
        lines.append(f"| {side} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _values(rounds: Sequence[Figures], name: str) -> list[float]:
    return [figures[name] for figures in rounds if name in figures]


def _cell(values: list[float], base: list[float]) -> str:
    """The median, the spread, and the ratio to the first side."""
    if not values:
        return ""
    text = f"{_number(median(values))} ({_number(min(values))} to {_number(max(values))})"
    if base and values != base and median(base) > 0:
        text += f", {median(values) / median(base):.2g} x"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _plot(path: Path, title: str, figure: str, found: Mapping[str, Sequence[Figures]]) -> None:
    sides = [side for side in found if figure in found[side][0]]
    values = [[one[figure] for one in found[side]] for side in sides]
    middle = [median(some) for some in values]
    spread = [
        [at - min(some) for at, some in zip(middle, values, strict=True)],
        [max(some) - at for at, some in zip(middle, values, strict=True)],
    ]
    # The same figures give the same file: no date, no random ids.
    with pyplot.rc_context({"svg.hashsalt": path.name, "font.size": 9}):
        drawing, axes = pyplot.subplots(figsize=(7, 0.6 + 0.4 * len(sides)))
        colours = ["#2f6f9f" if side.startswith(GATEWAY) or "subscribers" in side else "#b0b0b0" for side in sides]
        axes.barh(sides, middle, xerr=spread, color=colours, ecolor="#404040", capsize=2)
        axes.invert_yaxis()
        axes.set_xlabel(figure)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
        drawing.savefig(path, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(drawing)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
