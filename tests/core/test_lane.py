"""A lane: properties over any weather, and Postfix's rules one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.core.lane import (
    PARK_MAX_MS,
    PROBE_FIRST_MS,
    PROBE_MAX_MS,
    PROBE_TERM_MS,
    WINDOW_MAX,
    WINDOW_START,
    Conduct,
    Lane,
    Phase,
)
from unspool.core.message import Answer, Cause, Failure, Instant, Key, Response, Sent
from unspool.core.outcome import judge

T0 = Instant(1_000_000)
GOOD: Answer = Response(status=200, reason=b"", fields=())
BAD: Answer = Response(status=502, reason=b"", fields=())
BUG: Answer = Response(status=500, reason=b"", fields=())
FULL: Answer = Response(status=429, reason=b"", fields=())
EARLY: Answer = Response(status=425, reason=b"", fields=())
BACK_SOON: Answer = Response(status=503, reason=b"", fields=((b"Retry-After", b"9"),))
REFUSED: Answer = Failure(Cause.CONNECTION_REFUSED, "", Sent.NEVER)
SILENT: Answer = Failure(Cause.HTTP_RESPONSE_TIMEOUT, "", Sent.MAYBE)
OURS: Answer = Failure(Cause.CONNECTION_LIMIT_REACHED, "", Sent.NEVER)
WEATHER = [GOOD, BAD, BUG, FULL, EARLY, BACK_SOON, REFUSED, SILENT, OURS]


def end(
    lane: Lane, answer: Answer, key: str, now: int, *, chance: float = 0.5, hint: int | None = None
) -> None:
    lane.ended(judge(answer), key=Key(key), now=Instant(now), chance=chance, hint_ms=hint)


def saw(
    lane: Lane, answer: Answer, key: str, now: int, *, chance: float = 0.5, hint: int | None = None
) -> None:
    lane.saw(judge(answer), key=Key(key), now=Instant(now), chance=chance, hint_ms=hint)


def one(lane: Lane, answer: Answer, key: str, now: int, *, chance: float = 0.5) -> None:
    lane.began(Instant(now))
    end(lane, answer, key, now, chance=chance)


def closed(now: int = T0, *, conduct: Conduct | None = None, chance: float = 0.5) -> Lane:
    """A lane that has just closed at `now`."""
    lane = Lane(conduct=conduct or Conduct())
    for number in range(99):
        saw(lane, BAD, f"k{number}", now, chance=chance)
        if lane.phase is Phase.CLOSED:
            return lane
    raise AssertionError("it never closed")


# --- properties over any weather --------------------------------------------------------------

conducts = st.builds(
    Conduct,
    window_start=st.integers(1, 30),
    window_max=st.integers(1, 30),
    cohort_max=st.floats(0.1, 5),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "live", "wake"]),
        st.sampled_from(WEATHER),
        st.integers(0, 6),
        st.sampled_from([0, 1, 900, 5_000, 61_000, 400_000]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([None, 0, 9_000, 10**9]),
    ),
    max_size=120,
)


@given(conducts, steps)
def test_whatever_happens_the_lane_keeps_its_bounds(conduct: Conduct, events: list) -> None:  # type: ignore[type-arg]
    """1 ≤ window ≤ max; never more than the window is started (I7); a closed or parked lane starts
    nothing but one probe (I8); what it says of its opening is true."""
    lane, now = Lane(conduct=conduct), int(T0)
    probes_until = 0
    for what, answer, key, pause, chance, hint in events:
        now += pause
        at = Instant(now)
        room = lane.room(at)
        assert room >= 0
        shut = lane.phase is Phase.CLOSED or now < lane.parked_until
        if shut:
            assert room <= 1
            assert lane.is_open(at) == (room == 1)
            if now < lane.closed_until:
                assert room == 0
        else:
            assert room == max(0, lane.window - lane.busy)
            assert lane.is_open(at)
        if not lane.is_open(at):
            assert lane.opens_at(at) > now
            assert lane.is_open(lane.opens_at(at))
        if what == "begin" and room:
            lane.began(at)
            if shut:
                assert now >= probes_until
                probes_until = now + PROBE_TERM_MS
                assert lane.room(at) == 0
            else:
                assert lane.busy <= lane.window
        elif what == "end" and lane.busy:
            end(lane, answer, f"k{key}", now, chance=chance, hint=hint)
            probes_until = 0
        elif what == "live" and lane.probe(at):
            saw(lane, answer, f"k{key}", now, chance=chance, hint=hint)
            probes_until = 0
        elif what == "wake":
            lane.wake()
            probes_until = 0
        assert 1 <= lane.window <= conduct.window_max
        assert lane.busy >= 0
        assert lane.parked_until <= now + PARK_MAX_MS
        assert lane.closed_until <= now + PROBE_MAX_MS
        view = lane.view()
        assert (view.phase, view.window, view.busy) == (
            lane.phase.value, lane.window, lane.busy,
        )  # fmt: skip


@given(st.lists(st.sampled_from([GOOD, EARLY, OURS]), max_size=200))
def test_a_lane_without_trouble_never_closes(answers: list) -> None:  # type: ignore[type-arg]
    """Good and alive answers, and limits of our own, close nothing and shrink nothing."""
    lane = Lane()
    for number, answer in enumerate(answers):
        one(lane, answer, f"k{number}", T0)
        assert lane.phase is Phase.OPEN
        assert lane.window >= WINDOW_START


def test_more_than_the_window_is_a_mistake_of_ours() -> None:
    """I7 is asserted where it would break."""
    lane = Lane()
    for _ in range(WINDOW_START):
        lane.began(T0)
    assert lane.room(T0) == 0
    with pytest.raises(AssertionError, match="I7"):
        lane.began(T0)


# --- the window -------------------------------------------------------------------------------


def test_the_window_opens_by_one_for_each_windowful_of_successes_in_use() -> None:
    """1/window feedback, up to the limit and no further."""
    lane = Lane()
    sizes = []
    for round_ in range(60):
        busy = lane.room(T0)
        for _ in range(busy):
            lane.began(T0)
        for number in range(busy):
            end(lane, GOOD, f"{round_}-{number}", T0)
        sizes.append(lane.window)
    assert sizes == sorted(sizes)
    assert sizes[0] in (WINDOW_START, WINDOW_START + 1)
    assert sizes[-1] == WINDOW_MAX
    assert all(after - before <= 2 for before, after in itertools.pairwise(sizes))


def test_the_window_does_not_grow_far_beyond_what_is_used() -> None:
    """One at a time for ever: a window of 20 would notice trouble too late."""
    lane = Lane()
    for number in range(1_000):
        one(lane, GOOD, f"k{number}", T0)
    assert lane.window <= WINDOW_START + 1


def test_the_window_closes_a_step_before_it_is_all_lost() -> None:
    """A failure here and there costs places, and successes bring them back."""
    lane = Lane(conduct=Conduct(window_start=20, cohort_max=100))
    for number in range(40):
        one(lane, BAD, f"k{number}", T0)
    assert lane.phase is Phase.OPEN
    low = lane.window
    assert low < 20
    for number in range(200):
        one(lane, GOOD, f"g{number}", T0)
    assert lane.window > low


# --- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [BAD, REFUSED])
def test_from_a_window_of_five_five_failures_close_it(answer: Answer) -> None:
    """One cohort: not the fourth failure, but the fifth."""
    lane = Lane()
    for number in range(4):
        saw(lane, answer, f"k{number}", T0)
        assert lane.phase is Phase.OPEN
    saw(lane, answer, "k4", T0)
    assert lane.phase is Phase.CLOSED
    assert not lane.is_open(T0)


def test_one_message_alone_never_closes_a_lane() -> None:
    """Poison is not an outage: failures of at least two messages are needed."""
    lane = Lane()
    for _ in range(1_000):
        saw(lane, BAD, "poison", T0)
    assert lane.phase is Phase.OPEN
    saw(lane, BAD, "other", T0)
    assert lane.phase is Phase.CLOSED


def test_two_failures_never_close_a_lane_however_small_its_window() -> None:
    """At least three, even where the first fills the cohort."""
    lane = Lane(conduct=Conduct(window_start=1, window_max=1))
    saw(lane, BAD, "a", T0)
    saw(lane, BAD, "b", T0)
    assert lane.phase is Phase.OPEN
    saw(lane, BAD, "c", T0)
    assert lane.phase is Phase.CLOSED


def test_a_success_in_between_begins_the_cohort_again() -> None:
    """Good resets: four failures and a success are not four fifths of being dead."""
    lane = Lane()
    for number in range(4):
        saw(lane, BAD, f"k{number}", T0)
    saw(lane, GOOD, "g", T0)
    assert lane.calm
    for number in range(3):
        saw(lane, BAD, f"k{number}", T0)
    assert lane.phase is Phase.OPEN


def test_every_other_attempt_failing_never_closes_a_lane() -> None:
    """A service that half works is slow work, not an outage."""
    lane = Lane()
    for number in range(1_000):
        saw(lane, BAD, f"k{number}", T0)
        saw(lane, GOOD, "g", T0)
        assert lane.phase is Phase.OPEN


def test_fragile_destinations_may_ask_for_more_patience() -> None:
    """`cohort_max` windows' worth of failures."""
    few, many = Lane(), Lane(conduct=Conduct(cohort_max=3))
    counts = []
    for lane in (few, many):
        count = 0
        while lane.phase is Phase.OPEN:
            saw(lane, BAD, f"k{count}", T0)
            count += 1
        counts.append(count)
    assert counts[1] > counts[0]


