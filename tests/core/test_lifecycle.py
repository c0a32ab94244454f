"""The life of a message: the table LIFE, and `decide` over every answer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from unspool.core.lifecycle import (
    LATE_MS,
    LIFE,
    TRAIL_FIRST,
    TRAIL_MAX,
    Bounced,
    Deferred,
    Delivered,
    Forgotten,
    Keeping,
    Policy,
    Reason,
    State,
    attempted,
    bounced,
    decide,
    delivered,
    extended,
    overdue,
)
from unspool.core.message import (
    Answer,
    Attempt,
    Cause,
    Destination,
    Failure,
    Instant,
    Key,
    Message,
    Response,
    Sent,
)
from unspool.core.outcome import Outcome, judge
from unspool.problems import problem

NOW = Instant(1_750_000_000_000)
DAY = 86_400_000
POLICY = Policy(keeping=Keeping(answer_ms=1_000, key_ms=5_000, answer_max_bytes=16))
VERDICTS = (Delivered, Deferred, Bounced, Forgotten)

statuses = st.integers(100, 599).map(lambda s: Response(status=s, reason=b"", fields=()))
failures = st.builds(
    Failure, cause=st.sampled_from(Cause), detail=st.text(max_size=300),
    sent=st.sampled_from([Sent.NEVER, Sent.MAYBE]),
)  # fmt: skip
answers = statuses | failures


def message(*, repeat: bool = True, expires_at: int = NOW + DAY) -> Message:
    return Message(
        key=Key("k" * 22), fingerprint=b"", destination=Destination("http://d"), nonce=b"",
        accepted_at=Instant(NOW - DAY), expires_at=Instant(expires_at), repeat=repeat,
    )  # fmt: skip


def try_(answer: Answer, saved: Message, *, now: int = NOW, attempt: int = 1) -> object:
    return decide(
        saved, answer, attempt=attempt, trail=(), began_at=Instant(now), now=Instant(now),
        policy=POLICY,
    )  # fmt: skip


def tried(number: int) -> Attempt:
    return Attempt(number=number, at=NOW, status=500, cause="500", sent="maybe applied")


# --- the table --------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_state_and_leads_to_states() -> None:
    """LIFE is total over states, and every arrow ends in a state or in nothing."""
    assert set(LIFE) == set(State)
    for row in LIFE.values():
        assert set(row) <= set(VERDICTS)
        assert all(after is None or isinstance(after, State) for after in row.values())


@pytest.mark.parametrize(("state", "verdict"), list(itertools.product(State, VERDICTS)))
def test_each_verdict_moves_each_state_as_designed_or_is_refused(
    state: State, verdict: type
) -> None:
    """I3: nothing leads out of delivered or bounced; and a promise is never forgotten (I1)."""
    open_ = state in (State.WAITING, State.CLAIMED)
    promised = state is State.WAITING
    if not open_ or (promised and verdict is Forgotten):
        assert verdict not in LIFE[state]
        return
    after = {
        Delivered: State.DELIVERED, Deferred: State.WAITING, Bounced: State.BOUNCED, Forgotten: None
    }  # fmt: skip
    assert LIFE[state][verdict] is after[verdict]


def test_every_walk_ends_settled_and_no_walk_leaves_the_end() -> None:
    """From each state an end can be reached, and from an end nothing can."""
    for state in State:
        seen, edge = {state}, [state]
        while edge:
            for after in LIFE[edge.pop()].values():
                if after is not None and after not in seen:
                    seen.add(after)
                    edge.append(after)
        ends = {State.DELIVERED, State.BOUNCED}
        assert seen & ends
        assert not {after for end in ends for after in LIFE[end]}


# --- decide -----------------------------------------------------------------------------------


@given(answers, st.booleans(), st.integers(-DAY, DAY), st.integers(1, 50))
def test_decide_is_total_and_says_one_of_three_things(
    answer: Answer, repeat: bool, left: int, attempt: int
) -> None:
    """Every answer to every message has a verdict, and the right one by the outcome table."""
    saved = message(repeat=repeat, expires_at=NOW + left)
    verdict = try_(answer, saved, attempt=attempt)
    judged = judge(answer)
    if judged.outcome is not Outcome.ERROR:
        assert isinstance(verdict, Delivered)
        assert verdict.answer.status == answer.status  # type: ignore[union-attr]
    elif not repeat and judged.sent is Sent.MAYBE:
        assert isinstance(verdict, Bounced)
        assert verdict.reason is Reason.UNKNOWN
    elif left <= 0:
        assert isinstance(verdict, Bounced)
        assert verdict.reason is Reason.EXPIRED
    else:
        assert isinstance(verdict, Deferred)
        assert NOW < verdict.due_at <= saved.expires_at
    assert [a.number for a in verdict.trail] == [attempt]  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 410, 422, 451, 501, 505, 511])
def test_a_fail_answer_delivers(status: int) -> None:
    """4xx is an answer: the sender gets it, and nobody tries again."""
    verdict = try_(Response(status=status, reason=b"No", fields=()), message())
    assert isinstance(verdict, Delivered)
    assert verdict.answer.status == status


@pytest.mark.parametrize(
    "answer",
    [
        Response(status=500, reason=b"", fields=()),
        Response(status=503, reason=b"", fields=((b"Retry-After", b"1"),)),
        Failure(Cause.CONNECTION_TERMINATED, "", Sent.MAYBE),
    ],
)
def test_what_may_have_been_applied_and_may_not_be_repeated_ends_unknown(answer: Answer) -> None:
    """Never silently twice."""
    verdict = try_(answer, message(repeat=False))
    assert isinstance(verdict, Bounced)
    assert verdict.reason is Reason.UNKNOWN


@pytest.mark.parametrize(
    "answer",
    [
        Failure(Cause.CONNECTION_REFUSED, "", Sent.NEVER),
        Response(status=429, reason=b"", fields=()),
        Response(status=425, reason=b"", fields=()),
    ],
)
def test_what_was_not_processed_is_tried_again_whoever_sent_it(answer: Answer) -> None:
    """RFC 9110 §9.2.2 forbids repeating what may have been applied, and nothing else."""
    assert isinstance(try_(answer, message(repeat=False)), Deferred)


def test_an_answer_that_comes_after_the_expiry_still_counts() -> None:
    """Expiry ends the trying, not the truth."""
    late = try_(Response(status=200, reason=b"", fields=()), message(expires_at=NOW - 1))
    assert isinstance(late, Delivered)


def test_at_the_expiry_an_error_bounces_and_a_moment_before_it_does_not() -> None:
    """I2: the instant itself is too late."""
    error = Response(status=500, reason=b"", fields=())
    assert isinstance(try_(error, message(expires_at=NOW)), Bounced)
    before = try_(error, message(expires_at=NOW + 1))
    assert isinstance(before, Deferred)
    assert before.due_at == NOW + 1


def test_a_repeat_that_meets_the_first_is_tried_again() -> None:
    """409 with Retry-After from a service that knows keys: an attempt of ours is still running
    there. Taken for the answer it would stand in the way of the real one (I6)."""
    busy = Response(status=409, reason=b"", fields=((b"Retry-After", b"1"),))
    keyed = replace(message(), name="order-7")
    assert isinstance(try_(busy, keyed), Deferred)
    assert isinstance(try_(busy, replace(keyed, expires_at=NOW)), Bounced)
    assert isinstance(try_(busy, message()), Delivered)
    assert isinstance(try_(Response(status=409, reason=b"", fields=()), keyed), Delivered)


def test_a_destination_that_says_unknown_has_not_delivered() -> None:
    """Our middleware refuses to run it again, and nobody knows what the first run did: an operator
    must find it among the bounced, and not among the delivered."""
    ours = problem("outcome-unknown", "nobody knows")
    saved = replace(message(), name="k1")
    verdict = try_(ours, saved)
    assert isinstance(verdict, Bounced)
    assert verdict.reason is Reason.UNKNOWN
    others = replace(ours, fields=[(b"Content-Type", b"application/problem+json")])
    assert isinstance(try_(others, saved), Delivered), "a service's own 409 is its answer"
    assert isinstance(try_(problem("key-reused"), saved), Delivered)


def test_retry_after_is_heard() -> None:
    """The floor of the next attempt is what the destination asked for."""
    verdict = try_(Response(status=429, reason=b"", fields=((b"Retry-After", b"7200"),)), message())
    assert isinstance(verdict, Deferred)
    assert verdict.due_at >= NOW + 7_200_000


# --- what is kept -----------------------------------------------------------------------------


def test_a_small_answer_is_kept_whole_and_a_large_one_as_a_fact() -> None:
    """G6: the fact and the head stay; the body goes beyond the limit."""
    small = Response(status=200, reason=b"OK", fields=((b"X", b"1"),), body=b"y" * 16)
    large = Response(status=200, reason=b"OK", fields=((b"X", b"1"),), body=b"y" * 17)
    keep = POLICY.keeping
    kept = delivered(small, now=NOW, keeping=keep, trail=())
    assert kept.stored
    assert kept.answer.body == small.body
    assert (kept.answer_until, kept.keep_until) == (NOW + 1_000, NOW + 5_000)
    fact = delivered(large, now=NOW, keeping=keep, trail=())
    assert not fact.stored
    assert (fact.answer.status, fact.answer.body) == (200, b"")
    assert fact.answer.fields == ((b"X", b"1"),)


def test_what_belongs_to_the_one_exchange_is_not_kept() -> None:
    """B4: Set-Cookie and hop-by-hop fields are nobody else's."""
    answer = Response(
        status=200, reason=b"OK", fields=((b"Set-Cookie", b"s=1"), (b"ETag", b'"1"')), body=b""
    )
    assert delivered(answer, now=NOW, keeping=Keeping(), trail=()).answer.fields == (
        (b"ETag", b'"1"'),
    )


