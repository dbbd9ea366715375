"""``app.core.quotas`` against a list of the streams that are open."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.core.errors import OverCapacityError
from app.core.keys import KeyRange
from app.core.quotas import ActiveRead, Caller, Quotas, QuotaSettings, Wanted, client_address
from app.core.reasons import QUOTA_REASONS, QuotaReason

A, B, PINNED = (KeyRange("prefix", name) for name in (b"/a/", b"/b/", b"/c/"))
# A range inside a pin has no feed that counts. The last selection needs two feeds.
SELECTIONS = (Wanted((A,), (A,)), Wanted((B,), (B,)), Wanted((PINNED,)), Wanted((A, B), (A, B)))
CALLERS = [Caller(identity, address) for identity in ("token:a", "token:b") for address in ("10.0.0.1", "10.0.0.2")]
caps = st.integers(0, 3)
# Powers of two, so that the model's sums have no rounding.
rates = st.sampled_from([0, 1, 2, 4])
callers, selections = st.sampled_from(CALLERS), st.sampled_from(SELECTIONS)


class QuotasMachine(RuleBasedStateMachine):
    """``open`` lists the streams; ``joined`` the times of the joins."""

    @initialize(
        identity_streams=caps,
        identity_selections=caps,
        identity_feeds=caps,
        identity_joins=rates,
        address_streams=caps,
        address_joins=rates,
    )
    def begin(self, **chosen: int) -> None:
        """Choose the quotas."""
        self.settings = QuotaSettings(**chosen)
        self.quotas = Quotas(self.settings)
        self.now = 100.0
        self.open: list[tuple[Caller, Wanted]] = []
        self.joined: list[tuple[Caller, float]] = []

    def over(self, caller: Caller, wanted: Wanted) -> set[str]:
        """The codes of the quotas that refuse one more stream, as far as what is held goes."""
        own = [selection for other, selection in self.open if other.identity == caller.identity]
        near = [selection for other, selection in self.open if other.address == caller.address]
        limits = self.settings
        feeds = {feed for each in (*own, wanted) for feed in each.feeds}
        return {
            code
            for code, limit, used in (
                ("identity-streams", limits.identity_streams, len(own)),
                (
                    "identity-selections",
                    limits.identity_selections,
                    len({each.ranges for each in own} - {wanted.ranges}),
                ),
                ("address-streams", limits.address_streams, len(near)),
                ("identity-feeds", limits.identity_feeds, len(feeds) - 1),
            )
            if limit and used >= limit
        }

    def empty(self, whose: str, caller: Caller) -> bool:
        """Whether the bucket of the caller's identity or address has no token: all its joins, once more."""
        rate: int = getattr(self.settings, f"{whose}_joins")
        level, then = float(rate), 100.0
        for other, when in self.joined:
            if getattr(other, whose) == getattr(caller, whose):
                level, then = min(rate, level + (when - then) * rate) - 1, when
        return rate > 0 and min(rate, level + (self.now - then) * rate) < 1

    @rule(caller=callers, wanted=selections)
    def join(self, caller: Caller, wanted: Wanted) -> None:
        """A stream is refused if, and only if, a quota says so; the error's code is the quota's."""
        expected = self.over(caller, wanted)
        expected |= {f"{whose}-joins" for whose in ("identity", "address") if self.empty(whose, caller)}
        if expected:
            with pytest.raises(OverCapacityError) as refused:
                self.quotas.check(caller, wanted, self.now)
            assert refused.value.status == 429
            assert refused.value.code in expected
            return
        self.quotas.check(caller, wanted, self.now)
        self.quotas.acquire(caller, wanted, self.now)
        self.open.append((caller, wanted))
        self.joined.append((caller, self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A stream ends."""
        one = data.draw(st.sampled_from(self.open))
        self.open.remove(one)
        self.quotas.release(*one)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @invariant()
    def only_what_is_held(self) -> None:
        """A holder is known only while it holds something, and only if there is a quota for that."""
        limits = self.settings
        identities = {caller.identity for caller, _ in self.open}
        addresses = {caller.address for caller, _ in self.open}
        counted = limits.identity_streams or limits.identity_selections or limits.identity_feeds
        assert len(self.quotas.identities) == (len(identities) if counted else 0)
        assert len(self.quotas.addresses) == (len(addresses) if limits.address_streams else 0)
        assert self.quotas.identities.buckets <= 2 * bool(limits.identity_joins)
        assert self.quotas.addresses.buckets <= 2 * bool(limits.address_joins)


QuotasMachine.TestCase.settings = settings(stateful_step_count=30)
TestQuotas = QuotasMachine.TestCase


@given(st.integers(1, 20))
def test_another_holder_is_not_concerned(limit: int) -> None:
    """However much one identity asks for, another one at another address may join."""
    quotas = Quotas(QuotaSettings(**{each.name: limit for each in fields(QuotaSettings)}))
    greedy, other = CALLERS[0], CALLERS[3]
    for _ in range(3 * limit):
        try:
            quotas.check(greedy, SELECTIONS[0], 1.0)
        except OverCapacityError:
            continue
        quotas.acquire(greedy, SELECTIONS[0], 1.0)
    with pytest.raises(OverCapacityError):
        quotas.check(greedy, SELECTIONS[0], 1.0)

    quotas.check(other, SELECTIONS[1], 1.0)


def test_the_error_says_what_and_what_then() -> None:
    """The text names the setting and its value, and nothing of who else holds what."""
    quotas = Quotas(QuotaSettings(identity_selections=1))
    quotas.acquire(CALLERS[0], SELECTIONS[0], 1.0)
    quotas.check(CALLERS[0], SELECTIONS[0], 1.0)  # the same selection again costs nothing more
    with pytest.raises(OverCapacityError) as refused:
        quotas.check(CALLERS[1], SELECTIONS[1], 1.0)

    assert refused.value.code == "identity-selections"
    assert refused.value.detail == (
        "this identity follows 1 distinct selections; GATEWAY_IDENTITY_SELECTIONS is 1: follow one of them again, or "
        "close one"
    )


def test_wrong_credentials_take_from_joins_but_not_the_other_way() -> None:
    """Wrong credentials leave no tokens for joins. An address that joins at its full rate may still read."""
    quotas = Quotas(QuotaSettings(address_joins=2))
    joins, fails = CALLERS[0], CALLERS[1]
    for _ in range(2):
        quotas.acquire(joins, SELECTIONS[0], 1.0)
        quotas.failed(fails.address, 1.0)

    quotas.check_credentials(joins.address, 1.0)
    for refuse in (
        partial(quotas.check, joins, SELECTIONS[0], 1.0),
        partial(quotas.check, fails, SELECTIONS[0], 1.0),
        partial(quotas.check_credentials, fails.address, 1.0),
    ):
        with pytest.raises(OverCapacityError) as refused:
            refuse()
        assert refused.value.code == "address-joins"
    quotas.check_credentials(fails.address, 1.5)


@pytest.mark.parametrize("reason", QUOTA_REASONS)
def test_each_quota_has_its_reason(reason: QuotaReason) -> None:
    """The code of a refusal is the setting's name, and one of the reasons whose counters exist from the start."""
    quotas = Quotas(QuotaSettings(**{reason.replace("-", "_"): 1}))
    quotas.acquire(CALLERS[0], SELECTIONS[0], 1.0)
    quotas.begin_read(CALLERS[0])
    read, join = partial(quotas.begin_read, CALLERS[0]), partial(quotas.check, CALLERS[0], SELECTIONS[1], 1.0)
    with pytest.raises(OverCapacityError, match=f"GATEWAY_{reason.replace('-', '_').upper()} is 1") as refused:
        (read if reason.endswith("-reads") else join)()

    assert refused.value.code == reason


@given(st.lists(st.tuples(callers, st.booleans())), caps, caps)
def test_reads_at_a_time(steps: list[tuple[Caller, bool]], of_identity: int, of_address: int) -> None:
    """A read is refused if, and only if, its identity or its address has as many under way as it may have."""
    quotas = Quotas(QuotaSettings(identity_reads=of_identity, address_reads=of_address))
    under_way: list[tuple[Caller, ActiveRead]] = []
    for caller, begins in steps:
        if not begins:
            if under_way:
                _, reading = under_way.pop(0)
                reading.release()
                reading.release()
            continue
        own = sum(other.identity == caller.identity for other, _ in under_way)
        near = sum(other.address == caller.address for other, _ in under_way)
        if (of_identity and own >= of_identity) or (of_address and near >= of_address):
            with pytest.raises(OverCapacityError):
                quotas.begin_read(caller)
        else:
            under_way.append((caller, quotas.begin_read(caller)))
        assert quotas.identities.reading == (len(under_way) if of_identity else 0)
        assert quotas.addresses.reading == (len(under_way) if of_address else 0)


def test_all_off() -> None:
    """Without settings there is no quota, and one setting is enough for one."""
    assert QuotaSettings().off
    assert not QuotaSettings(address_joins=1).off


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002::/64"),
        ("2001:DB8:1:2::", "2001:0db8:0001:0002::/64"),
        ("fe80::1%eth0", "fe80:0000:0000:0000::/64"),
        ("::1", "0000:0000:0000:0000::/64"),
        ("unknown", "unknown"),
        ("", ""),
        ("x" * 1000, "x" * 64),
    ],
)
def test_client_addresses(host: str, counted: str) -> None:
    """An IPv6 client can choose any address of its /64, so these count as one."""
    assert client_address(host) == counted


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_one_network_is_one_client(network: int, one: int, other: int) -> None:
    """All addresses of one /64 are one client."""
    texts = [str(IPv6Address(network << 64 | host)) for host in (one, other)]

    assert client_address(texts[0]) == client_address(texts[1])
