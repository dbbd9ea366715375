"""The ASGI apps without a server: which app serves what, and the headers that every answer gets."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from app.gateway import Gateway
from app.main import create_app
from app.settings import load

NOWHERE = "http://127.0.0.1:1"
ADMIN = ("/v1/feeds", "/livez", "/readyz", "/metrics")


def app_of(gateway: Gateway | None = None, **settings: str) -> tuple[FastAPI, Gateway]:
    """An app of a gateway that does not run."""
    gateway = gateway or Gateway(load({"etcd": NOWHERE, **settings}))
    return create_app(gateway=gateway), gateway


def client(app: FastAPI) -> httpx.AsyncClient:
    """A client of one app."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def statuses(app: FastAPI, *paths: str) -> list[int]:
    """The statuses of a GET of each path."""
    async with client(app) as http:
        return [(await http.get(path)).status_code for path in paths]


async def test_one_app_serves_all() -> None:
    """Without an admin port one app serves everything."""
    app, _gateway = app_of()

    assert await statuses(app, *ADMIN, "/") == [200, 200, 503, 200, 200]
    assert not hasattr(app.state, "admin")


async def test_the_admin_app_takes_the_operators_part() -> None:
    """With an admin port the admin app serves all operators' paths and none of the clients' paths."""
    app, _gateway = app_of(admin_port="0")

    assert await statuses(app, *ADMIN, "/") == [404, 404, 404, 404, 200]
    assert await statuses(app.state.admin, *ADMIN, "/", "/v1/kv?prefix=/") == [200, 200, 503, 200, 404, 404]


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/"])
async def test_head_is_served_where_get_is(path: str) -> None:
    """A HEAD is served like a GET, because haproxy's default check is a HEAD."""
    app, _gateway = app_of()
    async with client(app) as http:
        assert (await http.head(path)).status_code == 200


async def test_the_highest_revision_is_on_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer of either app has the highest revision, as soon as one is known."""
    app, gateway = app_of(admin_port="0")
    async with client(app) as http, client(app.state.admin) as admin:
        before = await http.get("/")
        monkeypatch.setattr(type(gateway.upstream), "highest_revision", 42)
        after = [await http.get("/"), await http.get("/nowhere"), await admin.get("/livez")]

    assert "x-etcd-revision" not in before.headers
    assert [answer.headers["x-etcd-revision"] for answer in after] == ["42"] * 3


async def test_cors_only_where_it_is_asked_for() -> None:
    """With CORS every value of ``Vary`` appears once, and an unlisted origin is not allowed."""
    (plain, _), (listed, _) = app_of(), app_of(cors_origins="https://app.example,https://b.example")
    origin = {"Origin": "https://app.example"}
    async with client(plain) as http, client(listed) as cors:
        without, allowed = await http.get("/", headers=origin), await cors.get("/", headers=origin)
        other = await cors.get("/", headers={"Origin": "https://evil.example"})

    assert "access-control-allow-origin" not in without.headers
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert allowed.headers["vary"].split(", ").count("Origin") == 1
    assert "access-control-allow-origin" not in other.headers


@pytest.fixture(name="environment")
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ETCD", NOWHERE)
    monkeypatch.setenv("GATEWAY_INSTANCE", "from-the-environment")


@pytest.mark.usefixtures("environment")
async def test_an_app_for_another_server() -> None:
    """``create_app`` without arguments reads the environment; its gateway runs during the app's lifespan."""
    app = create_app()
    gateway: Gateway = app.state.gateway
    async with app.router.lifespan_context(app):
        assert gateway.instance == "from-the-environment"
        assert not gateway.registry.draining
    assert gateway.registry.draining


async def test_no_request_looks_for_open_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI would read the environment at each request, also at a join that leaves its layers: 3 us."""

    def looked() -> None:
        raise AssertionError("FastAPI's telemetry is on")

    for module, provider in (("trace", "tracer"), ("metrics", "meter"), ("_logs", "logger")):
        monkeypatch.setattr(f"opentelemetry.{module}.get_{provider}_provider", looked)
    app, _gateway = app_of()

    assert await statuses(app, "/livez") == [200]