# --- the probe --------------------------------------------------------------------------------


def test_a_closed_lane_is_probed_by_one_at_a_time() -> None:
    """Whoever gets the probe has it alone, be it a delivery or a request that came just now."""
    lane = closed()
    assert lane.room(lane.closed_until) == 1
    assert lane.probe(lane.closed_until)
    assert not lane.probe(lane.closed_until)
    assert lane.room(lane.closed_until) == 0
    other = closed()
    other.began(other.closed_until)
    assert other.room(other.closed_until) == 0
    assert not other.probe(other.closed_until)


def test_a_probe_that_never_comes_back_is_given_up() -> None:
    """A hung probe must not close the lane for ever."""
    lane = closed()
    at = lane.closed_until
    assert lane.probe(at)
    assert not lane.is_open(Instant(at + PROBE_TERM_MS - 1))
    assert lane.opens_at(at) == at + PROBE_TERM_MS
    assert lane.probe(Instant(at + PROBE_TERM_MS))


def test_a_probe_that_asked_nothing_is_free_again() -> None:
    """A limit of our own in its way must not cost a minute."""
    lane = closed()
    one(lane, OURS, "probe", lane.closed_until)
    assert lane.phase is Phase.CLOSED
    assert lane.room(lane.closed_until) == 1


@given(st.floats(0, 1, exclude_max=True))
def test_the_probe_backs_off_from_five_seconds_to_three_hundred(chance: float) -> None:
    """5, 10, 20 … 300 s, half of each by chance, and never beyond."""
    lane = closed(chance=chance)
    due, now, waits = PROBE_FIRST_MS, int(T0), []
    for _ in range(12):
        waits.append(lane.closed_until - now)
        assert due // 2 <= waits[-1] <= due
        due = min(due * 2, PROBE_MAX_MS)
        now = int(lane.closed_until)
        one(lane, REFUSED, "probe", now, chance=chance)
        assert lane.phase is Phase.CLOSED
    assert waits == sorted(waits)
    assert waits[-1] >= PROBE_MAX_MS // 2


