"""JWTs: what is accepted, and every attack on them that is known by a name."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from app.access.bearer import InvalidTokenError
from app.access.jwks import KeyRing, parse_jwks
from app.access.jwt import LEEWAY, MAX_JWT, JwtSettings, JwtVerifier, parse_secret, roles_in
from app.access.lru_cache import MAX_ENTRIES
from app.access.setup import ALGORITHMS
from app.core.errors import IssuerUnavailableError
from app.file_watch import FileError, WatchedFile
from tests.access.issuer import (
    AUDIENCE,
    ISSUER,
    NOW,
    SigningKey,
    claims,
    ec_key,
    ed_key,
    jwks,
    rsa_key,
    segment,
    unsigned,
)

RSA, ED = rsa_key(), ed_key()
EC = {algorithm: ec_key(algorithm, algorithm) for algorithm in ("ES256", "ES384", "ES512")}
SECRET = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
ASYMMETRIC = tuple(name for name in ALGORITHMS if not name.startswith("HS"))


@cache
def ring() -> KeyRing:
    """All keys of the issuer."""
    return parse_jwks(jwks(RSA, ED, *EC.values()))


class Keys:
    """The issuer's keys, without a network. ``refresh`` replaces them by *later*, once."""

    def __init__(self, value: KeyRing | None, later: KeyRing | None = None) -> None:
        self.value = value
        self.trouble = "no route to host"
        self.refreshed = 0
        self._later = later

    async def refresh(self) -> None:
        """Read the keys again."""
        self.refreshed += 1
        self.value = self._later or self.value


class World:
    """A verifier, and its clock."""

    def __init__(
        self,
        keys: Keys | None = None,
        secret: WatchedFile[bytes] | None = None,
        algorithms: tuple[str, ...] = ASYMMETRIC,
        roles_claim: str = "roles",
    ) -> None:
        self.now = float(NOW)
        self.keys = keys or Keys(ring())
        settings = JwtSettings(ISSUER, (AUDIENCE, "other-name"), algorithms, roles_claim)
        self.verifier = JwtVerifier(settings, self.keys, secret, wall=lambda: self.now)

    async def refused(self, token: bytes, why: str = ".") -> str:
        """The reason for which the token is refused."""
        with pytest.raises(InvalidTokenError, match=why) as caught:
            await self.verifier.identity_of(token)
        assert caught.value.__cause__ is None
        for part in token.split(b"."):
            assert len(part) < 8 or part.decode("latin-1") not in str(caught.value), (
                "a refusal shows a part of the token"
            )
        return str(caught.value)


# --- what is accepted -------------------------------------------------------------------------------------------------


async def test_a_good_token() -> None:
    """A token is an identity with the issuer and the subject as its name, with roles, claims and an expiry."""
    token = RSA.sign(claims(roles=["reader", "operator"], tenant="a", nested={"x": 1}))
    identity = await World().verifier.identity_of(token)

    assert identity.name == f"jwt:{ISSUER}#alice"
    assert sorted(identity.roles) == ["operator", "reader"]
    assert (identity.claim("tenant"), identity.claim("sub"), identity.claim("nested")) == ("a", "alice", None)
    assert identity.expires == NOW + 600
    assert not identity.every_role


@pytest.mark.parametrize("algorithm", [name for name in ASYMMETRIC if name != "Ed25519"])
async def test_every_algorithm(algorithm: str) -> None:
    """RS, PS and ES with 256 to 512 bits, and EdDSA."""
    key: SigningKey = EC.get(algorithm) or (ED if algorithm == "EdDSA" else RSA)

    assert (await World().verifier.identity_of(key.sign(claims(), alg=algorithm))).claim("sub") == "alice"


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", None])
async def test_types(typ: str | None) -> None:
    """RFC 9068's access tokens, and tokens that do not say what they are."""
    assert await World().verifier.identity_of(RSA.sign(claims(), typ=typ))


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["x", AUDIENCE], "other-name"])
async def test_audiences(audience: Any) -> None:
    """One of the token's audiences must be one of ours."""
    assert await World().verifier.identity_of(RSA.sign(claims(aud=audience)))


