"""The page in Chromium, with a gateway that the test plays."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from importlib.resources import files
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from tests.examples.fake_gateway import FakeGateway, Stream, cursor, fake_gateway
from tests.support.waiting import HANG, soon

# Playwright's default is 5 s.
expect.set_options(timeout=HANG * 1000)

# One browser serves the module, so its tests share a loop.
pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
NO_ANSWER = """() => void (window.fetch = (_, {signal}) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))))"""
COUNT_PARSED = """() => {
    const {parse} = JSON;
    window.parsed = [];
    JSON.parse = (text, ...more) => { window.parsed.push(text); return parse(text, ...more); };
}"""
CHANNEL = {"feeds": ["prefix=/svc/"], "state": "live", "keys": 2}
FEEDS = {
    "instance": "gw-0",
    "version": "1.0.0",
    "etcd": {"state": "ready", "version": "3.5.16", "since": "2026-01-01T00:00:00Z"},
    "feeds": [{"range": "prefix=/svc/"}],
    "channels": [
        {**CHANNEL, "ranges": ["prefix=/svc/"], "subscribers": 42, "lingering": False},
        {**CHANNEL, "ranges": ["prefix=/svc/a/"], "subscribers": 0, "lingering": True},
    ],
}
ROWS = """() => [...document.querySelectorAll('#keys-grid .space > [role=row]')]
    .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
    .map((row) => [...row.children].filter((cell) => getComputedStyle(cell).display !== 'none'))
    .map((cells) => cells.slice(0, -1).map((cell) => cell.textContent))"""
EVENTS = """() => [...document.querySelectorAll('#events-list .space > [role=row]')]
    .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
    .map((row) => [...row.children].slice(1, 4).map((cell) => cell.textContent).join(' ').trim())"""
FOLDERS = """() => [...document.querySelectorAll('#tree [role=treeitem]')]
    .sort((a, b) => a.id.localeCompare(b.id, undefined, {numeric: true}))
    .map((item) => `${item.ariaLevel} ${item.children[1].textContent} ${item.children[2].textContent}`)"""


@pytest_asyncio.fixture(loop_scope="module", name="gateway")
async def _gateway() -> AsyncIterator[FakeGateway]:
    """A gateway that the test plays."""
    async with fake_gateway() as fake:
        yield fake


async def shows(page: Page, script: str, expected: object) -> None:
    """Wait until a script returns exactly this."""
    seen: object = None
    try:
        async with asyncio.timeout(HANG):
            while (seen := await page.evaluate(script)) != expected:  # noqa: ASYNC110 - it changes in another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(seen) from None


async def open_page(page: Page, gateway: FakeGateway, where: str = "#prefix=/svc/") -> Stream:
    """Open the page, and return the stream that it asks for."""
    await page.goto(f"{gateway.url}/{where}")
    return await gateway.stream()


async def opened(page: Page, gateway: FakeGateway, **values: str) -> Stream:
    """A page that is live at revision 10 with ``/svc/<name>`` keys, or with two."""
    stream = await open_page(page, gateway)
    await stream.snapshot(10, 15, **(values or {"a": "1", "b": "2"}))
    await expect(page.locator("#state b")).to_have_text("live")
    return stream


def key(page: Page, name: str) -> Locator:
    """The cell of a key in the table."""
    return page.locator("#keys-grid .key").get_by_text(name, exact=True)


async def findings(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is."""
    await page.evaluate(AXE)
    found: list[str] = await page.evaluate(
        """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
            .flatMap(({id, nodes}) => nodes.map(({html, failureSummary}) => `${id}: ${html} ${failureSummary}`))"""
    )
    return found


# --- keys, folders, events, value -------------------------------------------------------------------------------------


async def test_follows_a_prefix(page: Page, gateway: FakeGateway) -> None:
    """Rows in the order of their keys, folders with counts, events with their transactions, and what is live."""
    stream = await open_page(page, gateway)
    await expect(page.locator("#state b")).to_have_text(re.compile("connecting|loading"))
    await stream.reset()
    await stream.item("/svc/b", "2", 10)
    await stream.item("/svc/api/x", "1", 9)
    assert await page.evaluate(ROWS) == [], "nothing of a state is shown before it is complete"
    await stream.synced(10)
    await shows(page, ROWS, [["/svc/api/x", "1", "9"], ["/svc/b", "2", "10"]])
    await expect(page.locator("#state b")).to_have_text("live")
    assert await page.evaluate(FOLDERS) == ["1 /svc/ 2", "2 api/ 1"]
    assert await page.evaluate(EVENTS) == [], "the first state is no news"

    await stream.put("/svc/api/y", "new", 11)
    await stream.delete("/svc/api/x", 12, more=True)
    await stream.put("/svc/b", "3", 12)
    await shows(page, ROWS, [["/svc/api/y", "new", "11"], ["/svc/b", "3", "12"]])
    await shows(page, EVENTS, ["put /svc/b 12", "delete /svc/api/x", "put /svc/api/y 11"])
    grouped = page.locator("#events-list .grouped")
    assert await grouped.evaluate_all("(rows) => rows.map((row) => row.title)") == ["One transaction of 2 events"] * 2
    await expect(page.locator("#count")).to_have_text("2 keys")
    await stream.bookmark(4000)
    await expect(page.locator("#state span")).to_have_text("revision 4,000")
    await stream.delete("/svc/api/y", 4001)
    await shows(page, FOLDERS, ["1 /svc/ 1"])


