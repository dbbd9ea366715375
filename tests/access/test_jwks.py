"""The issuer's keys: which keys of a set are used, and when a set is fetched."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.access.fetch import FetchError
from app.access.jwks import COOLDOWN, MAX_KEYS, JwksFile, JwksUrl, parse_jwks
from app.file_watch import FileError
from tests.access.issuer import CURVES, ec_key, ed_key, jwks, rsa_key, serving
from tests.support.waiting import HANG, eventually, soon

RSA, EC, ED = rsa_key(), ec_key(), ed_key()
URL = "https://id.example/jwks?code=hunter2"  # some issuers want a key in the query


def as_set(*keys: Any) -> bytes:
    """A JWK set of these members."""
    return json.dumps({"keys": keys}).encode()


# --- what is in a set -------------------------------------------------------------------------------------------------


def test_keys_by_id_and_algorithm() -> None:
    """A key is found by its id, for the algorithms of its own type and curve alone."""
    ring = parse_jwks(jwks(RSA, EC, ED))

    for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"):
        assert ring.find(algorithm, "rsa") is not None
        assert ring.find(algorithm, "ec") is None
    assert ring.find("ES256", "ec") is not None
    assert ring.find("EdDSA", "ed") is not None
    assert ring.find("Ed25519", "ed") is not None
    for algorithm, kid in (("ES384", "ec"), ("ES256", "rsa"), ("ES256", "ed"), ("HS256", "rsa"), ("RS256", "other")):
        assert ring.find(algorithm, kid) is None
    assert (ring.knows("rsa"), ring.knows("other"), ring.knows("")) == (True, False, False)


def test_without_an_id_only_one_key_may_fit() -> None:
    """A token without a key id is verified if only one key fits; the gateway does not try several."""
    ring = parse_jwks(jwks(RSA, EC))
    two = parse_jwks(jwks(RSA, rsa_key("other")))

    assert ring.find("RS256", None) is not None
    assert two.find("RS256", None) is None


def test_two_keys_with_one_id() -> None:
    """Two keys of different types may share an id."""
    ring = parse_jwks(jwks(rsa_key("same"), ec_key("same")))

    assert ring.find("RS256", "same") is not None
    assert ring.find("ES256", "same") is not None


@pytest.mark.parametrize(
    "key",
    [
        lambda: RSA.public(use="enc"),
        lambda: RSA.public(alg="RS512"),
        lambda: RSA.public(key_ops=["encrypt"]),
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXM", "kid": "rsa"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "rsa"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "rsa"},
        lambda: rsa_key(bits=1024).public(),
        {"kty": "RSA", "kid": "rsa"},
        {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "rsa"},
        {"kty": ["RSA"], "kid": "rsa"},
        lambda: RSA.public(n=5),
        "rsa",
        None,
    ],
    ids=itertools.count(),
)
def test_keys_that_are_left_out(key: Any) -> None:
    """A key for something else, a symmetric key in a public set, a weak key and an unreadable key are left out; the
    others are used.
    """
    ring = parse_jwks(as_set(key() if callable(key) else key, EC.public()))

    assert ring.find("RS256", "rsa") is None
    assert ring.find("HS256", "rsa") is None
    assert ring.find("ES256", "ec") is not None


@pytest.mark.parametrize("algorithm", CURVES)
def test_every_curve(algorithm: str) -> None:
    """Each curve of RFC 7518 is known."""
    assert parse_jwks(jwks(ec_key("k", algorithm))).find(algorithm, "k") is not None


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"[]",
            b"{}",
            b"null",
            b'"keys"',
            b"<html>",
            b'{"keys": {}}',
            b'{"keys": []}',
            b'{"keys": [1]}',
            b"\xff",
        ),
        b"[" * 100_000,
        as_set({"kty": "oct", "k": "AAAA"}),
        as_set(*[EC.public()] * (MAX_KEYS + 1)),
    ],
    ids=itertools.count(),
)
def test_what_is_not_a_set(data: bytes) -> None:
    """A set without a usable key is a fault: taken as a set, it would shut everybody out."""
    with pytest.raises(FileError):
        parse_jwks(data)


def test_a_private_key_is_used_as_a_public_one() -> None:
    """The private members of a key that was published by mistake are left out."""
    private = {**EC.public(), "d": "AAAA"}
    key = parse_jwks(as_set(private)).find("ES256", "ec")

    assert key is not None
    assert not key.is_private


async def test_a_file(tmp_path: Path) -> None:
    """A file is read at the start; ``refresh`` waits for nothing."""
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(RSA))
    file = JwksFile(path)
    await file.refresh()

    assert file.ready
    assert file.value.knows("rsa")


# --- when a set is fetched --------------------------------------------------------------------------------------------


class World:
    """An issuer, whose answers a test sets, and a clock, which a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.answer: bytes | Exception = jwks(RSA)
        self.fetches = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.source = JwksUrl(URL, clock=lambda: self.now, draw=lambda: 0.0, get=self.get)

    async def get(self, url: str, *, most: int, timeout: float) -> bytes:
        """The issuer's answer."""
        assert (url, most, timeout) == (URL, 256 * 1024, 10.0)
        self.fetches += 1
        answer = self.answer  # as it is when the fetch begins
        await self.gate.wait()
        for _ in range(5):  # an answer over a network is never there at once
            await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest_asyncio.fixture(name="world")