async def test_leeway() -> None:
    """The clocks may differ by 30 s, in both directions."""
    world = World()

    assert await world.verifier.identity_of(RSA.sign(claims(exp=NOW - LEEWAY + 1)))
    assert await world.verifier.identity_of(RSA.sign(claims(nbf=NOW + LEEWAY)))
    await world.refused(RSA.sign(claims(exp=NOW - LEEWAY)), "expired")
    token = RSA.sign(claims(exp=NOW - LEEWAY + 0.5))
    assert await world.verifier.identity_of(token)
    world.now = NOW + 0.5
    await world.refused(token, "expired")
    await world.refused(RSA.sign(claims(nbf=NOW + LEEWAY + 1)), "claims")


async def test_unknown_headers_are_ignored() -> None:
    """A header that no standard knows, like Entra's ``nonce``, changes nothing."""
    assert await World().verifier.identity_of(RSA.sign(claims(), nonce="x", x5t="y"))


# --- attacks on the algorithm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, [], ["RS256"], {}, 5, "RS257", "RSA-OAEP"])
async def test_no_algorithm(alg: Any) -> None:
    """``alg: none``, in any spelling and with any signature, and what is not an algorithm."""
    for signature in (b"", b"x", b"x" * 256):
        await World().refused(unsigned({"alg": alg, "kid": "rsa", "typ": "JWT"}, claims(), signature))


def mac(key: bytes, header: dict[str, Any], content: dict[str, Any]) -> bytes:
    """A token that is signed with HS256 and any key."""
    signed = segment(header) + b"." + segment(content)
    return signed + b"." + segment(hmac.new(key, signed, hashlib.sha256).digest())


def spellings(key: SigningKey) -> list[bytes]:
    """The forms in which an attacker may have the public key."""
    public = key.private.public_key()
    return [
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).strip(),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        json.dumps(key.public()).encode(),
        key.public()["n"].encode(),
        b"",
    ]


async def test_a_symmetric_algorithm_with_a_public_key(tmp_path: Path) -> None:
    """HS256 with the public key as its secret: refused without a secret, with one, and if HS256 were allowed alone."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    secret = WatchedFile(path, "jwt_secret_file", parse_secret, 4096)
    for world in (World(), World(secret=secret, algorithms=ALGORITHMS), World(algorithms=ALGORITHMS)):
        for spelling in spellings(RSA):
            for kid in ({"kid": "rsa"}, {}):
                await world.refused(mac(spelling, {"alg": "HS256", "typ": "JWT", **kid}, claims()))


async def test_a_secret(tmp_path: Path) -> None:
    """HS256 works with the secret of the file, for tokens of any key id, and the secret is read again."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    secret = WatchedFile(path, "jwt_secret_file", parse_secret, 4096)
    world = World(secret=secret, algorithms=ALGORITHMS)
    token = mac(SECRET, {"alg": "HS256", "kid": "any"}, claims())
    assert await world.verifier.identity_of(token)
    path.write_bytes(SECRET[::-1])
    await secret.look()
    world.verifier.forget()

    await world.refused(token)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"x" * 31,
        b"-----BEGIN PUBLIC KEY-----\n" + b"x" * 99,
        b'{"kty": "RSA"}' + b" " * 99 + b"x",
        b"ssh-rsa " * 9,
        b"\xef\xbb\xbf" + b"x" * 64,
    ],
)
def test_what_is_not_a_secret(content: bytes) -> None:
    """A public key, which everybody knows, a short secret, and one with an editor's mark are refused at the start."""
    with pytest.raises(FileError) as caught:
        parse_secret(content)

    assert "xxx" not in str(caught.value)


async def test_an_algorithm_that_is_not_accepted() -> None:
    """With a list of algorithms, the others are refused, although the key would fit."""
    world = World(algorithms=("ES256",))

    assert await world.verifier.identity_of(EC["ES256"].sign(claims()))
    await world.refused(RSA.sign(claims()), "algorithm")


async def test_a_key_of_another_type() -> None:
    """A key is used with the algorithms of its type and curve alone."""
    for header in ({"alg": "ES256", "kid": "rsa"}, {"alg": "RS256", "kid": "ES256"}, {"alg": "ES384", "kid": "ES256"}):
        await World().refused(unsigned(header, claims(), b"x" * 64), "no key of the issuer matches")


# --- attacks on the key -----------------------------------------------------------------------------------------------