async def test_the_value(page: Page, gateway: FakeGateway) -> None:
    """JSON as it was written, text, hex, what a change has changed, and the facts of the key; the value follows."""
    stream = await opened(page, gateway, a='{"n":12345678901234567890,"s":"x"}', b="plain")
    await key(page, "/svc/a").click()
    content = page.locator("#value-content")
    await expect(content).to_have_text('{\n  "n": 12345678901234567890,\n  "s": "x"\n}\n', use_inner_text=True)
    for name, text in (
        ("Text", '{"n":12345678901234567890,"s":"x"}'),
        ("Hex", re.compile("^00000000  7b 22 6e")),
        ("Changes", "has not changed"),
    ):
        await page.get_by_role("tab", name=name).click()
        await expect(content).to_contain_text(text)
    await stream.put("/svc/a", '{"n":2,"s":"x"}', 11, lease="1f")
    await expect(content).to_contain_text("From revision 10 to 11: 1 line added, 1 removed.")
    await shows(page, "() => [...document.querySelectorAll('.diff span')].map((line) => line.textContent.trimEnd())",
                ["  {", '\u2212   "n": 12345678901234567890,', '+   "n": 2,', '    "s": "x"', "  }"])  # fmt: skip
    facts = await page.locator(".facts").inner_text()
    assert re.sub(r"\s+", " ", facts).startswith("revision 11 created at 1 version 1 lease 1f size 15 B changed ")
    await expect(page.locator(".command")).to_have_text(f"curl -s '{gateway.url}/v1/kv?key=/svc/a'")
    await stream.delete("/svc/a", 12)
    await expect(page.locator("#value-body")).to_contain_text("This key was deleted.")
    await expect(content).to_contain_text("then deleted: 0 lines added, 4 removed.")
    await key(page, "/svc/b").click()
    await expect(page.get_by_role("tab", name="JSON")).to_be_hidden()
    await expect(content).to_contain_text("not changed")


async def test_values_are_text_and_never_markup(page: Page, gateway: FakeGateway) -> None:
    """A writer to etcd cannot inject markup into the page, by a key or by a value."""
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    stream = await open_page(page, gateway)
    await stream.reset()
    await stream.item(f"/svc/{evil}", json.dumps({evil: evil}), 3)
    await stream.synced(5)
    await page.locator("#keys-grid .key", has_text="script").click()
    await stream.put(f"/svc/{evil}", json.dumps({evil: 1}), 6)
    for tab in ("JSON", "Text", "Hex", "Changes"):
        await page.get_by_role("tab", name=tab).click()
    await page.click("#columns-open")
    await expect(page.locator("#columns label")).to_contain_text(evil)

    assert await page.locator("main img, main script").count() == 0
    assert "etcd-watch-gateway" in await page.title()


async def test_bytes_that_are_no_text(page: Page, gateway: FakeGateway) -> None:
    """A key and a value of any bytes are shown as bytes, and can be asked for in a shell."""
    stream = await open_page(page, gateway)
    await stream.reset()
    await stream.event(
        "put",
        key="/w==",
        key_encoding="base64",
        value="AAH/",
        encoding="base64",
        create_revision=1,
        mod_revision=3,
        version=1,
    )
    await stream.item("/w==", "text", 3)
    await stream.synced(4)
    await shows(page, ROWS, [["/w==", "text", "3"], ["\\xff", "3 bytes that are not text", "3"]])
    await page.locator("#keys-grid [role=row]", has_text="xff").click()
    await expect(page.locator("#value-content")).to_have_text(re.compile(r"^00000000  00 01 ff +\.\.\.\s*$"))
    await expect(page.locator(".command")).to_contain_text("v1/kv?key=%ff'")
    await expect(page.get_by_role("tab", name="Text")).to_be_hidden()
    await expect(page.locator(".copies button").first).to_have_text("key, percent-encoded")