@given(st.integers(0, 200))
def test_the_trail_is_bounded_and_keeps_its_ends(count: int) -> None:
    """A message that is tried for five days stays small; how it began and goes on is told."""
    trail: tuple[Attempt, ...] = ()
    for number in range(1, count + 1):
        trail = extended(trail, tried(number))
    numbers = [a.number for a in trail]
    assert len(numbers) == min(count, TRAIL_MAX)
    assert numbers == sorted(set(numbers))
    assert numbers[:TRAIL_FIRST] == list(range(1, count + 1))[:TRAIL_FIRST]
    last = TRAIL_MAX - TRAIL_FIRST
    assert numbers[-last:] == list(range(1, count + 1))[-last:]


@given(answers, st.integers(1, 99))
def test_an_attempt_is_told_in_few_words_and_with_its_truth(answer: Answer, number: int) -> None:
    """Every attempt is recorded as never sent, maybe applied, not processed or answered."""
    seen = attempted(number, answer, at=NOW)
    assert (seen.number, seen.at) == (number, NOW)
    assert len(seen.cause) <= 200
    assert seen.sent in {str(s) for s in Sent}
    if isinstance(answer, Failure):
        assert (seen.status, seen.sent) == (0, answer.sent.value)
    else:
        assert (seen.status, seen.sent) == (answer.status, judge(answer).sent.value)


