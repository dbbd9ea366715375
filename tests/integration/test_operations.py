"""docs/operations.md, tested: the commands for etcd's user, and the text about a restore."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from app.arguments import parse
from tests.etcd.conftest import values
from tests.support.chart import CHOICE, get_helm, template
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import gateway
from tests.support.nginx import DOCS
from tests.support.streams import watch

pytestmark = pytest.mark.etcd

ROOT = "root:top-secret"


def commands(name: str) -> str:
    """The block of docs/operations.md after ``<!-- commands: name -->``."""
    text = DOCS.read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- commands: {name} -->\n```sh\n(.*?)```", text, re.DOTALL)
    return str(found)


async def restore(etcd: EmbeddedEtcd, folder: Path) -> None:
    """Replace etcd's history by that of ``backup.db`` in *folder*."""
    await etcd.kill()
    place = etcd.place
    status, said = await shell(
        etcd,
        folder,
        f"etcdctl snapshot restore backup.db --data-dir=restored --name={place.name}"
        f" --initial-cluster={place.name}={place.peer_url} --initial-cluster-token={place.token}"
        f" --initial-advertise-peer-urls={place.peer_url}",
    )
    assert status == 0, said
    await asyncio.to_thread(shutil.rmtree, etcd.data_dir)
    await asyncio.to_thread(shutil.move, folder / "restored", etcd.data_dir)
    await etcd.restart()


def test_what_is_not_run_says_so() -> None:
    """Every block follows a mark by which a test finds it, or its section states that it was not tested."""
    text = DOCS.read_text(encoding="utf-8")
    marks = {
        "nginx: streams",
        "nginx: http2",
        "nginx: hash",
        "nginx: path",
        "commands: check",
        "commands: tiers",
        "commands: workers",  # tested by tests/workers/test_team.py
        "commands: through",  # its flags: below; what it finds: tests/check/test_through.py
        "commands: hypercorn",  # tested by tests/stream/test_other_servers.py
        "commands: user",
        "commands: auth",
        "commands: everything",
    }
    assert set(re.findall(r"<!-- (.+) -->", text)) == marks
    seen = 0
    for section in re.split(r"^##+ ", text, flags=re.MULTILINE):
        for mark, kind, block in re.findall(r"(-->\n)?```(\w+)\n(.*?)```", section, re.DOTALL):
            assert mark or "not tested" in section.lower(), block
            if kind == "yaml":
                assert yaml.safe_load(block)
            seen += 1
    assert seen >= 9


def test_the_flags_of_the_check_of_a_proxy() -> None:
    """The command takes the flags of the page."""
    flags = parse(shlex.split(commands("through"))[1:])
    assert (flags["command"], flags["through"]) == ("check", "https://gateway.example.com")


@pytest.mark.parametrize("major", [3, 4])
def test_the_chart_takes_the_values(major: int) -> None:
    """The chart accepts the values of ``helm upgrade`` and ``helm install``; more cannot be tested without a
    cluster.
    """
    lines = re.findall(r"^helm (?:upgrade|install) .*", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        values_set = re.findall(r"--set (\S+)", line)
        assert values_set
        flags = [word for value in values_set for word in ("--set", value.replace("$NEW", f"sha256:{'0' * 64}"))]
        assert f"@sha256:{'0' * 64}" in template(get_helm(major), *CHOICE, *flags)


async def shell(etcd: EmbeddedEtcd, folder: Path, text: str, user: str = "") -> tuple[int, str]:
    """Run *text* in *folder*, with the etcdctl of this etcd, as *user* (``name:password``); exit status and output."""
    environment = {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": etcd.endpoint,
        "PATH": f"{etcd.binary.parent}:/usr/bin:/bin",
    }
    if user:
        environment["ETCDCTL_USER"] = user
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-euc",
        text,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_the_gateways_user(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """A user made by the documented commands may read the served prefixes and a single key, but no more, nor write."""
    secret = tmp_path / "gateway-password"
    secret.write_text("hunter2\n")
    (tmp_path / "root-password").write_text("top-secret\n")
    for name in ("user", "auth"):
        status, said = await shell(etcd, tmp_path, commands(name))
        assert status == 0, said
    for line in ("put /svc/a 1", "put /config/flags 2", "put /config/flags2 3"):
        status, said = await shell(etcd, tmp_path, f"etcdctl {line}", ROOT)
        assert status == 0, said

    settings = {"GATEWAY_ETCD_USER": "gateway", "GATEWAY_ETCD_PASSWORD_FILE": str(secret)}
    async with gateway(etcd.endpoint, settings=settings) as server:
        assert await values(server) == (200, {"/svc/a": "1"})
        assert (await values(server, "/config/"))[0] == 502
        assert (await values(server, ""))[0] == 502
        async with (
            await watch(server.base, "key=/config/flags") as one,
            await watch(server.base, "prefix=/svc/") as all_,
        ):
            await one.until("synced")
            await all_.until("synced")
            await shell(etcd, tmp_path, "etcdctl put /svc/b 4; etcdctl put /config/flags 5", ROOT)
            assert (await all_.changes(1))[0].data["value"] == "4"
            assert (await one.changes(1))[0].data["value"] == "5"
        status, said = await shell(etcd, tmp_path, "etcdctl put /svc/a mine", "gateway:hunter2")
        assert status != 0
        assert "permission denied" in said

        status, said = await shell(etcd, tmp_path, commands("everything"), ROOT)
        assert status == 0, said
        found, everything = await values(server, "")
        assert (found, len(everything)) == (200, 4)
        async with await watch(server.base, "prefix=") as stream:
            await stream.until("synced")


async def test_a_restore_needs_another_epoch(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """A gateway that did not run during the restore trusts a cursor from the earlier history: the mirror is wrong. With
    another epoch it reports `cursor-lost`, and sends the snapshot.
    """
    await kv.put("/svc/kept", "1")
    status, said = await shell(etcd, tmp_path, "etcdctl snapshot save backup.db")
    assert status == 0, said
    async with gateway(etcd.endpoint) as server, await watch(server.base, "prefix=/svc/") as stream:
        await stream.until("synced")
        revision = await kv.put("/svc/lost", "2")
        (change,) = await stream.changes(1)
    await restore(etcd, tmp_path)

    async with etcd_client(etcd.endpoint) as again:
        assert await again.put("/svc/new", "3") == revision
        await again.put("/svc/newer", "4")
    query = f"prefix=/svc/&last_event_id={change.id}"
    async with gateway(etcd.endpoint) as server, await watch(server.base, query) as stream:
        believed = await stream.until("synced")
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_EPOCH": "restored-1"}) as server,
        await watch(server.base, query) as stream,
    ):
        reset, *state, _synced = await stream.until("synced")

    # The mirror never gets /svc/new, and keeps /svc/lost for ever.
    assert [event.data.get("key") for event in believed if event.type != "synced"] == ["/svc/newer"]
    assert reset.data["reason"] == "cursor-lost"
    assert {event.data["key"] for event in state} == {"/svc/kept", "/svc/new", "/svc/newer"}
