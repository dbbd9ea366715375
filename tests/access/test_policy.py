"""The policy as a pure function: identities, roles, placeholders, and what no spelling of a range may reach."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.access.identity import ANONYMOUS, STATIC_TOKEN, Identity, make_identity
from app.access.policy import (
    MAX_CLAIM,
    Binding,
    Grants,
    Policy,
    Role,
    check_pattern,
    parse_item,
    segment_of,
)
from app.core.keys import KeyRange, prefix_end
from app.core.query import parse_query, parse_ranges
from app.core.selection import canonical


def policy(
    *read: str, keys_only: tuple[str, ...] = (), identity: str = "jwt:i#*", anonymous: tuple[str, ...] = ()
) -> Policy:
    """A policy with one role, and one binding for it."""
    role = Role(tuple(map(parse_item, read)), tuple(map(parse_item, keys_only)))
    return Policy({"r": role}, (Binding(identity, frozenset({"r"})),), frozenset(anonymous))


def alice(**claims: str) -> Identity:
    """An identity of the issuer i."""
    return make_identity("jwt", "alice", issuer="i", claims=claims)


def ranges(*queries: str) -> list[KeyRange]:
    """The ranges that queries ask for, parsed as the endpoints parse them."""
    return list(parse_ranges(parse_query("&".join(queries).encode(), {"key", "prefix"})))


# --- roles and bindings -----------------------------------------------------------------------------------------------


def test_deny_by_default() -> None:
    """An identity without a role, a role without items, and a read of no range are denied."""
    empty = Policy({"r": Role()}, (Binding("jwt:i#*", frozenset({"r"})),))

    for query in ("prefix=", "prefix=/svc/", "key=/svc/a"):
        assert not Policy({}).permits(alice(), ranges(query))
        assert not empty.permits(alice(), ranges(query))
        assert not policy("/svc/").permits(make_identity("jwt", "alice", issuer="j"), ranges(query))
        assert not policy("/svc/").permits(ANONYMOUS, ranges(query))
    assert not policy("/svc/").permits(alice(), [])


def test_roles_come_from_bindings_and_credentials() -> None:
    """A role counts whether a binding or the token gives it; a role that the policy lacks permits nothing."""
    bound = policy("/svc/", identity="token:dash")

    assert bound.permits(make_identity("token", "dash"), ranges("prefix=/svc/"))
    assert bound.permits(make_identity("token", "x", roles=frozenset({"r"})), ranges("prefix=/svc/"))
    assert not bound.permits(make_identity("token", "x", roles=frozenset({"other"})), ranges("prefix=/svc/"))


def test_all_bindings_of_an_identity_count() -> None:
    """Roles of several bindings add up, whether these name the identity or end with a star."""
    roles = {name: Role((parse_item(f"/{name}/"),)) for name in "abc"}
    found = Policy(
        roles,
        (
            Binding("jwt:i#alice", frozenset("a")),
            Binding("jwt:i#al*", frozenset("b")),
            Binding("jwt:i#alice", frozenset("c")),
            Binding("jwt:i#alicex", frozenset("z")),
        ),
    )

    assert sorted(found.roles_of(alice())) == ["a", "b", "c"]
    assert found.permits(alice(), ranges("prefix=/a/", "prefix=/b/", "prefix=/c/"))


def test_the_namespace_counts() -> None:
    """A binding for token:dash is not for proxy:dash, nor for a JWT's subject."""
    bound = policy("/svc/", identity="token:dash")

    for other in (make_identity("proxy", "dash"), make_identity("jwt", "dash", issuer="token:"), Identity("dash")):
        assert not bound.permits(other, ranges("prefix=/svc/"))


def test_anonymous_has_only_its_own_roles() -> None:
    """The roles in ``anonymous`` are for requests without credentials, and for nobody else."""
    public = policy("/public/", identity="token:none", anonymous=("r",))

    assert public.permits(ANONYMOUS, ranges("prefix=/public/"))
    assert not public.permits(alice(), ranges("prefix=/public/"))


