"""The Python client where identities read different things: tokens that end, parts that are permitted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from etcd_watch_client import Change, Mirror, RefusedError
from etcd_watch_client.cli import statuses

from app.core.timestamps import rfc3339
from tests.clients.etcd_watch import line_of, run, start
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.waiting import HANG

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd, pytest.mark.wall_clock]

POLICY = """
roles:
  reader: {read: ["/svc/a/", "/svc/b/"]}
"""
FIRST, SECOND, THIRD = (f"{name}-token-0123456789" for name in ("first", "second", "third"))


class Files:
    """The files of the gateway, and the client's own file with its token."""

    def __init__(self, folder: Path) -> None:
        self.tokens, self.policy, self.token = (folder / name for name in ("tokens.yaml", "policy.yaml", "token"))
        self.policy.write_text(POLICY)
        self.accept(FIRST)

    def accept(self, *tokens: str, expires: float | None = None) -> None:
        """Accept these tokens, and give the last one to the client. *expires*: when the first of them ends."""
        lines = [f"  - {{name: dash, sha256: {sha256(one.encode()).hexdigest()}, roles: [reader]}}\n" for one in tokens]
        if expires is not None:
            lines[0] = lines[0].replace("}", f', expires: "{rfc3339(expires)}"}}')
        self.token.write_text(tokens[-1])
        self.tokens.write_text("tokens:\n" + "".join(lines))


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(name="guarded")
async def _guarded(etcd: EmbeddedEtcd, kv: EtcdClient, files: Files) -> AsyncIterator[GatewayProcess]:
    """A gateway with a tokens file and a policy, in front of two keys."""
    await kv.transact({"/svc/a/1": "a", "/svc/b/1": "b", "/svc/c/1": "c"})
    settings = {
        "GATEWAY_TOKENS_FILE": str(files.tokens), "GATEWAY_POLICY_FILE": str(files.policy), "GATEWAY_PIN": "/svc/",
    }  # fmt: skip
    async with gateway(etcd.endpoint, settings=settings) as server:
        yield server


async def test_tokens_that_end(guarded: GatewayProcess, kv: EtcdClient, files: Files) -> None:
    """One is withdrawn, the next expires: the client goes on with the file's present one, and without a reset."""
    changes: list[Change[str, str]] = []
    reasons: set[str] = set()
    mirror = Mirror(
        guarded.base, "/svc/a/", "/svc/b/",
        token=files.token, on_change=changes.append, on_state=lambda found: reasons.add(found.reason),
    )  # fmt: skip
    async with mirror:
        await mirror.synced(HANG)
        files.accept(SECOND, expires=time.time() + 3600)
        await mirror.until(lambda found: found.state == "live" and "revoked" in reasons, HANG)
        files.accept(SECOND, THIRD, expires=time.time() + 20)  # within the gateway's notice
        await mirror.until(lambda found: found.state == "live" and "the token is renewed" in reasons, HANG)
        revision = await kv.put("/svc/a/1", "after")
        await mirror.until(lambda found: found.revision >= revision, HANG)
        assert mirror["/svc/a/1"] == "after"
    assert [change.reset for change in changes] == ["initial", None]


async def test_permitted_parts(guarded: GatewayProcess, files: Files) -> None:
    """Of /svc/, two prefixes; after a change of the policy one, and the other's keys are gone."""
    async with Mirror(guarded.base, "/svc/", permitted=True, token=files.token) as mirror:
        await mirror.synced(HANG)
        assert (dict(mirror), list(mirror.ranges)) == (
            {"/svc/a/1": "a", "/svc/b/1": "b"}, ["prefix=/svc/a/", "prefix=/svc/b/"],
        )  # fmt: skip
        files.policy.write_text(POLICY.replace(', "/svc/b/"', ""))
        await mirror.until(lambda found: found.state == "live" and "/svc/b/1" not in found, HANG)
        assert (dict(mirror), list(mirror.ranges)) == ({"/svc/a/1": "a"}, ["prefix=/svc/a/"])
    with pytest.raises(RefusedError) as refused:
        async with Mirror(guarded.base, "/svc/", token=files.token) as mirror:
            await mirror.synced(HANG)
    assert (refused.value.status, refused.value.code) == (403, "forbidden")

    token = ["--token-file", str(files.token), "-q"]
    process = await start(guarded.base, "follow", "/svc/", "--permitted", "--latest", "100ms", *token)
    assert (await line_of(process)).endswith("put\t/svc/a/1\ta")
    process.kill()
    await process.communicate()
    status, _, err = await run(guarded.base, "follow", "/svc/", *token)
    assert (status, "HTTP 403 forbidden" in err, "--permitted" in err) == (statuses.REFUSED, True, True)
    for words in (["get", "/svc/c/1"], ["get", "/svc/c/1", "--permitted"], ["wait", "/svc/c/", "--permitted"]):
        status, _, err = await run(guarded.base, *words, *token[: 2 if words[0] == "get" else 3])
        assert (status, "HTTP 403 forbidden" in err, "--permitted" in err) == (statuses.REFUSED, True, False), words


async def test_the_own_write(server: GatewayProcess, kv: EtcdClient) -> None:
    """A mirror is live when it has the write, also of a range in which nothing happens."""
    await kv.put("/svc/a", "1")
    async with Mirror(server.base, "/quiet/") as other:
        await other.synced(HANG)
        revision = await kv.put("/svc/a", "2")
        async with Mirror(server.base, "/svc/", min_revision=revision, latest=0.1) as mirror:
            await mirror.synced(HANG)
            assert (mirror.revision >= revision, mirror["/svc/a"]) == (True, "2")
    found = await run(server.base, "get", "/svc/a", "--min-revision", str(revision))
    assert found == (0, "2\n", "")
