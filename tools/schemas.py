"""Write the JSON Schemas of the policy file and the tokens file: ``python -m tools.schemas``."""

from __future__ import annotations

from pathlib import Path

from app.access.command import schema

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"
NAMES = ("policy", "tokens")


def path_of(name: str) -> Path:
    """Return the path of a published schema."""
    return FOLDER / f"{name}.json"


def schema_of(name: str) -> str:
    """Return the schema, as the command ``policy schema`` prints it."""
    text, _status = schema(name)
    return text


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in NAMES:
        path_of(each).write_text(schema_of(each), encoding="utf-8")
