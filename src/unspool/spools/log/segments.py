"""Segments: the files of a log, read from the oldest to the youngest when it is opened.

    found = recover(disk, apply)       every change that counts, in order, through `apply`

A segment's name is its number and its salt. Its first frame says in a row of its own (PREVIOUS)
which segment came before and how much of that one counts: what is behind that was not known to be
on the disk, and stands again, as far as it was whole, in this very frame. So there is no instant at
which it is in neither.

What is damaged, and when it is only torn:

    nothing whole behind it, in the last segment         torn: the batch that was being written
    whole frames behind it, and it was promised          corruption: kept aside, the rest goes on
    whole frames behind it, and it never was             a hole: writes reach a disk in any order

"Promised" is what some whole frame calls synced. A segment without one whole frame, behind all
others, was being made when the power failed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ...errors import Corrupt
from ..protocol import Damaged
from .disk import Disk
from .frames import Damage, Frame, Item, Read, heads, scan

PREVIOUS: Final = b"\0"
"""The row of an opening frame: number of the segment before, and its end."""
_PREVIOUS: Final = struct.Struct(">QQ")
_NAME: Final = re.compile(r"(\d{8})-([0-9a-f]{16})\.log")
BAD: Final = ".bad"


@dataclass(slots=True)
class Segment:
    number: int
    name: str
    salt: bytes
    size: int
    """So much of it counts."""
    live: int = 0
    """Bytes of data in it that somebody could ask for."""
    slot: int = 0
    """What spots call it, while it is there."""


@dataclass(slots=True)
class Recovered:
    segments: list[Segment] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    """Files that were being made when the power failed."""
    number: int = 0
    """Of the last frame."""
    doubtful: dict[bytes, bytes | None] = field(default_factory=dict)
    """Whole, and nobody knows whether the disk has them: to be written again."""
    torn: int = 0
    damages: int = 0
    highest: int = 0
    """The largest segment number that was ever used."""


Apply = Callable[[Segment, Frame], None]


def named(number: int, salt: bytes) -> str:
    return f"{number:08d}-{salt.hex()}.log"


def previous(number: int, end: int) -> bytes:
    return _PREVIOUS.pack(number, end)


def reader(disk: Disk, name: str) -> Read:
    return lambda offset, length: disk.read(name, offset, length)


def recover(disk: Disk, apply: Apply) -> Recovered:
    """Raises `Corrupt` where a segment is missing, OSError."""
    found = Recovered()
    names = [(match, name) for name in disk.names() if (match := _NAME.fullmatch(name))]
    for match, name in sorted(names, key=lambda one: int(one[0][1])):
        salt = bytes.fromhex(match[2])
        segment = Segment(int(match[1]), name, salt, disk.size(name))
        found.highest = segment.number
        found.segments.append(segment)
    _link(disk, found)
    if not found.segments:
        return found
    for segment in found.segments[:-1]:
        for item in scan(reader(disk, segment.name), segment.size, salt=segment.salt):
            _take(disk, found, segment, item, apply)
    _last(disk, found, found.segments[-1], apply)
    if not found.segments[-1].size:  # but for its first frame, which is written again, it is empty
        found.void.append(found.segments.pop().name)
    return found


def _link(disk: Disk, found: Recovered) -> None:
    """How much of each counts, as the next one says; none may be missing in between."""
    last: Segment | None = None
    linked: list[Segment] = []
    for segment in found.segments:
        first = next(scan(reader(disk, segment.name), segment.size, salt=segment.salt), None)
        opening = None
        if isinstance(first, Frame):
            opening = {c.row: c.value for c in first.changes if not c.spoilt}.get(PREVIOUS)
        if opening and last is not None:
            before, end = _PREVIOUS.unpack(opening)
            while linked and linked[-1].number > before:
                found.void.append(linked.pop().name)
            if before and (not linked or linked[-1].number != before):
                raise Corrupt(
                    f"The log's segment {before} is missing, and messages with it. Nothing was"
                    f" changed. Put its file back beside {segment.name}, from a backup: ls -l"
                )
            if linked:
                linked[-1].size = min(linked[-1].size, end)
        linked.append(segment)
        last = segment
    while linked and not _is_made(disk, linked[-1]):
        found.void.append(linked.pop().name)
    found.segments = linked


def _is_made(disk: Disk, segment: Segment) -> bool:
    return any(isinstance(item, Frame) and not item.spoilt for item in items_of(disk, segment))


def _take(disk: Disk, found: Recovered, segment: Segment, item: Item, apply: Apply) -> None:
    if isinstance(item, Damage) or item.spoilt:
        keep_aside(disk, segment, item.start, item.end)
        found.damages += 1
    if isinstance(item, Frame):
        found.number = max(found.number, item.number)
        apply(segment, item)


def _last(disk: Disk, found: Recovered, segment: Segment, apply: Apply) -> None:
    """The segment that was written last, where the power may have failed."""
    read = reader(disk, segment.name)
    told = [synced for _, synced in heads(read, segment.size, salt=segment.salt)]
    promised = max([found.number, *told])
    held: list[Item] = []
    end = 0
    for item in scan(read, segment.size, salt=segment.salt):
        if isinstance(item, Damage):
            held.append(item)  # what follows says what it was
            continue
        for damage in held:
            if found.number < promised:
                _take(disk, found, segment, damage, apply)
            else:
                found.torn += 1
        held = []
        if item.number <= promised:
            _take(disk, found, segment, item, apply)
            end = item.end
        elif item.spoilt:
            found.torn += 1
        else:
            found.number = item.number
            found.doubtful |= {change.row: change.value for change in item.changes}
    found.torn += len(held)
    segment.size = end


def keep_aside(disk: Disk, segment: Segment, start: int, end: int) -> None:
    """A copy of what cannot be read, for whoever mends it: it is never deleted by us."""
    name = f"{segment.number:08d}-{start}{BAD}"
    if name in disk.names():
        return
    try:
        disk.create(name)
        disk.append(name, disk.read(segment.name, start, end - start))
        disk.sync(name)
        disk.sync_names()
    except OSError:
        pass  # no room for a copy is no reason to keep the rest from its senders


def kept_aside(disk: Disk) -> int:
    return sum(1 for name in disk.names() if name.endswith(BAD))


def parts_aside(disk: Disk, where: str) -> list[Damaged]:
    names = [name for name in disk.names() if name.endswith(BAD)]
    return [Damaged(f"{where}/{name}", f"{where}/{name}", disk.size(name)) for name in names]


def items_of(disk: Disk, segment: Segment) -> Iterator[Item]:
    return scan(reader(disk, segment.name), segment.size, salt=segment.salt)