# --- overdue ----------------------------------------------------------------------------------


@given(st.booleans(), st.booleans(), st.integers(1, 9), st.integers(-DAY, DAY))
def test_overdue_ends_the_abandoned_unrepeatable_and_the_expired(
    repeat: bool, abandoned: bool, attempt: int, left: int
) -> None:
    """After a crash: unknown if it may not be repeated; expired if it had a chance; else go on."""
    verdict = overdue(
        message(repeat=repeat, expires_at=NOW + left), attempt=attempt, abandoned=abandoned,
        trail=(tried(1),), now=NOW, policy=POLICY,
    )  # fmt: skip
    if abandoned and not repeat:
        assert verdict is not None
        assert verdict.reason is Reason.UNKNOWN
    elif left <= -LATE_MS or (left <= 0 and attempt > 1):
        assert verdict is not None
        assert verdict.reason is Reason.EXPIRED
    else:
        assert verdict is None
    if verdict is not None:
        first, end = verdict.trail
        assert first == tried(1)
        assert (end.number, end.at, end.status) == (attempt, NOW, 0)
        assert verdict.keep_until == NOW + POLICY.keeping.key_ms


@pytest.mark.parametrize("reason", list(Reason))
def test_a_bounce_says_why_and_is_known_for_a_while(reason: Reason) -> None:
    """Responsibility goes back with a reason, and the key is not free at once."""
    verdict = bounced(reason, now=NOW, keeping=POLICY.keeping, trail=())
    assert (verdict.reason, verdict.keep_until) == (reason, NOW + 5_000)
