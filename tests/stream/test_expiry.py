"""When a client is told that its credentials expire, and when its stream is over, whatever the wall clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.access.bearer import Bearer
from app.access.control import AccessControl
from app.access.identity import Identity
from app.stream.expiry import NOTICE, Expiry

AT = 1_800_000_000.0


def test_a_stream_is_told_once_and_ends() -> None:
    """The notice is due 30 s ahead and once; the end is the expiry itself."""
    expiry = Expiry(AT, AT - 100)
    assert (expiry.notice_due, expiry.over, expiry.next_look(AT - 100)) == (False, False, 100 - NOTICE)
    expiry.look(AT - NOTICE)
    assert (expiry.notice_due, expiry.over) == (True, False)
    assert expiry.take_notice() == "2027-01-15T08:00:00Z"
    expiry.look(AT - 1)
    assert (expiry.notice_due, expiry.over, expiry.next_look(AT - 1)) == (False, False, 1)
    expiry.look(AT)
    assert expiry.over


def test_a_permit_without_an_expiry_never_ends_a_stream() -> None:
    """Nor does the stream of a gateway without access control, which has no permit."""
    assert Expiry.of(None, AT) is None
    bearer = Bearer(wall=lambda: AT)
    never, once = (
        Expiry.of(AccessControl([b""], bearer).permit(Identity("token:a", expires=expires), (), ()), AT - 1)
        for expires in (None, AT)
    )
    assert never is None
    assert once is not None
    assert once.next_look(AT - 1) == 1


def test_a_stream_of_a_token_that_soon_expires_is_told_at_once() -> None:
    """The stream of a token that expires within 30 s is told as soon as it can be told."""
    expiry = Expiry(AT, AT - 5)

    assert (expiry.notice_due, expiry.over, expiry.next_look(AT - 5)) == (True, False, 5)


@given(st.lists(st.floats(-100, 100), max_size=20), st.booleans())
def test_looks_lead_to_the_end(steps: list[float], told: bool) -> None:
    """Whoever looks again after ``next_look`` comes to the notice and to the end, also if the clock was stepped."""
    wall = AT - 60
    expiry = Expiry(AT, wall)
    for step in steps:
        wall += step
        expiry.look(wall)
        assert expiry.over == (wall >= AT)
    for _ in range(3):
        if expiry.notice_due and told:
            expiry.take_notice()
        wall += expiry.next_look(wall)
        expiry.look(wall)
    assert expiry.over
