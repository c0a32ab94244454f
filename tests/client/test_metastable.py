"""An overload that its cause outlives with naive retries, and that the client ends."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from examples.metastable.draw import draw
from examples.metastable.world import PLAN, Series, experiment

from unspool.client.budget import PART

PICTURE = Path(__file__).parents[2] / "docs" / "explanation" / "metastable.svg"
BACK_S = 30
"""Until the service does as much as is asked of it."""
CALM_S = 60
"""Until callers get it at once again."""


@cache
def made(kind: str, seed: int) -> Series:
    return experiment(kind, replace(PLAN, seed=seed))


def rate(row: list[int], begin: int, end: int) -> float:
    return sum(row[begin:end]) / (end - begin)


@pytest.mark.parametrize("seed", [1, 2])
def test_naive_retries_stay_collapsed_when_the_cause_has_gone(seed: int) -> None:
    """Before the trouble all is well; three minutes after it nobody gets an answer."""
    series = made("naive", seed)
    assert rate(series.good, 0, PLAN.trouble_from) > 0.95 * rate(series.asked, 0, PLAN.trouble_from)
    assert sum(series.good[PLAN.trouble_to :]) == 0
    assert rate(series.wasted, PLAN.trouble_to, PLAN.lasts) > 0.95 * PLAN.capacity
    assert rate(series.attempts, 200, PLAN.lasts) > 3.5 * rate(series.asked, 200, PLAN.lasts)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_client_recovers_and_loses_nothing(seed: int) -> None:
    series = made("unspool", seed)
    back = PLAN.trouble_to + BACK_S
    done = rate(series.good, back, back + 30) + rate(series.later, back, back + 30)
    assert done > 0.9 * rate(series.asked, back, back + 30)
    calm = PLAN.trouble_to + CALM_S
    assert rate(series.good, calm, PLAN.lasts) > 0.9 * rate(series.asked, calm, PLAN.lasts)
    assert series.lost == 0
    # Those whose call was under way at the end were not counted as anything.
    ended = sum(series.good) + sum(series.later) + series.waiting
    assert sum(series.asked) - ended <= PLAN.asked * PLAN.deadline


@pytest.mark.parametrize("seed", [1, 2])
def test_the_client_multiplies_no_more_than_its_budget_allows(seed: int) -> None:
    """In the trouble less reaches the service than is asked, and never a tenth more in ten seconds
    but for the three that may be under way at once and what comes out of the outbox afterwards."""
    series = made("unspool", seed)
    trouble = slice(PLAN.trouble_from, PLAN.trouble_to)
    assert sum(series.attempts[trouble]) < sum(series.asked[trouble])
    for second in range(PLAN.trouble_from, PLAN.trouble_to, 10):
        asked = sum(series.asked[second : second + 10])
        assert sum(series.attempts[second : second + 10]) <= (1 + PART) * asked + 10
    assert sum(series.attempts) <= 1.2 * sum(series.asked)


def test_it_is_the_same_each_time_and_the_picture_shows_it() -> None:
    """If this fails, a change of the client changed the picture. See whether it still shows what
    docs/explanation/retries.md says, and draw it anew:
    python -m examples.metastable docs/explanation/metastable.svg"""
    found = {kind: made(kind, PLAN.seed) for kind in ("naive", "unspool")}
    drawn = draw(PLAN, found)
    xml.fromstring(drawn)
    assert drawn == PICTURE.read_text("utf-8")
