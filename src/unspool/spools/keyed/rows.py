"""The rows that a spool on a shelf keeps, on paper. Pure.

    k key                              → place                where a key's entry is
    m place                            → envelope record      data: written once
    r place                            → request record       data: until it settles
    s place                            → standing record      data: all that changes
    a place                            → answer record        data
    q destination 0 due_at place       → order key            what a lease may take
    l destination 0 order key 0 place  →                      who stands in line, in which order
    e expires_at place                 → accepted_at, destination      what waits; held ones: HELD
    w sweep_at place                   →                      what may be forgotten, and when
    x place                            → standing as it was   what was set aside

A place is 8 bytes that rise with every accept: entries lie in order of acceptance. Instants are 8
bytes too, so that bytes sort as numbers do. Every row but the data is a function of the entry
(`index_rows`), save one: of an order key only the head has a `q` row.

Leases are not in the order: a spool of one process keeps them in memory, and a standing says in
which era its lease was given; one of an earlier era was a dead process's.
"""

from __future__ import annotations

from typing import Final

from ...core import record
from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key, Message, Request, Response, Value
from ...core.record import Spoilt, Standing
from ..protocol import Entry

DATA: Final = frozenset(b"mrsa")
"""Families whose rows are large, and found by their place alone."""
ERA_BITS: Final = 40
"""Places of one era: more than can be accepted before the next."""
SPOILT: Final = 16
"""Added to the state of an entry that is set aside."""
HELD: Final = NEVER + 1
"""In an `e` row: it does not expire."""
ORPHAN: Final = Instant(1)
"""The end of a lease whose holder is dead: past, and not "nobody's"."""

_STATES: Final = tuple(State)


class Aside(Spoilt):
    """It was set aside before."""


class Row(Value, frozen=True):
    """An entry at its place, without request and answer."""

    place: int
    entry: Entry
    answered: bool = False
    seized: bool = False


def eight(number: int) -> bytes:
    return number.to_bytes(8, "big")


def number_of(eight_bytes: bytes) -> int:
    return int.from_bytes(eight_bytes, "big")


