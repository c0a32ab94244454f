"""docs/explanation/idempotency.md: what it says of us is a row of the conformance table."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.compare.packages import NOT_ASKED, SUBJECTS

from unspool.testing.idempotency import ROWS

PAGE = (Path(__file__).parents[2] / "docs/explanation/idempotency.md").read_text("utf-8")
ROW = re.compile(r"\b[A-HJ][1-9][0-9]?\b")


def table(after: str) -> list[list[str]]:
    """The cells of the first table behind this text, without its head."""
    lines = PAGE.split(after, 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found[2:]


def test_each_feature_of_ours_names_rows_that_there_are() -> None:
    """A tick without a row that shows it is a claim; three are no rows, and say so here."""
    rows = table("<!-- features")
    assert len(rows) > 25
    assert {len(row) for row in rows} == {17}
    for feature, ours, *_ in rows:
        named = ROW.findall(ours)
        assert set(named) <= set(ROWS), feature
        assert named or not ours.startswith("✓") or feature == "a kit to test stores with"


def test_every_package_that_is_asked_is_there() -> None:
    """The table on the page has each way in which `benchmarks.compare` sets each package up."""
    rows = table("The same questions, asked of others")
    named = [row[0] for row in rows]
    assert len(named) == len(SUBJECTS)
    for subject in SUBJECTS:
        assert any(subject.name in name for name in named), subject.name
    assert all(name in PAGE for name in NOT_ASKED)


def test_every_row_on_the_page_is_in_the_table() -> None:
    """No row is cited that does not exist."""
    text = re.sub(r"\bJ4\b(?=[ \n]*(idempotency4j|\|))|\bR\d+\b", "", PAGE)
    assert set(ROW.findall(text)) <= set(ROWS)
