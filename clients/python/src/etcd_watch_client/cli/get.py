"""`etcd-watch get`: reads keys once, from /v1/kv."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from ..backoff import Backoff
from ..connection import media_type, raw, refusal
from ..credentials import Bearer, Token
from ..errors import RefusedError, StreamEnd
from ..events import Entry, parse_entry
from ..selection import Selection, to_bytes
from ..tls import Http
from . import statuses
from .statuses import CommandError
from .text import item, printable

T = TypeVar("T")


class Reader:
    """Reads from the first gateway that answers."""

    def __init__(
        self, client: httpx.AsyncClient, gateways: list[str], bearer: Bearer, timeout: float, min_revision: int
    ) -> None:
        """*timeout*: seconds after which a gateway that does not answer is left for the next one.

        *min_revision*: what is read has reached this revision.
        """
        self._least = f"&min_revision={min_revision}" if min_revision else ""
        self._client = client
        self._timeout = timeout
        self._gateways = gateways
        self._bearer = bearer
        self._backoff = Backoff(len(gateways), random.random())  # noqa: S311 - spreads clients, not a secret
        self.why = ""

    async def key(self, name: bytes) -> Entry | None:
        """Return one key; None if it does not exist."""
        try:
            return await self._get(f"key={quote(name, safe='')}", lambda answer: parse_entry(answer["kv"]))
        except RefusedError as error:
            if error.code == "key-not-found":
                return None
            raise

    async def all_of(self, selection: Selection) -> list[Entry]:
        """Return all keys of the selection, at one revision."""
        query = selection.query
        while True:
            try:
                return await self._pages(query)
            except RefusedError as error:
                if error.code != "page-expired":
                    raise
                self.why = "etcd compacted the revision while its pages were read"

    async def has_keys_under(self, prefix: bytes) -> bool:
        """Whether a prefix has keys, as far as one request can tell. It is only for a hint."""
        gateway = self._gateways[self._backoff.index]
        with contextlib.suppress(RefusedError, StreamEnd, TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(self._timeout):
                url = f"{gateway}/v1/kv?prefix={quote(prefix, safe='')}&count_only=1"
                return await self._ask(url, lambda answer: bool(answer["count"]))
        return False

    async def _pages(self, query: str) -> list[Entry]:
        entries, next_page = await self._get(query, _page)
        while next_page:
            more, next_page = await self._get(f"{query}&page={quote(next_page, safe='')}", _page)
            entries += more
        return entries

    async def _get(self, query: str, take: Callable[[Any], T]) -> T:
        while True:
            gateway = self._gateways[self._backoff.index]
            self.why = self.why or f"{gateway}: no answer yet"
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._ask(f"{gateway}/v1/kv?{query}{self._least}", take)
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
                raise
            except (StreamEnd, TimeoutError, httpx.HTTPError) as end:
                self.why = f"{gateway}: {str(end) or type(end).__name__}"
                wait = end.wait if isinstance(end, StreamEnd) else 0
            await asyncio.sleep(self._backoff.delay(wait, random.random()))  # noqa: S311 - jitter, not a secret

    async def _ask(self, url: str, take: Callable[[Any], T]) -> T:
        """Return what *take* makes of the answer. Raises StreamEnd if the answer is not one of the gateway."""
        async with self._client.stream("GET", url, headers=raw(await self._bearer.headers())) as response:
            if response.status_code != httpx.codes.OK or media_type(response) != "application/json":
                raise await refusal(response)
            try:
                taken = take(json.loads(await response.aread()))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                raise StreamEnd("not an answer of the gateway") from None
            self._backoff.succeed()
            return taken


def _page(answer: Any) -> tuple[list[Entry], str]:
    next_page = answer.get("next_page", "")
    if not isinstance(next_page, str):
        raise TypeError(next_page)
    return [parse_entry(one) for one in answer["kvs"]], next_page


async def run(
    arguments: argparse.Namespace,
    prefixes: list[str],
    keys: list[str],
    token: Token | None,
    write: Callable[[bytes], None],
) -> int:
    """Print what is asked for, all of it at one revision."""
    alone = len(keys) == 1 and not prefixes
    http = Http(arguments.cacert, arguments.client_cert, arguments.client_key)
    async with contextlib.aclosing(http):
        timeout = arguments.timeout / len(arguments.gateways)
        reader = Reader(await http.client(), arguments.gateways, Bearer(token), timeout, arguments.min_revision)
        try:
            async with asyncio.timeout(arguments.timeout):
                if alone:
                    entry = await reader.key(to_bytes(keys[0]))
                    found = [entry] if entry is not None else []
                else:
                    found = await reader.all_of(selection_of(arguments, prefixes, keys))
                names = {one.key for one in found}
                absent = [name for name in keys if to_bytes(name) not in names]
                absent += [name for name in prefixes if not any(one.startswith(to_bytes(name)) for one in names)]
                hints = [await hint(reader, name, key=name in keys) for name in absent]
        except TimeoutError:
            msg = f"no answer within {arguments.timeout:g} s: {reader.why}"
            raise CommandError(msg, statuses.UNREACHED) from None
    show(arguments, sorted(found, key=lambda one: one.key), write, alone=alone)
    if absent:
        kinds = ["no key" if name in keys else "no key under" for name in absent]
        said = [f"there is {kind} {name!r}{more}" for kind, name, more in zip(kinds, absent, hints, strict=True)]
        raise CommandError("; ".join(said), statuses.NOT_FOUND)
    return statuses.DONE


async def hint(reader: Reader, name: str, *, key: bool) -> str:
    """Return what was probably meant by a name that is absent: its folder, or the same prefix with a slash before."""
    near = f"{name}/" if key else f"/{name}" if not name.startswith("/") else ""
    return f", but there are keys under {near!r}" if near and await reader.has_keys_under(to_bytes(near)) else ""


def selection_of(arguments: argparse.Namespace, prefixes: list[str], keys: list[str]) -> Selection:
    """Return what is asked for."""
    return Selection.of(prefixes, keys, keys_only=arguments.keys, permitted=arguments.permitted)


def show(arguments: argparse.Namespace, found: list[Entry], write: Callable[[bytes], None], *, alone: bool) -> None:
    """Print entries: the value of a key that is asked for alone is printed as it is, with a line feed."""
    for entry in found:
        if arguments.json:
            write(json.dumps(item(entry), ensure_ascii=False).encode() + b"\n")
        elif arguments.keys:
            write(printable(entry.key).encode() + b"\n")
        elif alone:
            write((entry.value or b"") + b"\n")
        else:
            write(f"{printable(entry.key)}\t{printable(entry.value or b'')}\n".encode())
