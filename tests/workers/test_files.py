"""``app.workers.files``: a worker that begins while files are broken starts with what was read before."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from app.access.identity import STATIC_TOKEN
from app.core.errors import ForbiddenError, UnauthorizedError
from app.core.keys import KeyRange
from app.gateway import Gateway
from app.settings import SettingsError, load
from app.workers.files import WorkerFiles
from app.workers.link import decode_contents, encode_contents
from tests.access.issuer import AUDIENCE, ISSUER, claims, ec_key, jwks, serving
from tests.access.test_bearer import entry
from tests.access.test_control import encoded
from tests.support.certificates import Ca
from tests.support.embedded import EmbeddedEtcd
from tests.support.waiting import eventually
from tests.workers.test_hub import pids, team

SVC, OTHER = KeyRange("prefix", b"/svc/"), KeyRange("prefix", b"/other/")
POLICY = "roles: {reader: {read: [/svc/]}}\n"


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    """A request's headers with a bearer token."""
    return encoded(("authorization", f"Bearer {token}"))


class World:
    """All files that a worker reads, and the hub's reading of them."""

    def __init__(self, folder: Path, jwks_url: str) -> None:
        pair = Ca(folder / "ca").sign("one")
        self.key = ec_key()
        self.paths = {
            name: folder / name
            for name in ("token_file", "tokens_file", "policy_file", "jwt_secret_file", "session_key_file")
        }
        for name, text in {
            "token_file": "static",
            "tokens_file": f"tokens: [{entry('dash', 'dash-token', ', roles: [reader]')}]",
            "policy_file": POLICY,
            "jwt_secret_file": "s" * 64,
            "session_key_file": "k" * 32,
        }.items():
            self.paths[name].write_text(text)
        self.paths |= {"tls_cert": pair.cert, "tls_key": pair.key}
        self.settings = load({
            "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": jwks_url,
            **{name: str(path) for name, path in self.paths.items()},
        })  # fmt: skip
        self.files = WorkerFiles(self.settings, clock=lambda: 0.0, wall=time.time, draw=lambda: 0.0)

    def break_all(self) -> None:
        """Make every file unusable."""
        for path in self.paths.values():
            path.write_text("")

    def worker(self) -> Gateway:
        """The gateway of a worker that begins now."""
        contents = decode_contents(encode_contents(self.files.contents()))
        return Gateway(self.settings, read_before=contents)


@pytest.mark.usefixtures("clean_environment")
async def test_what_was_read_before_stays_in_force(tmp_path: Path) -> None:
    """Of all files, and of the issuer's keys, also if the issuer is away; a mended file is used again."""
    async with serving(b"") as issuer:
        world = World(tmp_path, issuer.url)
        issuer.body = jwks(world.key)
        task = asyncio.create_task(world.files.run())

        async def fetched() -> bool:
            return "jwt_jwks" in world.files.contents()

        await eventually(fetched)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    world.paths["policy_file"].write_text(POLICY.replace("/svc/", "/other/"))
    await world.files.reload()
    world.break_all()
    await world.files.reload()

    access = (worker := world.worker()).access
    jwt = world.key.sign(claims(time.time())).decode()
    assert await access.authenticate(bearer("static"), None) == STATIC_TOKEN
    assert (await access.authenticate(bearer(jwt), None)).name == f"jwt:{ISSUER}#alice"
    dash = await access.authenticate(bearer("dash-token"), None)
    access.authorize(dash, [OTHER])
    with pytest.raises(ForbiddenError):
        access.authorize(dash, [SVC])
    with pytest.raises(UnauthorizedError):
        await access.authenticate(bearer("other"), None)
    assert access.ready
    assert worker.tls is not None
    assert set((await access.reload()).values()) == {"unusable", "unchanged"}  # the keys at the URL
    assert await worker.tls.files.look() == "unusable"
    assert {name for name, why in access.troubles().items() if why} == {
        *("tokens_file", "policy_file", "jwt_secret_file", "session_key_file"),
    }
    world.paths["policy_file"].write_text(POLICY)
    assert (await access.reload())["policy_file"] == "changed"
    access.authorize(dash, [SVC])
    world.paths["token_file"].write_text("static")
    assert (await access.reload())["token"] == "unchanged"


@pytest.mark.usefixtures("clean_environment")
def test_what_has_expired_stays_in_force(tmp_path: Path) -> None:
    """A worker that is replaced then does as its neighbours do, which still have the certificate."""
    world = World(tmp_path, "https://id.example/jwks")
    later = time.time() + 366 * 86_400
    worker = Gateway(world.settings, read_before=world.files.contents(), wall=lambda: later)

    assert worker.tls is not None
    assert worker.tls.statistics().expires < later
    with pytest.raises(SettingsError, match="the certificate expired at"):
        Gateway(world.settings, wall=lambda: later)


def test_keys_that_were_not_fetched_yet(tmp_path: Path) -> None:
    """Before the issuer has answered, a worker starts as a single process does."""
    world = World(tmp_path, "https://id.example/jwks")
    assert set(world.files.contents()) == set(world.paths)


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_all_workers_die_while_files_are_broken(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """They are replaced at once, the tokens are accepted as before, and readiness names the file."""
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens: [{entry('dash', 'dash-token')}]")
    running = await team(etcd, GATEWAY_TOKENS_FILE=str(tokens), GATEWAY_ALLOW_PREFIXES="/svc/")
    before = pids(running)
    tokens.write_text("tokens: [")
    async with httpx.AsyncClient(base_url=running.base, headers={"Connection": "close"}) as http:

        async def noticed() -> bool:
            return "GATEWAY_TOKENS_FILE" in str((await http.get("/readyz")).json())

        await eventually(noticed)
        for pid in before:
            os.kill(pid, signal.SIGKILL)

        async def replaced() -> bool:
            return not set(pids(running)) & set(before)

        await eventually(replaced)
        await eventually(noticed)
        for token, status in (("dash-token", 200), ("another", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            for _ in range(4):
                assert (await http.get("/v1/kv?prefix=/svc/", headers=headers)).status_code == status
    assert await running.stop() == 0
    assert [line["message"] for line in running.lines if line["message"] == "worker end"] == ["worker end"] * 4