async def test_nothing_is_clipped_in_silence(page: Page, gateway: FakeGateway) -> None:
    """A long value says how much of it is shown, and is shown whole on demand."""
    numbers = json.dumps(list(range(3000)))
    await opened(page, gateway, a="x" * 300_000, b=numbers)
    await expect(page.locator("#keys-grid .more")).to_have_text([" … 293.0 KiB", " … 16.5 KiB"])
    await key(page, "/svc/a").click()
    await expect(page.locator("#value-content .note")).to_contain_text(
        "The first 200,000 of 300,000 characters are shown."
    )
    await page.click("#value-content .note button")
    await expect(page.locator("#value-content .note")).to_have_count(0)
    await expect(page.locator("#value-content")).to_be_focused()
    assert await page.evaluate("document.querySelector('#value-content').textContent.length") == 300_000
    await page.evaluate(COUNT_PARSED)
    await key(page, "/svc/b").click()
    await expect(page.locator("#value-content .note")).to_contain_text("The first 2,000 of 3,002 lines are shown.")
    assert (await page.evaluate("window.parsed")).count(numbers) == 1
    many = "async () => (await import('/page/v/view/dom.js')).h('pre', {}, Array(200_000).fill('x')).childNodes.length"
    assert await page.evaluate(many) == 200_000


async def test_twenty_thousand_keys(page: Page, gateway: FakeGateway) -> None:
    """All are reached by the mouse, the keyboard and the filter, and the document stays small."""
    stream = await open_page(page, gateway)
    await stream.reset()
    names = [f"/svc/{number // 100:03}/{number:05}" for number in range(20_000)]
    for start in range(0, len(names), 1000):
        part = [
            stream.encoded(
                "put",
                key=name,
                value=json.dumps({"n": (at * 7) % 20_000}),
                create_revision=1,
                mod_revision=2,
                version=1,
            )
            for at, name in enumerate(names[start : start + 1000], start)
        ]
        await stream.raw(b"".join(part))
    await stream.synced(9)
    await expect(page.locator("#count")).to_have_text("20,000 keys")
    grid = page.locator("#keys-grid")
    assert await grid.get_attribute("aria-rowcount") == "20001"
    await grid.evaluate("(grid) => { grid.scrollTop = grid.scrollHeight; }")
    await expect(grid.locator("[role=row]", has_text=names[-1])).to_be_visible()
    await grid.focus()
    for key, name in (("Home", names[0]), ("ArrowDown", names[1]), ("End", names[-1]), ("PageUp", "/svc/199/")):
        await page.keyboard.press(key)
        await expect(page.locator(".value-key")).to_contain_text(name)
        active = await grid.get_attribute("aria-activedescendant")
        await expect(page.locator(f"#{active}")).to_contain_text(name)
    assert await page.evaluate("document.querySelectorAll('*').length") < 1500

    await page.keyboard.press("/")
    await page.keyboard.type("key:/199/ n:19307")
    await expect(page.locator("#count")).to_have_text("1 of 20,000 keys")
    await page.keyboard.press("Escape")
    await expect(page.locator("#count")).to_have_text("20,000 keys")
    await expect(grid).to_be_focused()
    for sorting, first in (("ascending", "0"), ("descending", "19,999".replace(",", ""))):
        await page.get_by_role("button", name=re.compile("^n")).click()
        await expect(page.get_by_role("columnheader", name=re.compile("^n"))).to_have_attribute("aria-sort", sorting)
        await grid.evaluate("(grid) => { grid.scrollTop = 0; }")
        await expect(grid.locator("[aria-rowindex='2'] .field")).to_have_text(first)
    await page.locator("#tree [role=treeitem]", has_text="007/").click()
    await expect(page.locator("#count")).to_have_text("100 of 20,000 keys")
    await stream.put("/svc/007/new", '{"n":-1}', 10)
    await expect(page.locator("#count")).to_have_text("101 of 20,001 keys")


async def test_columns(page: Page, gateway: FakeGateway) -> None:
    """Members that most values have are columns; others can be chosen."""
    stream = await opened(page, gateway, a='{"zone":"a","load":1}', b='{"zone":"b","load":2,"rare":{"x":9}}')
    await shows(page, ROWS, [["/svc/a", "a", "1", "10"], ["/svc/b", "b", "2", "10"]])
    await page.click("#columns-open")
    await page.get_by_label("rare.x in 50 %").check()
    await page.get_by_label("zone").uncheck()
    await page.keyboard.press("Escape")
    await expect(page.locator("#columns-open")).to_be_focused()
    await shows(page, ROWS, [["/svc/a", "1", "", "10"], ["/svc/b", "2", "9", "10"]])
    await stream.put("/svc/a", '{"load":7}', 11)
    await shows(page, ROWS, [["/svc/a", "7", "", "11"], ["/svc/b", "2", "9", "10"]])


