"""The table, live on a terminal and as plain lines elsewhere.

    screen = Live(ink) if … else Plain(ink)
    screen.say("the service is killed: kill -9", view)     something happened
    screen.show(view)                                      draw how it stands
    screen.leave()                                         the cursor is the shell's again

A row of the table is a weather: the orders that were sent in it, and what has become of them since.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from .tally import Tally

PROGRESS_S: Final = 3.0
"""How often plain output says how it stands."""
WIDTH: Final = 80
HEIGHT: Final = 20


class Ink:
    """Colours, or none of them."""

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured

    def _paint(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text

    def bold(self, text: str) -> str:
        return self._paint(1, text)

    def dim(self, text: str) -> str:
        return self._paint(2, text)

    def good(self, text: str) -> str:
        return self._paint(32, text)

    def bad(self, text: str) -> str:
        return self._paint(31, text)


@dataclass(frozen=True)
class Row:
    """One weather: what was sent in it by either road, and what has become of that."""

    at_s: float
    title: str
    through: Tally
    straight: Tally


@dataclass(frozen=True)
class View:
    """How it stands."""

    at_s: float
    total: Row
    rows: Sequence[Row] = field(default_factory=tuple)
    waiting: int | None = None
    """In the relay's spool, as it says; None: it does not answer."""


class Screen(Protocol):
    def say(self, words: str, view: View) -> None: ...
    def show(self, view: View) -> None: ...
    def leave(self) -> None: ...


def screen(ink: Ink, *, plain: bool) -> Screen:
    """The best this output can do."""
    size = shutil.get_terminal_size()
    able = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    roomy = size.columns >= WIDTH and size.lines >= HEIGHT
    return Live(ink) if able and roomy and not plain else Plain(ink)


def colours() -> bool:
    """Colours only on a terminal that has them, and not where somebody said NO_COLOR."""
    able = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return able and not os.environ.get("NO_COLOR")


class Plain:
    """A line when something happens, and one every few seconds to say how it stands."""

    def __init__(self, ink: Ink) -> None:
        self._ink = ink
        self._said_at = 0.0

    def say(self, words: str, view: View) -> None:
        print(f"{view.at_s:3.0f} s  {self._ink.bold(words)}", flush=True)

    def show(self, view: View) -> None:
        if view.at_s - self._said_at < PROGRESS_S:
            return
        self._said_at = view.at_s
        through, straight = view.total.through, view.total.straight
        waiting = "?" if view.waiting is None else view.waiting
        print(
            f"{view.at_s:3.0f} s    sent {through.sent}, at once {through.answered}, "
            f"saved {through.saved}, delivered later {through.delivered_later}, "
            f"waiting {waiting} | straight: failed {straight.failed}, "
            f"missing {straight.missing}",
            flush=True,
        )

    def leave(self) -> None:
        """Nothing to put back."""


class Live:
    """A table that is drawn again and again in the same place."""

    def __init__(self, ink: Ink) -> None:
        self._ink = ink
        self._drawn = 0
        self._words: list[str] = []

    def say(self, words: str, view: View) -> None:
        lines = textwrap.wrap(f"{view.at_s:3.0f}s {words}", WIDTH - 1, subsequent_indent=" " * 5)
        self._words = [*self._words, *lines][-3:]
        self.show(view)

    def show(self, view: View) -> None:
        ink = self._ink
        waiting = "the relay is down" if view.waiting is None else f"{view.waiting:5}"
        lines = [
            ink.dim(f"{'':18}{'through the relay':^38}  {'straight to the service':^23}"),
            ink.dim(
                f"time {'weather':13}{'sent':>6}{'at once':>8}{'saved':>7}{'later':>8}"
                f"{'missing':>9}{'answered':>10}{'failed':>7}{'missing':>8}"
            ),
            *(self._row(row) for row in view.rows),
            ink.bold(self._row(view.total, painted=False)),
            f"     waiting in the relay's spool: {waiting}",
            f"     sent again, with the same key: {view.total.through.sent_again:5}",
            ink.dim("     missing: sent, and not (yet) in the service's own ledger"),
            "",
            *(ink.bold(line) for line in self._words),
        ]
        again = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "\x1b[?25l"
        self._drawn = len(lines)
        sys.stdout.write(again + "\n".join(lines) + "\n")
        sys.stdout.flush()

    def leave(self) -> None:
        if self._drawn:
            sys.stdout.write("\x1b[?25h")
            sys.stdout.flush()

    def _row(self, row: Row, *, painted: bool = True) -> str:
        ink = self._ink if painted else Ink(coloured=False)
        through, straight = row.through, row.straight
        gone = f"{through.missing:9}"
        lost = f"{straight.missing:8}"
        return (
            f"{row.at_s:3.0f}s {row.title:13}{through.sent:6}{through.answered:8}"
            f"{through.saved:7}{through.delivered_later:8}"
            f"{gone if through.missing else ink.good(gone)}"
            f"{straight.answered:10}{straight.failed:7}"
            f"{ink.bad(lost) if straight.missing else lost}"
        )
