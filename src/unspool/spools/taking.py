"""Taking and lending, for the spools that keep rows. Pure.

answers, fresh = taken(entries, known)     what becomes of a batch of newcomers, given what is known
                                           of their keys (2, 3). `fresh`: what is to be written;
                                           known keys among them are claims that were taken over,
                                           and go
lent = lend(rows, until, …)                leases of rows as they were before, and which rows are
                                           spoilt, and are to be set aside (12)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ..core.lifecycle import State
from ..core.message import Instant, Key, Value
from ..core.record import Spoilt
from .memory import bare
from .protocol import Acceptance, Duplicate, Entry, Lease, Mismatch, New

Row = Sequence[Any]
"""Its first column is the row's number."""


def taken(
    entries: Sequence[Entry], known: Mapping[Key, Entry]
) -> tuple[list[Acceptance], list[Entry]]:
    """The answers in the order of the entries, and what is new in the order of acceptance."""
    there = dict(known)
    fresh: dict[Key, Entry] = {}
    answers: list[Acceptance] = []
    for entry in entries:
        key = entry.message.key
        old = there.get(key)
        if old is not None:
            if old.message.fingerprint != entry.message.fingerprint:
                answers.append(Mismatch(bare(old)))
                continue
            if old.state is not State.CLAIMED or old.leased_until > entry.message.accepted_at:
                answers.append(Duplicate(bare(old)))
                continue
            entry = replace(entry, attempt=old.attempt + 1)  # taken over
            fresh.pop(key, None)  # it moves to the end of the order
        there[key] = fresh[key] = entry
        answers.append(New(entry))
    return answers, list(fresh.values())


class Lent(Value, frozen=True):
    """What came of rows that were to be leased."""

    leases: list[Lease]
    ids: list[int]
    """Their rows, in the same order."""
    spoilt: list[int]


def lend(
    rows: Sequence[Row],
    until: Instant,
    *,
    entry_of: Callable[[Row], Entry],
    abandoned: Callable[[Row], bool],
    whole: bool = True,
) -> Lent:
    """`entry_of` raises `Spoilt`. `whole`: a message without its request is spoilt, whatever took
    it."""
    lent = Lent([], [], [])
    for row in rows:
        try:
            entry = entry_of(row)
            if whole and entry.message.request is None:
                raise Spoilt("a message without its request")
        except Spoilt:
            lent.spoilt.append(row[0])
            continue
        leased = replace(entry, attempt=entry.attempt + 1, leased_until=until)
        lent.leases.append(Lease(leased, until, abandoned(row)))
        lent.ids.append(row[0])
    return lent