MINE = rsa_key("rsa")  # the attacker's key, with the id of a real one


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"jwk": MINE},
        {"jku": "https://evil.example/jwks.json"},
        {"jku": "file:///etc/passwd"},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"x5t": "AAAA", "x5t#S256": "AAAA"},
        {"jwk": MINE, "kid": "mine"},
    ],
    ids=itertools.count(),
)
async def test_a_key_that_the_token_brings(header: dict[str, Any]) -> None:
    """``jwk``, ``jku``, ``x5u`` and ``x5c`` are ignored: a token signed with the key that it brings is refused. And a
    good token stays good beside them.
    """
    header = {name: value.public() if value is MINE else value for name, value in header.items()}
    await World().refused(MINE.sign(claims(), **header))
    if "kid" not in header and not header.get("jku", "").startswith("file:"):  # joserfc knows that this is not a URL
        assert await World().verifier.identity_of(RSA.sign(claims(), **header))


@pytest.mark.parametrize(
    "kid",
    [
        *(
            "../../../dev/null",
            "/dev/null",
            "file:///dev/null",
            "rsa/../rsa",
            "rsa\x00",
            "RSA",
            "' OR 1=1 --",
            "rsa ",
            "",
        ),
        *("http://evil.example/key", "%72sa", "x" * 10_000, "\ud800", 5, ["rsa"], {"rsa": 1}, True),
    ],
    ids=itertools.count(),
)
async def test_a_strange_key_id(kid: Any) -> None:
    """A key id is compared with the ids in memory, and nothing else happens with it."""
    world = World()
    await world.refused(unsigned({"alg": "RS256", "kid": kid}, claims(), b"x" * 256))
    await world.refused(mac(b"", {"alg": "HS256", "kid": kid}, claims()))

    assert world.keys.refreshed <= 1


async def test_an_unknown_key_id_asks_for_new_keys() -> None:
    """After a rotation, the first token with the new key is accepted; a key that never comes is refused."""
    new = rsa_key("new")
    world = World(Keys(ring(), parse_jwks(jwks(new))))

    assert await world.verifier.identity_of(new.sign(claims()))
    assert world.keys.refreshed == 1
    await world.refused(rsa_key("never").sign(claims()), "key is not known")


async def test_before_the_first_keys() -> None:
    """Without keys nobody knows whether a token is good: the client must come again, and keep its token."""
    with pytest.raises(IssuerUnavailableError):
        await World(Keys(None)).verifier.identity_of(RSA.sign(claims()))
    assert await World(Keys(None, ring())).verifier.identity_of(RSA.sign(claims()))


async def test_without_a_key_id() -> None:
    """A token without a key id is verified if one key fits."""
    anonymous = replace(RSA, kid=None)

    assert await World().verifier.identity_of(anonymous.sign(claims()))
    await World(Keys(parse_jwks(jwks(RSA, rsa_key("second"))))).refused(anonymous.sign(claims()), "no key")


# --- attacks on the form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], ["x"], "exp", None, {}])
async def test_critical_extensions(crit: Any) -> None:
    """``crit`` is refused, whatever it names: the gateway knows no extension (RFC 7515, section 4.1.11)."""
    signed = (
        segment({"alg": "RS256", "kid": "rsa", "crit": crit, "exp": 1, "x": 1, "b64": True}) + b"." + segment(claims())
    )
    await World().refused(resigned(signed))


