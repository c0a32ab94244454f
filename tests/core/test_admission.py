"""Admission: may we take responsibility for this one?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unspool.core.admission import Health, Terms, admit
from unspool.core.message import Instant

NOW = Instant(1_000_000)
POWER, PROCESS = 2, 1
TERMS = Terms(survives=POWER, required=POWER, backlog_max=10, disk_free_min_bytes=1_000)
WELL = Health(backlog=9, disk_free_bytes=1_000)


def test_a_healthy_spool_of_the_grade_asked_for_takes_it() -> None:
    """The limits themselves are still within."""
    assert admit(terms=TERMS, health=WELL, now=NOW) is None


def test_a_spool_below_the_grade_asked_for_takes_nothing_ever() -> None:
    """No silent downgrade; and no Retry-After, for waiting mends nothing."""
    terms = Terms(survives=PROCESS, required=POWER)
    reject = admit(terms=terms, health=Health(), now=NOW)
    assert reject is not None
    assert (reject.problem, reject.retry_after_s) == ("refused", None)
    assert admit(terms=Terms(survives=POWER, required=PROCESS), health=Health(), now=NOW) is None


def test_a_spool_in_trouble_is_left_alone_until_its_time() -> None:
    """Refused at once, with the cause; asked again after the moment named."""
    ill = Health(trouble="the disk is full", trouble_until=Instant(NOW + 1_500))
    reject = admit(terms=TERMS, health=ill, now=NOW)
    assert reject is not None
    assert "the disk is full" in reject.detail
    assert reject.retry_after_s == 2
    assert admit(terms=TERMS, health=ill, now=Instant(NOW + 1_500)) is None


def test_a_full_backlog_and_a_full_disk_are_refused_at_the_door() -> None:
    """A bounce after acceptance is dear; a refusal at the door is cheap."""
    for health in (Health(backlog=10), Health(disk_free_bytes=999)):
        reject = admit(terms=TERMS, health=health, now=NOW)
        assert reject is not None
        assert reject.retry_after_s
        assert reject.retry_after_s > 0


def test_no_limit_set_is_no_limit() -> None:
    """0 and unknown mean that nobody counts."""
    terms = Terms(survives=POWER, required=POWER)
    assert admit(terms=terms, health=Health(backlog=10**9), now=NOW) is None
    assert admit(terms=TERMS, health=Health(disk_free_bytes=None), now=NOW) is None


@given(
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 20), st.integers(0, 20),
    st.none() | st.integers(0, 20), st.integers(0, 20), st.booleans(), st.integers(-5_000, 5_000),
)  # fmt: skip
def test_it_is_taken_exactly_when_nothing_speaks_against_it(
    survives: int, required: int, backlog_max: int, backlog: int, free: int | None, least: int,
    ill: bool, left: int,
) -> None:  # fmt: skip
    """Total; and every refusal says why, and when to come again if that helps."""
    terms = Terms(survives, required, backlog_max, least)
    health = Health("trouble" if ill else "", Instant(NOW + left), backlog, free)
    reject = admit(terms=terms, health=health, now=NOW)
    bad = (
        survives < required
        or (ill and left > 0)
        or (backlog_max > 0 and backlog >= backlog_max)
        or (free is not None and free < least)
    )
    assert (reject is not None) == bad
    if reject is not None:
        assert reject.detail
        assert reject.retry_after_s is None or reject.retry_after_s >= 1
