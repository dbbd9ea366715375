"""Requests that schemathesis makes from the OpenAPI document, and the judge of their answers.

schemathesis knows the document: two thirds of its requests are right by it, and the others are wrong. It does not know
what exists. So some parameters are replaced by keys, pages, cursors and ETags that do. Headers are added that the
document does not have: credentials, ranges of bytes, cookies, what a proxy sends. Each case becomes several requests.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_from_bytes

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.openapi import Answers, Document

# Requests of one part: a longer run of hypothesis remembers more of what it has drawn.
RUN = 1500
# Requests of one case. To draw a case takes 5 ms, and to vary it takes 0.1.
VARIANTS = 3
Query = list[tuple[str, Any]]
Case = tuple[str, Query, dict[str, str]]
RANGED = ("/v1/kv", "/v1/watch", "/v1/feeds")
OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW")
# Headers that the document does not describe, with values that their parsers must survive.
HEADERS: dict[str, tuple[str, ...]] = {
    "Accept": ("text/event-stream", "application/x-ndjson", "*/*", "", "text/event-stream;q=0", "a" * 5000, ",;=\x80"),
    "Range": ("bytes=0-5", "bytes=-1", "bytes=5-1,0-0", "items=1-2", "bytes=" + "0-0," * 1000, "\xff"),
    "Cookie": ("session=x", "__Host-session=a.b.c; a=b", ";;=;", "a" * 4000, "session=\xff\x80"),
    "Origin": ("https://page.example", "null", "http://", "\xff"),
    "X-Forwarded-For": ("10.0.0.1", "::1, 10.0.0.1", "x, ,", "1.2.3.4:5", "\xff" * 100),
    "X-Forwarded-User": ("root", "", "a\x80b"),
    "X-Request-Id": ("abc", "a b", "x" * 100, "\xff"),
    "Last-Event-ID": ("", "0", "00000000-5", "-", "ffffffff-99999999999999999999", "\xff"),
    "If-None-Match": ("*", 'W/"x"', '"a", "b"', '"', "W/" * 1000, "\xff"),
    "Prefer": ("wait=0", "wait=1", 'wait="1"', "wait=-1", "respond-async, wait=0", "wait=" + "9" * 500, ";=,\xff"),
}
CREDENTIALS = (
    "", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "bearer  a b", "Bearer " + "x" * 5000, "Bearer a.b.c",
    "Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer " + "." * 100, "\xff", "Bearer \xff", "Negotiate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. The values of *headers* are Latin-1, as on the wire."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        """The path with the query."""
        return f"{self.path}?{self.query.decode('ascii')}" if self.query else self.path

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return next((value for each, value in self.headers if each.lower() == name), None)


@dataclass(frozen=True, slots=True)
class Known:
    """What exists. *values*: of parameters and headers, by name. *tokens*: good bearer tokens."""

    values: dict[str, tuple[bytes, ...]]
    tokens: tuple[str, ...] = ()


def generate(document: Document, count: int, *, known: Known, start: int = 0) -> Iterator[list[Asked]]:
    """Yield *count* requests, in parts. *start*: the seed of the first part, so that a run can be repeated."""
    logging.getLogger("schemathesis").setLevel(logging.ERROR)
    schema = schemathesis.openapi.from_dict(document)
    operations = [schema[path]["GET"] for path in document["paths"]]
    strategy = _cases(operations)
    # What exists, of the parameters that each path has.
    exist = {
        operation.path: {name: known.values[name] for name in _parameters(operation) if name in known.values}
        for operation in operations
    }
    for number in range(-(-count // RUN)):
        least, draw = min(RUN, count - number * RUN), random.Random(start + number)
        cases = _drawn(strategy, -(-least // VARIANTS), start + number)
        yield [_varied(draw, *case, exist, known) for case in cases for _ in range(VARIANTS)][:least]


def _drawn(strategy: st.SearchStrategy[Case], count: int, number: int) -> list[Case]:
    drawn: list[Case] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn


def _cases(operations: list[Any]) -> st.SearchStrategy[Case]:
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    made = {operation.path: [operation.as_strategy(generation_mode=mode) for mode in modes] for operation in operations}
    # A probe has no parameters, so few of its requests differ.
    paths = [path for path in made for _ in range(12 if path in RANGED[:2] else 1)]

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        path = draw(st.sampled_from(paths))
        # A probe without parameters has no wrong request.
        wrong = path in RANGED and not draw(st.integers(0, 2))
        found = draw(made[path][wrong])
        query = [(str(name), value) for name, value in (found.query or {}).items() if not _future(name, value)]
        return path, query, {str(name): _latin(value) for name, value in (found.headers or {}).items()}

    return case()


def _varied(
    draw: random.Random,
    path: str,
    query: Query,
    headers: dict[str, str],
    exist: dict[str, dict[str, tuple[bytes, ...]]],
    known: Known,
) -> Asked:
    """One request of a case."""
    headers = dict(headers)
    # Without a range, a request is wrong, and a document cannot say that one of two parameters is required.
    if path in RANGED and draw.random() < 0.9:
        query = _about_what_exists(draw, query, headers, exist[path])
    for name in draw.sample([*HEADERS], draw.choice((0, 0, 1, 1, 2))):
        headers[name] = draw.choice(HEADERS[name])
    if known.tokens and draw.random() < 0.9:
        headers["Authorization"] = f"Bearer {draw.choice(known.tokens)}"
    elif draw.random() < 0.5:
        headers["Authorization"] = draw.choice(CREDENTIALS)
    method = "GET" if draw.random() < 0.95 else draw.choice(("HEAD", "HEAD", *OTHER_METHODS))
    return Asked(method, path, _encoded(query), tuple(headers.items()))


def _about_what_exists(
    draw: random.Random, query: Query, headers: dict[str, str], exist: dict[str, tuple[bytes, ...]]
) -> Query:
    """A few of the query's parameters, for ranges that exist. Other known values replace those of the query."""
    kept = {name: value for name, value in query if name not in ("prefix", "key", "page") and draw.random() < 0.5}
    for name in draw.sample([*exist], min(len(exist), draw.randint(0, 2))):
        found = draw.choice(exist[name])
        if name == "If-None-Match":
            headers[name] = found.decode("latin-1")
        else:
            kept[name] = found
    kind = draw.choice(("prefix", "prefix", "key"))
    ranges = draw.choices(exist[kind], k=draw.randint(1, 2))
    # Most requests shall be answered: what only contradicts the rest is left out, mostly.
    if draw.random() < 0.9:
        for name in ("limit", "keys_only", "count_only", "page") if kind == "key" and len(ranges) == 1 else ():
            kept.pop(name, None)
        for name in () if kept.get("mode") else ("interval",):
            kept.pop(name, None)
    return [(kind, one) for one in ranges] + [pair for pair in kept.items() if pair[0] not in ("prefix", "key")]


