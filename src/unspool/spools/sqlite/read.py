"""Reading the SQLite spool: for receipts, the dispatcher and people. Changes nothing.

    find · survey · browse · tally     each takes a connection and gives values
    rows(…)                            the rows of a statement with COLUMNS, whatever is in them

`find`, `browse` and `survey` also give the ids of rows that are spoilt: whoever may write sets them
aside. One text that is no UTF-8 stops SQLite's reader in the middle of a statement, and with it all
that the statement was for; then it is read again with texts as bytes. Nobody pays for it before.

Bugs: `browse` (but by key) and `tally` walk the table, ten million rows in a second or a few. They
do it in steps, so that no reader holds the WAL for long, and show what moved in between as they
find it. An index on the sender's key would make each keyed accept a quarter dearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw
import msgspec

from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key
from ...core.record import Spoilt
from ..protocol import Entry, LaneDue, Query, Tally
from .schema import (
    COLUMNS,
    FIND,
    READY_FOR,
    SPOILT,
    SURVEY,
    as_bytes,
    decoded,
    entry_of,
)

TALLY_ROWS: Final = 50_000
"""Ids looked at in one step of a tally."""
SPOILT_MAX: Final = 1_000
"""Rows without a destination that are set aside after one survey."""
BROWSE_ROWS: Final = 200_000
"""Ids looked at in one step of browsing for what has no index."""

encode_json: Final = msgspec.json.Encoder().encode


def names(keys: Sequence[str]) -> str:
    """Keys as json_each wants them."""
    return encode_json(keys).decode()


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


def rows(connection: apsw.Connection, statement: str, values: Sequence[Any]) -> Sequence[Any]:
    found: Sequence[Any]
    try:
        found = connection.execute(statement, values).fetchall()
    except UnicodeDecodeError:
        found = [decoded(row) for row in connection.execute(as_bytes(statement), values)]
    return found


def find(
    connection: apsw.Connection, keys: Sequence[Key]
) -> tuple[Sequence[Entry | None], Sequence[int]]:
    found: dict[Key, Entry] = {}
    spoilt: list[int] = []
    for row in rows(connection, FIND, (names(keys),)):
        try:
            found[row[1]] = entry_of(row)
        except Spoilt:
            spoilt.append(row[0])
    return [found.get(key) for key in keys], spoilt


def survey(
    connection: apsw.Connection, after: Destination | None, limit: int
) -> tuple[Sequence[LaneDue], Sequence[int]]:
    # The least name behind `after` is `after` with a NUL behind it.
    first = "" if after is None else after + "\0"
    lanes: list[LaneDue] = []
    spoilt: list[int] = []
    found: Any = connection.execute(SURVEY, (first, limit)).fetchall()
    for destination, due_at in found:
        try:
            lanes.append(LaneDue(Destination(str(destination, "utf-8")), Instant(due_at)))
        except UnicodeDecodeError:
            of_it: Any = connection.execute(READY_FOR, (destination, SPOILT_MAX)).fetchall()
            spoilt += [id_ for (id_,) in of_it]
    return lanes, spoilt


def browse(
    connection: apsw.Connection,
    query: Query,
    after: Key | None,
    limit: int,
    requests: bool,
    *,
    step: int = BROWSE_ROWS,
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
        f" WHERE m.id > ? AND m.id <= ? AND m.state < {SPOILT}{conditions} ORDER BY m.id LIMIT ?"
    )
    entries: list[Entry] = []
    spoilt: list[int] = []
    last = _last(connection)
    while place < last and len(entries) < limit:
        wanted = limit - len(entries)
        found = rows(connection, statement, (place, place + step, *values, wanted))
        # A page is short only at the end: one that is spoilt takes nobody's place in it.
        place = found[-1][0] if len(found) == wanted else place + step
        for row in found:
            try:
                entries.append(entry_of(row))
            except Spoilt:
                spoilt.append(row[0])
    return entries, spoilt


def _last(connection: apsw.Connection) -> int:
    last: Any
    [[last]] = connection.execute("SELECT coalesce(max(id), 0) FROM message").fetchall()
    return int(last)


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
    if query.key is not None:
        conditions.append("m.key = ?")
        values.append(query.key)
    if query.held is not None:
        conditions.append(held if query.held else f"NOT {held}")
    return "".join(f" AND {condition}" for condition in conditions), tuple(values)


def tally(connection: apsw.Connection, edges: Sequence[Instant]) -> Sequence[Tally]:
    slot = " + ".join(["0", *["(accepted_at < ?)"] * len(edges)])
    statement = (
        f"SELECT CAST(destination AS BLOB), {slot} AS slot, due_at = {NEVER} AS held, count(*),"
        f" min(accepted_at) FROM message WHERE id > ? AND id <= ? AND state = {State.WAITING.value}"
        " GROUP BY destination, slot, held"
    )
    counts: dict[str, list[int]] = {}
    held: dict[str, int] = {}
    oldest: dict[str, int] = {}
    for start in range(0, _last(connection), TALLY_ROWS):
        window = (*edges, start, start + TALLY_ROWS)
        counted: Any = connection.execute(statement, window)
        for bytes_, place, is_held, count, accepted_at in counted:
            name = str(bytes_, "utf-8", "replace")
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
