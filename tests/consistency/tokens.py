"""The tokens that the gateways accept and a client presents: each is replaced, then withdrawn; some expire first."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from app.core.timestamps import rfc3339

# Everybody may read: the followers have no token. So only the clients that present one are judged for the rotation.
POLICY = """
roles:
  reader: {read: [""]}
anonymous: [reader]
"""
PAUSE = 1.0  # seconds between two rotations, on average
LIFE = 4.0  # seconds after which a token ends that expires


class Tokens:
    """Two files: the tokens that the gateways accept, and the token that clients present now."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._rng = random.Random(seed)
        self._accepted, self._policy = folder / "tokens.yaml", folder / "policy.yaml"
        self.present = folder / "token"
        self.rotations = 0
        self._before, self._now = "", self._fresh()
        self._policy.write_text(POLICY)
        self._accept()
        self.present.write_text(self._now)

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of a gateway."""
        return {"GATEWAY_TOKENS_FILE": str(self._accepted), "GATEWAY_POLICY_FILE": str(self._policy)}

    async def run(self) -> None:
        """Rotate until cancelled. Both tokens are valid for a moment, as with a careful operator."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / PAUSE))
            self._before, self._now = self._now, self._fresh()
            self._accept(expires=time.time() + LIFE if self._rng.random() < 0.5 else None)
            await asyncio.sleep(1)
            _replace(self.present, self._now)
            self.rotations += 1

    def _accept(self, expires: float | None = None) -> None:
        """Accept the present token and the one before. *expires*: when the one before ends."""
        lines = ["tokens:"]
        for token in filter(None, (self._before, self._now)):
            until = f', expires: "{rfc3339(expires)}"' if expires is not None and token == self._before else ""
            lines.append(f"  - {{name: client, sha256: {sha256(token.encode()).hexdigest()}, roles: [reader]{until}}}")
        _replace(self._accepted, "\n".join(lines) + "\n")

    def _fresh(self) -> str:
        return f"token-{self._rng.getrandbits(128):032x}"


def _replace(file: Path, text: str) -> None:
    """Write a file at once: a reader gets the old text or the new one."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)
