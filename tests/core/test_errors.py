"""``app.core.errors``: each error has a text for a client."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from app.core import errors
from app.core.errors import GatewayError, TransientError
from app.core.reasons import CLOSE_REASONS


def kinds(base: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """All kinds of error below *base*."""
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [*kinds(), GatewayError], ids=lambda kind: kind.__name__)
def test_every_error_is_a_problem(kind: type[GatewayError]) -> None:
    """Every error has a status, a code, a title, documentation, and a detail that is also its text."""
    error = kind("what is wrong")
    assert 400 <= error.status < 600
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.code)
    assert error.title
    assert kind.__doc__
    assert (str(error), error.detail, error.parameter, dict(error.headers)) == (
        "what is wrong",
        "what is wrong",
        None,
        {},
    )


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_the_tree_on_top_is_the_tree_below(kind: type[GatewayError]) -> None:
    """The tree in the module's docstring names every kind of error."""
    assert errors.__doc__ is not None
    assert f"─ {kind.__name__} " in errors.__doc__


@pytest.mark.parametrize("kind", list(kinds(TransientError)), ids=lambda kind: kind.__name__)
def test_what_is_transient_closes_a_held_stream_with_a_word_of_the_contract(kind: type[TransientError]) -> None:
    """An EventSource gets one of the reasons that the wire contract lists."""
    assert kind.close_reason in CLOSE_REASONS


def test_a_code_of_its_own_stays_with_its_error() -> None:
    """A code that is given to one error does not change the error's class."""
    error = errors.OverCapacityError("full", code="too-many-feeds", parameter="prefix")
    assert (error.code, error.parameter) == ("too-many-feeds", "prefix")
    assert errors.OverCapacityError("full").code == "over-capacity"