def test_stragglers_do_not_push_the_probe_further_away() -> None:
    """Ten attempts that began before it closed and fail after it count as what they are: old."""
    lane = Lane(conduct=Conduct(window_start=20))
    for _ in range(20):
        lane.began(T0)
    for number in range(20):
        end(lane, REFUSED, f"k{number}", T0 + number)
    assert lane.phase is Phase.CLOSED
    assert lane.closed_until <= T0 + 19 + PROBE_FIRST_MS


@pytest.mark.parametrize("answer", [GOOD, EARLY, BUG])
def test_any_answer_of_a_probe_shows_that_it_is_there(answer: Answer) -> None:
    """A probe asks whether somebody is there; a bug for one message is an answer too."""
    lane = closed()
    one(lane, answer, "probe", lane.closed_until)
    assert lane.phase is Phase.REOPENING
    assert lane.window == 1


@pytest.mark.parametrize("answer", [BAD, REFUSED, SILENT])
def test_a_probe_without_an_answer_closes_it_again(answer: Answer) -> None:
    """Also where two in a row would be needed to close an open lane."""
    lane = closed()
    at = lane.closed_until
    one(lane, answer, "probe", at)
    assert lane.phase is Phase.CLOSED
    assert lane.closed_until > at


def test_an_operators_word_lets_the_probe_go_now() -> None:
    """`wake` shortens the wait; it does not open the lane."""
    lane = closed()
    lane.wake()
    assert lane.room(T0) == 1
    lane.began(T0)
    assert lane.room(T0) == 0