def test_the_static_token_holds_every_role() -> None:
    """The static token may read what any role may read; placeholders stay empty for it."""
    assert policy("/svc/", "/t/{sub}/").permits(STATIC_TOKEN, ranges("prefix=/svc/"))
    assert not policy("/svc/", "/t/{sub}/").permits(STATIC_TOKEN, ranges("prefix=/t/"))
    assert policy().roles_of(STATIC_TOKEN) == {"r", "operator"}


def test_the_whole_selection_must_be_permitted() -> None:
    """One denied range among permitted ones denies all of them."""
    two = policy("/a/", "/b/")

    assert two.permits(alice(), ranges("prefix=/a/", "prefix=/b/x", "key=/a/k"))
    assert not two.permits(alice(), ranges("prefix=/a/", "prefix=/c/"))


def test_keys_only() -> None:
    """``keys_only`` items permit keys, and not values; ``read`` items permit both."""
    found = policy("/svc/", keys_only=("/audit/",))

    assert found.permits(alice(), ranges("prefix=/audit/"), keys_only=True)
    assert not found.permits(alice(), ranges("prefix=/audit/"))
    assert found.permits(alice(), ranges("prefix=/svc/", "prefix=/audit/"), keys_only=True)


def test_a_key_item() -> None:
    """``key=K`` permits that key, and neither keys below it nor the prefix of the same name."""
    one = policy("key=/svc/a")

    assert one.permits(alice(), ranges("key=/svc/a"))
    for query in ("prefix=/svc/a", "key=/svc/a/", "key=/svc/ab", "key=/svc/", "prefix="):
        assert not one.permits(alice(), ranges(query)), query


@pytest.mark.parametrize(
    "pattern",
    [
        *("token:dash", "token:*", "proxy:team-*", "proxy:Jane Doe", "proxy:josé", "proxy:Jane *"),
        *("jwt:*", "jwt:https://id.example#*", "jwt:i#a b", "jwt:i#Zoë"),
    ],
)
def test_patterns(pattern: str) -> None:
    """A pattern names one identity, or all that begin with a text."""
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "*", "dash", "anonymous", "static-token", "token", "user:a", "token:a*b", "token:**"),
        *("jwt:https://id.example*", "jwt:https://*#alice", "jwt:https://id.example", "jwt:#*", "token:a\n"),
        *("token:a b", "token:josé", "proxy:a*b", "proxy: a", "proxy:a ", "proxy:a\n", "proxy:a\u202eb"),
    ],
)
def test_what_is_not_a_pattern(pattern: str) -> None:
    """A star in the issuer would also match another issuer; a pattern without a namespace would match any.

    No token's name, and no name that a header can hold, has what is refused here.
    """
    with pytest.raises(ValueError, match="does not name identities"):
        check_pattern(pattern)


# --- placeholders -----------------------------------------------------------------------------------------------------


def test_a_placeholder_is_the_claim() -> None:
    """The claim goes in unchanged, as one whole segment: ``a`` is not given ``ab``."""
    tenants = policy("/tenants/{tenant}/")

    assert tenants.permits(alice(tenant="a"), ranges("prefix=/tenants/a/", "key=/tenants/a/x"))
    for query in (
        "prefix=/tenants/a",
        "prefix=/tenants/ab/",
        "prefix=/tenants/",
        "key=/tenants/a",
        "prefix=/tenants/A/",
    ):
        assert not tenants.permits(alice(tenant="a"), ranges(query)), query


@pytest.mark.parametrize(
    "claim",
    [
        "",
        ".",
        "..",
        "/",
        "a/",
        "/a",
        "a/../b",
        "a\x00",
        "a\nb",
        "\x7f",
        "\x85",
        "x" * (MAX_CLAIM + 1),
        "é" * 129,
        "\ud800",
    ],
)
def test_a_claim_that_climbs_permits_nothing(claim: str) -> None:
    """A claim that is not one segment permits nothing, not even the segment before it; other items still count."""
    tenants = policy("/tenants/{tenant}/", "/svc/")
    identity = alice(tenant=claim)

    assert segment_of(claim) is None
    assert tenants.grants(identity).read == (KeyRange("prefix", b"/svc/"),)


