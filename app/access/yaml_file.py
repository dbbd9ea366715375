"""The form of the YAML files: read without YAML's surprises, compared with a pydantic model, and faults said in lines.

The text of a fault never repeats what may be a token that somebody has written where the token's hash belongs.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..file_watch import FileError

M = TypeVar("M", bound=BaseModel)

# libyaml reads 5,000 tokens in 0.3 s, PyYAML's own parser in 5 s. Not every platform's wheel has libyaml.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Names that a fault's text may repeat: those of this project's files, their misspellings, and roles.
_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,30}")
_NULL = "tag:yaml.org,2002:null"


class Entry(BaseModel):
    """The base of all parts of a file: an unknown name is a fault, because a misspelt name would have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Loader(_Base):  # type: ignore[misc]  # its type depends on the platform
    """Reads every plain word but ``null`` as text, and refuses a name that appears twice.

    YAML 1.1 reads the role ``no`` as false, and a hash of digits as a number. PyYAML takes the last of two equal names,
    so a second ``roles:`` would silently replace the first.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, form) for tag, form in resolvers if tag == _NULL]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return the mapping of *node*."""
        seen: set[str] = set()
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a name must be a text")
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the same name appears twice in one mapping")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml(data: bytes, model: type[M]) -> M:
    """Return the content of a YAML file as *model*. Raises FileError if it does not have that form."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise FileError("is not UTF-8") from None
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 -- it is a SafeLoader
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
