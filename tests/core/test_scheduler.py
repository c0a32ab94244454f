"""The scheduler: fairness, bounds, and when to look again."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from unspool.core.lane import Conduct, Phase
from unspool.core.message import (
    AT_ONCE,
    NEVER,
    Cause,
    Destination,
    Failure,
    Instant,
    Key,
    Response,
    Sent,
)
from unspool.core.outcome import judge
from unspool.core.scheduler import POLL_MS, SHARE_MIN, LaneDue, Scheduler

T0 = Instant(1_000_000)
GOOD = judge(Response(status=200, reason=b"", fields=()))
DEAD = judge(Failure(Cause.CONNECTION_REFUSED, "", Sent.NEVER))
FULL = judge(Response(status=429, reason=b"", fields=()))


def due(*names: str, at: int = T0) -> list[LaneDue]:
    return [LaneDue(Destination(name), Instant(at)) for name in names]


def start(scheduler: Scheduler, wants: dict[Destination, int], now: Instant = T0) -> None:
    for destination, count in wants.items():
        for _ in range(count):
            scheduler.lane(destination).began(now)


def kill(scheduler: Scheduler, name: str, now: int = T0) -> None:
    lane = scheduler.lane(Destination(name))
    for number in range(20):
        if lane.phase is not Phase.CLOSED:
            lane.saw(DEAD, key=Key(f"k{number}"), now=Instant(now), chance=0.5)
    assert lane.phase is Phase.CLOSED


# --- how many, for whom -----------------------------------------------------------------------

names = st.sampled_from("abcdefghij")


@given(
    st.integers(1, 60),
    st.integers(1, 30),
    st.lists(
        st.tuples(
            st.lists(names, unique=True, max_size=10), st.lists(names, max_size=20),
            st.sampled_from([GOOD, DEAD, FULL]),
        ),
        max_size=30,
    ),
)  # fmt: skip
def test_attempts_in_flight_never_exceed_any_bound(
    attempts_max: int, start_: int, rounds: list
) -> None:  # type: ignore[type-arg]
    """Totals, windows and shares hold in every round, whatever ends in between (I7)."""
    scheduler = Scheduler(attempts_max=attempts_max, conduct=Conduct(window_start=start_))
    now = int(T0)
    for waiting, ended, judgement in rounds:
        now += 1_000
        at = Instant(now)
        wants = scheduler.wants(due(*sorted(waiting), at=now), now=at)
        assert set(wants) <= set(waiting)
        for destination, count in wants.items():
            assert 0 < count <= scheduler.lane(destination).room(at)
            if len(waiting) > 1:
                share = max(SHARE_MIN, attempts_max // 4)
                assert scheduler.lane(destination).busy + count <= share
        start(scheduler, wants, at)
        assert scheduler.busy <= attempts_max
        for name in ended:
            lane = scheduler.lane(Destination(name))
            if lane.busy:
                lane.ended(judgement, key=Key(name), now=at, chance=0.5)


def test_nothing_is_wanted_of_what_is_not_due() -> None:
    """I8: the survey says when; before that there is nothing to lease."""
    scheduler = Scheduler()
    assert scheduler.wants(due("a", at=T0 + 1), now=T0) == {}
    assert scheduler.wants(due("a", at=NEVER), now=T0) == {}
    assert scheduler.wants([], now=T0) == {}
    assert scheduler.wants(due("a"), now=T0) == {"a": 5}


def test_one_destination_alone_may_have_its_whole_window() -> None:
    """A quarter is the limit only while others wait."""
    scheduler = Scheduler(attempts_max=8, conduct=Conduct(window_start=20, window_max=20))
    assert scheduler.wants(due("a"), now=T0) == {"a": 8}
    assert scheduler.wants(due("a", "b"), now=T0) == {"a": SHARE_MIN, "b": 3}


def test_a_slow_destination_gets_at_most_a_quarter_while_others_wait() -> None:
    """Postfix's weakness is the slow destination, not the dead one."""
    scheduler = Scheduler(attempts_max=40, conduct=Conduct(window_start=30, window_max=30))
    wants = scheduler.wants(due("quick", "slow"), now=T0)
    assert wants == {"quick": 10, "slow": 10}
    start(scheduler, wants)
    for _ in range(10):
        scheduler.lane(Destination("quick")).ended(GOOD, key=Key("k"), now=T0, chance=0)
    assert scheduler.wants(due("quick", "slow"), now=T0) == {"quick": 10}


def test_a_dead_destination_fills_one_probe_and_no_more() -> None:
    """A hundred thousand messages to nowhere cost the others nothing."""
    scheduler = Scheduler()
    kill(scheduler, "dead")
    assert scheduler.wants(due("dead", "well"), now=T0) == {"well": 5}
    later = scheduler.lane(Destination("dead")).closed_until
    assert scheduler.wants(due("dead"), now=later) == {"dead": 1}


