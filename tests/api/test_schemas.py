"""The schemas name what there is: every code of a problem, every event, every reason."""

from __future__ import annotations

from jsonschema import Draft202012Validator

from app.api.schemas import EVENTS, SCHEMAS, SERVER_SENT, needed, problem_codes, problem_schema, problem_title, ref
from app.core import errors
from app.core.frames import control
from tests.test_docs import emitted


def test_every_code_has_its_status() -> None:
    """The codes are those that the code makes, each at its status."""
    described = {code: status for status, codes in problem_codes().items() for code in codes}
    made = {code: status for code, (status, _transient) in emitted().items()}

    assert described | {"head-timeout": 408} == made


def test_the_titles() -> None:
    """The title of a status is that of the error which is usual there."""
    titles = {kind.title for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "title")}
    for status in problem_codes():
        assert problem_title(status) in titles
        assert SCHEMAS[problem_schema(status)["$ref"].rpartition("/")[2]]["properties"]["status"] == {"const": status}


def test_every_schema_is_one() -> None:
    """The schemas are valid, and refer only to each other."""
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert set(needed(schema)) <= set(SCHEMAS), name


def test_a_schema_brings_those_that_it_refers_to() -> None:
    """Also indirectly, and once."""
    assert sorted(needed({"a": [{"schema": ref("ListAnswer")}, ref("Item")]})) == ["Item", "ListAnswer"]
    assert set(needed(ref("Event"))) == {"Event", *EVENTS}


def test_the_type_of_an_event_finds_its_schema() -> None:
    """The discriminator names every event as the stream does."""
    event = SCHEMAS["Event"]
    for kind, target in event["discriminator"]["mapping"].items():
        assert control("ndjson", kind, {}).startswith(b'{"type":"%b"' % kind.encode())
        assert SCHEMAS[target.rpartition("/")[2]]["properties"]["type"] == {"const": kind}
    assert [ref(name) for name in EVENTS] == event["oneOf"]


def test_an_event_of_sse_holds_the_event_of_ndjson() -> None:
    """In the data, as JSON."""
    union = SCHEMAS["ServerSentEvent"]
    for name in EVENTS:
        framed = SERVER_SENT[f"ServerSent{name}"]["properties"]
        assert framed["event"] == EVENTS[name]["properties"]["type"]
        assert framed["data"]["contentSchema"] == ref(name)
        assert ref(f"ServerSent{name}") in union["oneOf"]
