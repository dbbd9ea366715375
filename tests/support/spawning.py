"""Whether a test starts a process, judged by the names that the test, its fixtures and their helpers use."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import pytest

# `launch` is playwright's: it starts a browser.
NAMES = {"create_subprocess_exec", "create_subprocess_shell", "fork", "launch", "Popen", "posix_spawn"}
ROOMS = ("tests.", "app.dev.etcd", "tools.", "benchmarks.")


def starts_a_process(item: pytest.Item) -> bool:
    """Whether the test may start a process."""
    info = getattr(item, "_fixtureinfo", None)
    fixtures = [defs[-1].func for defs in info.name2fixturedefs.values()] if info is not None else []
    return any(_spawns(found) for found in (getattr(item, "function", None), *fixtures))


@functools.cache
def _spawns(found: Any) -> bool:
    seen: set[int] = set()
    waiting = [found]
    while waiting:
        found = inspect.unwrap(waiting.pop()) if callable(waiting[-1]) else waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if inspect.isclass(found):
            waiting += [member for member in vars(found).values() if inspect.isfunction(member)]
            waiting += [base for base in found.__bases__ if base.__module__.startswith(ROOMS)]
        elif inspect.isfunction(found):
            for name in _names(found.__code__):
                if name in NAMES:
                    return True
                used = found.__globals__.get(name)
                if used is not None and getattr(used, "__name__", "") == "subprocess":
                    return True
                if callable(used) and str(getattr(used, "__module__", "")).startswith(ROOMS):
                    waiting.append(used)
    return False


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)
