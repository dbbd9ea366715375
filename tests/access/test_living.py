"""Streams that live longer than what opened them, in front of a real etcd: expiry, reload, and permitted parts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.core.timestamps import rfc3339
from app.stream.expiry import NOTICE
from tests.access.issuer import AUDIENCE, ISSUER, SigningKey, claims, ec_key, jwks
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import Event, Stream, request, watch
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.etcd, pytest.mark.one_etcd, pytest.mark.wall_clock, pytest.mark.asyncio(loop_scope="module"),
]  # fmt: skip

TOKENS = {name: f"{name}-token-0123456789" for name in ("dash", "new", "brief", "slim")}
KEYS = (ec_key("first"), ec_key("second"))
POLICY = """
roles:
  reader: {read: ["/svc/"]}
  tenant: {read: ["/tenants/{sub}/", "/svc/b"]}
bindings:
  - {identity: "jwt:https://id.example#*", roles: [tenant]}
"""


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests of this module."""
    async with EmbeddedEtcd(args=ALONE) as etcd, etcd_client(etcd.endpoint) as client:
        for key in ("/svc/a", "/svc/b", "/tenants/alice/x", "/tenants/bob/x"):
            await client.put(key, f"value-of-{key}")
        yield etcd


@pytest_asyncio.fixture(name="client", loop_scope="module")
async def _client(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    async with etcd_client(etcd.endpoint) as client:
        yield client


class Files:
    """The files of the access control."""

    def __init__(self, folder: Path) -> None:
        self.tokens, self.policy, self.jwks = (folder / name for name in ("tokens.yaml", "policy.yaml", "jwks.json"))
        self.list_tokens("dash")
        self.policy.write_text(POLICY)
        self.jwks.write_bytes(jwks(*KEYS))

    def list_tokens(self, *names: str, brief: float | None = None) -> None:
        """Write the tokens file. *brief*: the expiry of the token of this name."""
        lines = [self._entry(name, "") for name in names]
        if brief is not None:
            lines.append(self._entry("brief", f', expires: "{rfc3339(brief)}"'))
        self.tokens.write_text("tokens:\n" + "".join(lines))

    @staticmethod
    def _entry(name: str, more: str) -> str:
        digest = sha256(TOKENS[name].encode()).hexdigest()
        return f"  - {{name: dash, sha256: {digest}, roles: [reader]{more}}}\n"


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest_asyncio.fixture(name="server", loop_scope="module")
async def _server(etcd: EmbeddedEtcd, files: Files) -> AsyncIterator[GatewayProcess]:
    settings = {
        "GATEWAY_TOKENS_FILE": str(files.tokens),
        "GATEWAY_POLICY_FILE": str(files.policy),
        "GATEWAY_JWT_ISSUER": ISSUER,
        "GATEWAY_JWT_AUDIENCE": AUDIENCE,
        "GATEWAY_JWT_JWKS": str(files.jwks),
        "GATEWAY_PIN": "/",  # several ranges on one stream, whatever this etcd's version is
    }
    async with gateway(etcd.endpoint, settings=settings) as running:
        yield running
    said = json.dumps(running.lines, ensure_ascii=False) + "".join(running.other)
    for token in TOKENS.values():
        assert token not in said
        assert sha256(token.encode()).hexdigest() not in said
    assert "value-of" not in said


async def opened(server: GatewayProcess, token: str, query: str = "prefix=/svc/", **headers: str) -> Stream:
    """A stream that has said ``synced``."""
    stream = await watch(
        server.base, query, {"Authorization": f"Bearer {token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    )
    await stream.until("synced")
    return stream


async def closed(stream: Stream) -> tuple[str, list[Event]]:
    """The reason in the stream's ``close``, and what came before."""
    events = await stream.until("close")
    await stream.close()
    return str(events[-1].data["reason"]), events


def jwt(key: SigningKey, **changed: Any) -> str:
    """A token of the issuer, good now."""
    return key.sign(claims(time.time(), **changed)).decode()


def reload(server: GatewayProcess) -> None:
    """Ask the gateway to read its files now."""
    os.kill(server.pid, signal.SIGHUP)


async def seen(server: GatewayProcess, token: str) -> None:
    """Wait until the gateway accepts a token."""

    async def accepted() -> bool:
        answer = await request(server.base + "/v1/access", {"Authorization": f"Bearer {token}"})
        await answer.close()
        return answer.status == 200

    await eventually(accepted)


async def test_from_one_token_to_the_next_without_a_gap(
    server: GatewayProcess, files: Files, client: EtcdClient
) -> None:
    """The ``status`` says when; a second stream with the first one's cursor resumes; the first one then ends.

    After its end the cursor resumes, too, and neither way brings a reset.
    """
    files.list_tokens("new", brief=time.time() + NOTICE - 1)
    reload(server)
    await seen(server, TOKENS["brief"])
    first = await opened(server, TOKENS["brief"])
    status = (await first.until("status"))[-1].data
    assert status["state"] == "live"
    assert status["expires"].endswith("Z")
    await client.put("/svc/a", "2")
    (change,) = await first.changes(1)
    second = await opened(server, TOKENS["new"], Last_Event_ID=change.id or "")
    files.list_tokens("new", brief=time.time() - 1)
    reason, _events = await closed(first)
    assert reason == "expired"
    await client.put("/svc/a", "3")
    assert [event.data["value"] for event in await second.changes(1)] == ["3"]
    await second.close()

    third = await watch(
        server.base, "prefix=/svc/", {"Authorization": f"Bearer {TOKENS['new']}", "Last-Event-ID": change.id or ""}
    )
    assert [event.type for event in await third.until("synced")] == ["put", "synced"]
    await third.close()


async def test_a_reload_ends_exactly_the_denied(server: GatewayProcess, files: Files, client: EtcdClient) -> None:
    """Through a change of the file alone: a withdrawn token and a withdrawn key end their streams, and no others.

    All of them share one feed. The rest gets the next event and no reset.
    """
    files.list_tokens("dash", "new")
    await seen(server, TOKENS["new"])
    streams = {
        "dash": await opened(server, TOKENS["dash"]),
        "new": await opened(server, TOKENS["new"]),
        "first": await opened(server, jwt(KEYS[0], roles=["reader"])),
        "second": await opened(server, jwt(KEYS[1], roles=["reader"])),
    }
    files.list_tokens("new")
    assert (await closed(streams.pop("dash")))[0] == "revoked"
    files.jwks.write_bytes(jwks(KEYS[1]))
    assert (await closed(streams.pop("first")))[0] == "revoked"
    await client.put("/svc/a", "after")
    for stream in streams.values():
        assert [event.data["value"] for event in await stream.changes(1)] == ["after"]
    files.policy.write_text(POLICY.replace("/svc/", "/other/", 1))
    reload(server)
    for stream in streams.values():
        assert (await closed(stream))[0] == "revoked"


async def test_the_permitted_parts(server: GatewayProcess, files: Files, client: EtcdClient) -> None:
    """Of the whole store each tenant gets its own keys and the shared one, in one order, and no byte of another's."""
    streams = {}
    for name in ("alice", "bob"):
        stream = await watch(
            server.base, "prefix=&scope=permitted", {"Authorization": f"Bearer {jwt(KEYS[0], sub=name)}"}
        )
        events = await stream.until("synced")
        assert events[0].data["ranges"] == ["prefix=/svc/b", f"prefix=/tenants/{name}/"]
        assert {event.data["key"] for event in events if event.type == "put"} == {"/svc/b", f"/tenants/{name}/x"}
        streams[name] = stream
    for key in ("/tenants/alice/x", "/svc/a", "/tenants/bob/x", "/svc/b"):
        await client.put(key, "2")
    for name, stream in streams.items():
        assert [event.data["key"] for event in await stream.changes(2)] == [f"/tenants/{name}/x", "/svc/b"]
    files.policy.write_text(POLICY.replace(', "/svc/b"', ""))
    reload(server)
    for name, stream in streams.items():
        reason, events = await closed(stream)
        assert reason == "scope-changed"
        cursor = next(event.id for event in reversed(events) if event.id)
        again = await watch(
            server.base,
            "prefix=&scope=permitted",
            {"Authorization": f"Bearer {jwt(KEYS[0], sub=name)}", "Last-Event-ID": cursor},
        )
        reset = (await again.until("reset"))[-1].data
        assert (reset["reason"], reset["ranges"]) == ("cursor-lost", [f"prefix=/tenants/{name}/"])
        await again.close()


async def test_a_scope_that_leaves_nothing(server: GatewayProcess) -> None:
    """Nothing left is 403, which names what was asked for, whether or not the keys exist."""
    for query in ("prefix=/b&scope=permitted", "key=/svc/x&prefix=/tenants/bob/&scope=permitted", "prefix=/&scope=all"):
        answer = await request(
            f"{server.base}/v1/watch?{query}", {"Authorization": f"Bearer {jwt(KEYS[0], sub='alice')}"}
        )
        await answer.close()
        assert answer.status == (400 if "all" in query else 403)
        assert b"/tenants/alice" not in answer.body
