"""The page at ``/`` as it is served; tests/examples tests it in a browser."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from app.api.page import Page, content_security_policy
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.fake_etcd import FakeEtcd

SOURCE = (Path(__file__).parents[2] / "app/api/page.html").read_text()


def test_the_policy_lets_only_the_page_itself_run() -> None:
    """The policy lets only the page's own script run, by its hash; another text has another hash."""
    policy = content_security_policy("<style>a{}</style><script>run()</script>")
    hashes = {text: b64encode(sha256(text.encode()).digest()).decode() for text in ("a{}", "run()", "run( )")}

    assert f"script-src 'sha256-{hashes['run()']}';" in policy
    assert f"style-src 'sha256-{hashes['a{}']}';" in policy
    assert hashes["run( )"] not in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("admin_port", [None, 0])
async def test_as_served(fake: FakeEtcd, admin_port: int | None) -> None:
    """The served page has the policy of its text, and no links to what has moved to another port."""
    gateway = Gateway(load({"etcd": fake.endpoint, "admin_port": admin_port}))
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        page = await http.get("/")

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == content_security_policy(page.text)
    assert page.headers["cache-control"] == "no-cache"
    links = re.findall(r"<!-- admin -->(.*?)<!-- /admin -->", SOURCE, re.DOTALL)
    assert links
    assert all((link in page.text) == (admin_port is None) for link in links)


def test_nothing_is_loaded_from_elsewhere() -> None:
    """The page works without internet."""
    assert Page(admin=True)._text == SOURCE
    assert re.findall(r'(?:src|href)="(?:https?:)?//', SOURCE) == []