def _parameters(operation: Any) -> list[str]:
    raw = operation.definition.raw
    return [parameter["name"] for parameter in raw.get("parameters", [])]


def _future(name: object, value: object) -> bool:
    """Whether a request would wait for a revision that etcd does not have."""
    return name == "min_revision" and str(value).isdecimal() and int(str(value)) > 0


def _latin(value: object) -> str:
    text = str(value).encode("utf-8", "surrogatepass").decode("latin-1")
    return text.translate(dict.fromkeys(map(ord, "\r\n\0"), "?")).strip()


def _encoded(query: Query) -> bytes:
    parts = []
    for name, value in query:
        for one in value if isinstance(value, list | tuple) else [value]:
            raw = one if isinstance(one, bytes) else str(one).encode("utf-8", "surrogatepass")
            parts.append(f"{quote_from_bytes(name.encode('utf-8', 'surrogatepass'))}={quote_from_bytes(raw)}")
    return "&".join(parts).encode()


@dataclass
class Judge:
    """Compares answers with the document, and collects what is wrong.

    *allowed*: statuses from 500 on that may come. *denied*: bytes that no answer may hold.
    """

    document: Document
    allowed: frozenset[int] = frozenset()
    denied: tuple[bytes, ...] = ()
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers = Answers(self.document)

    def judge(self, asked: Asked, status: int, headers: dict[str, str], body: bytes) -> None:
        """Judge an answer. A stream's events are judged by ``see``."""
        self.statuses[asked.path, status] += 1
        if status >= 500 and status not in self.allowed:
            self._fault(asked, f"{status}: {body[:300]!r}")
        if b"Traceback" in body or any(text in body or text.decode() in str(headers) for text in self.denied):
            self._fault(asked, f"a denied byte, or a traceback: {body[:300]!r}")
        if asked.method in OTHER_METHODS:
            if status not in (400, 405, 431):
                self._fault(asked, f"{status} for {asked.method}")
            return
        if status == 200 and asked.path == "/v1/watch":
            return
        content_type = headers.get("content-type")
        if asked.method == "HEAD":
            described = self._answers.described(asked.path, status)
            found = [] if described is not None and not body else [f"{status} of a HEAD, with {body!r}"]
        else:
            found = self._answers.answer_faults(asked.path, status, content_type, body)
        for fault in found:
            self._fault(asked, fault)

    def see(self, asked: Asked, event: dict[str, Any]) -> None:
        """Judge an event of a stream."""
        self.events[str(event.get("type"))] += 1
        found = self._answers.event_faults(event)
        if any(text.decode() in str(event) for text in self.denied):
            found.append(f"a denied byte: {event}")
        for fault in found:
            self._fault(asked, fault)

    def _fault(self, asked: Asked, fault: str) -> None:
        self.faults.append(f"{asked.method} {asked.target[:500]} {dict(asked.headers)}: {fault}"[:2000])

    def report(self) -> str:
        """The figures."""
        by_path: dict[str, dict[int, int]] = {}
        for (path, status), number in sorted(self.statuses.items()):
            by_path.setdefault(path, {})[status] = number
        lines = [f"{path}: {numbers}" for path, numbers in by_path.items()]
        total = sum(self.statuses.values())
        return "\n".join([f"{total} requests, {len(self.faults)} faults", *lines, f"events: {dict(self.events)}"])