async def test_the_event_log(page: Page, gateway: FakeGateway) -> None:
    """Pause, filter, export, clear; a click shows the key."""
    stream = await opened(page, gateway)
    await expect(page.locator("#events-empty")).to_have_text("The next change is shown here.")
    await stream.put("/svc/a", "x", 11)
    await shows(page, EVENTS, ["put /svc/a 11"])
    await expect(page.locator("#events-empty")).to_be_hidden()
    await page.keyboard.press("p")
    await stream.delete("/svc/b", 12)
    await expect(page.locator("#pause")).to_have_text("Resume (1 new)")
    assert await page.evaluate(EVENTS) == ["put /svc/a 11"]
    await page.click("#pause")
    await shows(page, EVENTS, ["delete /svc/b 12", "put /svc/a 11"])
    await page.locator("#events-list [role=row]", has_text="delete").click()
    await expect(page.locator("#value-body")).to_contain_text("This key was deleted.")
    async with page.expect_download() as started:
        await page.click("#export")
    exported = await asyncio.to_thread((await (await started.value).path()).read_text)
    lines = [json.loads(line) for line in exported.splitlines()]
    assert [(line["type"], line["key"], line["mod_revision"], line.get("value")) for line in lines] == [
        ("put", "/svc/a", 11, "x"), ("delete", "/svc/b", 12, None),
    ]  # fmt: skip
    await page.fill("#events-filter", "delete")
    await shows(page, EVENTS, ["delete /svc/b 12"])
    await expect(page.locator("#events-count")).to_have_text("1 of 2 events")
    await page.fill("#events-filter", "nowhere")
    await expect(page.locator("#events-empty")).to_have_text("No event matches the filter.")
    await page.click("#clear")
    await expect(page.locator("#events-count")).to_have_text("0 events")


async def test_what_changes_pulses(page: Page, gateway: FakeGateway) -> None:
    """The changed row and its folders pulse, and no others; nothing moves for a reader who wants no motion."""
    moving = """() => [...document.querySelectorAll('#keys-grid .space > *, #tree .number')]
        .map((one) => one.getAnimations().length)"""
    stream = await opened(page, gateway)
    assert await page.evaluate(moving) == [0, 0, 0]
    await stream.put("/svc/b", "3", 11)
    await shows(page, ROWS, [["/svc/a", "1", "10"], ["/svc/b", "3", "11"]])
    assert await page.evaluate(moving) == [1, 0, 1]
    await page.emulate_media(reduced_motion="reduce")
    await stream.put("/svc/a", "3", 12)
    await shows(page, ROWS, [["/svc/a", "3", "12"], ["/svc/b", "3", "11"]])
    assert (await page.evaluate(moving))[1] == 0
    assert await page.evaluate("document.getAnimations().filter((one) => one.playState === 'running').length") <= 2


# --- what is followed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/svc/", "", 'it\'s $(x) `y` "z" & ; [1-2] {a,b} é%20+\n!!', "--help"])
async def test_says_the_same_in_curl(page: Page, gateway: FakeGateway, prefix: str) -> None:
    """A shell reads the curl line as one URL, which asks for this prefix, also under a path of a proxy."""
    stream = await open_page(page, gateway, f"#prefix={quote(prefix, safe='')}")
    assert stream.query["prefix"] == prefix

    command, option, url = shlex.split(await page.locator("#curl").inner_text())
    assert (command, option) == ("curl", "-N")
    assert not set("[]{}") & set(url), "curl would take the brackets for a pattern"
    assert url.startswith(f"{gateway.url}/v1/watch?prefix=")
    assert parse_qs(urlsplit(url).query, keep_blank_values=True) == {"prefix": [prefix]}


async def test_the_address(page: Page, gateway: FakeGateway) -> None:
    """Nothing is followed before something is chosen. Several ranges are one stream. The back button works."""
    await page.goto(gateway.url)
    await expect(page.locator("#cards a")).to_have_text(["every key0 keys"])
    await expect(page.locator("#add")).to_be_focused()
    assert gateway.waiting == 0
    await page.keyboard.type("/a b+c/")
    await page.keyboard.press("Enter")
    assert (await gateway.stream()).ranges == [("prefix", "/a b+c/")]
    assert page.url == f"{gateway.url}/#prefix=/a%20b%2Bc/"
    await page.fill("#add", "key=/leader")
    await page.click("#follow")
    both = await gateway.stream()
    assert both.ranges == [("prefix", "/a b+c/"), ("key", "/leader")]
    await both.snapshot(3)
    await page.get_by_label("Stop following /a b+c/").click()
    assert (await gateway.stream()).ranges == [("key", "/leader")]
    await expect(page.get_by_label("Stop following key /leader")).to_be_focused()
    await both.gone()
    await page.go_back()
    assert len((await gateway.stream()).ranges) == 2
    await expect(page.locator("#ranges li span")).to_have_text(["/a b+c/", "key /leader"])
    await page.evaluate("location.hash = 'prefix=/typed/'")
    assert (await gateway.stream()).ranges == [("prefix", "/typed/")]
    await page.evaluate("location.hash = 'prefix=typed/'")
    await (await gateway.stream()).snapshot(4)
    await expect(page.locator("#empty")).to_contain_text("No keys here now.")
    await expect(page.locator("#empty")).to_contain_text("Did you mean /typed/?")
    await page.evaluate("location.hash = 'prefix=/typed/'")
    await (await gateway.stream()).snapshot(4)
    await expect(page.locator("#empty")).to_have_text(re.compile("somebody writes them.$"))
    await page.click(".brand")
    await expect(page.locator("#cards h2")).to_have_text(["You may follow", "Recently followed"])
    await page.locator("#cards a", has_text="/typed/").click()
    await expect(page.locator("#browse")).to_be_visible()


