"""Health of a custodian, and what two of them decide: tables walked to the end."""

from __future__ import annotations

import itertools

import pytest

from unspool.core.custodian import (
    FULL_MS,
    MEETINGS,
    PROBE_FIRST_MS,
    PROBE_MAX_MS,
    Meeting,
    Pulse,
    follows,
    meet,
    stands,
)
from unspool.core.lifecycle import State
from unspool.core.message import NEVER, Destination, Instant, Key, Message

SETTLED = (State.DELIVERED, State.BOUNCED)


def message(*, repeat: bool = True, order_key: str = "") -> Message:
    return Message(
        key=Key("k"), fingerprint=b"", destination=Destination("d"), accepted_at=Instant(0),
        expires_at=NEVER, nonce=b"", repeat=repeat, order_key=order_key,
    )  # fmt: skip


def test_one_that_failed_is_left_alone_for_longer_and_longer() -> None:
    """No request waits for it; and it is not asked all the time whether it is back."""
    pulse, at, waits = Pulse(), 1_000, []
    pulse.answered()
    assert pulse.takes(at)
    assert pulse.failed("refused", at=at)
    for _ in range(8):
        assert not pulse.takes(at)
        waits.append(pulse.probe_in(at))
        at += waits[-1]
        assert pulse.probe_in(at) == 0
        assert not pulse.failed("still", at=at), "it was down before"
    assert waits[0] == PROBE_FIRST_MS
    assert waits == sorted(waits)
    assert waits[-1] == PROBE_MAX_MS


def test_a_probe_that_only_reads_does_not_shorten_the_pauses() -> None:
    """One that reads well and cannot write would else cost a request every half second."""
    pulse = Pulse()
    pulse.answered()
    pulse.failed("read-only", at=0)
    pulse.answered()
    pulse.failed("read-only", at=0)
    assert pulse.probe_in(0) == 2 * PROBE_FIRST_MS
    pulse.answered()
    pulse.wrote()
    pulse.failed("again", at=0)
    assert pulse.probe_in(0) == PROBE_FIRST_MS


def test_one_that_is_full_goes_on_with_what_it_has() -> None:
    pulse = Pulse()
    pulse.answered()
    pulse.filled("no room", at=0)
    assert pulse.up
    assert not pulse.takes(FULL_MS - 1)
    assert pulse.takes(FULL_MS)


@pytest.mark.parametrize("doubt", [False, True])
@pytest.mark.parametrize("repeat", [False, True])
def test_what_may_not_be_repeated_is_not_in_two_places(repeat: bool, doubt: bool) -> None:
    """Where the one before may have written it, the next takes it only if it may be repeated."""
    assert follows(message(repeat=repeat), doubt=doubt) == (repeat or not doubt)
    assert not follows(message(repeat=repeat, order_key="x"), doubt=doubt)


def test_home_speaks_for_what_it_knows() -> None:
    for away, home in itertools.product(State, (None, *State)):
        said = stands(home, away)
        if home is None:
            assert said
        elif home is not State.CLAIMED:
            assert not said
        else:
            assert said == (away in (State.WAITING, State.DELIVERED))


def test_every_meeting_ends_in_one_truth() -> None:
    """Walked to the end: nothing waits in two places, nothing is lost, nothing is in two places
    that may not be repeated, and another request under the key is left in sight."""
    for away, home, own, alike, repeat, lapsed in itertools.product(
        State, (None, *State), *[(False, True)] * 4
    ):
        what = meet(away, home, own=own, alike=alike, repeat=repeat, lapsed=lapsed)
        told = (away, home, own, alike, repeat, lapsed)
        if home is not None and not alike:
            assert what is Meeting.STAY, told
        if away is State.CLAIMED:
            assert what is Meeting.STAY, told
        if what is Meeting.DROP:
            assert away is State.WAITING, told
            assert home in (State.WAITING, *SETTLED), f"it would be lost: {told}"
        if what is Meeting.MOVE:
            assert home is None, told
            assert repeat or away in SETTLED, f"in two places for a moment: {told}"
        if what is Meeting.TEACH:
            assert home in (State.WAITING, State.CLAIMED), told
            assert home is State.WAITING or own or lapsed, f"somebody is trying it: {told}"
        if what is Meeting.DONE:
            assert home is not None, told
            assert away in SETTLED, told
        if away is State.WAITING and home is State.WAITING and alike:
            assert what is Meeting.DROP, f"it would go out twice: {told}"
        if away is State.DELIVERED and home is State.WAITING and alike:
            assert what is Meeting.TEACH, f"it would go out again: {told}"


def test_the_table_has_no_row_that_nothing_leads_to() -> None:
    reached = set()
    for away, home, own in itertools.product(State, (None, *State), (False, True)):
        if away is not State.CLAIMED:
            reached.add((away, home, own and home is not None))
    assert reached == set(MEETINGS)
