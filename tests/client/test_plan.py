"""The plan, walked to its end in every way that it can go."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest

from unspool.client.plan import (
    BEGINNING,
    COST_THROTTLED,
    COST_TRANSIENT,
    Attempt,
    Facts,
    GiveUp,
    HandOver,
    Keep,
    Kind,
    SoFar,
    Step,
    Terms,
    Trouble,
    Uncertain,
    full_jitter,
    handed,
    hedge_after_ms,
    next_step,
    tried,
)
from unspool.core.message import Sent
from unspool.core.outcome import (
    NEVER_SENT,
    NO_ANSWER,
    NOT_ITS_FAULT,
    PARKED_503,
    STATUSES,
    Judgement,
)

ERRORS = {
    "refused": NEVER_SENT,
    "timeout": NO_ANSWER,
    "429": STATUSES[429],
    "425": STATUSES[425],
    "500": STATUSES[500],
    "503": STATUSES[503],
    "503 until": PARKED_503,
    "ours": NOT_ITS_FAULT,
}
"""One of each kind of trouble that the outcome table has."""
KINDS = [
    Kind(repeat=r, safe=s, contended=c) for r, s, c in itertools.product((False, True), repeat=3)
]
QUEUE_ENDS = (Sent.NEVER, Sent.REFUSED, Sent.MAYBE)


class Walk(msgspec.Struct):
    """One way through the plan."""

    steps: list[Step]
    states: list[SoFar]
    left_ms: int


def walks(kind: Kind, facts: Facts, terms: Terms) -> Iterator[Walk]:
    """Every way to the end, whatever servers and queues do; time passes as the steps allow."""
    stack = [Walk([], [BEGINNING], facts.left_ms)]
    while stack:
        walk = stack.pop()
        so_far = walk.states[-1]
        step = next_step(kind, so_far, msgspec.structs.replace(facts, left_ms=walk.left_ms), terms)
        steps = [*walk.steps, step]
        if isinstance(step, Attempt):
            left = walk.left_ms - step.wait_ms - step.timeout_ms
            for judgement in ERRORS.values():
                hint = 300 if judgement is PARKED_503 else None
                after = tried(so_far, step.server, judgement, hint_ms=hint)
                stack.append(Walk(steps, [*walk.states, after], left))
        elif isinstance(step, HandOver):
            for sent in QUEUE_ENDS:
                after = handed(so_far, sent)
                stack.append(Walk(steps, [*walk.states, after], walk.left_ms - step.timeout_ms))
        else:
            yield Walk(steps, walk.states, walk.left_ms)


SCENES = [
    Facts(left_ms=left, whole_ms=left, open=tuple(range(servers)), queues=queues, outbox=outbox)
    for left in (30, 400, 10_000)
    for servers in (0, 1, 2, 3)
    for queues in (0, 1, 2)
    for outbox in (False, True)
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_walk_keeps_to_the_rules(kind: Kind) -> None:
    """P1 to P6, on every way through; and each comes to an end."""
    count = 0
    terms = Terms()
    for facts in SCENES:
        for walk in walks(kind, facts, terms):
            count += 1
            check(kind, facts, terms, walk)
    assert count > 500


def check(kind: Kind, facts: Facts, terms: Terms, walk: Walk) -> None:
    attempts = [step for step in walk.steps if isinstance(step, Attempt)]
    offers = [step for step in walk.steps if isinstance(step, HandOver)]
    for step, state in zip(walk.steps, walk.states, strict=True):
        if state.maybe and (kind.contended or not kind.repeat):
            assert isinstance(step, Uncertain), "P1"
    assert len(attempts) <= terms.attempts_max, "P2"
    for before, after in itertools.pairwise(attempts):
        assert before.server != after.server or len(facts.open) < 2, "P3"
    if kind.safe or kind.contended:
        assert not offers, "P4"
        assert not any(isinstance(step, Keep) for step in walk.steps), "P4"
    spent = sum(step.wait_ms + step.timeout_ms for step in attempts)
    queued = sum(step.timeout_ms for step in offers)
    assert spent + queued <= facts.whole_ms, "P5: the deadline"
    assert all(2 * step.reach_ms <= step.timeout_ms for step in attempts)
    for step in attempts:
        if step.reach_ms:
            assert not kind.repeat, "what may be repeated is cut off as a whole"
    if facts.queues and kind.keepable:
        reserve = min(max(500, facts.whole_ms // 5), facts.whole_ms // 2)
        assert spent <= facts.whole_ms - reserve, "P5: the queues' slice"
        if offers:
            assert [step.queue for step in offers] == list(range(len(offers))), "in turn"
    for attempt, state in zip(attempts[1:], walk.states[1:], strict=False):
        again = attempt.server == state.tried[-1]
        if state.trouble in (Trouble.TRANSIENT, Trouble.THROTTLED) or again:
            assert attempt.cost > 0, "P6"
        else:
            assert attempt.cost == 0
            assert attempt.wait_ms == 0
    order = [(Attempt, HandOver, Keep, Uncertain, GiveUp).index(type(step)) for step in walk.steps]
    assert order == sorted(order), "direct, then the queues, then the outbox"
    end = walk.steps[-1]
    if isinstance(end, GiveUp):
        assert not (kind.keepable and facts.outbox), "what may be kept is kept"
        assert end.why
    if isinstance(end, Keep):
        assert len(offers) == facts.queues or walk.left_ms < terms.least_ms


def test_three_servers_are_tried_before_the_queues() -> None:
    """The order of the issue, with nothing but refused connections."""
    facts = Facts(left_ms=10_000, whole_ms=10_000, open=(0, 1, 2), queues=2, outbox=True)
    kind, so_far, seen = Kind(repeat=True), BEGINNING, []
    for _ in range(6):
        step = next_step(kind, so_far, facts, Terms())
        seen.append(step)
        if isinstance(step, Attempt):
            so_far = tried(so_far, step.server, NEVER_SENT)
        elif isinstance(step, HandOver):
            so_far = handed(so_far, Sent.NEVER)
    assert [step.server for step in seen[:3] if isinstance(step, Attempt)] == [0, 1, 2]
    assert [step.queue for step in seen[3:5] if isinstance(step, HandOver)] == [0, 1]
    assert seen[5] == Keep()


def test_without_an_open_server_one_is_tried_all_the_same() -> None:
    """Fail open: somebody has to find out whether they are back."""
    facts = Facts(left_ms=1_000, whole_ms=1_000, open=(), spare=2)
    step = next_step(Kind(repeat=True), BEGINNING, facts, Terms())
    assert isinstance(step, Attempt)
    assert step.server == 2


def test_a_throttled_request_goes_to_the_queues_untried() -> None:
    facts = Facts(left_ms=1_000, whole_ms=1_000, open=(0,), admitted=False, queues=1)
    assert isinstance(next_step(Kind(repeat=True), BEGINNING, facts, Terms()), HandOver)
    safe = next_step(Kind(repeat=True, safe=True), BEGINNING, facts, Terms())
    assert safe == GiveUp("not tried: the servers reject most of what is sent")


@pytest.mark.parametrize(
    ("judgement", "cost"),
    [(STATUSES[429], COST_THROTTLED), (STATUSES[503], COST_TRANSIENT), (NEVER_SENT, 0)],
)
def test_what_a_further_attempt_costs(judgement: Judgement, cost: int) -> None:
    """And that it is not begun where that cannot be paid."""
    facts = Facts(left_ms=10_000, whole_ms=10_000, open=(0, 1))
    so_far = tried(BEGINNING, 0, judgement)
    step = next_step(Kind(repeat=True), so_far, facts, Terms())
    assert isinstance(step, Attempt)
    assert step.cost == cost
    poor = msgspec.structs.replace(facts, tokens=max(0, cost - 1))
    step = next_step(Kind(repeat=True), so_far, poor, Terms())
    assert isinstance(step, GiveUp if cost else Attempt)


def test_retry_after_of_the_only_server_is_waited_for_if_it_fits() -> None:
    facts = Facts(left_ms=1_000, whole_ms=1_000, open=(0,))
    for hint, step_type in ((400, Attempt), (600, GiveUp)):
        so_far = tried(BEGINNING, 0, STATUSES[429], hint_ms=hint)
        step = next_step(Kind(repeat=True), so_far, facts, Terms())
        assert isinstance(step, step_type)
        if isinstance(step, Attempt):
            assert step.wait_ms == 400, "not a millisecond before it was asked to"


def test_another_server_need_not_wait_for_the_first_ones_retry_after() -> None:
    facts = Facts(left_ms=1_000, whole_ms=1_000, open=(0, 1))
    so_far = tried(BEGINNING, 0, STATUSES[429], hint_ms=60_000)
    step = next_step(Kind(repeat=True), so_far, facts, Terms())
    assert step == Attempt(1, 500, 0, COST_THROTTLED)


def test_a_server_may_forbid_more_attempts() -> None:
    facts = Facts(left_ms=1_000, whole_ms=1_000, open=(0, 1), outbox=True)
    so_far = tried(BEGINNING, 0, STATUSES[503], forbidden=True)
    assert next_step(Kind(repeat=True), so_far, facts, Terms()) == Keep()


def test_one_who_hangs_leaves_time_for_another() -> None:
    """What may be repeated has half of the time for each attempt but the last; what may not has all
    of it, for there is no second, and so has a server that is the only one."""
    for repeat, servers, timeout in ((True, 3, 4_000), (False, 3, 8_000), (True, 1, 8_000)):
        facts = Facts(left_ms=8_000, whole_ms=8_000, open=tuple(range(servers)))
        step = next_step(Kind(repeat=repeat), BEGINNING, facts, Terms())
        assert isinstance(step, Attempt)
        assert step.timeout_ms == timeout


def test_full_jitter_is_anything_up_to_the_cap() -> None:
    spans = [full_jitter(n, first_ms=50, most_ms=1_000, chance=0.999) for n in range(8)]
    assert spans == [49, 99, 199, 399, 799, 999, 999, 999]
    assert full_jitter(3, first_ms=50, most_ms=1_000, chance=0.0) == 0
    assert full_jitter(10**9, first_ms=50, most_ms=1_000, chance=0.5) == 500


@pytest.mark.parametrize(
    ("kind", "asked", "usual", "others", "affordable", "after"),
    [
        (Kind(repeat=True), True, 40, 1, True, 40),
        (Kind(repeat=False, safe=True), True, 40, 1, True, 40),
        (Kind(repeat=True), True, 3, 1, True, 10),
        (Kind(repeat=True), False, 40, 1, True, None),
        (Kind(repeat=False), True, 40, 1, True, None),
        (Kind(repeat=True, contended=True), True, 40, 1, True, None),
        (Kind(repeat=True), True, None, 1, True, None),
        (Kind(repeat=True), True, 40, 0, True, None),
        (Kind(repeat=True), True, 40, 1, False, None),
    ],
)
def test_who_is_asked_twice(
    kind: Kind, asked: bool, usual: int | None, others: int, affordable: bool, after: int | None
) -> None:
    """Only what may be repeated, where it was asked for, is known to be slow, and is paid for."""
    found = hedge_after_ms(
        kind, asked=asked, usual_ms=usual, least_ms=10, others=others, affordable=affordable
    )
    assert found == after
