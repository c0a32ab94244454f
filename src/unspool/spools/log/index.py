"""LogIndex: what a log keeps in memory: every row that is not data, and where the data are.

    index.put(row, value) · index.drop(row) · index.get(row) · index.walk(prefix)
    index.set_spot(row, spot) -> old spot · index.spot(row) · index.data(family)

A spot says where a value is, in 8 bytes: slot of its segment, offset, and how much to read there.
For a message that waits there are four spots, a key and two rows in order: some 450 bytes of the
process, as docs/howto/choose-a-spool.md states and `tests/conformance/test_log.py` watches.

Not safe for threads: whoever owns it locks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final

from ..keyed.rows import DATA, end_of, split

CHUNK: Final = 256
"""Places whose spots lie together."""
ROWS_MAX: Final = 1_000
"""Rows in one list: to insert is to move half of it."""
UNIT: Final = 64
_UNITS_BITS, _OFFSET_BITS = 18, 30
OFFSET_MAX: Final = (1 << _OFFSET_BITS) - 1
UNITS_MAX: Final = (1 << _UNITS_BITS) - 1
SLOTS_MAX: Final = 1 << (64 - _OFFSET_BITS - _UNITS_BITS)
"""Segments at once: 4 TiB of them."""

_FIRST: Final = {family: number * CHUNK for number, family in enumerate(sorted(DATA))}
"""Where in a chunk the spots of a family begin."""
_EMPTY: Final = bytes(8 * CHUNK * len(_FIRST))


def spot_of(slot: int, offset: int, size: int) -> int:
    units = min(UNITS_MAX, -(-size // UNIT))
    assert 0 < offset <= OFFSET_MAX, offset
    return (slot << _OFFSET_BITS | offset) << _UNITS_BITS | units


def where(spot: int) -> tuple[int, int, int]:
    """Slot, offset, and bytes to read; values of more than 16 MiB are longer than that."""
    units = spot & UNITS_MAX
    place = spot >> _UNITS_BITS
    return place >> _OFFSET_BITS, place & OFFSET_MAX, units * UNIT


def size_of(spot: int) -> int:
    """Bytes to read."""
    return (spot & UNITS_MAX) * UNIT


class Rows:
    """Rows in order, each with its value behind it, in lists of bounded length."""

    def __init__(self) -> None:
        self._lists: list[list[bytes]] = []
        self._firsts: list[bytes] = []

    def __len__(self) -> int:
        return sum(map(len, self._lists))

    def _find(self, row: bytes) -> tuple[int, int]:
        """Where the row is, or would be."""
        number = max(0, bisect_right(self._firsts, row) - 1)
        if not self._lists:
            return 0, 0
        at = bisect_left(self._lists[number], row)
        behind = at == len(self._lists[number]) and number + 1 < len(self._lists)
        if behind and self._firsts[number + 1].startswith(row):
            return number + 1, 0
        return number, at

    def get(self, row: bytes) -> bytes | None:
        number, at = self._find(row)
        if self._is_at(number, at, row):
            return self._lists[number][at][len(row) :]
        return None

    def _is_at(self, number: int, at: int, row: bytes) -> bool:
        if number >= len(self._lists) or at >= len(self._lists[number]):
            return False
        return self._lists[number][at].startswith(row)

    def put(self, row: bytes, value: bytes) -> bool:
        """True: it is new."""
        item = row + value
        number, at = self._find(row)
        if not self._lists:
            self._lists, self._firsts = [[item]], [item]
            return True
        here = self._lists[number]
        new = not self._is_at(number, at, row)
        if new:
            here.insert(at, item)
        else:
            here[at] = item
        self._firsts[number] = here[0]
        if len(here) > ROWS_MAX:
            half = len(here) // 2 if at < len(here) - 1 else len(here) - 1
            self._lists[number : number + 1] = [here[:half], here[half:]]
            self._firsts[number : number + 1] = [here[0], here[half]]
        return new

    def drop(self, row: bytes) -> bool:
        number, at = self._find(row)
        if not self._is_at(number, at, row):
            return False
        here = self._lists[number]
        del here[at]
        if here:
            self._firsts[number] = here[0]
        else:
            del self._lists[number]
            del self._firsts[number]
        return True

    def walk(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        stop = end_of(prefix)
        number, at = self._find(max(start, prefix))
        for here in range(number, len(self._lists)):
            rows = self._lists[here]
            for place in range(at, len(rows)):
                if rows[place] >= stop:
                    return
                yield split(rows[place])
            at = 0


class LogIndex:
    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}
        self._rows: dict[bytes, Rows] = {
            family: Rows() for family in (b"q", b"l", b"e", b"w", b"x")
        }
        self._few: dict[bytes, bytes] = {}
        self._spots: dict[int, array[int]] = {}
        self._chunks: list[int] = []
        """Numbers of the chunks there are, in order."""
        self.count = 0
        """Rows that are not data."""

    # -- rows ------------------------------------------------------------------------------------

    def put(self, row: bytes, value: bytes) -> None:
        family = row[:1]
        if family in self._rows:
            self.count += self._rows[family].put(row, value)
            return
        kept = self._keys if family == b"k" else self._few
        self.count += row not in kept
        kept[row] = value

    def drop(self, row: bytes) -> None:
        family = row[:1]
        if family in self._rows:
            self.count -= self._rows[family].drop(row)
        elif (self._keys if family == b"k" else self._few).pop(row, None) is not None:
            self.count -= 1

    def get(self, row: bytes) -> bytes | None:
        family = row[:1]
        if family == b"k":
            return self._keys.get(row)
        return self._rows[family].get(row) if family in self._rows else self._few.get(row)

    def walk(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        if prefix[:1] == b"k":  # for an operator, once in a blue moon
            return ((row, self._keys[row]) for row in sorted(self._keys) if row >= start)
        return self._rows[prefix[:1]].walk(prefix, start)

    # -- spots -----------------------------------------------------------------------------------

    def spot(self, row: bytes) -> int:
        """0: there is no such row."""
        place = int.from_bytes(row[1:], "big")
        chunk = self._spots.get(place // CHUNK)
        return 0 if chunk is None else chunk[_FIRST[row[0]] + place % CHUNK]

    def set_spot(self, row: bytes, spot: int) -> int:
        """0: it goes. What it was before."""
        place = int.from_bytes(row[1:], "big")
        chunk = self._spots.get(place // CHUNK)
        if chunk is None:
            if not spot:
                return 0
            chunk = self._begin_chunk(place // CHUNK)
        cell = _FIRST[row[0]] + place % CHUNK
        old = chunk[cell]
        chunk[cell] = spot
        if old and not spot and not any(chunk):
            del self._spots[place // CHUNK]
            del self._chunks[bisect_left(self._chunks, place // CHUNK)]
        return old

    def _begin_chunk(self, number: int) -> array[int]:
        chunk = self._spots[number] = array("Q", _EMPTY)
        if not self._chunks or number > self._chunks[-1]:
            self._chunks.append(number)
        else:
            insort(self._chunks, number)
        return chunk

    def data(self, family: bytes, first: int) -> Iterator[tuple[int, int]]:
        """Place and spot of all rows of a family, from a place on."""
        start = bisect_left(self._chunks, first // CHUNK)
        for number in self._chunks[start:]:
            chunk = self._spots[number]
            cell = _FIRST[family[0]] - number * CHUNK
            for place in range(max(first, number * CHUNK), (number + 1) * CHUNK):
                if spot := chunk[cell + place]:
                    yield place, spot
