"""Reading a spool on a shelf: for receipts and people. Changes nothing.

    find · browse · tally · damaged · answer_of

`find` and `browse` also give the places of entries whose records are spoilt: whoever may write sets
them aside.

`find` is four look-ups a key. `browse` reads each entry from `after` on until it has enough, and
`tally` one small row for each message that waits; both look again every few hundred rows, so that
nobody waits for them, and count what moved in between as they found it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ...core import record
from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key, Response
from ...core.record import Spoilt
from ..memory import asked_for
from ..protocol import Damaged, Entry, Query, Tally
from .rows import (
    HELD,
    Aside,
    Row,
    changed,
    data_row,
    key_row,
    number_of,
    place_of,
    row_of,
    with_request,
)
from .shelf import Shelf, View

STEP: Final = 500
"""Rows looked at in one view."""


def answer_of(get: Callable[[bytes], bytes | None], row: Row) -> Response | None:
    """The answer that is kept beside an entry. Raises `Spoilt`."""
    if not row.answered:
        return None
    kept = get(data_row(b"a", row.place))
    if kept is None:
        raise Spoilt("an answer that is not there")
    return record.unpack_answer(kept)


def find(
    view: View, keys: Sequence[Key], *, era: int
) -> tuple[Sequence[Entry | None], Sequence[int]]:
    """Raises `Spoilt` where not even the place of a key can be read."""
    entries: list[Entry | None] = []
    spoilt: list[int] = []
    for key in keys:
        kept = view.get(key_row(key))
        entry = None
        if kept is not None:
            place = number_of(kept)
            try:
                row = _row(view, place, era)
                entry = changed(row.entry, answer=answer_of(view.get, row))
            except Spoilt:
                spoilt.append(place)
        entries.append(entry)
    return entries, spoilt


def _row(view: View, place: int, era: int) -> Row:
    return row_of(place, view.get(data_row(b"m", place)), view.get(data_row(b"s", place)), era)


def browse(
    shelf: Shelf, query: Query, *, after: Key | None, limit: int, requests: bool
) -> tuple[Sequence[Entry], Sequence[int]]:
    start = b"m"
    if after is not None:
        with shelf.view() as view:
            kept = view.get(key_row(after))
        if kept is None:
            return [], []
        start = data_row(b"m", number_of(kept) + 1)
    entries: list[Entry] = []
    spoilt: list[int] = []
    last = b""
    if query.key is not None:  # found at once: it has one place, and nothing else is looked at
        with shelf.view() as view:
            kept = view.get(key_row(query.key))
        if kept is None or data_row(b"m", number_of(kept)) < start:
            return [], []
        start = last = data_row(b"m", number_of(kept))
    looked = STEP
    while looked == STEP and len(entries) < limit:
        looked = 0
        with shelf.view() as view:
            for walked, envelope in view.walk(b"m", start=start):
                if looked == STEP or len(entries) == limit or (last and walked > last):
                    break
                looked += 1
                place = place_of(walked)
                start = data_row(b"m", place + 1)
                try:
                    standing = view.get(data_row(b"s", place))
                    row = row_of(place, envelope, standing, shelf.era)
                    if asked_for(row.entry, query):
                        entries.append(_with_request(view, row) if requests else row.entry)
                except Aside:
                    continue
                except Spoilt:
                    spoilt.append(place)
    return entries, spoilt


def _with_request(view: View, row: Row) -> Entry:
    entry = row.entry
    if entry.state not in (State.WAITING, State.CLAIMED):
        return entry
    kept = view.get(data_row(b"r", row.place))
    if kept is None:
        raise Spoilt("a message without its request")
    return changed(entry, message=with_request(entry.message, record.unpack_request(kept)))


def tally(shelf: Shelf, edges: Sequence[Instant]) -> Sequence[Tally]:
    counts: dict[bytes, list[int]] = {}
    held: dict[bytes, int] = {}
    oldest: dict[bytes, int] = {}
    start = b"e"
    looked = STEP
    while looked == STEP:
        looked = 0
        with shelf.view() as view:
            for row, value in view.walk(b"e", start=start):
                if looked == STEP:
                    break
                looked += 1
                start = row + b"\0"
                accepted_at, name = number_of(value[:8]), value[8:]
                here = counts.setdefault(name, [0] * (len(edges) + 1))
                if number_of(row[1:9]) == HELD:
                    held[name] = held.get(name, 0) + 1
                else:
                    here[sum(accepted_at < edge for edge in edges)] += 1
                oldest[name] = min(oldest.get(name, NEVER), accepted_at)
    return [
        Tally(
            Destination(name.decode("utf-8", "surrogatepass")),
            tuple(counts[name]), held.get(name, 0), Instant(oldest[name]),
        )
        for name in sorted(counts)
    ]  # fmt: skip


def damaged(shelf: Shelf, path: Path, *, after: str | None, limit: int) -> Sequence[Damaged]:
    """Records in order of acceptance, then the parts in which no record can be told (17)."""
    found: list[Damaged] = []
    if after is None or after.isdecimal():
        start = b"x" if after is None else data_row(b"x", int(after) + 1)
        with shelf.view() as view:
            for row, kept in view.walk(b"x", start=start):
                if len(found) == limit:
                    return found
                found.append(_damaged(view, path, place_of(row), len(kept)))
        after = ""
    parts = [part for part in shelf.parts() if part.mark > after]
    return [*found, *parts[: limit - len(found)]]


def _damaged(view: View, path: Path, place: int, size: int) -> Damaged:
    kept = [_bytes(view, data_row(family, place)) for family in (b"m", b"r", b"a")]
    size += sum(map(len, kept))
    where = f"{path}, place {place}"
    try:
        message = record.unpack_message(kept[0])
    except Spoilt:
        return Damaged(str(place), where, size)
    return Damaged(
        str(place), where, size, message.key, message.destination, message.name,
        message.accepted_at,
    )  # fmt: skip


def _bytes(view: View, row: bytes) -> bytes:
    try:
        return view.get(row) or b""
    except Spoilt:
        return b""
