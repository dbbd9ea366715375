"""Takes the pictures of the page for docs/images, of a real gateway with a real etcd.

Usage: ``make screenshots``, or ``python -m tools.screenshots [FOLDER [NAME …]]``. Needs Chromium and etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image  # matplotlib brings it
from playwright.async_api import Browser, Page, async_playwright, expect

from app.dev.etcd import find_etcd
from tests.support.chromium import ARGUMENTS, CHROMIUM
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import gateway

FOLDER = Path("docs/images")
WIDE, PHONE = (1360, 800), (390, 780)
SERVICES = ("api", "auth", "billing", "catalog", "mail", "orders", "search", "sessions", "stock")
ZONES = ("a", "b", "c")
MANY = 20_000
COLOURS = 255
# The other clients of the picture of the sharing.
OTHERS = 41


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: what the page follows, and how it is looked at. ``steps`` are run in the page first."""

    name: str
    address: str
    size: tuple[int, int] = WIDE
    dark: bool = False
    steps: tuple[str, ...] = ()
    away: bool = False  # without etcd


FIRST = "document.querySelector('#keys-grid .space > [aria-rowindex=\"4\"]').click()"
CHANGED = """[...document.querySelectorAll('#events-list .put')].find((row) => row.textContent.includes('/a')).click();
    document.querySelector('#form-changes').click()"""
JOBS = "document.querySelector('#keys-grid').scrollTop = 9400 * 28"
PICTURES = (
    Picture("page-light", "#prefix=/svc/&prefix=/config/", steps=(FIRST.replace("4", "3"),)),
    Picture("page-dark", "#prefix=/svc/&prefix=/config/", dark=True, steps=(CHANGED,)),
    Picture("page-start", ""),
    Picture("page-20000-keys", "#prefix=/jobs/", steps=(JOBS, FIRST.replace("4", "9403"))),
    Picture("page-phone", "#prefix=/svc/", size=PHONE),
    Picture(
        "page-phone-sharing",
        "#prefix=/svc/",
        size=PHONE,
        dark=True,
        steps=("[...document.querySelectorAll('#panes button')].at(-1).click()",),
    ),
    Picture("page-etcd-away", "#prefix=/svc/", steps=(FIRST,), away=True),
)


def service(name: str, zone: str, load: int) -> str:
    """The value of a service's key."""
    at = f"10.{SERVICES.index(name)}.{ZONES.index(zone)}.7:8080"
    return json.dumps({"address": at, "zone": zone, "load": load, "version": "2.14.1", "ready": load < 95})


async def fill(kv: EtcdClient) -> None:
    """Write the sample data."""
    draw = random.Random(7)  # noqa: S311 - the same pictures each time
    for name in SERVICES:
        await kv.transact({f"/svc/{name}/{zone}": service(name, zone, draw.randrange(20, 80)) for zone in ZONES})
    limits = {"requests_per_second": 500, "burst": 900, "tenants": ["north", "south"], "audit": {"level": "reads"}}
    await kv.put("/config/limits", json.dumps(limits))
    await kv.put("/config/features/checkout", json.dumps({"enabled": True, "share": 0.25}))
    await kv.put("/config/motd", "Maintenance on Sunday, 03:00 UTC")
    for start in range(0, MANY, 100):
        jobs = range(start, start + 100)
        await kv.transact(
            {
                f"/jobs/{number // 500:03}/{number:06}": json.dumps(
                    {"state": draw.choice(("queued", "running", "done", "done")), "worker": f"w{draw.randrange(40):02}",
                     "attempt": draw.randrange(1, 4), "progress": draw.randrange(100)}
                )
                for number in jobs
            }
        )  # fmt: skip


async def change(kv: EtcdClient) -> None:
    """Change the sample data for ever: puts, transactions, and now and then a delete."""
    draw = random.Random(11)  # noqa: S311 - the same pictures each time
    for turn in range(1 << 30):
        await asyncio.sleep(0.35)
        name = SERVICES[turn % len(SERVICES)]
        zones = ZONES if turn % 5 == 0 else (draw.choice(ZONES),)
        await kv.transact({f"/svc/{name}/{zone}": service(name, zone, draw.randrange(20, 99)) for zone in zones})
        number = draw.randrange(MANY)
        await kv.put(
            f"/jobs/{number // 500:03}/{number:06}",
            json.dumps({"state": "running", "worker": "w07", "attempt": 1, "progress": turn % 100}),
        )
        if turn % 6 == 2:
            await kv.delete(f"/svc/{name}/{ZONES[-1]}")


@contextlib.asynccontextmanager
async def others(port: int) -> AsyncIterator[None]:
    """The streams of other clients, which read what comes."""

    async def follow(path: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while await reader.read(1 << 16):
            pass
        writer.close()

    paths = ["/v1/watch?prefix=/svc/"] * OTHERS + ["/v1/watch?prefix=/svc/&prefix=/config/"] * 12
    paths += ["/v1/watch?prefix=/config/"] * 9 + ["/v1/watch?prefix=/jobs/&keys_only=1"] * 3
    tasks = [asyncio.create_task(follow(path)) for path in paths]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def save(png: bytes, path: Path) -> None:
    """Write a picture with few colours, which halves it. The page has few, and the rare ones stay."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(
        COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(path, optimize=True)


async def take(browser: Browser, base: str, picture: Picture, folder: Path, etcd: EmbeddedEtcd) -> None:
    """Take one picture."""
    width, height = picture.size
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if picture.dark else "light"
    )
    page = await context.new_page()
    await page.goto(f"{base}/{picture.address}")
    await ready(page, picture)
    for step in picture.steps:
        await page.evaluate(step)
        await page.wait_for_timeout(400)
    if picture.away:
        etcd.sigstop()
        await expect(page.locator("#banner")).to_contain_text("etcd", timeout=60_000)
        await page.wait_for_timeout(6000)
    save(await page.screenshot(), folder / f"{picture.name}.png")
    etcd.sigcont()
    await context.close()


async def ready(page: Page, picture: Picture) -> None:
    """Wait until the page shows what the picture is about."""
    if not picture.address:
        await expect(page.locator("#cards a", has_text="/jobs/")).to_contain_text("20,000 keys", timeout=60_000)
        await expect(page.locator("#start-sharing svg")).to_be_visible()
        return
    await expect(page.locator("#state b")).to_have_text("live", timeout=60_000)
    await page.wait_for_timeout(6000)  # so that there are events and ages to see


async def main(folder: Path, names: list[str]) -> None:
    """Take the pictures with these names, or all."""
    async with (
        EmbeddedEtcd(folder=find_etcd().parent, args=ALONE) as etcd,
        etcd_client(etcd.endpoint) as kv,
        gateway(
            etcd.endpoint,
            quick=False,
            settings={"GATEWAY_PIN": "/svc/,/config/,/jobs/", "GATEWAY_INSTANCE": "gateway-0"},
        ) as running,
        async_playwright() as playwright,
    ):
        await fill(kv)
        changing = asyncio.create_task(change(kv))
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        async with others(running.port):
            for picture in PICTURES:
                if not names or picture.name in names:
                    if picture.away:
                        changing.cancel()
                    await take(browser, running.base, picture, folder, etcd)
        changing.cancel()
        await browser.close()


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    chosen.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(chosen, sys.argv[2:]))
