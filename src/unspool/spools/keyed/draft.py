"""Draft: what one batch is going to change in a shelf, read through and written at once.

    draft = Draft(view, era)
    draft.place(key) · draft.row(place)      as they will be; raise Spoilt
    draft.add(row, request, answer) · draft.move(before, after) · draft.settle(row, after) · …
    draft.line_up()                  at the end: the head of each line is the one that is ready (5)
    draft.changes                    for the shelf

A row that is spoilt is set aside here: its standing moves to an `x` row, a mark takes its place,
and everything that led to it and can be told goes.

Belongs to one batch and one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...core import record
from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key, Request, Response
from ...core.record import Spoilt
from ..protocol import Entry
from .rows import (
    Aside,
    Row,
    aside_standing,
    data_row,
    eight,
    index_rows,
    key_row,
    lane_of,
    line_prefix,
    number_of,
    pack_standing,
    place_of,
    ready_row,
    row_of,
)
from .shelf import View

_Line = tuple[str, str]


class Draft:
    def __init__(self, view: View, era: int) -> None:
        self.view: Final = view
        self.changes: dict[bytes, bytes | None] = {}
        self.leased: list[tuple[Destination, int, Instant]] = []
        """Destination, place and end of leases given; an end of 0: it is over."""
        self.set_aside: int = 0
        self.binding = False
        """A lease in it must be durable before it is given (4)."""
        self._era: Final = era
        self._rows: dict[int, Row] = {}
        self._places: dict[Key, int | None] = {}
        self._joined: dict[_Line, set[int]] = {}
        self._left: dict[_Line, set[int]] = {}

    # -- reading ---------------------------------------------------------------------------------

    def get(self, row: bytes) -> bytes | None:
        """As it will be."""
        if row in self.changes:
            return self.changes[row]
        return self.view.get(row)

    def place(self, key: Key) -> int | None:
        if key not in self._places:
            found = self.view.get(key_row(key))
            self._places[key] = None if found is None else number_of(found)
        return self._places[key]

    def row(self, place: int) -> Row:
        """Raises `Spoilt`."""
        found = self._rows.get(place)
        if found is None:
            envelope, standing = (self.get(data_row(family, place)) for family in (b"m", b"s"))
            found = self._rows[place] = row_of(place, envelope, standing, self._era)
        return found

    def request(self, place: int) -> Request:
        """Raises `Spoilt`."""
        found = self.get(data_row(b"r", place))
        if found is None:
            raise Spoilt("a message without its request")
        return record.unpack_request(found)

    # -- changing --------------------------------------------------------------------------------

    def add(self, row: Row, *, request: Request | None, answer: Response | None) -> None:
        """A new entry, whose key is nobody's."""
        message = row.entry.message
        self.changes[key_row(message.key)] = eight(row.place)
        self.changes[data_row(b"m", row.place)] = record.pack_message(message)
        if request is not None:
            self.changes[data_row(b"r", row.place)] = record.pack_request(request)
        if answer is not None:
            self.changes[data_row(b"a", row.place)] = record.pack_answer(answer)
        self._places[message.key] = row.place
        if row.entry.state is State.WAITING and row.entry.leased_until:  # it comes with a lease (4)
            self.leased.append((message.destination, row.place, row.entry.leased_until))
        self.move(None, row)

    def move(self, before: Row | None, after: Row | None) -> None:
        """Its standing, and what finds it."""
        old = {} if before is None else index_rows(before)
        new = {} if after is None else index_rows(after)
        for row in old.keys() - new.keys():
            self.changes[row] = None
        for row, value in new.items():
            if row not in old or old[row] != value:
                self.changes[row] = value
        if before is not None:
            self._leave_line(before)
        if after is not None:
            self.restand(after)
            if _in_line(after):
                self._join(after)

    def restand(self, after: Row) -> None:
        """Only what is in no order: a lease."""
        self._rows[after.place] = after
        self.changes[data_row(b"s", after.place)] = pack_standing(after, self._era)

    def lease(self, row: Row, entry: Entry, *, seized: bool) -> None:
        self.restand(Row(row.place, entry, row.answered, seized))
        self.leased.append((entry.message.destination, row.place, entry.leased_until))

    def settle(self, row: Row, after: Entry | None) -> None:
        """After a verdict. None: it is gone."""
        if after is None:
            self.forget(row)
            return
        place, answer = row.place, after.answer
        self.leased.append((row.entry.message.destination, place, Instant(0)))
        if after.state is not State.WAITING:
            self.changes[data_row(b"r", place)] = None
        if answer is not None:
            self.changes[data_row(b"a", place)] = record.pack_answer(answer)
        self.move(row, Row(place, after, answer is not None))

    def forget(self, row: Row) -> None:
        """Everything of it. Its key too, unless somebody has it since."""
        message = row.entry.message
        key = message.key
        self.leased.append((message.destination, row.place, Instant(0)))
        self.move(row, None)
        for family in (b"m", b"r", b"s", b"a"):
            self.changes[data_row(family, row.place)] = None
        self._rows.pop(row.place, None)
        if self.place(key) == row.place:
            self.changes[key_row(key)] = None
            self._places[key] = None

    def forget_answer(self, row: Row) -> None:
        self.changes[data_row(b"a", row.place)] = None
        self.move(row, Row(row.place, row.entry))

    # -- lines -----------------------------------------------------------------------------------

    def _join(self, row: Row) -> None:
        line = (row.entry.message.destination, row.entry.message.order_key)
        self._joined.setdefault(line, set()).add(row.place)
        self._left.setdefault(line, set()).discard(row.place)

    def _leave_line(self, row: Row) -> None:
        if not _in_line(row):
            return
        line = (row.entry.message.destination, row.entry.message.order_key)
        self._left.setdefault(line, set()).add(row.place)
        self._joined.setdefault(line, set()).discard(row.place)
        if row.entry.due_at != NEVER:
            self.changes[ready_row(row)] = None

    def line_up(self) -> None:
        """Let the head of each line that was touched be the one that is ready (5)."""
        while self._joined:
            line, joined = self._joined.popitem()
            left = self._left.pop(line, set())
            while (head := self._head(line, joined, left)) is not None:
                try:
                    row = self.row(head)
                except Spoilt:
                    self.aside(head, by=[line_prefix(*line) + eight(head)])
                    left.add(head)
                    joined.discard(head)
                    continue
                if row.entry.due_at != NEVER:
                    self.changes[ready_row(row)] = line[1].encode("utf-8", "surrogatepass")
                break

    def _head(self, line: _Line, joined: set[int], left: set[int]) -> int | None:
        """The first in line, and whoever was the head before makes room."""
        prefix = line_prefix(*line)
        first = min(joined, default=None)
        for walked, _ in self.view.walk(prefix):
            place = place_of(walked)
            if place in left:
                continue
            if first is None or place <= first:
                return place
            # A claim that starts to wait may come in before the old head.
            try:
                old = self.row(place)
            except Spoilt:
                return first
            if old.entry.due_at != NEVER and place not in joined:
                self.changes[ready_row(old)] = None
            return first
        return first

    # -- what is spoilt --------------------------------------------------------------------------

    def aside(self, place: int, *, by: Iterable[bytes] = (), order_key: bytes = b"") -> None:
        """Out of everybody's way, with its bytes (12). `by`: the rows that led here."""
        row: Row | None = None
        try:
            row = self.row(place)
        except Aside:
            pass
        except Spoilt:
            self._mark(place)
        else:
            self._mark(place)  # its request is what is spoilt
            self.move(row, None)
            self._rows.pop(place, None)
            self.leased.append((row.entry.message.destination, place, Instant(0)))
        self.changes[data_row(b"s", place)] = aside_standing()
        for found in by:
            self.changes[found] = None
            if found[:1] == b"q" and order_key:
                line = (lane_of(found), order_key.decode("utf-8", "surrogatepass"))
                self.changes[line_prefix(*line) + eight(place)] = None
                self._left.setdefault(line, set()).add(place)
                self._joined.setdefault(line, set()).discard(place)

    def discard(self, place: int) -> bool:
        """What was set aside goes for good, and its key with it (17). False: it was not."""
        if place >= 1 << 64 or self.get(data_row(b"x", place)) is None:
            return False
        for family in (b"m", b"r", b"s", b"a", b"x"):
            self.changes[data_row(family, place)] = None
        try:
            envelope = self.view.get(data_row(b"m", place)) or b""
            led = key_row(record.unpack_message(envelope).key)
        except Spoilt:
            walked = self.view.walk(b"k")
            led = next((row for row, kept in walked if number_of(kept) == place), b"")
        if led and number_of(self.get(led) or b"") == place:
            self.changes[led] = None
        return True

    def _mark(self, place: int) -> None:
        try:
            standing = self.view.get(data_row(b"s", place)) or b""
        except Spoilt:
            standing = b""
        self.changes[data_row(b"x", place)] = standing
        self.set_aside += 1


def _in_line(row: Row) -> bool:
    return row.entry.state is State.WAITING and row.entry.message.order_key != ""
