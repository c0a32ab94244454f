"""When to try again: properties of `next_due` over all ages, hints and keys."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from unspool.core.message import NEVER, Destination, Instant, Key, Message
from unspool.core.schedule import HINT_SPREAD_MAX_MS, Pace, next_due, spread

instants = st.integers(0, 2**45)
keys = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789_-", min_size=22, max_size=22).map(Key)
hints = st.none() | st.integers(0, 6 * 3_600_000)
attempts = st.integers(1, 10_000)
PACE = Pace()


def message(*, key: str = "k" * 22, accepted_at: int = 0, expires_at: int = NEVER) -> Message:
    return Message(
        key=Key(key), fingerprint=b"", destination=Destination("http://d"), nonce=b"",
        accepted_at=Instant(accepted_at), expires_at=Instant(expires_at),
    )  # fmt: skip


@given(instants, instants, instants, attempts, hints, keys)
def test_due_is_after_now_and_not_after_the_expiry(
    accepted_at: int, now: int, expires_at: int, attempt: int, hint: int | None, key: Key
) -> None:
    """No attempt is due at once for ever, and each message comes due at its expiry at the latest
    (I2)."""
    saved = message(key=key, accepted_at=accepted_at, expires_at=expires_at)
    due = next_due(saved, attempt=attempt, now=Instant(now), retry_after_ms=hint, pace=PACE)
    assert due > now
    assert due <= max(expires_at, now + 1)
    assert isinstance(due, int)


@given(instants, st.integers(0, 2**45), attempts, st.integers(0, 6 * 3_600_000), keys)
def test_nobody_comes_before_they_were_asked_to(
    now: int, left: int, attempt: int, hint: int, key: Key
) -> None:
    """Retry-After is a floor; only the expiry cuts it, and the spread on top of it is bounded."""
    saved = message(key=key, accepted_at=now, expires_at=now + left)
    due = next_due(saved, attempt=attempt, now=Instant(now), retry_after_ms=hint, pace=PACE)
    assert due >= min(now + hint, now + max(1, left))
    most = max(1_200, hint + min(hint / 10, HINT_SPREAD_MAX_MS))
    assert due <= now + most + 1


@given(st.integers(0, 2**45), st.integers(0, 2**45), attempts, keys)
def test_the_older_waits_longer_at_equal_luck(a: int, b: int, attempt: int, key: Key) -> None:
    """Monotone in age: the same key and attempt, so the same spread, at two ages."""
    saved = message(key=key)
    younger, older = sorted((a, b))
    first = next_due(saved, attempt=attempt, now=Instant(younger), retry_after_ms=None, pace=PACE)
    second = next_due(saved, attempt=attempt, now=Instant(older), retry_after_ms=None, pace=PACE)
    assert first - younger <= second - older


@given(st.integers(0, 2**45), attempts, keys, st.integers(1, 10**6), st.integers(0, 10**9))
def test_the_wait_is_the_age_within_the_pace_and_a_fifth_each_way(
    age: int, attempt: int, key: Key, least_ms: int, more_ms: int
) -> None:
    """`clamp(age, least, most) × U(0.8, 1.2)`, whatever the operator's numbers are."""
    pace = Pace(least_ms=least_ms, most_ms=least_ms + more_ms)
    due = next_due(
        message(key=key), attempt=attempt, now=Instant(age), retry_after_ms=None, pace=pace
    )
    wait = min(max(age, least_ms), least_ms + more_ms)
    assert wait * 0.8 - 1 <= due - age <= wait * 1.2 + 1


@given(st.integers(2**53, 2**200))
def test_no_age_overflows(age: int) -> None:
    """A clock gone mad makes a long wait and nothing worse."""
    saved = message(expires_at=2**201)
    due = next_due(saved, attempt=1, now=Instant(age), retry_after_ms=None, pace=PACE)
    assert 0 < due - age <= PACE.most_ms * 1.2


@given(st.integers(1, 2**45))
def test_a_clock_that_went_back_counts_as_no_age(back: int) -> None:
    """`accepted_at` in the future: the least wait, not a negative one."""
    saved = message(accepted_at=back)
    due = next_due(saved, attempt=1, now=Instant(0), retry_after_ms=None, pace=PACE)
    assert 800 <= due <= 1_200


def test_the_spread_is_even_over_keys_and_attempts() -> None:
    """A thousand messages that failed together do not come back together."""
    for attempt in (1, 2, 17):
        chances = [spread(Key(f"{i:022x}"), attempt) for i in range(10_000)]
        assert all(0 <= chance < 1 for chance in chances)
        tenths = Counter(int(chance * 10) for chance in chances)
        assert set(tenths) == set(range(10))
        assert max(tenths.values()) - min(tenths.values()) < 300
    one_key = Counter(int(spread(Key("k" * 22), attempt) * 10) for attempt in range(1, 2_001))
    assert min(one_key.values()) > 100


@given(keys, attempts)
def test_the_spread_is_the_same_in_every_replay(key: Key, attempt: int) -> None:
    """It comes from key and attempt and nothing else, so a crash changes no due time."""
    assert spread(key, attempt) == spread(Key(str(key)), attempt)
    saved = message(key=key)
    one = next_due(saved, attempt=attempt, now=Instant(99), retry_after_ms=None, pace=PACE)
    two = next_due(saved, attempt=attempt, now=Instant(99), retry_after_ms=None, pace=PACE)
    assert one == two
