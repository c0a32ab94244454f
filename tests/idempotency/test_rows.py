"""Every row of the conformance table, at every target (docs/reference/idempotency.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from places import BY_DESIGN, ELSEWHERE, NOT_DONE
from targets import TARGETS

from unspool.testing.idempotency import ASKED, ROWS, SECTIONS, Came
from unspool.testing.idempotency.service import CALLERS, MOUNTS, NEEDS, PLACES

ON_THE_WIRE = [name for name in ROWS if name not in ELSEWHERE and name not in NOT_DONE]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ON_THE_WIRE)
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


def test_the_table_is_whole() -> None:
    """Each row is asked in one way, or is shown elsewhere, or is not done; and needs what is."""
    for name, row in ROWS.items():
        assert name[0] in SECTIONS
        assert row.level in ("M", "S")
        assert row.sentence.endswith(".")
        off_the_wire = bool({"processes", "inside"} & set(row.needs))
        assert (name in ASKED) == (not off_the_wire), name
        assert off_the_wire == (name in ELSEWHERE or name in NOT_DONE), name
        for need in (*row.needs, *row.some):
            assert need in {**NEEDS, **MOUNTS, **CALLERS, **PLACES}, need
    assert set(ASKED) <= set(ROWS)
    assert not {row for rows in BY_DESIGN.values() for row in rows} - set(ASKED)
    used = {need for row in ROWS.values() for need in (*row.needs, *row.some)}
    assert used | {"count"} == set({**NEEDS, **MOUNTS, **CALLERS, **PLACES})
