"""The picture: two charts of an experiment as SVG, written by hand, with the same bytes each time.

draw(plan, {"naive": series, "unspool": series}) -> str
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .world import Plan, Series

WIDTH: Final = 760
HEIGHT: Final = 560
LEFT: Final = 56
RIGHT: Final = 16
SMOOTH_S: Final = 10
"""A point is the mean of so many seconds around it."""

NAIVE: Final = "#c0392b"
OURS: Final = "#1f6feb"
SAVED: Final = "#7fb2ff"
GREY: Final = "#57606a"


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    values: Sequence[float]
    dash: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    top: int
    height: int
    most: float
    step: float
    lines: Sequence[Line]


def smooth(row: Sequence[float]) -> list[float]:
    half = SMOOTH_S // 2
    means = []
    for at in range(len(row)):
        part = row[max(0, at - half) : at + half]
        means.append(sum(part) / len(part))
    return means


def ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b if b else 0.0 for a, b in zip(smooth(above), smooth(below), strict=True)]


def draw(plan: Plan, found: Mapping[str, Series]) -> str:
    naive, ours = found["naive"], found["unspool"]
    both = [now + late for now, late in zip(ours.good, ours.later, strict=True)]
    answered = Chart(
        "Requests a second that the service answered and somebody wanted", 40, 200,
        plan.capacity + 2, 2,
        [
            Line("asked", GREY, smooth(naive.asked), "2 3"),
            Line("unspool, outbox as well", SAVED, smooth(both), "6 3"),
            Line("unspool, while the caller waited", OURS, smooth(ours.good)),
            Line("naive retries", NAIVE, smooth(naive.good)),
        ],
    )  # fmt: skip
    amplified = Chart(
        "Attempts that reach the service, for each new request", 320, 180, 5, 1,
        [
            Line("unspool", OURS, ratio(ours.attempts, ours.asked)),
            Line("naive retries", NAIVE, ratio(naive.attempts, naive.asked)),
        ],
    )  # fmt: skip
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        '<g font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for chart in (answered, amplified):
        parts += _chart(plan, chart)
    return "\n".join([*parts, "</g></svg>", ""])


def _chart(plan: Plan, chart: Chart) -> Iterator[str]:
    bottom = chart.top + chart.height
    wide = WIDTH - LEFT - RIGHT

    def x(second: float) -> float:
        return LEFT + wide * second / plan.lasts

    def y(value: float) -> float:
        return bottom - chart.height * min(value, chart.most) / chart.most

    yield f'<text x="{LEFT}" y="{chart.top - 14}" font-weight="600">{chart.title}</text>'
    begin, end = x(plan.trouble_from), x(plan.trouble_to)
    yield (
        f'<rect x="{begin:.1f}" y="{chart.top}" width="{end - begin:.1f}"'
        f' height="{chart.height}" fill="#fff3cd"/>'
    )
    yield _text(
        begin + 4, chart.top + 14,
        f"capacity {plan.capacity_in_trouble:g}/s instead of {plan.capacity:g}/s", GREY,
    )  # fmt: skip
    value = 0.0
    while value <= chart.most:
        yield f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#d8dee4"/>'
        yield _text(LEFT - 8, y(value) + 4, f"{value:g}", GREY, "end")
        value += chart.step
    for second in range(0, plan.lasts + 1, 60):
        yield _text(x(second), bottom + 18, f"{second} s", GREY, "middle")
    for line in chart.lines:
        points = " ".join(
            f"{x(second + 0.5):.1f},{y(value):.1f}" for second, value in enumerate(line.values)
        )
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        yield (
            f'<polyline points="{points}" fill="none" stroke="{line.colour}"'
            f' stroke-width="2"{dash}/>'
        )
    at = LEFT
    for line in chart.lines:
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        yield f'<path d="M{at} {bottom + 34}h22" stroke="{line.colour}" stroke-width="2"{dash}/>'
        yield _text(at + 28, bottom + 38, line.name, "#1f2328")
        at += 46 + round(6.4 * len(line.name))


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{text}</text>'
