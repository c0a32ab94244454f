"""python -m examples.metastable [FILE]: run the experiment, say what came out, draw it.

Twice five minutes of a service, in virtual time, take some seconds. Without FILE nothing is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .draw import draw
from .world import PLAN, Series, experiment

KINDS = ("naive", "unspool")


def told(kind: str, series: Series) -> str:
    asked, attempts = sum(series.asked), sum(series.attempts)
    after = slice(PLAN.trouble_to + 60, PLAN.lasts)
    good, late = sum(series.good[after]), sum(series.later[after])
    return (
        f"{kind:8} {asked} asked; {attempts / asked:.2f} attempts for each;"
        f" {sum(series.good)} answered in time, {sum(series.later)} later, {series.waiting} still"
        f" waiting, {series.lost} lost; {sum(series.wasted)} done for nobody;"
        f" from a minute after the trouble on {good} of {sum(series.asked[after])} in time"
        + (f", and {late} out of the outbox" if late else "")
    )


def main(arguments: list[str]) -> None:
    found = {kind: experiment(kind, PLAN) for kind in KINDS}
    for kind, series in found.items():
        print(told(kind, series))
    if arguments:
        Path(arguments[0]).write_text(draw(PLAN, found), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