def test_an_operators_word_is_the_next_probe_of_a_closed_lane() -> None:
    """At once, and one after the other: a thousand such words are not a thousand attempts."""
    scheduler = Scheduler()
    kill(scheduler, "dead")
    lane = scheduler.lane(Destination("dead"))
    scheduler.heed(due("dead", at=T0 - 1))
    assert scheduler.wants(due("dead", at=T0 - 1), now=T0) == {}, "merely due is not that"
    word = due("dead", at=AT_ONCE)
    for _ in range(3):
        scheduler.heed(word)
        assert scheduler.wakes_at(word, now=T0) == T0
        wants = scheduler.wants(word, now=T0)
        assert wants == {"dead": 1}
        start(scheduler, wants)
        scheduler.heed(word)
        assert scheduler.wants(word, now=T0) == {}
        assert scheduler.wakes_at(word, now=T0) > T0, "no spinning"
        lane.ended(DEAD, key=Key("k"), now=T0, chance=0.5)
        assert lane.phase is Phase.CLOSED


def test_flooded_lanes_cannot_starve_another() -> None:
    """However many destinations are flooded and however few places there are, in each place that
    comes free the next destination has its turn."""
    flooded = [f"d{number:02}" for number in range(12)]
    scheduler = Scheduler(attempts_max=10, conduct=Conduct(window_start=5, window_max=5))
    served: Counter[str] = Counter()
    running: list[Destination] = []
    for _ in range(400):
        wants = scheduler.wants(due(*flooded), now=T0)
        start(scheduler, wants)
        scheduler.served(wants)
        for destination, count in wants.items():
            running += [destination] * count
            served[destination] += count
        assert len(running) == scheduler.busy <= 10
        first = running.pop(0)
        scheduler.lane(first).ended(GOOD, key=Key("k"), now=T0, chance=0)
    assert set(served) == set(flooded)
    assert min(served.values()) * 3 > max(served.values())


def test_asking_what_could_start_changes_nothing() -> None:
    """The dispatcher asks more often than it leases."""
    scheduler = Scheduler(attempts_max=3)
    lanes = due("a", "b", "c")
    assert scheduler.wants(lanes, now=T0) == scheduler.wants(lanes, now=T0)


# --- where the survey goes on -----------------------------------------------------------------


def test_the_survey_goes_round_and_round_by_name() -> None:
    """A full page: on behind its last; a short one: from the first again."""
    scheduler = Scheduler()
    assert scheduler.place is None
    scheduler.moved(due("a", "b"), limit=2)
    assert scheduler.place == "b"
    assert scheduler.wakes_at(due("a", "b", at=T0 + 9_000), now=T0) == T0
    scheduler.moved(due("c"), limit=2)
    assert scheduler.place is None
    scheduler.moved([], limit=2)
    assert scheduler.place is None


# --- when to look again -----------------------------------------------------------------------


@given(
    st.lists(st.tuples(names, st.integers(-10_000, 100_000)), max_size=10),
    st.sets(names, max_size=4),
    st.integers(0, 400_000),
)
def test_the_next_look_is_never_in_the_past_and_never_too_late(
    waiting: list, dead: set, pause: int
) -> None:  # type: ignore[type-arg]
    """At or before the first instant at which anything may start, and at the poll at the latest."""
    scheduler = Scheduler()
    for name in sorted(dead):
        kill(scheduler, name)
    now = Instant(T0 + pause)
    lanes = [LaneDue(Destination(n), Instant(now + d)) for n, d in sorted(dict(waiting).items())]
    wake = scheduler.wakes_at(lanes, now=now)
    assert now <= wake <= now + POLL_MS
    starts = [
        max(int(lane.due_at), int(scheduler.lane(lane.destination).opens_at(now)), int(now))
        for lane in lanes
    ]
    assert wake == min([*starts, now + POLL_MS])


def test_a_lane_without_room_is_not_waited_for() -> None:
    """An attempt that ends wakes the dispatcher: looking again at once would spin."""
    scheduler = Scheduler()
    start(scheduler, scheduler.wants(due("a"), now=T0))
    assert scheduler.wakes_at(due("a"), now=T0) == T0 + POLL_MS


def test_with_every_place_taken_nothing_is_waited_for() -> None:
    """The same where it is not the lane but the whole that is full."""
    scheduler = Scheduler(attempts_max=3)
    start(scheduler, scheduler.wants(due("a"), now=T0))
    assert scheduler.busy == 3
    assert scheduler.lane(Destination("a")).room(T0) == 2
    assert scheduler.wakes_at(due("a"), now=T0) == T0 + POLL_MS
    assert scheduler.wakes_at(due("b"), now=T0) == T0 + POLL_MS


def test_what_is_due_on_an_earlier_page_is_not_forgotten() -> None:
    """More destinations than one survey shows: the next look is the earliest of all pages."""
    scheduler = Scheduler()
    first, second = due("a", "b", at=T0 + 2_000), due("c", at=T0 + 20_000)
    scheduler.moved(first, limit=2)
    assert scheduler.wakes_at(first, now=T0) == T0
    scheduler.moved(second, limit=2)
    assert scheduler.wakes_at(second, now=T0) == T0 + 2_000
    scheduler.moved(second, limit=2)
    assert scheduler.wakes_at(second, now=T0) == T0 + 20_000


def test_statistics_are_what_people_see() -> None:
    """Lanes by name, and how much of the whole is in use."""
    scheduler = Scheduler()
    start(scheduler, scheduler.wants(due("b", "a"), now=T0))
    seen = scheduler.statistics()
    assert (seen.busy, seen.attempts_max) == (10, 100)
    assert list(seen.lanes) == ["a", "b"]
    assert seen.lanes[Destination("a")].busy == 5
