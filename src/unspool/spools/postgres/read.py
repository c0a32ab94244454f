"""Reading the PostgreSQL spool: for receipts, the dispatcher and people. Changes nothing.

find · survey · browse · tally · damaged      each asks the link, and gives values

Those that meet rows which cannot be read give their ids too: whoever writes sets them aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ...core.message import NEVER, Destination, Instant, Key
from ...core.record import Spoilt
from ..protocol import Damaged, Entry, LaneDue, Query, Tally
from .link import Link, Transaction
from .rows import entry_of, packed, unpacked
from .target import Target

LOOK_S: Final = 60.0
"""For what people and the broom wait for."""
UNREADABLE_MAX: Final = 1_000


async def _rows(link: Link, query: str, *, walks: bool = False, **values: Any) -> Any:
    def ask(tx: Transaction) -> Any:
        return tx.ask(query, **values)

    cursor = await link.run(ask, within_s=LOOK_S if walks else None, walks=walks)
    return await cursor.fetchall()


async def find(link: Link, keys: Sequence[Key]) -> tuple[list[Entry | None], list[int]]:
    names = list({packed(key) for key in keys})
    entries, spoilt = _entries(await _rows(link, "find", keys=names))
    found = {entry.message.key: entry for entry in entries}
    return [found.get(key) for key in keys], spoilt


def _entries(rows: Sequence[Any]) -> tuple[list[Entry], list[int]]:
    entries: list[Entry] = []
    spoilt: list[int] = []
    for row in rows:
        try:
            entries.append(entry_of(row))
        except Spoilt:
            spoilt.append(row[0])
    return entries, spoilt


async def survey(
    link: Link, after: Destination | None, limit: int
) -> tuple[list[LaneDue], list[int]]:
    # The least name behind `after` is `after` with a NUL behind it.
    first = b"" if after is None else packed(after) + b"\0"
    lanes: list[LaneDue] = []
    spoilt: list[int] = []
    for destination, due_at in await _rows(link, "survey", first=first, limit=limit):
        try:
            lanes.append(LaneDue(Destination(unpacked(destination)), Instant(due_at)))
        except UnicodeDecodeError:
            of_it = {"destination": destination, "limit": UNREADABLE_MAX}
            spoilt += [id_ for (id_,) in await _rows(link, "unreadable", **of_it)]
    return lanes, spoilt


async def browse(
    link: Link, query: Query, after: Key | None, limit: int, requests: bool
) -> tuple[list[Entry], list[int]]:
    place = 0
    if after is not None:
        rows = await _rows(link, "place_of", key=packed(after))
        if not rows:
            return [], []
        [[place]] = rows
    entries: list[Entry] = []
    spoilt: list[int] = []
    while (wanted := limit - len(entries)) > 0:
        rows = await _rows(
            link, "browse", walks=True, after=place, limit=wanted, requests=requests,
            key=None if query.key is None else packed(query.key),
            destination=None if query.destination is None else packed(query.destination),
            name=None if query.name is None else packed(query.name),
            state=None if query.state is None else query.state.value,
            held=query.held,
        )  # fmt: skip
        whole, broken = _entries(rows)
        entries += whole
        spoilt += broken
        if len(rows) < wanted:  # a page is short only at the end, whatever is spoilt in it
            break
        place = rows[-1][0]
    return entries, spoilt


async def tally(link: Link, edges: Sequence[Instant]) -> list[Tally]:
    # An edge that nothing is before, so that the array is never without a type.
    rows = await _rows(link, "tally", walks=True, edges=[*edges, Instant(-NEVER)])
    counts: dict[str, list[int]] = {}
    held: dict[str, int] = {}
    oldest: dict[str, int] = {}
    for destination, slot, count, accepted_at in rows:
        name = str(destination, "utf-8", "replace")
        here = counts.setdefault(name, [0] * (len(edges) + 1))
        if slot < 0:
            held[name] = held.get(name, 0) + count
        else:
            here[slot] += count
        oldest[name] = min(oldest.get(name, NEVER), accepted_at)
    return [
        Tally(Destination(name), tuple(counts[name]), held.get(name, 0), Instant(oldest[name]))
        for name in sorted(counts)
    ]


async def damaged(link: Link, after: str | None, limit: int) -> list[Damaged]:
    start = int(after) if after and after.isdecimal() else 0
    rows = await _rows(link, "damaged", walks=True, after=start, limit=limit)
    return [_damaged(row, link.target) for row in rows]


def _damaged(row: Sequence[Any], target: Target) -> Damaged:
    id_, key, destination, name, accepted_at, size_bytes = row
    return Damaged(
        mark=str(id_),
        where=f"{target.shown}, {target.schema}.message and .body, id {id_}",
        size_bytes=size_bytes,
        key=Key(_text(key)),
        destination=Destination(_text(destination)),
        name=_text(name),
        accepted_at=Instant(accepted_at),
    )


def _text(data: bytes) -> str:
    try:
        return unpacked(data)
    except UnicodeDecodeError:
        return ""
