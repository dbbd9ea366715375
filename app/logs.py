"""Logs: one line an event of ours, for people or as JSON. Nothing of keys' values, nothing of tokens."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# What a LogRecord has by itself; the rest came as ``extra`` and is ours.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanFormatter(logging.Formatter):
    """Time, level, message, and what belongs to it as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        extras = " ".join(f"{name}={value}" for name, value in _extras(record).items())
        line = f"{_time(record)[11:]} {record.levelname.lower():7} {record.getMessage()}"
        if extras:
            line = f"{line:48} {extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def install(form: str, level: str) -> None:
    """Have everything logged to standard error, uvicorn's lines included (but not its access log)."""
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("gateway").setLevel(level.upper())
    # Its warnings are about what clients send ("Unsupported upgrade request."), and clients are told themselves.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