# --- slow start -------------------------------------------------------------------------------


def test_a_lane_reopens_by_slow_start_and_never_by_a_flush() -> None:
    """1, 2, 4, then the start window: each doubling after as many clean successes."""
    lane = closed()
    at = int(lane.closed_until)
    one(lane, GOOD, "probe", at)
    seen = [lane.window]
    for number in range(1 + 2 + 4):
        assert lane.room(Instant(at)) == lane.window
        one(lane, GOOD, f"k{number}", at)
        seen.append(lane.window)
    assert seen == [1, 2, 2, 4, 4, 4, 4, WINDOW_START]
    assert lane.phase is Phase.OPEN


def test_a_failure_in_the_slow_start_closes_it_again_for_longer() -> None:
    """Back to where it was: the backoff is forgotten only when the lane is open again."""
    lane = closed()
    first = lane.closed_until - T0
    at = int(lane.closed_until)
    one(lane, GOOD, "probe", at)
    one(lane, BAD, "k", at)
    assert lane.phase is Phase.CLOSED
    assert lane.closed_until - at == 2 * first


@pytest.mark.parametrize("start", [1, 2, 5])
def test_once_open_again_the_next_outage_begins_at_five_seconds(start: int) -> None:
    """The backoff belongs to the outage, whatever the window is."""
    conduct = Conduct(window_start=start)
    lane, at = closed(conduct=conduct), int(T0)
    for _ in range(8):
        at = int(lane.closed_until)
        one(lane, REFUSED, "probe", at)
    at = int(lane.closed_until)
    while lane.phase is not Phase.OPEN:
        one(lane, GOOD, "probe", at)
    for number in range(9):
        if lane.phase is Phase.OPEN:
            saw(lane, BAD, f"k{number}", at)
    assert lane.phase is Phase.CLOSED
    assert lane.closed_until - at <= PROBE_FIRST_MS


# --- parked -----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [FULL, BACK_SOON])
def test_retry_after_parks_the_lane_and_is_not_being_dead(answer: Answer) -> None:
    """Closed for as long as it was asked, open at once after, and the window a step smaller."""
    lane = Lane()
    saw(lane, answer, "k", T0, hint=4_000)
    assert lane.phase is Phase.OPEN
    assert lane.room(Instant(T0 + 3_999)) == 0
    assert not lane.probe(Instant(T0 + 3_999))
    assert lane.opens_at(T0) == T0 + 4_000
    assert lane.room(Instant(T0 + 4_000)) == WINDOW_START - 1


def test_a_park_is_probed_by_one_and_its_success_ends_it() -> None:
    """One caller's quota of an hour must not keep all the others waiting for an hour."""
    lane = Lane()
    saw(lane, FULL, "greedy", T0, hint=3_600_000)
    assert lane.parked_until == T0 + PARK_MAX_MS
    at = lane.opens_at(T0)
    assert at == T0 + PROBE_FIRST_MS
    assert not lane.probe(Instant(at - 1))
    assert lane.room(at) == 1
    assert lane.probe(at)
    assert not lane.probe(at), "one at a time"
    assert lane.room(at) == 0
    saw(lane, GOOD, "modest", at)
    assert lane.room(at) == WINDOW_START - 1
    assert lane.parked_until == 0
    saw(lane, FULL, "greedy", at, hint=3_600_000)
    assert lane.opens_at(at) == at + PROBE_FIRST_MS, "a new park begins anew"


def test_a_park_whose_probe_is_turned_away_is_probed_less_and_less() -> None:
    """5, 10, 20 … s; never seldomer than the park is long."""
    lane, now, waits = Lane(), int(T0), []
    for _ in range(8):
        saw(lane, FULL, "k", now, hint=3_600_000, chance=1 - 1e-9)
        waits.append(lane.opens_at(Instant(now)) - now)
        now += waits[-1]
        assert lane.probe(Instant(now))
    assert waits[:4] == [5_000, 10_000, 20_000, 40_000]
    assert set(waits[4:]) == {PARK_MAX_MS}