async def _world() -> AsyncIterator[World]:
    """A running source that has fetched its keys once."""
    world = World()
    task = asyncio.create_task(world.source.run())
    async with asyncio.timeout(HANG):
        await world.source.refresh()
    yield world
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_keys_are_fetched_at_the_start(world: World) -> None:
    """A request that comes before the first answer waits for it."""
    assert world.source.ready
    assert world.source.trouble == ""
    assert world.fetches == 1


async def test_an_unknown_id_fetches_once_a_minute(world: World) -> None:
    """However many unknown ids come, requests cause at most one fetch a minute; the first gets the new keys."""
    world.answer = jwks(RSA, EC)
    await world.source.refresh()
    assert world.source.value is not None
    assert world.source.value.knows("ec")
    for _ in range(1000):
        await world.source.refresh()
    assert world.fetches == 2
    world.now += COOLDOWN - 1
    await world.source.refresh()
    assert world.fetches == 2
    world.now += 1
    await world.source.refresh()

    assert world.fetches == 3


async def test_all_who_bring_a_new_key_wait_for_its_fetch(world: World) -> None:
    """After a rotation many clients come with tokens of the new key: all but the first were refused."""
    world.answer = jwks(RSA, EC)
    world.gate.clear()
    async with asyncio.timeout(HANG), asyncio.TaskGroup() as group:
        tasks = [group.create_task(world.source.refresh()) for _ in range(10)]
        await soon(lambda: world.fetches == 2)
        assert not [task for task in tasks if task.done()]
        world.gate.set()

    assert world.source.value is not None
    assert world.source.value.knows("ec")
    assert world.fetches == 2


async def test_a_fetch_that_began_before_the_new_key(world: World) -> None:
    """It may bring the keys of before: who comes with the new key waits for the next one."""
    world.gate.clear()
    await world.source.look()
    async with asyncio.timeout(HANG):
        await soon(lambda: world.fetches == 2)
        world.answer = jwks(RSA, EC)
        waiting = asyncio.create_task(world.source.refresh())
        await asyncio.sleep(0)  # it asks for a fetch
        world.gate.set()
        await waiting

    assert world.source.value is not None
    assert world.source.value.knows("ec")
    assert world.fetches == 3


async def test_old_keys_serve_while_the_issuer_is_away(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A failed fetch, or a set without keys, changes nothing and is said once, until the issuer is back."""
    before, changes = world.source.value, []
    world.source.on_change(lambda: changes.append(world.source.value))
    with caplog.at_level(logging.INFO, "gateway"):
        for answer in (FetchError("refused"), b'{"keys": []}', b'{"keys": []}', ZeroDivisionError("a defect")):
            world.answer = answer
            world.now += COOLDOWN
            await world.source.refresh()
            assert world.source.value is before
            assert world.source.ready
            assert world.source.trouble != ""
        assert changes == []
        world.answer = jwks(EC)
        world.now += COOLDOWN
        await world.source.refresh()

    assert world.source.trouble == ""
    assert changes == [world.source.value]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "WARNING", "INFO"]
    assert {vars(record)["url"] for record in caplog.records} == {"https://id.example/jwks?***"}


async def test_the_same_answer_changes_nothing(world: World) -> None:
    """An answer with the same bytes does not make the gateway forget which tokens it has verified."""
    changes: list[None] = []
    world.source.on_change(lambda: changes.append(None))
    world.now += COOLDOWN
    await world.source.refresh()

    assert (world.fetches, changes) == (2, [])


async def test_a_signal_fetches(world: World) -> None:
    """SIGHUP fetches, at any time."""
    await world.source.look()

    async def fetched() -> bool:
        return world.fetches == 2

    await eventually(fetched)


async def test_a_key_that_is_withdrawn_is_gone(world: World) -> None:
    """After a rotation the old key is not accepted any more."""
    world.answer = jwks(EC)
    await world.source.refresh()

    assert world.source.value is not None
    assert not world.source.value.knows("rsa")


async def test_over_http() -> None:
    """A real fetch, of a real server."""
    async with serving(jwks(RSA)) as server:
        source = JwksUrl(server.url, clock=lambda: 0.0, draw=lambda: 0.0)
        task = asyncio.create_task(source.run())
        await source.refresh()
        task.cancel()

    assert source.ready
