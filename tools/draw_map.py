"""Draws the rooms of ``app/`` and their imports into docs/map.svg, from the source files' imports.

Usage: ``make map``. ``tests/test_docs.py`` checks that the file is up to date.

A room is a folder of ``app/``, or a single file beside the folders. Rooms without imports stand at the bottom. Each
other room stands one row above the highest room that it imports. So an upward arrow is a backward import: it is red.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tools.imports import imports_of

APP = Path("app")
PICTURE = Path("docs/map.svg")

LINE = 15  # pixels, like all sizes below
CHARACTER = 6.7
TITLE = 24
MARGIN = 24
GAP_X, GAP_Y = 22, 46
WIDTH = 1240


@dataclass(frozen=True, slots=True)
class Room:
    """A folder of ``app/`` with its files, or one file."""

    name: str
    files: tuple[str, ...]
    imports: frozenset[str]  # other rooms

    @property
    def columns(self) -> int:
        """The number of columns. A column lists at most eight files."""
        return max(1, -(-len(self.files) // 8))

    @property
    def width(self) -> int:
        """The width in pixels."""
        title = len(self.name + ".py") * CHARACTER * 1.15  # the title is bold
        longest = max(map(len, self.files), default=0)
        return round(max(title, (CHARACTER * longest + 12) * self.columns)) + 20

    @property
    def height(self) -> int:
        """The height in pixels."""
        return TITLE + 10 + LINE * -(-len(self.files) // self.columns)


@dataclass(frozen=True, slots=True)
class Place:
    """A room's place on the map: its upper left corner, in pixels."""

    room: Room
    x: float
    y: float


def _imported(path: Path) -> Iterator[str]:
    """Yield the rooms that a file imports, including its own."""
    for name in imports_of(path, ".".join(path.parent.parts)):
        top, _, rest = name.partition(".")
        if top == APP.name and rest:
            yield rest.partition(".")[0]


def rooms() -> dict[str, Room]:
    """Return all rooms by name. Names that ``app/__init__.py`` itself defines are not rooms."""
    found = {}
    for place in sorted(APP.iterdir()):
        name = place.stem
        if name.startswith("__") or (place.is_file() and place.suffix != ".py"):
            continue
        paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        imports = {room for path in paths for room in _imported(path)} - {name}
        files = tuple(path.stem for path in paths if path.stem != "__init__") if place.is_dir() else ()
        found[name] = Room(name, files, frozenset(imports))
    known = set(found)
    return {name: Room(name, room.files, room.imports & known) for name, room in found.items()}


def rows(known: dict[str, Room]) -> list[list[Room]]:
    """Return the rows from top to bottom. In a cycle of imports one arrow goes up: the arrow of the later name."""
    height: dict[str, int] = {}

    def place(name: str, above: tuple[str, ...]) -> int:
        if name not in height:
            below = [place(other, (*above, name)) for other in sorted(known[name].imports) if other not in above]
            height[name] = 1 + max(below, default=-1)
        return height[name]

    for name in sorted(known):
        place(name, ())
    return [
        [known[name] for name in sorted(height) if height[name] == level]
        for level in range(max(height.values()), -1, -1)
    ]


def picture() -> str:
    """Return the map as SVG."""
    known = rooms()
    placed: dict[str, Place] = {}
    y = MARGIN
    boxes: list[str] = []
    for row in rows(known):
        total = sum(room.width for room in row) + GAP_X * (len(row) - 1)
        x = (WIDTH - total) / 2
        for room in row:
            placed[room.name] = Place(room, x, y)
            boxes += _box(room, x, y)
            x += room.width + GAP_X
        y += max(room.height for room in row) + GAP_Y
    arrows = list(_arrows(placed))
    style = (
        "text{font:12px ui-monospace,monospace;fill:#1f2937}.t{font-weight:bold;font-size:13px}"
        "rect{fill:#f8fafc;stroke:#64748b}path{fill:none;stroke:#64748b}.far{stroke:#cbd5e1}"
        ".back{stroke:#dc2626;stroke-width:2}"
    )
    head = (
        '<marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill:#64748b;stroke:none"/></marker>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP_Y + MARGIN}">',
            "<!-- written by `make map` -->",
            f"<style>{style}</style><defs>{head}</defs>",
            f'<rect width="{WIDTH}" height="{y - GAP_Y + MARGIN}" style="fill:#fff;stroke:none"/>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def _box(room: Room, x: float, y: float) -> list[str]:
    title = room.name + ("/" if room.files else ".py")
    lines = [
        f'<rect x="{x:.0f}" y="{y}" width="{room.width}" height="{room.height}" rx="5"/>',
        f'<text class="t" x="{x + 10:.0f}" y="{y + 19}">{escape(title)}</text>',
    ]
    depth = -(-len(room.files) // room.columns)
    step = (room.width - 16) / room.columns
    for index, name in enumerate(room.files):
        column, line = divmod(index, depth)
        lines.append(
            f'<text x="{x + 10 + column * step:.0f}" y="{y + TITLE + LINE * (line + 1) - 2}">{escape(name)}</text>'
        )
    return lines


def _arrows(placed: dict[str, Place]) -> Iterator[str]:
    """Yield the arrows. Long arrows come first and are lighter: the other arrows lie on top of them."""
    pairs = [(place, placed[other]) for place in placed.values() for other in sorted(place.room.imports)]
    for start, end in sorted(pairs, key=lambda pair: pair[0].y - pair[1].y):
        back = start.y >= end.y
        # Each arrow has its own end point on the edge of a box, in the order of the boxes at the other ends.
        leaving = sorted((one.x, one.room.name) for origin, one in pairs if origin is start)
        arriving = sorted((origin.x, origin.room.name) for origin, one in pairs if one is end)
        x1 = start.x + start.room.width * (leaving.index((end.x, end.room.name)) + 1) / (len(leaving) + 1)
        x2 = end.x + end.room.width * (arriving.index((start.x, start.room.name)) + 1) / (len(arriving) + 1)
        y1, y2 = (start.y, end.y + end.room.height) if back else (start.y + start.room.height, end.y)
        bend = (y2 - y1) / 2
        style = "back" if back else "far" if abs(y2 - y1) > GAP_Y + LINE * 8 else "near"
        yield (
            f'<path class="{style}" marker-end="url(#a)" '
            f'd="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"/>'
        )


def main() -> None:
    """Write the map."""
    old = PICTURE.read_text(encoding="utf-8") if PICTURE.exists() else ""
    new = picture()
    PICTURE.write_text(new, encoding="utf-8")
    sys.stdout.write(f"{PICTURE}: {'unchanged' if new == old else 'drawn anew'}\n")


if __name__ == "__main__":
    main()
