"""One HTTP answer of a gateway: a stream of events, or what another answer means."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping

import httpx

from .errors import RefusedError, StreamEnd
from .events import Message
from .framing import MEDIA_TYPES, Format, framer
from .selection import to_bytes

_MOST_OF_A_BODY = 65_536
_HEAD_TIMEOUT = 10.0  # seconds: a gateway sends the head of a stream at once


async def messages(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], form: Format, silence_timeout: Callable[[], float]
) -> AsyncGenerator[list[Message], None]:
    """Yield the events of each chunk of one stream, then raise StreamEnd. An empty list is a sign of life.

    ``silence_timeout()`` is how many seconds the stream may be silent. The time that the caller takes does not count.
    """
    request = client.build_request("GET", url, headers=raw({"Accept": MEDIA_TYPES[form], **headers}))
    try:
        async with asyncio.timeout(_HEAD_TIMEOUT):
            response = await client.send(request, stream=True)
        async with contextlib.aclosing(response):
            if response.status_code != httpx.codes.OK or media_type(response) != MEDIA_TYPES[form]:
                async with asyncio.timeout(silence_timeout()):
                    raise await refusal(response)
            split, chunks = framer(form), response.aiter_bytes()
            while True:
                async with asyncio.timeout(silence_timeout()):
                    chunk = await anext(chunks)
                yield list(split.feed(chunk))
    except StopAsyncIteration:
        raise StreamEnd("disconnected") from None
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
        raise  # the caller's mistake: an address or a header that cannot be sent
    except TimeoutError:
        raise StreamEnd("silent") from None
    except httpx.HTTPError as error:
        raise StreamEnd(str(error) or type(error).__name__) from None


def raw(headers: Mapping[str, str]) -> Mapping[bytes, bytes]:
    """Return headers as they are sent: a token is any bytes, and httpx takes text only if it is ASCII."""
    return {name.encode("ascii"): to_bytes(value) for name, value in headers.items()}


def media_type(response: httpx.Response) -> str:
    """Return the media type of an answer, without parameters."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def refusal(response: httpx.Response) -> RefusedError | StreamEnd:
    """Return what an answer that is not a stream means. Only a problem is final: a proxy may recover."""
    status, body = response.status_code, b""
    after = response.headers.get("retry-after", "")
    wait = float(after) if after.isdecimal() else 0
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MOST_OF_A_BODY:
            break
    if media_type(response) == "application/problem+json":
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            problem = json.loads(body)
            refused = RefusedError(status, str(problem["code"]), str(problem.get("detail", "")))
            final = status == httpx.codes.NOT_IMPLEMENTED or (400 <= status < 500 and status not in (408, 429))
            return refused if final else StreamEnd(str(refused), wait)
    place = f" to {response.headers['location']}" if "location" in response.headers else ""
    said = " ".join(body[:1000].decode(errors="replace").split())[:200]
    kind = media_type(response) or "without a content type"
    return StreamEnd(f"HTTP {status}{place}, {kind}, not the gateway's answer: {said}", wait)
