"""Budgets: a dead service is not asked more than it can be, and a recovered one is found out."""

from __future__ import annotations

from unspool.client.budget import CAPACITY, Budget, Hedges, Throttle, Usual, Window


def test_a_full_bucket_pays_for_35_attempts_at_a_dead_service() -> None:
    """AWS's standard mode of 2026; and one success pays one token back."""
    budget = Budget()
    for second in range(2_000):  # so many requests that a tenth of them is no limit
        budget.asks(second)
    paid = 0
    while budget.tokens(2_000) >= 14:
        budget.pay(14, 2_000)
        budget.done()
        paid += 1
    assert paid == 35
    budget.good(0)
    assert budget.level == CAPACITY - 35 * 14 + 1
    budget.good(14)
    assert budget.level == CAPACITY - 34 * 14 + 1


def test_further_attempts_are_a_tenth_or_three_at_a_time() -> None:
    budget = Budget()
    for _ in range(10):
        budget.asks(0)
    for _ in range(3):
        assert budget.tokens(0)
        budget.pay(14, 0)
    assert not budget.tokens(0), "a fourth at the same time, of ten requests"
    budget.done()
    assert budget.tokens(0)
    for _ in range(90):
        budget.asks(0)
    budget.pay(14, 0)
    assert budget.tokens(0), "four of a hundred"


def test_the_throttle_lets_everything_through_that_is_accepted() -> None:
    throttle = Throttle()
    for now in range(0, 10_000, 10):
        throttle.asks(now)
        throttle.accepted(now)
    assert throttle.drop(10_000) == 0


def test_the_throttle_never_drops_all() -> None:
    """At most three of four: else nobody would notice that the service is back."""
    throttle = Throttle()
    for now in range(0, 10_000, 10):
        throttle.asks(now)
    assert throttle.drop(10_000) == 0.75


def test_the_throttle_does_not_judge_by_a_few() -> None:
    throttle = Throttle()
    for now in range(0, 10_000, 500):
        throttle.asks(now)
    assert throttle.drop(10_000) == 0


def test_the_throttle_forgets_after_two_minutes() -> None:
    throttle = Throttle()
    for now in range(0, 10_000, 10):
        throttle.asks(now)
    for now in range(131_000, 141_000, 10):
        throttle.asks(now)
        throttle.accepted(now)
    assert throttle.drop(141_000) == 0


def test_a_window_counts_what_lies_within_it() -> None:
    window = Window(12_000)
    for now in range(0, 30_000, 1_000):
        window.add(now)
    assert 11 <= window.count(29_999) <= 13
    assert window.count(60_000) == 0


def test_what_is_usual_is_known_after_a_few() -> None:
    usual = Usual()
    for ms in range(19):
        usual.took(ms)
    assert usual.p95() is None
    usual.took(1_000)
    assert usual.p95() == 1_000


def test_hedges_are_one_in_a_hundred_and_none_in_need() -> None:
    hedges, budget = Hedges(), Budget()
    for _ in range(99):
        hedges.request(0)
    assert not hedges.may(0, budget)
    hedges.request(0)
    assert hedges.may(0, budget)
    hedges.asks(0)
    assert not hedges.may(0, budget)
    for _ in range(1_000):
        hedges.request(0)
    assert hedges.may(0, budget)
    budget.level = CAPACITY // 2 - 1
    assert not hedges.may(0, budget)