def _name(text: str) -> bytes:
    """Text with an end that sorts before everything that could follow it."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\0\xff") + b"\0"


def key_row(key: Key) -> bytes:
    return b"k" + key.encode("utf-8", "surrogatepass")


def data_row(family: bytes, place: int) -> bytes:
    return family + place.to_bytes(8, "big")


def lane_prefix(destination: str) -> bytes:
    return b"q" + _name(destination)


def line_prefix(destination: str, order_key: str) -> bytes:
    return b"l" + _name(destination) + _name(order_key)


def ready_row(row: Row) -> bytes:
    entry = row.entry
    return lane_prefix(entry.message.destination) + eight(entry.due_at) + eight(row.place)


def line_row(row: Row) -> bytes:
    message = row.entry.message
    return line_prefix(message.destination, message.order_key) + eight(row.place)


def due_of(ready: bytes) -> Instant:
    return Instant(number_of(ready[-16:-8]))


def place_of(row: bytes) -> int:
    """Of any row but `k`."""
    return number_of(row[-8:])


def lane_of(ready: bytes) -> Destination:
    """The destination of a `q` row."""
    name = ready[1:-17].replace(b"\0\xff", b"\0")
    return Destination(name.decode("utf-8", "surrogatepass"))


def prefix_of(row: bytes) -> bytes:
    """What a row is walked under: the order begins behind it."""
    match row[:1]:
        case b"q":
            return row[:-16]
        case b"l":
            return row[:-8]
    return row[:1]


def end_of(prefix: bytes) -> bytes:
    """Behind all that are walked under it. No instant and no place begins with 255, and a name with
    a NUL in it goes on so."""
    return prefix + b"\xff" if len(prefix) > 1 else bytes([prefix[0] + 1])


def split(item: bytes) -> tuple[bytes, bytes]:
    """Row and value of the two joined together; not for `k` or data."""
    match item[:1]:
        case b"q":
            end = _after_name(item, 1) + 16
        case b"l":
            end = _after_name(item, _after_name(item, 1)) + 8
        case b"x":
            end = 9
        case _:
            end = 17
    return item[:end], item[end:]


def _after_name(item: bytes, start: int) -> int:
    end = item.index(0, start)
    while item[end + 1] == 0xFF:
        end = item.index(0, end + 2)
    return end + 1


def expiry_value(entry: Entry) -> bytes:
    destination = entry.message.destination.encode("utf-8", "surrogatepass")
    return eight(entry.message.accepted_at) + destination


def index_rows(row: Row) -> dict[bytes, bytes]:
    """What finds this entry, the `k` row and the `q` row of ordered ones aside."""
    entry, place = row.entry, row.place.to_bytes(8, "big")
    if entry.state is State.WAITING:
        held = entry.due_at == NEVER
        expires_at = HELD if held else entry.message.expires_at
        rows = {b"e" + eight(expires_at) + place: expiry_value(entry)}
        if entry.message.order_key:
            rows[line_row(row)] = b""
        elif not held:
            rows[ready_row(row)] = b""
        return rows
    if row.answered:
        return {b"w" + eight(min(entry.keep_until, entry.answer_until)) + place: b""}
    return {b"w" + eight(entry.keep_until) + place: b""}


def confirms(row: Row, by: bytes) -> bool:
    """Does this row of an order belong to the entry that it led to? A damaged one does not."""
    if by[:1] == b"q":
        entry = row.entry
        return entry.state is State.WAITING and entry.due_at != NEVER and ready_row(row) == by
    return by in index_rows(row)


def pack_standing(row: Row, era: int) -> bytes:
    entry = row.entry
    return record.pack_standing(
        Standing(
            int(entry.state), entry.due_at, entry.attempt, entry.leased_until, era,
            entry.keep_until, entry.answer_until, row.answered, row.seized, entry.trail,
            entry.reason, entry.stored, entry.settled_at,
        )
    )  # fmt: skip


def aside_standing() -> bytes:
    """In place of one that was set aside."""
    return record.pack_standing(Standing(SPOILT, 0, 0, 0, 0, 0, 0))


def row_of(place: int, envelope: bytes | None, standing: bytes | None, era: int) -> Row:
    """Raises `Spoilt`: these are not the records of an entry."""
    if envelope is None or standing is None:
        raise Spoilt("an entry without its envelope or its standing")
    known = record.unpack_standing(standing)
    if known.state >= SPOILT:
        raise Aside("an entry that was set aside")
    leased_until = known.leased_until
    if leased_until and known.era != era:
        leased_until = ORPHAN
    entry = Entry(
        record.unpack_message(envelope), _STATES[known.state], Instant(known.due_at),
        known.attempt, Instant(leased_until), known.trail, None, known.stored, known.reason,
        Instant(known.settled_at), Instant(known.keep_until), Instant(known.answer_until),
    )  # fmt: skip
    return Row(place, entry, known.answered, known.seized)


def with_request(message: Message, request: Request | None) -> Message:
    return Message(
        message.key, message.fingerprint, message.destination, message.accepted_at,
        message.expires_at, message.nonce, message.name, message.order_key, message.repeat,
        request,
    )  # fmt: skip


def changed(
    entry: Entry,
    *,
    message: Message | None = None,
    attempt: int | None = None,
    leased_until: Instant | None = None,
    answer: Response | None = None,
) -> Entry:
    """A copy by position: made for every message that moves."""
    return Entry(
        message or entry.message, entry.state, entry.due_at,
        entry.attempt if attempt is None else attempt,
        entry.leased_until if leased_until is None else leased_until,
        entry.trail, answer, entry.stored, entry.reason, entry.settled_at, entry.keep_until,
        entry.answer_until,
    )  # fmt: skip
