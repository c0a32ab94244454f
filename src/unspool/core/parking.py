"""Parking: a message that is moved in waits, held, until its old spool has let it go. Pure.

    park(trail, due_at, number, now) -> trail       held, with a mark that remembers when it was due
    unpark(trail) -> (due_at, trail) | None         as it was before; None: it is not parked

The mark is the last attempt of the trail, for that is what every spool keeps and every operator
sees: whoever finds a parked message can tell what it is and what to do.
"""

from __future__ import annotations

import re
from typing import Final

from .message import NEVER, Attempt, Instant, Sent

PARKED: Final = "moved in; held until its old spool lets go: run the same `unspool move` again"
_DUE: Final = re.compile(r"due ([0-9]{1,16})")

Trail = tuple[Attempt, ...]


def park(trail: Trail, *, due_at: Instant, number: int, now: Instant) -> Trail:
    return (*trail, Attempt(number, now, 0, PARKED, Sent.NEVER.value, f"due {due_at}"))


def unpark(trail: Trail) -> tuple[Instant, Trail] | None:
    if not trail or trail[-1].cause != PARKED:
        return None
    found = _DUE.fullmatch(trail[-1].location)
    if found is None or int(found[1]) > NEVER:
        return None
    return Instant(int(found[1])), trail[:-1]