@pytest.mark.parametrize("claim", ["a", "...", ".a", "%2F", "%2e%2e", "a b", "é", "*", "x" * MAX_CLAIM, "\\", "{sub}"])
def test_a_claim_goes_in_unchanged(claim: str) -> None:
    """Nothing in a claim is decoded or expanded: ``%2F`` is three bytes of a key."""
    (granted,) = policy("/t/{tenant}/").grants(alice(tenant=claim)).read

    assert granted.name == b"/t/" + claim.encode() + b"/"


def test_a_missing_claim_permits_nothing() -> None:
    """Without the claim, the item permits nothing."""
    assert policy("/t/{tenant}/").grants(alice()) == Grants()


def test_two_placeholders() -> None:
    """An item may have several placeholders, at its beginning, too, and at the end of a key."""
    found = policy("{org}/{sub}/", "key=/names/{sub}").grants(alice(org="o"))

    assert found.read == (KeyRange("prefix", b"o/alice/"), KeyRange("key", b"/names/alice"))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("/t/{sub}", "whole segment"),
        ("/t/x{sub}/", "whole segment"),
        ("/t/{sub}x/", "whole segment"),
        ("/t/{a}{b}/", "whole segment"),
        ("key=/t/{sub}x", "whole segment"),
        ("/t/{}/", "brace"),
        ("/t/{sub/", "brace"),
        ("/t/}/", "brace"),
        ("/t/{a b}/", "white space"),
        ("/a/*", "ends with"),
        ("/a b/", "white space"),
        ("/a\x00", "control character"),
        ("/a/%zz", "two hex digits"),
        ("key=", "no empty key"),
        ("/" + "x" * 5000, "bytes"),
    ],
)
def test_what_is_not_an_item(item: str, why: str) -> None:
    """An item that would permit more, or less, than it seems to is refused."""
    with pytest.raises(ValueError, match=why):
        parse_item(item)


def test_items_are_percent_encoded() -> None:
    """Every byte can be named; ``prefix=`` may stand before a prefix, as problems and /v1/access write it."""
    assert parse_item("/b%ff%00%7B").range_for(alice()) == KeyRange("prefix", b"/b\xff\x00{")
    assert parse_item("prefix=/svc/") == parse_item("/svc/")
    assert parse_item("").range_for(alice()) == KeyRange("prefix", b"")


# --- the fence --------------------------------------------------------------------------------------------------------


def test_grants_within_a_fence() -> None:
    """What is left is what both permit, whichever is narrower."""
    grants = policy("/svc/", "/a/", "key=/b/k").grants(alice())

    assert grants.within([b""]) == grants
    assert grants.within([b"/svc/x/", b"/b/"]).read == (KeyRange("prefix", b"/svc/x/"), KeyRange("key", b"/b/k"))
    assert grants.within([]) == Grants()


# --- no spelling reaches a denied key ---------------------------------------------------------------------------------

# Bytes that are special to somebody: separators, dots, escapes, the ends of the byte range.
ATOMS = [b"/", b"a", b"ab", b"b", b".", b"..", b"%", b"%2F", b"%00", b"\x00", b"\xff", b"\xfe", b"0", b"\xc0\xaf", b"+"]
names = st.lists(st.sampled_from(ATOMS), max_size=6).map(b"".join)
key_ranges = st.one_of(
    names.map(lambda name: KeyRange("prefix", name)),
    names.filter(bool).map(lambda name: KeyRange("key", name)),
)


def held(watched: KeyRange, key: bytes) -> bool:
    """Whether etcd would return *key* for the range, by etcd's own rule on ``key`` and ``range_end``."""
    if watched.end == b"":
        return key == watched.start
    return key >= watched.start and (watched.end == b"\0" or key < watched.end)


def items(granted: list[KeyRange]) -> tuple[str, ...]:
    """The ranges as items of a policy file."""
    return tuple(("key=" if one.kind == "key" else "") + quote_from_bytes(one.name, safe="/") for one in granted)