def test_a_success_that_began_before_the_park_does_not_end_it() -> None:
    """Twenty in flight, one told 429: the nineteen are old news."""
    lane = Lane(conduct=Conduct(window_start=20))
    for _ in range(20):
        lane.began(T0)
    end(lane, FULL, "k0", T0, hint=60_000)
    for number in range(1, 20):
        end(lane, GOOD, f"k{number}", T0 + 1)
    assert lane.room(Instant(T0 + 2)) == 0
    assert lane.parked_until == T0 + 60_000


def test_a_park_whose_probe_fails_waits_for_the_next_one() -> None:
    """No answer at all is neither well nor a reason to ask again at once."""
    lane = Lane()
    saw(lane, FULL, "k", T0, hint=60_000)
    at = lane.opens_at(T0)
    assert lane.probe(at)
    saw(lane, SILENT, "p", at)
    assert lane.opens_at(at) > at + PROBE_FIRST_MS // 2
    assert not lane.probe(at)


def test_being_parked_a_thousand_times_never_closes_it() -> None:
    """A rate limit is a destination that works."""
    lane, now = Lane(), int(T0)
    for number in range(1_000):
        saw(lane, FULL, f"k{number}", now, hint=1_000)
        assert lane.phase is Phase.OPEN
        now += 1_000
    assert lane.room(Instant(now)) == 1


def test_the_longest_wish_wins_and_none_is_for_ever() -> None:
    """A shorter Retry-After does not undo a longer one; a long one is cut to a minute."""
    lane = Lane()
    saw(lane, FULL, "a", T0, hint=50_000)
    saw(lane, FULL, "b", T0, hint=1_000)
    assert lane.parked_until == T0 + 50_000
    saw(lane, FULL, "c", T0, hint=10**12)
    assert lane.parked_until == T0 + PARK_MAX_MS


def test_429_without_a_word_of_when_parks_it_for_five_seconds() -> None:
    """Too many is too many, said or not."""
    lane = Lane()
    saw(lane, FULL, "k", T0)
    assert lane.parked_until == T0 + PROBE_FIRST_MS


def test_a_park_that_answers_a_probe_opens_the_lane_slowly_after_it() -> None:
    """It is there: not dead any more, and not to be flooded either."""
    lane = closed()
    at = lane.closed_until
    lane.began(at)
    end(lane, FULL, "probe", at, hint=7_000)
    assert lane.phase is Phase.REOPENING
    assert lane.room(at) == 0
    assert lane.room(Instant(at + 7_000)) == 1


# --- a clock that is set back ------------------------------------------------------------------


@pytest.mark.parametrize("back", [1, 10_000, 3_600_000, T0])
def test_a_clock_that_is_set_back_keeps_no_lane_closed(back: int) -> None:
    """NTP, or a hand: an hour back is not an hour more of being down."""
    lane = closed()
    now = Instant(max(0, T0 - back))
    assert lane.room(now) == 1
    assert lane.opens_at(now) == now
    assert lane.probe(now)
    assert not lane.probe(now), "still one at a time"
    saw(lane, REFUSED, "probe", now)
    assert lane.phase is Phase.CLOSED
    assert now < lane.opens_at(now) <= now + PROBE_MAX_MS


def test_a_clock_that_is_set_back_keeps_no_lane_parked_and_no_probe_out() -> None:
    """The same for Retry-After, and for a probe that never comes back."""
    lane = Lane()
    saw(lane, FULL, "k", T0, hint=60_000)
    assert lane.room(Instant(T0 - 3_600_000)) == WINDOW_START - 1
    lost = closed()
    assert lost.probe(lost.closed_until)
    assert lost.probe(Instant(T0 - 3_600_000))


def test_a_clock_that_is_set_back_a_little_costs_no_more_than_the_pause_again() -> None:
    """Within the pause the clock cannot be told from a slow one."""
    lane = closed()
    length = lane.closed_until - T0
    assert lane.opens_at(Instant(T0)) - T0 == length
    assert lane.room(Instant(T0 + length)) == 1


# --- suspects ---------------------------------------------------------------------------------


