"""Frames: a batch of changes as bytes in a log, and back. Pure.

    data, spots = encode(changes, salt=…, number=…, synced=…)
    scan(read, size, salt=…)           every frame of a segment, and what is no frame

A frame is

    head     salt (8) · bytes of rows (4) · of values (4) · number (8) · synced (8) · crc (4)
    rows     of each: length (2) · bytes of its value, or GONE (4) · the row; then a crc (4)
    values   of each that has one: length (4) · crc of row and value (4) · the value

so that whatever rots, it is known what: the head tells where the next frame begins, the rows which
values there are, and each value is checked by itself and against its row.

`number` rises by one from frame to frame. `synced` is the number of the last frame that was on the
disk for good when this one was written: nobody was promised anything by those behind it, until a
later frame says more. The salt is random and stands in the segment's name: no sender can write a
body that looks like a frame.

`scan` begins anew behind what it cannot read, at the next head that is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from zlib import crc32

from ...core.message import Value

HEAD: Final = struct.Struct(">8sIIQQI")
ROW: Final = struct.Struct(">HI")
VALUE: Final = struct.Struct(">II")
CRC_BYTES: Final = 4
GONE: Final = 0xFFFFFFFF
SALT_BYTES: Final = 8
LOOK_BYTES: Final = 1 << 20
"""How much is read at once to find the next head."""

Read = Callable[[int, int], bytes]
"""Offset and length to bytes; fewer at the end."""


class Change(Value, frozen=True, gc=False):
    row: bytes
    value: bytes | None
    """None: it goes."""
    offset: int
    """In the segment, of what VALUE describes; 0 where there is nothing."""
    end: int
    spoilt: bool = False


class Frame(Value, frozen=True, gc=False):
    start: int
    end: int
    number: int
    synced: int
    changes: list[Change]

    @property
    def spoilt(self) -> bool:
        return any(change.spoilt for change in self.changes)


class Damage(Value, frozen=True):
    """Bytes that are no frame, or one whose rows cannot be read."""

    start: int
    end: int


Item = Frame | Damage


def encode(
    changes: Mapping[bytes, bytes | None], *, salt: bytes, number: int, synced: int
) -> tuple[bytes, list[int]]:
    """The frame, and where in it the value of each change is described; 0: nowhere."""
    rows: list[bytes] = []
    values: list[bytes] = []
    spots: list[int] = []
    at = 1
    row_head, value_head, head_bytes = ROW.pack, VALUE.pack, VALUE.size
    for row, value in changes.items():
        if value:
            size = len(value)
            rows += (row_head(len(row), size), row)
            values += (value_head(size, crc32(value, crc32(row))), value)
            spots.append(at)
            at += head_bytes + size
        else:
            rows += (row_head(len(row), GONE if value is None else 0), row)
            spots.append(0)
    block = b"".join(rows)
    block += crc32(block).to_bytes(CRC_BYTES, "big")
    body = b"".join(values)
    head = HEAD.pack(salt, len(block), len(body), number, synced, 0)[:-CRC_BYTES]
    head += crc32(head).to_bytes(CRC_BYTES, "big")
    first = HEAD.size + len(block) - 1
    return head + block + body, [spot and spot + first for spot in spots]


def scan(read: Read, size: int, *, salt: bytes) -> Iterator[Item]:
    at = 0
    while at < size:
        found = _head(read(at, HEAD.size), salt)
        end = at + HEAD.size + found[0] + found[1] if found else 0
        if found is None or end > size:
            end = _next_head(read, at + 1, size, salt)
            yield Damage(at, end)
        else:
            rows, values, number, synced = found
            changes = _changes(read(at + HEAD.size, rows + values), rows, at + HEAD.size)
            if changes is None:
                yield Damage(at, end)
            else:
                yield Frame(at, end, number, synced, changes)
        at = end


def heads(read: Read, size: int, *, salt: bytes) -> Iterator[tuple[int, int]]:
    """Number and `synced` of every frame whose head is whole: a quick look."""
    at = 0
    while at < size:
        found = _head(read(at, HEAD.size), salt)
        if found is None or at + HEAD.size + found[0] + found[1] > size:
            at = _next_head(read, at + 1, size, salt)
            continue
        yield found[2], found[3]
        at += HEAD.size + found[0] + found[1]


def _head(data: bytes, salt: bytes) -> tuple[int, int, int, int] | None:
    if len(data) < HEAD.size or data[:SALT_BYTES] != salt:
        return None
    _, rows, values, number, synced, crc = HEAD.unpack(data)
    if crc32(data[:-CRC_BYTES]) != crc:
        return None
    return rows, values, number, synced


def _next_head(read: Read, at: int, size: int, salt: bytes) -> int:
    while at < size:
        window = read(at, LOOK_BYTES + HEAD.size)
        place = window.find(salt)
        while place >= 0:
            if _head(window[place : place + HEAD.size], salt) is not None:
                return at + place
            place = window.find(salt, place + 1)
        at += LOOK_BYTES
    return size


def _changes(body: bytes, rows: int, start: int) -> list[Change] | None:
    """None: the rows cannot be read."""
    block = body[: rows - CRC_BYTES]
    if crc32(block) != int.from_bytes(body[rows - CRC_BYTES : rows], "big"):
        return None
    changes: list[Change] = []
    at, spot = 0, rows
    while at < len(block):
        length, size = ROW.unpack_from(block, at)
        at += ROW.size
        row = block[at : at + length]
        at += length
        if size == GONE:
            changes.append(Change(row, None, 0, 0))
        elif size == 0:
            changes.append(Change(row, b"", 0, 0))
        else:
            told, crc = VALUE.unpack_from(body, spot)
            end = spot + VALUE.size + size
            value = body[spot + VALUE.size : end]
            good = told == size and crc32(value, crc32(row)) == crc
            changes.append(Change(row, value if good else b"", start + spot, start + end, not good))
            spot = end
    return changes


def length_of(described: bytes) -> int:
    """Bytes of the value that is described here."""
    length: int = VALUE.unpack_from(described)[0]
    return length


def opened(row: bytes, described: bytes) -> bytes | None:
    """A value with its description in front; None: it is not this row's, or it is spoilt."""
    if len(described) < VALUE.size:
        return None
    length, crc = VALUE.unpack_from(described)
    value = described[VALUE.size : VALUE.size + length]
    if len(value) < length or crc32(value, crc32(row)) != crc:
        return None
    return value
