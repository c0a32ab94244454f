"""Reading the SQLite spool: for receipts, the dispatcher and people. Changes nothing.

    find · survey · browse · tally     each takes a connection and gives values

`find` and `browse` also give the ids of rows whose records are spoilt: whoever may write sets them
aside.

Bugs: `browse` and `tally` walk the table; `tally` does it in steps, so that no reader holds the WAL
for long, and counts what moved in between as it found it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw
import msgspec

from ..core.lifecycle import State
from ..core.message import NEVER, Destination, Instant, Key
from ..core.record import Spoilt
from .protocol import Entry, LaneDue, Query, Tally
from .sqlite_schema import COLUMNS, FIND, SPOILT, SURVEY, entry_of

TALLY_ROWS: Final = 50_000
"""Ids looked at in one step of a tally."""

encode_json: Final = msgspec.json.Encoder().encode


def names(keys: Sequence[str]) -> str:
    """Keys as json_each wants them."""
    return encode_json(keys).decode()


def find(
    connection: apsw.Connection, keys: Sequence[Key]
) -> tuple[Sequence[Entry | None], Sequence[int]]:
    found: dict[Key, Entry] = {}
    spoilt: list[int] = []
    for row in connection.execute(FIND, (names(keys),)):
        try:
            found[row[1]] = entry_of(row)
        except Spoilt:
            spoilt.append(row[0])
    return [found.get(key) for key in keys], spoilt


def survey(connection: apsw.Connection, after: Destination | None, limit: int) -> Sequence[LaneDue]:
    # The least name behind `after` is `after` with a NUL behind it.
    first = "" if after is None else after + "\0"
    return [
        LaneDue(Destination(destination), Instant(due_at))
        for destination, due_at in connection.execute(SURVEY, (first, limit))
    ]


def browse(
    connection: apsw.Connection, query: Query, after: Key | None, limit: int, requests: bool
) -> tuple[Sequence[Entry], Sequence[int]]:
    place = 0
    if after is not None:
        row = connection.execute("SELECT id FROM message WHERE key = ?", (after,)).fetchone()
        if row is None:
            return [], []
        place = row[0]
    conditions, values = _conditions(query)
    statement = (
        f"SELECT {COLUMNS}, {'b.request' if requests else 'NULL'}, NULL FROM message AS m"
        f"{' LEFT JOIN body AS b ON b.id = m.id' if requests else ''}"
        f" WHERE m.id > ? AND m.state < {SPOILT}{conditions} ORDER BY m.id LIMIT ?"
    )
    entries: list[Entry] = []
    spoilt: list[int] = []
    for row in connection.execute(statement, (place, *values, limit)):
        try:
            entries.append(entry_of(row))
        except Spoilt:
            spoilt.append(row[0])
    return entries, spoilt


def _conditions(query: Query) -> tuple[str, tuple[Any, ...]]:
    held = f"(m.state = {State.WAITING.value} AND m.due_at = {NEVER})"
    conditions: list[str] = []
    values: list[Any] = []
    if query.destination is not None:
        conditions.append("m.destination = ?")
        values.append(query.destination)
    if query.state is not None:
        conditions.append("m.state = ?")
        values.append(query.state.value)
    if query.name is not None:
        conditions.append("m.name = ?")
        values.append(query.name)
    if query.held is not None:
        conditions.append(held if query.held else f"NOT {held}")
    return "".join(f" AND {condition}" for condition in conditions), tuple(values)


def tally(connection: apsw.Connection, edges: Sequence[Instant]) -> Sequence[Tally]:
    slot = " + ".join(["0", *["(accepted_at < ?)"] * len(edges)])
    statement = (
        f"SELECT destination, {slot} AS slot, due_at = {NEVER} AS held, count(*), min(accepted_at)"
        f" FROM message WHERE id > ? AND id <= ? AND state = {State.WAITING.value}"
        " GROUP BY destination, slot, held"
    )
    counts: dict[str, list[int]] = {}
    held: dict[str, int] = {}
    oldest: dict[str, int] = {}
    last: Any
    [[last]] = connection.execute("SELECT coalesce(max(id), 0) FROM message").fetchall()
    for start in range(0, last, TALLY_ROWS):
        window = (*edges, start, start + TALLY_ROWS)
        for name, place, is_held, count, accepted_at in connection.execute(statement, window):
            here = counts.setdefault(name, [0] * (len(edges) + 1))
            if is_held:
                held[name] = held.get(name, 0) + count
            else:
                here[place] += count
            oldest[name] = min(oldest.get(name, NEVER), accepted_at)
    return [
        Tally(Destination(name), tuple(counts[name]), held.get(name, 0), Instant(oldest[name]))
        for name in sorted(counts)
    ]


class Apart(Exception):
    """One of several verbs in a transaction had trouble: it was rolled back."""


class SpoiltRows(Exception):
    """Rows that cannot be read, found in the middle of a transaction."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(f"spoilt: {ids}")
        self.ids = ids


def entry_or_give_up(row: Sequence[Any]) -> Entry:
    try:
        return entry_of(row)
    except Spoilt as error:
        raise SpoiltRows([row[0]]) from error