def resigned(signed: bytes) -> bytes:
    """A token whose signature is the issuer's, whatever it says."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    assert isinstance(RSA.private, RSAPrivateKey)
    return signed + b"." + segment(RSA.private.sign(signed, padding.PKCS1v15(), hashes.SHA256()))


async def test_unencoded_payloads() -> None:
    """``b64: false`` would make the signed bytes differ from the ones that are read."""
    header = segment({"alg": "RS256", "kid": "rsa", "b64": False, "crit": ["b64"]})
    await World().refused(resigned(header + b"." + json.dumps(claims()).encode()))
    await World().refused(
        resigned(segment({"alg": "RS256", "kid": "rsa", "b64": False}) + b"." + segment(claims())) + b"x"
    )


@pytest.mark.parametrize("typ", ["logout+jwt", "secevent+jwt", "dpop+jwt", "JWE", "", 5, ["JWT"]])
async def test_a_token_for_something_else(typ: Any) -> None:
    """The issuer also signs logout tokens, for example: they are not access tokens (RFC 8725, section 3.11)."""
    await World().refused(resigned(segment({"alg": "RS256", "kid": "rsa", "typ": typ}) + b"." + segment(claims())))


@cache
def good() -> bytes:
    """A good token."""
    return RSA.sign(claims())


@pytest.mark.parametrize(
    "token",
    [
        *(b"", b".", b"..", b"...", b"a.b.c", b"a.b", b"\xff.\xff.\xff"),
        lambda good: good[:-1],
        lambda good: good[:-4],
        lambda good: good + b"A",
        lambda good: b" " + good,
        lambda good: good + b".",
        lambda good: good + b".x",
        lambda good: good + b".x.y",
        lambda good: good.replace(b".", b".."),
        lambda good: b"." + good,
        lambda good: good.rsplit(b".", 1)[0] + b".",
        lambda good: good + b"\x00",
        lambda good: good + b"\n",
        lambda good: b"\xef\xbb\xbf" + good,
        unsigned([], claims()),
        unsigned("alg", claims()),
        unsigned(None, claims()),
        unsigned({}, claims()),
        unsigned(b"[" * 20_000, claims()),
        unsigned(b'{"alg":"RS256"', claims()),
    ],
    ids=itertools.count(),
)
async def test_what_is_not_a_token(token: bytes | Callable[[bytes], bytes]) -> None:
    """Any other bytes are refused."""
    await World().refused(token(good()) if callable(token) else token)


async def test_a_changed_token() -> None:
    """A change of one character anywhere is noticed."""
    token = good()
    for index in range(0, len(token), 7):
        other = b"A" if token[index : index + 1] != b"A" else b"B"
        changed = token[:index] + other + token[index + 1 :]
        if token[index : index + 1] != b".":
            await World().refused(changed)


async def test_a_token_of_a_megabyte() -> None:
    """A large token is refused by its size, before it is decoded or hashed."""
    for token in (b"A" * 1_000_000, unsigned({"alg": "RS256", "kid": "rsa"}, {"x": "y" * 1_000_000})):
        await World().refused(token, f"more than {MAX_JWT} bytes")


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
async def test_any_segments(header: bytes, content: bytes, signature: bytes) -> None:
    """No bytes in the three parts are accepted, and none raise anything but a refusal."""
    world = World()
    await world.refused(b".".join((segment(header), segment(content), segment(signature))))
    await world.refused(b".".join((segment({"alg": "RS256", "kid": "rsa"}), segment(content), segment(signature))))


# --- attacks on the claims --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"iss": None},
            {"iss": "https://id.example/"},
            {"iss": "https://id.example.evil"},
            {"iss": [ISSUER]},
            {"iss": ""},
        ),
        *(
            {"aud": None},
            {"aud": "etcd"},
            {"aud": []},
            {"aud": ["x"]},
            {"aud": AUDIENCE.upper()},
            {"aud": {AUDIENCE: 1}},
        ),
        *({"exp": None}, {"exp": NOW - 3600}, {"exp": str(NOW + 60)}, {"exp": True}, {"exp": [NOW + 60]}, {"exp": {}}),
        *({"exp": 10**12}, {"exp": 10**400}, {"exp": 253_402_300_800}, {"exp": -1}, {"exp": 0}, {"exp": ""}),
        *(
            {"sub": None},
            {"sub": ""},
            {"sub": 5},
            {"sub": ["a"]},
            {"sub": "a\nb"},
            {"sub": "x" * 600},
            {"sub": "a\x00"},
        ),
        *({"nbf": NOW + 60}, {"nbf": "x"}, {"iat": NOW + 60}, {"iat": "x"}),
    ],
    ids=itertools.count(),
)
async def test_bad_claims(changed: dict[str, Any]) -> None:
    """Another issuer, another audience, no expiry or a strange one, no subject or a strange one."""
    header = segment({"alg": "RS256", "kid": "rsa"})
    await World().refused(resigned(header + b"." + segment(claims(**changed))))


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e400"])
async def test_numbers_that_are_not_numbers(number: str) -> None:
    """An expiry that never comes is refused."""
    content = json.dumps(claims(exp=1)).replace('"exp": 1', f'"exp": {number}').encode()
    await World().refused(resigned(segment({"alg": "RS256", "kid": "rsa"}) + b"." + segment(content)))


@pytest.mark.parametrize("content", [b"[]", b"5", b'"a"', b"null", b"", b"[" * 20_000, b"\xff"], ids=itertools.count())
async def test_claims_that_are_not_an_object(content: bytes) -> None:
    """The payload must be an object."""
    await World().refused(resigned(segment({"alg": "RS256", "kid": "rsa"}) + b"." + segment(content)))


@pytest.mark.parametrize(
    ("content", "path", "roles"),
    [
        ({"roles": ["a", "b"]}, "roles", ["a", "b"]),
        ({"scope": "a b"}, "scope", ["a", "b"]),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ["a"]),
        ({"https://x.example/roles": ["a"]}, "https://x.example/roles", ["a"]),
        ({"roles": ["a", 5, None, "*", "a b", "x" * 200, ["b"]]}, "roles", ["a"]),
        ({"roles": {"a": 1}}, "roles", []),
        ({"roles": 5}, "roles", []),
        ({"a": "b"}, "a.b.c", []),
        ({"roles": ["a"]}, "", []),
        ({}, "roles", []),
    ],
)
def test_roles(content: dict[str, Any], path: str, roles: list[str]) -> None:
    """Roles are a list, or words in a text, in a claim or within one; what is not a role gives none."""
    assert sorted(roles_in(content, path)) == roles


# --- remembered tokens ------------------------------------------------------------------------------------------------


async def test_a_verified_token_is_remembered_while_it_lives() -> None:
    """A token that comes again costs no cryptography, until it expires or the keys change."""
    world = World()
    first = await world.verifier.identity_of(good())
    world.keys.value = parse_jwks(jwks(EC["ES256"]))

    assert await world.verifier.identity_of(good()) is first
    world.now = NOW + 600 + LEEWAY - 1
    assert await world.verifier.identity_of(good()) is first
    world.now += 1
    await world.refused(good())


async def test_changed_keys_forget_the_tokens() -> None:
    """A token whose key the issuer has withdrawn is refused, although it was accepted before."""
    world = World()
    await world.verifier.identity_of(good())
    world.keys.value = parse_jwks(jwks(EC["ES256"]))
    world.verifier.forget()

    await world.refused(good())


async def test_the_key_of_an_open_stream(tmp_path: Path) -> None:
    """An identity knows which key has signed: its streams live until that key is withdrawn, whatever its id becomes."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    secret = WatchedFile(path, "jwt_secret_file", parse_secret, 4096)
    world = World(secret=secret, algorithms=ALGORITHMS)
    alice = await world.verifier.identity_of(good())
    bob = await world.verifier.identity_of(mac(SECRET, {"alg": "HS256"}, claims(sub="bob")))
    assert alice.signed_by != bob.signed_by
    assert (alice.ends_at(NOW), alice.ends_at(NOW + 600)) == (NOW + 600, NOW + 600 + LEEWAY)

    def trusted() -> list[bool]:
        return [world.verifier.trusts(one.signed_by) for one in (alice, bob)]

    assert trusted() == [True, True]
    world.keys.value = parse_jwks(jwks(replace(RSA, kid="renamed")))
    assert trusted() == [True, True]
    world.keys.value = parse_jwks(jwks(EC["ES256"]))
    assert trusted() == [False, True]
    path.write_bytes(SECRET[::-1])
    await secret.look()
    assert trusted() == [False, False]
    assert not any(SECRET.decode() in repr(one) or one.signed_by in repr(one) for one in (alice, bob))


async def test_the_memory_is_bounded() -> None:
    """The tokens that were used longest ago are forgotten first; a refused token is not remembered."""
    world = World()
    used = [await world.verifier.identity_of(good())]
    for number in range(MAX_ENTRIES + 5):
        world.verifier._remember(number.to_bytes(32, "big"), used[0])
        if number % 1000 == 0:
            assert await world.verifier.identity_of(good()) is used[0]
    await world.refused(MINE.sign(claims()))

    assert len(world.verifier._remembered) == MAX_ENTRIES
    assert world.verifier._remembered.get(hashlib.sha256(good()).digest())