async def test_what_there_is_to_follow(page: Page, gateway: FakeGateway) -> None:
    """Folders with counts, also in an etcd with more keys than the page reads. What failed is asked for again."""
    unavailable = {"status": 503, "code": "unavailable", "title": "Unavailable", "detail": "etcd is out of reach"}
    gateway.answers["/v1/kv?prefix=&count_only=1"] = unavailable
    await page.goto(gateway.url)
    await expect(page.locator("#cards a")).to_have_text(["every keyUnavailable"])
    keys = [{"key": key} for key in ("/a/1", "/a/2", "/jobs/1", "/jobs/2", "/jobs/3")]
    gateway.answers["/v1/kv?prefix=&keys_only=1&limit=10000"] = {"kvs": keys, "next_page": "x"}
    gateway.answers["/v1/kv?prefix=/jobs/&count_only=1"] = {"count": 20_000}
    gateway.answers["/v1/kv?prefix=&count_only=1"] = {"count": 20_027}
    await expect(page.locator("#cards a")).to_have_text(["every key20,027 keys", "/jobs/20,000 keys", "/a/2 keys"])
    await expect(page.locator("#cards p")).to_have_text("and 25 keys elsewhere: type a prefix above")
    assert await findings(page) == []


async def test_cards_of_single_keys(page: Page, gateway: FakeGateway) -> None:
    """A single key is there or not: the gateway counts only lists, and refuses the key if only its name may be read."""
    gateway.answers["/v1/access"] = {
        "identity": "anonymous",
        "roles": [],
        "read": ["key=/leader", "key=/none", "prefix=/svc/"],
        "keys_only": ["key=/secret", "prefix=/names/"],
    }
    refused = {"status": 400, "code": "conflicting-parameters", "title": "Bad request", "detail": "no"}
    for name in ("/leader", "/none", "/secret"):
        gateway.answers[f"/v1/kv?key={name}&count_only=1"] = refused
    gateway.answers["/v1/kv?key=/none"] = {"status": 404, "code": "key-not-found", "title": "Not found", "detail": "no"}
    gateway.answers["/v1/kv?key=/leader"] = {"revision": 5, "cursor": "", "kv": {"key": "/leader", "value": "x"}}
    gateway.answers["/v1/kv?key=/secret"] = {"status": 403, "code": "forbidden", "title": "Forbidden", "detail": "no"}
    gateway.answers["/v1/kv?prefix=/svc/&count_only=1"] = {"count": 3}
    gateway.answers["/v1/kv?prefix=/names/&count_only=1"] = {"count": 2}
    await page.goto(gateway.url)
    await expect(page.locator("#cards a")).to_have_text(
        ["key /leader1 key", "key /noneno key", "/svc/3 keys", "key /secretkeys only", "/names/2 keys"]
    )


async def test_takes_its_ranges_from_a_query(page: Page, gateway: FakeGateway) -> None:
    """?prefix= is a link too, for users who cannot write a fragment."""
    assert (await open_page(page, gateway, "?prefix=%2Fsvc%2F")).query["prefix"] == "/svc/"


async def test_all_tabs_share_one_connection(page: Page, gateway: FakeGateway) -> None:
    """A second tab asks the gateway for nothing that the first tab has, and is live at once."""
    stream = await opened(page, gateway)
    second = await page.context.new_page()
    try:
        await second.goto(f"{gateway.url}/#prefix=/svc/")
        await shows(second, ROWS, [["/svc/a", "1", "10"], ["/svc/b", "2", "10"]])
        await stream.put("/svc/a", "both", 11)
        for tab in (page, second):
            await shows(tab, ROWS, [["/svc/a", "both", "11"], ["/svc/b", "2", "10"]])
        assert gateway.waiting == 0
    finally:
        await second.close()


async def test_only_keys(page: Page, gateway: FakeGateway) -> None:
    """Whoever may read only the keys, now or from the beginning, gets the keys, and is told so."""
    reader = await opened(page, gateway, a="secret")
    await soon(lambda: bool(gateway.tokens))  # it has asked what may be read
    gateway.answers["/v1/access"] = {
        "identity": "token:a",
        "roles": ["x"],
        "read": ["prefix=/config/"],
        "keys_only": ["prefix=/svc/"],
    }
    await reader.event("close", reason="revoked", retry_ms=60_000)
    streams = [await gateway.stream(), await gateway.stream()]
    (stream,) = (one for one in streams if one.query.get("keys_only") == "1")
    await stream.reset()
    await stream.event("put", key="/svc/a", create_revision=1, mod_revision=3, version=1)
    await stream.synced(3)
    await shows(page, ROWS, [["/svc/a", "3"]])
    await key(page, "/svc/a").click()
    await expect(page.locator("#value-body")).to_contain_text("You may read the keys here, but not their values.")
    await expect(page.locator("#curl")).to_contain_text("&keys_only=1")
    await expect(page.locator(".command")).to_have_count(0)  # /v1/kv?key= is refused
    await expect(page.locator(".copies button")).to_have_text(["key"])
    assert "secret" not in await page.content()


