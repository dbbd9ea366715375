"""``app.workers.refusal``: the hub's errors, as messages."""

from __future__ import annotations

import json

import pytest

from app.core.errors import GatewayError, LargeMessageError, OverCapacityError, TooLargeError, TransientError
from app.workers.refusal import decode_error, encode_error

ERRORS = [
    OverCapacityError("full: retry later", code="too-many-feeds"),
    TooLargeError("does not fit", cause="http://etcd: 9 MB"),
    LargeMessageError("one answer", 5),
    GatewayError("a defect", parameter="prefix"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_client_sees_the_same_problem(error: GatewayError) -> None:
    """The class, and with it the status and the title, and all that the client and the operator are told."""
    found = decode_error(json.loads(json.dumps(encode_error(error))))
    assert type(found) is type(error)
    assert encode_error(found) == encode_error(error)
    assert (found.status, str(found)) == (error.status, str(error))
    if isinstance(error, TransientError):
        assert isinstance(found, TransientError)
        assert found.close_reason == error.close_reason
