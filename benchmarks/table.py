"""The table: rows as people read them, and as JSON.

render(rows, facts) -> str          the head and one Markdown table
as_json(rows, facts) -> dict        the same, with every single run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .bench import Goal, Row

HEAD = ("what", "unspool", "compared with", "ratio", "reach", "reached?")
WORDS = {"": "", "no": "no", "first": "the first", "yes": "yes"}


def number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "/s":
        return f"{value / 1000:.1f} k/s" if value >= 1000 else f"{value:.0f} /s"
    if unit == "ms":
        return f"{value:.2f} ms"
    if unit == "MB":
        return f"{value:.0f} MB"
    return f"{value:.2f}{unit}"


def reach(row: Row) -> str:
    goal = row.goal
    if goal is None:
        return ""
    sign = "<" if goal.at_most else "≥"
    text = f"{sign} {_figure(goal.first, row, goal)}"
    if goal.then is not None:
        text += f", then {_figure(goal.then, row, goal)}"
    if row.goal_on == "difference":
        text += " more"
    return text


def _figure(value: float, row: Row, goal: Goal) -> str:
    if row.goal_on == "ratio":
        return f"{value:g} ×"
    if row.unit == "/s":
        return f"{value / 1000:g} k/s"
    return f"{value:g} {row.unit}"


def cells(row: Row) -> tuple[str, ...]:
    if row.not_run:
        return (row.what, f"not run: {row.not_run}"[:60], row.compared_with, "", reach(row), "")
    theirs = number(row.theirs, row.unit)
    compared = f"{row.compared_with} {theirs}".strip()
    ratio = ""
    if row.goal_on == "difference" and row.ours is not None and row.theirs is not None:
        ratio = f"{row.ours - row.theirs:+.2f} {row.unit}"
    elif row.ratio is not None:
        ratio = f"{row.ratio:.2f} ×"
    return (
        row.what,
        number(row.ours, row.unit),
        compared,
        ratio,
        reach(row),
        WORDS[row.judged],
    )


def render(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    lines = [f"{name}: {value}" for name, value in facts.items() if value]
    table = [HEAD, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    lines.append("")
    for place, line in enumerate(table):
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        lines.append("| " + " | ".join(padded) + " |")
        if place == 0:
            lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"{row.what}: {row.note}" for row in rows if row.note]
    notes += [f"{row.what}: not run: {row.not_run}" for row in rows if len(row.not_run) > 50]
    return "\n".join([*lines, "", *notes])


def as_json(rows: Sequence[Row], facts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "facts": dict(facts),
        "rows": [{**asdict(row), "ratio": row.ratio, "reached": row.judged} for row in rows],
    }