# --- what is current --------------------------------------------------------------------------------------------------


async def test_a_broken_connection(page: Page, gateway: FakeGateway) -> None:
    """The banner says so, with the age of what is shown and a countdown; the page goes on where it was."""
    stream = await opened(page, gateway)
    await stream.cut()
    banner = page.locator("#banner")
    await expect(banner).to_have_class("error")
    await expect(banner).to_contain_text(re.compile(r"Not connected\..*What you see is \d+ s old\."))
    await expect(page.locator("#state b")).not_to_have_text("live")
    stream = await gateway.stream()
    assert stream.cursor == cursor(10)
    await stream.reset("lagged")
    await stream.item("/svc/a", "later", 11)
    await stream.synced(12)
    await expect(banner).to_be_hidden()
    await shows(page, ROWS, [["/svc/a", "later", "11"]])
    await shows(page, EVENTS, ["put /svc/a 11", "delete /svc/b 12"])
    title = "Differences to the state before a reset (lagged)"
    await expect(page.locator(".found").first).to_have_attribute("title", title)


async def test_a_stream_that_is_stale(page: Page, gateway: FakeGateway) -> None:
    """A `status` is shown with its reason and the age; `live` takes the banner away."""
    stream = await opened(page, gateway)
    await stream.event("status", state="stale", since="2026-01-01T00:00:00Z", ranges=["prefix=/svc/"])
    await expect(page.locator("#banner")).to_have_class("stale")
    await expect(page.locator("#banner")).to_contain_text(re.compile("etcd is out of reach.*What you see is"))
    await expect(page.locator("#state b")).to_have_text("stale")
    await stream.event("status", state="live", ranges=["prefix=/svc/"])
    await expect(page.locator("#banner")).to_be_hidden()


async def test_a_new_tab_while_etcd_is_away(page: Page, gateway: FakeGateway) -> None:
    """The page says so before the stream can, and that there is nothing to show."""
    gateway.answers["/readyz"] = {
        "status": "x",
        "etcd": {"state": "down", "since": "2026-01-01T00:00:00Z", "reason": "no answer within 2 s"},
    }
    await open_page(page, gateway)
    await expect(page.locator("#banner")).to_contain_text(
        re.compile("etcd is out of reach. No answer within 2 s. .* nothing to show yet. The page asks again in [12] s")
    )


async def test_a_gateway_that_is_away(page: Page, gateway: FakeGateway) -> None:
    """A gateway that keeps its connections, and answers nothing, is noticed long before the stream is silent."""
    await opened(page, gateway)
    await page.evaluate(NO_ANSWER)
    await expect(page.locator("#banner")).to_contain_text(
        re.compile(r"The gateway does not answer\.\s+For \d+ s\. What you see is")
    )


async def test_a_refusal(page: Page, gateway: FakeGateway) -> None:
    """A refusal is shown in the gateway's words, until the user tries again."""
    detail = "prefix=/svc/ lies outside of the prefixes that may be read here"
    gateway.problem = {"type": "x", "title": "Forbidden", "status": 403, "code": "forbidden", "detail": detail}
    await page.goto(f"{gateway.url}/#prefix=/svc/")
    await expect(page.locator("#banner")).to_contain_text(f"Forbidden. {detail}")
    await expect(page.locator("#state b")).to_have_text("refused")
    gateway.problem = None
    await page.click("#banner button")
    await (await gateway.stream()).snapshot(10, a="1")
    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("#state b")).to_have_text("live")


async def test_a_permission_that_is_taken_away(page: Page, gateway: FakeGateway) -> None:
    """What the user may no longer read is shown no longer, and is asked for once more at most.

    A tab in the background has no frames.
    """
    stream = await opened(page, gateway)
    await stream.put("/svc/a", "secret", 11)
    await expect(page.locator("#events-count")).to_have_text("1 event")
    gateway.problem = {
        "type": "x",
        "title": "Forbidden",
        "status": 403,
        "code": "forbidden",
        "detail": "no more of this",
    }
    await page.evaluate("() => void (window.requestAnimationFrame = () => 1)")
    await stream.event("close", reason="revoked", retry_ms=60_000)
    await expect(page.locator("#banner")).to_contain_text("Forbidden. No more of this There is nothing to show yet.")
    assert await page.evaluate(ROWS) == []
    await expect(page.locator("#events-count")).to_have_text("0 events")
    assert "secret" not in await page.content()


# --- who reads --------------------------------------------------------------------------------------------------------


