"""A bench: the place where one run of measurements happens.

    Bench       cores, folder, how long and how often: what every row is given
    Row         one line of the table: our number, what it is compared with, what it should reach

A row never fails the run: what cannot be measured says why in `not_run`. Results are data; how
they look is `table`'s.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Judged = Literal["", "no", "first", "yes"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row should reach: first one figure, then a better one."""

    first: float
    then: float | None = None
    at_most: bool = False
    unit: str = ""

    def judge(self, value: float | None) -> Judged:
        if value is None:
            return ""
        best = self.first if self.then is None else self.then
        if self._met(value, best):
            return "yes"
        return "first" if self._met(value, self.first) else "no"

    def _met(self, value: float, figure: float) -> bool:
        return value < figure if self.at_most else value >= figure


@dataclass(slots=True)
class Row:
    """One line of the table."""

    what: str
    ours: float | None = None
    unit: str = "/s"
    compared_with: str = ""
    theirs: float | None = None
    goal: Goal | None = None
    goal_on: Literal["ours", "ratio", "difference"] = "ours"
    """Which number the goal is about."""
    note: str = ""
    not_run: str = ""
    runs: dict[str, list[float]] = field(default_factory=dict)
    """Every single run, by what was measured."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def judged(self) -> Judged:
        if self.goal is None or self.ours is None:
            return ""
        if self.goal_on == "ratio":
            return self.goal.judge(self.ratio)
        if self.goal_on == "difference":
            return self.goal.judge(self.ours - (self.theirs or 0))
        return self.goal.judge(self.ours)


@dataclass(slots=True)
class Bench:
    measured_core: int
    load_core: int
    folder: Path
    """On a real disk: its syncs are part of what is measured."""
    seconds: float = 4.0
    runs: int = 3
    connections: int = 64
    backlog: int = 50_000
    deep: int = 10_000_000
    restate: bool = True
    extra: tuple[str, ...] = ()
    """More arguments for `unspool serve`."""
    _folders: int = 0

    def new_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def settle(self) -> None:
        """What earlier runs left to be written goes to the disk now, not during the next."""
        os.sync()
