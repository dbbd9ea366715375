"""An issuer of JWTs for tests. PyJWT signs, so that no test compares joserfc with itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support import connections

ISSUER = "https://id.example"
AUDIENCE = "etcd-gateway"
NOW = 1_800_000_000

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass
class SigningKey:
    """A private key of the issuer, its id, and the algorithm that it signs with.

    The first use makes the key: an RSA key takes 0.1 s or more, and every worker imports every test file.
    """

    kid: str | None
    algorithm: str
    make: Callable[[], Private]  # always the same one

    @property
    def private(self) -> Private:
        """The private key."""
        return self.make()

    def public(self, **more: Any) -> dict[str, Any]:
        """The public key as a JWK."""
        key = self.private.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            made: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(key))
        elif isinstance(key, ec.EllipticCurvePublicKey):
            made = json.loads(ECAlgorithm.to_jwk(key))
        else:
            made = json.loads(OKPAlgorithm.to_jwk(key))
        made.pop("key_ops", None)
        return {**made, **({"kid": self.kid} if self.kid is not None else {}), **more}

    def sign(self, claims: dict[str, Any], **header: Any) -> bytes:
        """A signed token."""
        named = {"kid": self.kid} if self.kid is not None else {}
        algorithm = header.pop("alg", self.algorithm)
        return jwt.encode(claims, self.private, algorithm, headers={**named, **header}).encode()


def rsa_key(kid: str | None = "rsa", bits: int = 2048, algorithm: str = "RS256") -> SigningKey:
    """A new RSA key."""
    return SigningKey(kid, algorithm, cache(lambda: rsa.generate_private_key(65537, bits)))


CURVES: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def ec_key(kid: str | None = "ec", algorithm: str = "ES256") -> SigningKey:
    """A new EC key on the algorithm's curve."""
    return SigningKey(kid, algorithm, cache(lambda: ec.generate_private_key(CURVES[algorithm])))


def ed_key(kid: str | None = "ed") -> SigningKey:
    """A new Ed25519 key."""
    return SigningKey(kid, "EdDSA", cache(ed25519.Ed25519PrivateKey.generate))


def claims(now: float = NOW, **changed: Any) -> dict[str, Any]:
    """The claims of a good token; a claim that is changed to None is left out."""
    found = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": int(now), "exp": int(now) + 600, **changed}
    return {name: value for name, value in found.items() if value is not None}


def jwks(*keys: SigningKey) -> bytes:
    """The keys as a JWK set."""
    return json.dumps({"keys": [key.public() for key in keys]}).encode()


def segment(content: Any) -> bytes:
    """One base64url segment of a token: bytes, or JSON."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def unsigned(header: Any, content: Any, signature: bytes = b"") -> bytes:
    """A token with any header, any payload and any signature."""
    return b".".join((segment(header), segment(content), segment(signature)))


@dataclass
class JwksServer:
    """Serves a JWK set over HTTP, and counts the requests. The answer's parts may be changed at any time."""

    body: bytes = b""
    status: str = "200 OK"
    headers: str = ""
    silent: bool = False  # accepts, and never answers
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """The URL of the JWK set."""
        return f"http://127.0.0.1:{self.port}/jwks.json"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.silent:
                await reader.read()
            head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(self.body)}\r\n{self.headers}\r\n"
            writer.write(head.encode() + self.body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(body: bytes) -> AsyncIterator[JwksServer]:
    """A server of JWK sets on a free port."""
    server = JwksServer(body)
    async with connections.serving(server.answer) as server.port:
        yield server