async def test_a_token(page: Page, gateway: FakeGateway) -> None:
    """The page asks for a token, keeps it in this tab only, sends it, and says when it ends."""
    gateway.problem = {
        "type": "x",
        "title": "Unauthorized",
        "status": 401,
        "code": "unauthorized",
        "detail": "a token is needed",
    }
    await page.goto(gateway.url)
    await expect(page.locator("#problem")).to_contain_text("This gateway asks for a token.")
    await page.locator("#problem button").click()
    await expect(page.locator("#token-value")).to_be_focused()
    assert await findings(page) == []
    gateway.problem = None
    gateway.answers["/v1/access"] = {
        "identity": "token:dash",
        "roles": ["reader"],
        "read": ["prefix=/svc/"],
        "keys_only": [],
        "expires": "2020-01-01T00:00:00Z",
    }
    await page.keyboard.type("s3cret")
    await page.keyboard.press("Enter")
    await expect(page.locator("#identity")).to_have_text("You are token:dash, with the role reader.")
    await expect(page.locator("#token-open")).to_have_text("Token has ended")
    assert gateway.tokens[-1] == "s3cret"
    await page.locator("#cards a", has_text="/svc/").click()
    stream = await gateway.stream()
    assert stream.headers["authorization"] == "Bearer s3cret"
    await expect(page.locator("#curl")).to_have_text(
        f"curl -N -H \"Authorization: Bearer $TOKEN\" '{gateway.url}/v1/watch?prefix=/svc/'"
    )
    assert (
        await page.evaluate("JSON.stringify({...localStorage})")
        == '{"etcd-watch-gateway.recent":"[\\"prefix=/svc/\\"]"}'
    )
    assert "s3cret" not in await page.content()
    other = await page.context.new_page()
    await other.goto(gateway.url)
    await expect(other.locator("#token-open")).to_have_text("Token")
    await other.close()
    await stream.snapshot(5)
    await stream.event("close", reason="expired", retry_ms=60_000)
    await expect(page.locator("#banner")).to_contain_text("The token has ended. Enter a new one.")
    await page.get_by_role("button", name="Enter a token").click()
    await page.click("#token-forget")
    await expect(page.locator("#token-open")).to_have_text("Token")
    assert await page.evaluate("sessionStorage.length") == 0


async def test_the_picture_of_the_sharing(page: Page, gateway: FakeGateway) -> None:
    """Streams, channel, watches: what this browser shares with whom. Without the role, the page names the role."""
    gateway.answers["/v1/feeds"] = FEEDS
    await opened(page, gateway)
    await expect(page.locator("#sharing .sum")).to_have_text("42 streams → 1 channel → 1 watch at etcd")
    await page.set_viewport_size({"width": 1200, "height": 800})
    assert await page.evaluate("document.querySelector('#sharing .sum').getBoundingClientRect().right <= innerWidth")
    await expect(page.locator("#sharing svg text.own")).to_have_text("this browser")
    await expect(page.locator("#sharing svg")).to_contain_text("and 30 more")
    await expect(page.locator("#sharing tbody tr")).to_have_text(["/svc/422live", "/svc/a/02lingers"])
    await expect(page.locator("#sharing tr.mine")).to_have_count(1)
    del gateway.answers["/v1/feeds"]
    gateway.problem = {"type": "x", "title": "Forbidden", "status": 403, "code": "forbidden", "detail": "no"}
    await page.goto(gateway.url)
    await expect(page.locator("#start-sharing .picture")).to_contain_text("the role operator")


# --- everybody --------------------------------------------------------------------------------------------------------


async def test_axe_finds_nothing(page: Page, gateway: FakeGateway) -> None:
    """In both themes, wide and narrow, with everything open."""
    gateway.answers["/v1/feeds"] = FEEDS
    await page.goto(gateway.url)
    await expect(page.locator("#start-sharing svg")).to_be_visible()
    assert await findings(page) == []
    stream = await open_page(page, gateway)
    await expect(page.locator("#browse")).to_be_visible()
    assert await findings(page) == [], "while there is nothing to show"
    await stream.snapshot(10, a='{"zone":"a","load":1,"ok":true}', b="2")
    await stream.put("/svc/api/x", "1", 11)
    await stream.delete("/svc/b", 12)
    await key(page, "/svc/a").click()
    await expect(page.locator("#sharing svg")).to_be_visible()
    await expect(page.locator("#events-list [role=row]", has_text="delete")).to_be_visible()
    await page.click("#columns-open")
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        # Between two themes a row that has just changed has a colour of neither.
        await page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished)).then(() => null)")
        assert await findings(page) == [], scheme
    await stream.event("status", state="stale", since="2026-01-01T00:00:00Z", ranges=["prefix=/svc/"])
    await expect(page.locator("#banner")).to_be_visible()
    assert await findings(page) == []
    await page.emulate_media(color_scheme="light")
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await expect(page.locator("#help")).to_be_visible()
    assert await findings(page) == []
    await page.keyboard.press("Escape")
    await page.set_viewport_size({"width": 360, "height": 700})
    for pane in await page.locator("#panes button").all():
        await pane.click()
        assert await findings(page) == []