@given(
    st.lists(key_ranges, max_size=3), st.lists(key_ranges, min_size=1, max_size=3), names.filter(bool), st.booleans()
)
@example([KeyRange("prefix", b"/a")], [KeyRange("prefix", b"/ab")], b"/ab", False)
@example([KeyRange("prefix", b"\xff")], [KeyRange("prefix", b"")], b"a", False)
@example([KeyRange("prefix", b"/a/")], [KeyRange("prefix", b"/a/../")], b"/b", False)
def test_a_denied_key_is_never_permitted(
    granted: list[KeyRange], asked: list[KeyRange], key: bytes, keys_only: bool
) -> None:
    """If the ranges that a client asks for hold a key that is not granted, the policy denies them, whatever the
    spelling: the ranges make the whole way from the query's text, and the grants from the file's text.
    """
    queries = [f"{one.kind}={quote_from_bytes(one.name, safe='')}" for one in asked]
    parsed = ranges(*queries)
    assert parsed == list(canonical(asked))

    permitted = policy(*items(granted)).permits(alice(), parsed, keys_only=keys_only)

    if any(held(one, key) for one in asked) and not any(held(one, key) for one in granted):
        assert not permitted


@given(st.lists(key_ranges, min_size=1, max_size=3), key_ranges)
def test_what_is_granted_is_permitted(granted: list[KeyRange], asked: KeyRange) -> None:
    """The policy is not tighter than it says: a range inside one granted range is permitted."""
    inside = any(one.covers(asked) for one in granted)

    assert policy(*items(granted)).permits(alice(), [asked]) == inside


@given(key_ranges, key_ranges, names)
def test_covers_means_every_key(granted: KeyRange, asked: KeyRange, key: bytes) -> None:
    """A covered range has no key outside, by etcd's own comparison of bytes, and neither have its ends."""
    if granted.covers(asked):
        for one in (key, asked.start, asked.name + key, asked.name + b"\xff" * 3):
            assert not held(asked, one) or held(granted, one)
        if asked.kind == "prefix" and granted.kind == "prefix" and prefix_end(granted.name) != b"\0":
            assert asked.end != b"\0"
            assert asked.end <= granted.end


@given(st.text(max_size=20), st.text(max_size=20))
def test_one_claim_never_opens_another(mine: str, other: str) -> None:
    """Two different claims never give a common key."""
    tenants = policy("/t/{tenant}/")
    granted, theirs = tenants.grants(alice(tenant=mine)).read, tenants.grants(alice(tenant=other)).read
    if mine != other:
        assert not any(one.covers(two) for one in granted for two in theirs)


# --- scope=permitted --------------------------------------------------------------------------------------------------

FEW = st.binary(max_size=3).map(lambda name: bytes(b"/ab\xff"[byte % 4] for byte in name))
SOME = st.builds(KeyRange, st.sampled_from(("prefix", "key")), FEW)


@given(
    st.lists(SOME, max_size=4),
    st.lists(SOME, max_size=4),
    st.lists(SOME, min_size=1, max_size=5),
    st.lists(FEW, min_size=1, max_size=2),
    st.booleans(),
    st.lists(st.binary(max_size=4).map(lambda key: bytes(b"/ab\xff"[byte % 4] for byte in key)), max_size=30),
)
@example([KeyRange("prefix", b"/a")], [], [KeyRange("prefix", b"")], [b""], False, [b"/a", b"/ab", b"/", b"/b"])
@example([KeyRange("key", b"/a")], [], [KeyRange("prefix", b"/a")], [b"/a/"], False, [b"/a", b"/a/b"])
def test_permitted_parts(
    read: list[KeyRange],
    keys_only: list[KeyRange],
    asked: list[KeyRange],
    fence: list[bytes],
    of_keys: bool,
    keys: list[bytes],
) -> None:
    """A key lies in the result exactly if it was asked for, is permitted, and lies inside the fence."""
    grants = Grants(tuple(read), tuple(keys_only)).within(fence)
    left = grants.permitted(asked, keys_only=of_keys)
    granted = [*read, *keys_only] if of_keys else read
    for key in keys:
        may = any(one.contains(key) for one in granted) and any(key.startswith(prefix) for prefix in fence)
        assert any(one.contains(key) for one in left) == (may and any(one.contains(key) for one in asked))
    assert left == canonical(left)
    assert all(grants.permit(one, keys_only=of_keys) for one in left)
    assert grants.permitted(left, keys_only=of_keys) == left