def test_500_counts_against_the_lane_after_five_different_messages_in_a_row() -> None:
    """Four messages with a bug are four bugs; from the fifth on it is the service."""
    lane = Lane()
    for number in range(4):
        for _ in range(10):
            saw(lane, BUG, f"k{number}", T0)
    assert lane._failures == 0
    saw(lane, BUG, "k4", T0)
    assert lane._failures == 1
    assert lane.phase is Phase.OPEN


def test_one_poisonous_message_never_closes_a_lane() -> None:
    """The same message, a thousand 500s."""
    lane = Lane()
    for _ in range(1_000):
        saw(lane, BUG, "poison", T0)
    assert lane.phase is Phase.OPEN
    assert lane._failures == 0


def test_500s_of_ever_different_messages_close_it_in_the_end() -> None:
    """A service that fails everything is down, whatever status it says it with."""
    lane = Lane()
    for number in range(9):
        assert lane.phase is Phase.OPEN
        saw(lane, BUG, f"k{number}", T0)
    assert lane.phase is Phase.CLOSED


def test_no_answer_counts_after_two_different_messages_in_a_row() -> None:
    """One reset may be that message's; a second message's is the destination's."""
    lane = Lane()
    for _ in range(10):
        saw(lane, SILENT, "a", T0)
    assert lane._failures == 0
    saw(lane, SILENT, "b", T0)
    assert lane._failures == 1


@pytest.mark.parametrize(("answer", "limit"), [(BUG, 5), (SILENT, 2)])
def test_a_success_clears_every_suspicion(answer: Answer, limit: int) -> None:
    """In a row means in a row."""
    lane = Lane()
    for round_ in range(20):
        for number in range(limit - 1):
            saw(lane, answer, f"{round_}-{number}", T0)
        assert not lane.calm
        saw(lane, GOOD, "g", T0)
        assert lane.calm
    assert lane._failures == 0


def test_the_two_suspicions_are_counted_apart() -> None:
    """Four 500s and one reset are neither five of the one nor two of the other."""
    lane = Lane()
    for number in range(4):
        saw(lane, BUG, f"b{number}", T0)
    saw(lane, SILENT, "s", T0)
    assert lane._failures == 0


def test_what_is_remembered_of_suspects_is_bounded() -> None:
    """A million failing messages cost five keys."""
    lane = Lane()
    for number in range(10_000):
        saw(lane, BUG, f"k{number}", T0)
        saw(lane, SILENT, f"k{number}", T0)
    assert sum(len(row) for row in lane._suspects.values()) <= 7
    assert len(lane._failing) <= 2


@pytest.mark.parametrize("sent", [Sent.NEVER, Sent.MAYBE])
@pytest.mark.parametrize("cause", [Cause.CONNECTION_LIMIT_REACHED, Cause.PROXY_INTERNAL_ERROR])
def test_our_own_limits_say_nothing_of_the_destination(cause: Cause, sent: Sent) -> None:
    """A thousand of our own mistakes, and the lane does not know of any."""
    lane = Lane()
    for number in range(1_000):
        saw(lane, Failure(cause, "", sent), f"k{number}", T0)
    assert lane == Lane()


def test_the_last_trouble_is_told() -> None:
    """At 3 a.m. somebody asks why."""
    lane = Lane()
    lane.saw(judge(BAD), key=Key("k"), now=T0, chance=0, detail="502 Bad Gateway")
    assert lane.view().last_trouble == "502 Bad Gateway"
    saw(lane, BUG, "k", T0)
    assert lane.view().last_trouble == judge(BUG).why


def test_pauses_grow_with_time_and_not_with_ways_of_failing() -> None:
    """A service that flaps for a few seconds, in whatever way, is not left alone for minutes."""
    lane = Lane()
    now = 1_000_000
    bad = judge(Failure(Cause.CONNECTION_REFUSED, "refused", Sent.NEVER))
    alive = judge(Response(408, b"", ()))
    for step in range(61):
        lane.saw(
            alive if step % 4 == 3 else bad, key=Key(f"{step}"), now=Instant(now + 100 * step),
            chance=1.0, hint_ms=None, detail="",
        )  # fmt: skip
    end = Instant(now + 100 * 61)
    assert not lane.is_open(end)
    assert lane.opens_at(end) - end <= 20_000
