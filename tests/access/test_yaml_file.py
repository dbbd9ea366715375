"""The form of the YAML files: no surprises of YAML, all faults at once, and no value in a fault's text."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.access.yaml_file import Entry, load_yaml
from app.file_watch import FileError


class Child(Entry):
    """A part of a file."""

    text: str
    words: list[str] | None = None


class Document(Entry):
    """A file."""

    children: list[Child]
    more: dict[str, str] | None = None


def test_every_plain_word_is_text() -> None:
    """YAML 1.1 would read these as false, a number, a number in base 60 and a date."""
    data = b"children: [{text: no}, {text: 0123}, {text: 1:20}, {text: 2027-01-01}, {text: 1e3}, {text: 0x1f}]"

    assert [child.text for child in load_yaml(data, Document).children] == [
        *("no", "0123", "1:20", "2027-01-01", "1e3", "0x1f"),
    ]


def test_null_is_nothing() -> None:
    """An empty value and ``null``, as a template writes a missing value, are nothing."""
    for empty in (b"", b"null", b"~"):
        assert load_yaml(b"children: []\nmore: " + empty + b"\n", Document).more is None


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
CONTENTS = st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))


class Anything(Entry):
    """A file with any content."""

    content: Any


@given(CONTENTS, st.sampled_from([None, '"', "'", "|"]), st.sampled_from([True, False, None]))
def test_what_pyyaml_writes(content: object, style: str | None, flow: bool | None) -> None:
    """Every text comes back as it was, however it is written, and so do lists and mappings."""
    data = yaml.safe_dump({"content": content}, default_style=style, default_flow_style=flow, allow_unicode=True)

    assert load_yaml(data.encode(), Anything).content == content


def test_an_alias_is_the_same_again() -> None:
    """A list can be written once and used twice. An explicit ``!!str`` changes nothing."""
    document = load_yaml(b"children: [{text: !!str a, words: &w [x, &y z]}, {text: *y, words: *w}]", Document)

    assert document.children[1] == Child(text="z", words=["x", "z"])


def test_json_is_yaml() -> None:
    """A file may be JSON, whatever program has made it."""
    assert load_yaml(b'{"children": [{"text": "a", "words": ["b"]}]}', Document).children[0].words == ["b"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "must be a mapping with the names children, more"),
        (b"[]", "must be a mapping"),
        (b"a: b: c", "line 1"),
        (b"children: [\n{text: a", "is not YAML: line"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"children: []\nchildren: []", "line 2: the same name appears twice"),
        (b"children: [{text: a, text: b}]", "the same name appears twice"),
        (b"? [a]\n: b", "a name must be a text"),
        (b"children: []\n---\nchildren: []", "is not YAML"),
        (b"children: !!python/object/apply:os.system [id]", "is not YAML"),
        (b"children: *missing", "is not YAML: line 1: an alias has no anchor before it"),
        (b"children: &all [*all]", "an alias has no anchor before it"),
        (b"children: [{text: !!int 5}]", "is not YAML: line 1: a tag is not supported"),
        (b"children: []\n...\n---\nchildren: []", "line 3: a second document begins; write one"),
        (b"children: " + b"[" * 9000, "is not YAML"),
        (b"# nothing", "must be a mapping"),
        (b"children: \x00", "is not YAML"),
        (b"more: {}", "children: Field required"),
        (b"children: [{text: a, wrods: []}]", r"children\[0\].wrods: is not a name that this file knows"),
        (b"children: [{text: [a]}]", r"children\[0\].text: "),
        (b"children: null", "children: "),
    ],
)
def test_what_is_not_such_a_file(data: bytes, why: str) -> None:
    """Each fault is named with its place."""
    with pytest.raises(FileError, match=why):
        load_yaml(data, Document)


def test_all_faults_at_once() -> None:
    """Each fault has a line: nobody should find them one reload at a time."""
    with pytest.raises(FileError) as caught:
        load_yaml(b"children: [{}, {text: a, x: b}]\ny: 1", Document)

    assert len(str(caught.value).splitlines()) == 3


SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"


@pytest.mark.parametrize(
    "data",
    [
        f"children: [{{text: [{SECRET}]}}]",
        f"children: {SECRET}",
        f"children: [{{{SECRET}: a}}]",
        f"{SECRET}: [",
        f"'{SECRET}",
        f"children: [{SECRET}: b: c]",
        f"*{SECRET}",
        f"!{SECRET} a",
        f"!<tag:{SECRET}> {{}}",
        f"{SECRET}: a\n{SECRET}: b",
        f"%{SECRET} a\n---\na",
    ],
)
def test_no_fault_shows_a_secret(data: str) -> None:
    """A token that was written where something else belongs is not repeated: the text goes to the log and /readyz."""
    with pytest.raises(FileError) as caught:
        load_yaml(data.encode(), Document)

    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
