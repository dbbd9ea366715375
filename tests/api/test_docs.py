"""``/docs``: Swagger UI, served by this gateway alone."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256

import httpx
import pytest

from app.api.docs import ASSETS, PAGE, PIECE, SCRIPT
from app.gateway import Gateway
from app.main import create_app


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


async def test_the_page_loads_only_what_is_here(http: httpx.AsyncClient) -> None:
    """The page loads only from this gateway, by addresses that work under any path of a proxy."""
    page = await http.get("/docs")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert page.text == PAGE
    for address in addresses:
        assert address.startswith(("./", "data:")), address
        if address.startswith("./"):
            assert (await http.get(address.removeprefix("."))).status_code == 200, address

    assert {f"./docs/{name}" for name in ASSETS} <= set(addresses)


async def test_its_policy_names_its_script(http: httpx.AsyncClient) -> None:
    """The page's policy allows its own script, and no other script in the page."""
    page = await http.get("/docs")
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()

    assert f"'sha256-{digest}'" in page.headers["content-security-policy"]
    assert re.findall(r"<script>(.*?)</script>", page.text) == [SCRIPT]


@pytest.mark.parametrize("name", ASSETS)
async def test_assets_are_cached_by_their_content(http: httpx.AsyncClient, name: str) -> None:
    """An asset is sent whole at first, and not again while it is unchanged."""
    first = await http.get(f"/docs/{name}")
    again = await http.get(f"/docs/{name}", headers={"If-None-Match": first.headers["etag"]})
    other = await http.get(f"/docs/{name}", headers={"If-None-Match": '"another"'})

    assert first.headers["content-type"].startswith(ASSETS[name])
    assert int(first.headers["content-length"]) == len(first.content) > PIECE
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert (other.status_code, other.content) == (200, first.content)


async def test_nothing_else_of_the_package(http: httpx.AsyncClient) -> None:
    """No path leads to other files of the package."""
    for path in ("/docs/", "/docs/redoc.standalone.js", "/docs/../docs.py", "/redoc"):
        assert (await http.get(path)).status_code == 404, path
