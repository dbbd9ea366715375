"""The form of the YAML files: read without YAML's surprises, compared with a pydantic model, and faults said in lines.

The text of a fault never repeats what may be a token that somebody has written where the token's hash belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..file_watch import FileError

M = TypeVar("M", bound=BaseModel)

# libyaml reads 5,000 tokens in 0.1 s, PyYAML's own parser in 2 s. Not every platform's wheel has libyaml.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Names that a fault's text may repeat: those of this project's files, their misspellings, and roles.
_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,30}")
# Plain words that are nothing. Each other word is text: YAML 1.1 reads the role ``no`` as false, and a hash of digits
# as a number.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))})


class Entry(BaseModel):
    """The base of all parts of a file: an unknown name is a fault, because a misspelt name would have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def load_yaml(data: bytes, model: type[M]) -> M:
    """Return the content of a YAML file as *model*. Raises FileError if it does not have that form."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise FileError("is not UTF-8") from None
    try:
        content = _Content(yaml.parse(text, Loader=_LOADER)).document()
    except yaml.YAMLError as error:
        raise FileError(f"is not YAML: {_where(error)}") from None
    except (RecursionError, ValueError):
        raise FileError("is not YAML") from None
    if not isinstance(content, dict):
        raise FileError(f"must be a mapping with the names {', '.join(model.model_fields)}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise FileError("\n".join(_line(dict(item)) for item in error.errors())) from None


class _Content:
    """The content of a document, made of the parser's events.

    25,000 tokens take 0.4 s of CPU. The usual way, through PyYAML's nodes, takes 1.0 s. It also holds the interpreter's
    lock for up to 48 ms: so long all streams wait, although another thread parses the file. Here the longest is 10 ms.
    """

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, Any] = {}

    def document(self) -> Any:
        """Return the content of the only document; None if there is none. Raises yaml.YAMLError."""
        next(self._events)  # the start of the stream
        found = None
        if type(next(self._events)) is yaml.DocumentStartEvent:
            found = self._value(next(self._events))
            next(self._events)  # the end of the document
            after = next(self._events)
            if type(after) is not yaml.StreamEndEvent:
                raise _fault(after, "a second document begins; write one")
        return found

    def _value(self, event: Any) -> Any:
        """Return the value that begins with *event*. An alias is the same value again."""
        kind = type(event)
        if kind is yaml.AliasEvent:
            if event.anchor not in self._anchors:
                raise _fault(event, "an alias has no anchor before it")
            return self._anchors[event.anchor]
        if event.tag not in _TAGS:
            raise _fault(event, "a tag is not supported")
        if kind is yaml.ScalarEvent:
            value = None if event.implicit[0] and event.value in _NULL else event.value
        else:
            value = self._sequence() if kind is yaml.SequenceStartEvent else self._mapping()
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _sequence(self) -> list[Any]:
        found = []
        while type(event := next(self._events)) is not yaml.SequenceEndEvent:
            found.append(self._value(event))
        return found

    def _mapping(self) -> dict[str, Any]:
        """Return a mapping. PyYAML takes the last of two equal names: a second ``roles:`` would replace the first."""
        found: dict[str, Any] = {}
        while type(event := next(self._events)) is not yaml.MappingEndEvent:
            if type(event) is not yaml.ScalarEvent:
                raise _fault(event, "a name must be a text")
            if event.value in found:
                raise _fault(event, "the same name appears twice in one mapping")
            found[event.value] = self._value(next(self._events))
        return found


def _fault(event: Any, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _where(error: yaml.YAMLError) -> str:
    """Return the place and the kind of a fault. PyYAML's own text shows the line, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {_plain(error.problem or 'cannot be read')}"
    return _plain(str(error).splitlines()[0])


def _plain(problem: str) -> str:
    return re.sub(r"'[^']*'", "…", problem)


def _line(item: dict[str, Any]) -> str:
    place = ""
    for part in item["loc"]:
        if isinstance(part, str) and _NAME.fullmatch(part) is None:
            part = "…"
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "is not a name that this file knows"
    return f"{place.removeprefix('.')}: {message}" if place else message