async def test_the_keyboard_is_enough(page: Page, gateway: FakeGateway) -> None:
    """Everything is reached with Tab, and the lists with the arrows."""
    stream = await opened(page, gateway, a="1", b="2")
    await stream.put("/svc/api/x", "1", 11)
    await shows(page, FOLDERS, ["1 /svc/ 3", "2 api/ 1"])
    await page.evaluate("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(40):
        await page.keyboard.press("Tab")
        name = await page.evaluate("(document.activeElement.id || document.activeElement.textContent.trim())")
        if name in reached[:1]:
            break
        reached.append(name)
    wanted = [
        "add",
        "follow",
        "token-open",
        "theme",
        "help-open",
        "tree",
        "filter",
        "columns-open",
        "keys-grid",
        "events-filter",
        "pause",
        "events-list",
        "curl",
    ]
    assert [name for name in reached if name in wanted] == wanted

    await page.focus("#tree")
    for key, folders in (("Home", 2), ("ArrowLeft", 1), ("ArrowRight", 2)):
        await page.keyboard.press(key)
        await expect(page.locator("#tree [role=treeitem]")).to_have_count(folders)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.locator("#count")).to_have_text("1 of 3 keys")
    await page.keyboard.press("Enter")
    await expect(page.locator("#count")).to_have_text("3 keys")
    await page.focus("#keys-grid")
    await page.keyboard.press("End")
    await page.keyboard.press("Enter")
    await expect(page.locator("#value-content")).to_be_focused()
    await expect(page.locator(".value-key")).to_have_text("/svc/b")
    await stream.put("/svc/b", "3", 12)
    await expect(page.locator("#value-content")).to_have_text("3")
    await expect(page.locator("#value-content")).to_be_focused()
    await page.focus("#keys-grid")
    await page.keyboard.press("Tab")
    sorting = page.get_by_role("columnheader", name="Key")
    for order in ("descending", "ascending"):
        await page.keyboard.press("Enter")
        await expect(sorting).to_have_attribute("aria-sort", order)
        await expect(sorting.locator("button")).to_be_focused()
    await stream.put("/svc/api/x", "2", 13)
    await shows(page, ROWS, [["/svc/a", "1", "10"], ["/svc/api/x", "2", "13"], ["/svc/b", "3", "12"]])
    await page.focus("#events-list")
    await page.keyboard.press("Home")
    await expect(page.locator(".value-key")).to_have_text("/svc/api/x")


async def test_the_skip_link(page: Page, gateway: FakeGateway) -> None:
    """It leads to the keys, on a phone too, and leaves what is followed. The start page has no keys, and no link."""
    await opened(page, gateway)
    await page.locator("#panes button", has_text="Events").evaluate("(button) => button.click()")
    await page.evaluate("document.activeElement.blur()")
    await page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the keys")
    await expect(skip).to_be_focused()
    for width in (1280, 360):
        await page.set_viewport_size({"width": width, "height": 700})
        await skip.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#keys-grid")).to_be_focused()
        assert page.url == f"{gateway.url}/#prefix=/svc/"
        await expect(page.locator("#browse")).to_be_visible()
    assert gateway.waiting == 0, "the page follows by another stream"
    await page.goto(gateway.url)
    await expect(page.locator("#cards a")).to_have_count(2)
    await expect(page.locator(".skip")).to_be_hidden()


async def test_fits_a_phone(page: Page, gateway: FakeGateway) -> None:
    """Nothing is wider than the screen, whatever a key looks like; the parts are shown one at a time."""
    await page.set_viewport_size({"width": 360, "height": 700})
    gateway.answers["/v1/feeds"] = FEEDS
    await opened(page, gateway, **{"x" * 300: "y" * 9000})
    for pane in await page.locator("#panes button").all():
        await pane.click()
        await expect(page.locator("#browse > .panel:visible")).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
    await page.locator("#panes button", has_text="Keys").click()
    await page.locator("#keys-grid [role=row]", has_text="xxx").click()
    await expect(page.locator("#panes [aria-current=true]")).to_have_text("Value")
    await page.goto(gateway.url)
    await expect(page.locator("#cards a").first).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_the_theme(page: Page, gateway: FakeGateway) -> None:
    """The system's theme, or the one that the user has chosen, which the browser keeps."""
    paper = "() => getComputedStyle(document.body).backgroundColor"
    await page.goto(gateway.url)
    light = await page.evaluate(paper)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(paper)
    assert light != dark
    await page.click("#theme")
    assert await page.evaluate(paper) == light
    await page.reload()
    await expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: light")
    assert await page.evaluate(paper) == light
    await page.click("#theme")
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(paper) == dark
