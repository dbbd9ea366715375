"""The page at ``/`` and its files as they are served; tests/page tests them in browsers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from app.api.page import CONTENT_SECURITY_POLICY, FOR_EVER
from app.gateway import Gateway
from app.main import create_app
from app.page.files import read_files
from app.settings import load
from tests.support.fake_etcd import FakeEtcd

ADMIN = ["v1/feeds", "metrics"]


@pytest.fixture(name="http", params=[None, 0])
async def _http(fake: FakeEtcd, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app; the second time the endpoints for operators are on a port of their own."""
    gateway = Gateway(load({"etcd": fake.endpoint, "admin_port": request.param}))
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        http.headers["x-admin"] = str(request.param is None)
        yield http


async def test_the_page(http: httpx.AsyncClient) -> None:
    """It has the policy, no link to what has moved to another port, and is not sent again while it is the same."""
    page = await http.get("/")
    again = await http.get("/", headers={"If-None-Match": f'W/"x", {page.headers["etag"]}'})
    other = await http.get("/", headers={"If-None-Match": '"x"'})

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert page.headers["cache-control"] == "no-cache"
    assert [f'href="{link}"' in page.text for link in ADMIN] == [http.headers["x-admin"] == "True"] * 2
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", page.headers["etag"])
    assert other.content == page.content


async def test_its_files(http: httpx.AsyncClient) -> None:
    """Every file that the page names is there, and stays in the browser's cache for ever: its address has a version."""
    version, files = read_files()
    page = (await http.get("/")).text
    named = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page))

    assert f"page/{version}/style.css" in named
    assert f"page/{version}/page.js" in named
    assert "@VERSION@" not in page
    for name, file in files.items():
        answer = await http.get(f"/page/{version}/{name}")
        if name == "index.html":
            assert answer.json()["code"] == "no-such-path"
            continue
        assert answer.content == file.content
        assert (answer.headers["cache-control"], answer.headers["etag"]) == (FOR_EVER, file.etag)
        assert answer.headers["content-type"] == file.media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = await http.get(f"/page/{version}/{name}", headers={"If-None-Match": file.etag})
        assert (again.status_code, again.content) == (304, b"")


async def test_a_file_of_another_version(http: httpx.AsyncClient) -> None:
    """During a rollout a browser gets the file that is here, and does not keep it."""
    answer = await http.get("/page/0123456789ab/style.css")

    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


@pytest.mark.parametrize("name", ["other.js", "", "files.py", "../files.py", "%2e%2e/files.py", "model/", "index.html"])
async def test_no_other_file(http: httpx.AsyncClient, name: str) -> None:
    """No path leads to other files."""
    answer = await http.get(f"/page/{read_files()[0]}/{name}")

    assert (answer.status_code, answer.json()["code"]) == (404, "no-such-path")


def test_the_policy() -> None:
    """Only the page's own files run, it connects to its own origin only, and a text never becomes markup."""
    policy = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))

    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("connect-src", "script-src", "style-src", "worker-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
