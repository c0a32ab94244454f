"""Every row of the conformance table, at every target (docs/reference/idempotency.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import BY_DESIGN, ELSEWHERE, HERE, NOT_DONE
from record import cells, recorded
from targets import TARGETS

from unspool.testing.idempotency import ASKED, ROWS, SECTIONS, Came
from unspool.testing.idempotency.service import CALLERS, MOUNTS, NEEDS, PLACES

pytestmark = pytest.mark.timeout(300)
"""The first test of a target waits until it has been asked everything."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ASKED)
def test_row(row: str, target: str, asked: Callable[[str], Any]) -> None:
    """The row's own sentence: it holds, or a sentence says why it cannot."""
    result = asked(target).results[row]
    expected = Came.BY_DESIGN if row in BY_DESIGN[target] else Came.PASSED
    assert result.came is expected, f"{row}: {ROWS[row].sentence} Here: {result.seen}"


@pytest.mark.parametrize("target", TARGETS)
def test_keys_do_not_stand_in_logs(target: str, asked: Callable[[str], Any]) -> None:
    """D6: with everything logged that there is, no key is."""
    logs = asked(target).logs
    assert logs, "nothing was logged, so nothing is shown"
    assert not re.findall(r"k[0-9a-f]{32}", logs)


@pytest.mark.parametrize("target", TARGETS)
def test_the_docs_say_what_came(target: str, asked: Callable[[str], Any]) -> None:
    """docs/reference/idempotency.md is made from what came of the rows, last time and now."""
    assert recorded()["targets"][target] == cells(target, asked(target).results), (
        "run python tests/idempotency/record.py, and look at what changed"
    )


def test_the_docs_give_the_reasons_that_the_tests_give() -> None:
    found = recorded()
    assert found["by_design"] == BY_DESIGN
    assert found["elsewhere"] == {row: dict(where) for row, where in ELSEWHERE.items()}
    assert found["not_done"] == NOT_DONE


def test_the_table_is_whole() -> None:
    """Each row is asked in one way, or is shown elsewhere, or is not done; and needs what is."""
    for name, row in ROWS.items():
        assert name[0] in SECTIONS
        assert row.level in ("M", "S")
        assert row.sentence.endswith(".")
        off_the_wire = bool({"processes", "inside"} & set(row.needs))
        assert (name in ASKED) == (not off_the_wire), name
        for target in HERE:
            if off_the_wire and name not in BY_DESIGN[target] and name not in NOT_DONE:
                assert target in ELSEWHERE[name], f"{name}: who shows it of {target}?"
        for need in (*row.needs, *row.some):
            assert need in {**NEEDS, **MOUNTS, **CALLERS, **PLACES}, need
    assert set(ASKED) <= set(ROWS)
    assert {*ELSEWHERE, *NOT_DONE, *(row for rows in BY_DESIGN.values() for row in rows)} <= set(
        ROWS
    )
    used = {need for row in ROWS.values() for need in (*row.needs, *row.some)}
    assert used | {"count"} == set({**NEEDS, **MOUNTS, **CALLERS, **PLACES})


def test_what_is_shown_elsewhere_is_there() -> None:
    root = Path(__file__).parents[2]
    for row, where in ELSEWHERE.items():
        for target, place in where.items():
            assert (root / place).exists(), f"{row} of {target}: {place}"


def test_what_must_hold_is_done() -> None:
    """A sentence may excuse a row that should hold, never one that must."""
    assert {ROWS[row].level for row in NOT_DONE} == {"S"}
    said = recorded()["targets"]
    assert not {(t, row) for t in said for row in ROWS if said[t][row] == "no"} - {
        (t, row) for t in said for row in NOT_DONE
    }
