"""Writing into the PostgreSQL spool: each in a transaction that the caller has begun.

take_new · take            entries in; None where it has to be done again, and nothing was done
settle · renew · seize     leases end, last, begin
set_aside                  what failed its checksum, out of everybody's way

What changes who stands in a line takes the line's lock first (5). Cursors that are returned have
their rows once the transaction has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ...core.lifecycle import State, Verdict
from ...core.message import Destination, Instant, Key
from ...core.record import Spoilt
from ..protocol import Acceptance, Entry, Lease, New
from ..taking import taken
from .link import Transaction
from .rows import (
    columns,
    entry_of,
    entry_row,
    line_lock,
    lines_of,
    packed,
    token_row,
    unpacked,
    verdict_row,
)

STATEMENT_BYTES: Final = 16 * 1024 * 1024
"""Of requests and answers in one statement: a batch of large ones is several."""

Line = tuple[Destination, str]


class SpoiltRows(Exception):
    """Rows that cannot be read, found in the middle of a transaction."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(f"spoilt: {ids}")
        self.ids = ids


async def take_new(tx: Transaction, entries: Sequence[Entry]) -> list[Acceptance] | None:
    """For keys that nobody knows, as nearly always: the index says so while it is written."""
    await _lock(tx, lines_of(entries))
    if not await _insert(tx, entries):
        tx.roll_back()
        return None
    return [New(entry) for entry in entries]


async def take(tx: Transaction, entries: Sequence[Entry]) -> list[Acceptance] | None:
    """The same where some are known. None: somebody else came in between. Raises `SpoiltRows`."""
    await _lock(tx, lines_of(entries))
    keys = sorted({packed(entry.message.key) for entry in entries})
    await tx.ask("lock_keys", keys=keys)
    rows = await (await tx.ask("find", keys=keys)).fetchall()
    known, ids, spoilt = _read(rows)
    if spoilt:
        raise SpoiltRows(spoilt)
    answers, fresh = taken(entries, known)
    gone = [ids[entry.message.key] for entry in fresh if entry.message.key in ids]
    if gone:
        await tx.ask("delete", ids=gone)
    if not await _insert(tx, fresh):
        tx.roll_back()
        return None
    return answers


def _read(rows: Sequence[Any]) -> tuple[dict[Key, Entry], dict[Key, int], list[int]]:
    known: dict[Key, Entry] = {}
    ids: dict[Key, int] = {}
    spoilt: list[int] = []
    for row in rows:
        try:
            entry = entry_of(row)
        except Spoilt:
            spoilt.append(row[0])
        else:
            known[entry.message.key] = entry
            ids[entry.message.key] = row[0]
    return known, ids, spoilt


async def _insert(tx: Transaction, entries: Sequence[Entry]) -> bool:
    """False: not all of them are new."""
    asked = [
        await tx.ask("accept", **columns(rows))
        for rows in _portions([entry_row(entry) for entry in entries])
    ]
    waiting = [entry for entry in entries if entry.state is State.WAITING]
    await _line_up(tx, lines_of(waiting), first=len(waiting) + 2)
    return sum([len(await cursor.fetchall()) for cursor in asked]) == len(entries)


async def lease(
    tx: Transaction, wants: Mapping[Destination, int], now: Instant, until: Instant
) -> Any:
    """A cursor with the rows as they were before, of all lanes."""
    return await tx.ask(
        "lease",
        destinations=[packed(destination) for destination in wants],
        limits=[*wants.values()],
        now=now,
        until=until,
    )


async def settle(tx: Transaction, settlements: Sequence[tuple[Lease, Verdict]]) -> list[Any]:
    """Cursors with the places of those that held."""
    lines = lines_of(lease.entry for lease, _ in settlements)
    await _lock(tx, lines)
    asked = [
        await tx.ask("settle", **columns(rows))
        for round_ in _rounds(settlements)
        for rows in _portions([verdict_row(place, *pair) for place, pair in round_])
    ]
    await _line_up(tx, lines, first=len(settlements) + 2)
    return asked


def _rounds(
    settlements: Sequence[tuple[Lease, Verdict]],
) -> list[list[tuple[int, tuple[Lease, Verdict]]]]:
    """Settled twice in one batch: the first has to be there first."""
    rounds: list[list[tuple[int, tuple[Lease, Verdict]]]] = []
    seen: dict[Key, int] = {}
    for place, pair in enumerate(settlements):
        key = pair[0].entry.message.key
        number = seen[key] = seen.get(key, -1) + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append((place, pair))
    return rounds


async def renew(tx: Transaction, leases: Sequence[Lease], until: Instant) -> Any:
    """A cursor with the places of those that held."""
    await _lock(tx, lines_of(lease.entry for lease in leases))
    rows = [token_row(place, lease) for place, lease in enumerate(leases)]
    return await tx.ask("renew", until=until, **columns(rows))


async def seize(tx: Transaction, keys: Sequence[Key], now: Instant, until: Instant) -> Any:
    """A cursor with the rows as they were before."""
    names = sorted({packed(key) for key in keys})
    rows = await (await tx.ask("lines_of", keys=names)).fetchall()
    await _lock(tx, _readable(rows))
    return await tx.ask("seize", keys=names, now=now, until=until)


async def set_aside(tx: Transaction, ids: Sequence[int]) -> int:
    """How many were not yet. Their lines go on without them (12)."""
    lines = _readable(await (await tx.ask("line_of_rows", ids=[*ids])).fetchall())
    await _lock(tx, lines)
    asked = await tx.ask("set_aside", ids=[*ids])
    await _line_up(tx, lines, first=len(ids) + 2)
    return len(await asked.fetchall())


# --- lines ----------------------------------------------------------------------------------------


def _readable(rows: Iterable[Sequence[bytes]]) -> list[Line]:
    lines: set[Line] = set()
    for destination, order_key in rows:
        with suppress(UnicodeDecodeError):  # then nobody knows which line it was
            lines.add((Destination(unpacked(destination)), unpacked(order_key)))
    return sorted(lines)


async def _lock(tx: Transaction, lines: Sequence[Line]) -> None:
    if lines:
        locks = sorted({line_lock(*line) for line in lines})
        await tx.ask("lock_lines", lines=locks, lock_class=tx.target.lock_class)


async def _line_up(tx: Transaction, lines: Sequence[Line], *, first: int) -> None:
    """Let the head of each of these lines be the one that is ready."""
    if lines:
        await tx.ask(
            "line_up",
            destinations=[packed(destination) for destination, _ in lines],
            order_keys=[packed(order_key) for _, order_key in lines],
            first=first,
        )


def _portions(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Rows for one statement each, by their bytes."""
    start, size = 0, 0
    for number, row in enumerate(rows):
        weight = len(row.get("request", b"")) + len(row["answer"])
        if size + weight > STATEMENT_BYTES and number > start:
            yield rows[start:number]
            start, size = number, 0
        size += weight
    if rows[start:]:
        yield rows[start:]
