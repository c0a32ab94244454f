"""The pages say what there is: options, checks, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from django.core.management import get_commands

from unspool.middleware.django.checks import CHECKS
from unspool.middleware.django.keeper import KNOWN, OURS
from unspool.middleware.django.route import FOR_A_ROUTE

DOCS = Path(__file__).parent.parent.parent / "docs"


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The table whose head begins so."""
    table = (DOCS / page).read_text("utf-8").split(f"\n| {heading} |", 1)[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_option_that_the_settings_may_have_is_there() -> None:
    told = {row[0].strip("`") for row in rows("reference/options.md", "option")}
    assert told == KNOWN - {*OURS, "survives"}  # that one stands above the table
    assert told >= FOR_A_ROUTE


def test_every_member_of_the_settings_is_there() -> None:
    assert {row[0].strip("` ") for row in rows("howto/django.md", "`UNSPOOL`")} == set(OURS)


def test_every_check_is_there() -> None:
    told = {row[0].strip("` "): row[1] for row in rows("howto/django.md", "id")}
    assert told == CHECKS


def test_every_command_is_there() -> None:
    ours = {name for name, app in get_commands().items() if app == "unspool.middleware.django"}
    text = (DOCS / "howto/django.md").read_text("utf-8")
    assert ours == set(re.findall(r"\| `(unspool_\w+)", text))
