"""The hub's refusals, as messages of a link. A client must see the same problem as from a single process."""

from __future__ import annotations

from typing import Any

from ..core import errors
from ..core.errors import GatewayError

_CLASSES: dict[str, type[GatewayError]] = {
    name: found for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, GatewayError)
}


def encode_error(error: GatewayError) -> dict[str, Any]:
    """Return the error as a member of a message."""
    return {
        "error": type(error).__name__,
        "detail": error.detail,
        "code": error.code,
        "parameter": error.parameter,
        "cause": error.cause,
    }


def decode_error(found: dict[str, Any]) -> GatewayError:
    """Return the error of a message."""
    kind = _CLASSES[found["error"]]
    error = kind.__new__(kind)  # a class may have arguments of its own
    GatewayError.__init__(
        error, found["detail"], code=found["code"], parameter=found["parameter"], cause=found["cause"]
    )
    return error
