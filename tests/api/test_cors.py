"""CORS: what a browser needs for a page of another origin, and each name in ``Vary`` once."""

from __future__ import annotations

import httpx
import pytest
from starlette.responses import Response

from app.api.cors import Cors

PAGE = "https://page.example"


async def answer(vary: str | None, origin: str | None, method: str = "GET", **more: str) -> httpx.Response:
    """The answer of an app behind the middleware. *vary*: what the app itself says; None: it does not."""
    app = Cors(Response(headers={} if vary is None else {"Vary": vary}), [PAGE])
    headers = ({} if origin is None else {"Origin": origin}) | {name.replace("_", "-"): more[name] for name in more}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        return await http.request(method, "/", headers=headers)


@pytest.mark.parametrize("origin", [PAGE, "https://other.example", None])
@pytest.mark.parametrize(
    ("vary", "said"),
    [(None, "Origin"), ("Origin", "Origin"), ("Accept, Origin", "Accept, Origin"), ("Accept", "Accept, Origin")],
)
async def test_vary_names_the_origin_once(vary: str | None, said: str, origin: str | None) -> None:
    """A cache must keep the answers of origins apart, also where the app says so itself."""
    assert (await answer(vary, origin)).headers["vary"] == said


async def test_a_named_origin_may_read() -> None:
    """A page of a named origin may read the answer and the headers that it needs; any other page may not."""
    named, other = await answer(None, PAGE), await answer(None, "https://other.example")

    assert named.headers["access-control-allow-origin"] == PAGE
    exposed = named.headers["access-control-expose-headers"].split(", ")
    gateways = {"X-Gateway-Instance", "X-Gateway-State", "X-Gateway-Tier"}
    assert {"ETag", "Preference-Applied", "X-Etcd-Revision", *gateways} <= set(exposed)
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("header", "status"),
    [("Last-Event-ID", 200), ("Authorization", 200), ("If-None-Match", 200), ("Prefer", 200), ("X-Other", 400)],
)
async def test_the_headers_that_a_page_may_send(header: str, status: int) -> None:
    """A preflight allows the headers that the gateway reads."""
    asked = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": header}

    assert (await answer(None, PAGE, "OPTIONS", **asked)).status_code == status


@pytest.mark.parametrize("about", [{"Origin": "https://other.example"}, {"Access-Control-Request-Method": "PUT"}])
async def test_a_preflight_that_is_refused(about: dict[str, str]) -> None:
    """The refusal is a problem, and names no origin, method or header that other pages may use."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "GET", **about}
    transport = httpx.ASGITransport(Cors(Response(), [PAGE]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        refused = await http.options("/v1/kv", headers=headers)

    assert (refused.status_code, refused.json()["code"]) == (400, "preflight-refused")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["vary"].startswith("Origin")
    assert not [name for name in refused.headers if name.startswith("access-control-")]
