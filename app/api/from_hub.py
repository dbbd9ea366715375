"""What a worker answers from the hub: metrics, feeds and readiness are those of all workers together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..core.errors import UnavailableError
from ..gateway import Gateway

if TYPE_CHECKING:
    from ..tier.client import Answer

# Seconds. The hub itself waits for a worker's report for one.
TIMEOUT = 10.0


async def ask_hub(gateway: Gateway, path: str, query: bytes = b"", expected: Collection[int] = (200,)) -> Answer:
    """Return the hub's answer of an *expected* status.

    Raises:
        UnavailableError: the hub does not answer: it is about to end, and this worker with it.
        GatewayError: the hub answers with another status.
    """
    from ..tier.upstream import GatewayUpstream  # see ``Gateway``: not every gateway needs httpx

    assert isinstance(gateway.upstream, GatewayUpstream), "only a worker has a hub"
    try:
        async with asyncio.timeout(TIMEOUT):
            answer = await gateway.upstream.client.get(path, query.decode("latin-1"))
    except TimeoutError:
        raise UnavailableError("the hub of this gateway does not answer", cause=f"{path}: {TIMEOUT:g} s") from None
    if answer.status not in expected:
        raise gateway.upstream.refusal(answer, body_of(answer))
    return answer


def body_of(answer: Answer) -> dict[str, Any]:
    """Return the JSON body of an answer of the hub."""
    found: dict[str, Any] = json.loads(answer.body)
    return found
