"""LogShelf: an append-only log as a shelf. The talk's "log file".

    LogShelf.open(disk, …)        read the log, make its index, begin a new segment
    shelf.view() · shelf.write(changes, sync=True) · shelf.close()       see `keyed.shelf`

A batch is one frame, appended in one write and synced once; only then is it seen. The index is in
memory, data stay on the disk (`index`). What each file means when it is read again is
`segments`'s; the frame is `frames`'s.

A sync that failed is final: the kernel forgets what it could not write, and a second sync would say
that all is well. So is a write that failed, unless the disk was full and what had been written of
the batch could be taken back. The shelf then writes nothing more until it is opened anew; reading
goes on. Opening trusts no byte that only the page cache may have: what was not yet promised is
written again to the new segment, and synced.

Compaction: once more than half of the log is dead, each batch takes a piece of the oldest segment
along: of what is in it, the rows that still hold are written again in front of the batch, as they
are now; then the segment goes. Always the oldest first, so that no row can outlive what deleted it.
A batch pays for it by a few times its own size.

A value is spoilt where the disk says that it cannot read it, or its crc does. A file that cannot be
opened (its folder was moved, no descriptor is left) spoils nothing: that passes.

Bugs: a message that is held for years is copied again each time the log has turned over.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Self

from ...core.record import Spoilt
from ...errors import Full, NotDone, Unavailable
from ..keyed.rows import DATA, number_of
from ..keyed.shelf import Changes, View
from ..protocol import Damaged, Survives
from .cleaning import Cleaning
from .disk import Disk
from .frames import SALT_BYTES, Frame, encode, length_of, opened
from .index import SLOTS_MAX, LogIndex, size_of, spot_of, where
from .segments import (
    PREVIOUS,
    Segment,
    kept_aside,
    named,
    parts_aside,
    previous,
    recover,
)

SEGMENT_BYTES: Final = 64 * 1024 * 1024
BATCH_MAX_BYTES: Final = 512 * 1024 * 1024
"""A frame is one write, and what it holds is found by 30 bits."""
UNSYNCED_MAX_BYTES: Final = 4 * 1024 * 1024
"""So much rides on the next sync; then there is one."""
CLEAN_LEAST_BYTES: Final = 64 * 1024
CLEAN_TIMES: Final = 4
"""Of the oldest segment, so many bytes are looked at for each that is written."""
ROW_BYTES: Final = 60
"""What a row that is not data takes in the log, roughly."""
ERA: Final = b"i"
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DAMAGED: Final = frozenset({errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})
"""What a disk says of bytes that it has lost."""


class LogShelf:
    def __init__(self, disk: Disk, *, where_: str, segment_bytes: int, salt: Callable[[int], bytes],
                 survives: Survives, detail: str, release: Callable[[], None]) -> None:  # fmt: skip
        self.generation = 0
        self.survives: Final = survives
        self.detail: Final = detail
        self.torn = 0
        """Batches that were being written when the log ended last."""
        self._disk = disk
        self._where = where_
        self._segment_bytes = segment_bytes
        self._salt = salt
        self._release = release
        self._lock = threading.RLock()
        self._index = LogIndex()
        self._segments: dict[int, Segment] = {}
        self._slots: list[Segment | None] = []
        """Segments by what spots call them: numbers rise for ever, slots are used again."""
        self._current = Segment(0, "", b"", 0)
        self._highest = 0
        self._number = 0
        self._synced = 0
        self._unsynced_bytes = 0
        self._trouble = ""
        self._cleaning: Cleaning | None = None
        self._may_clean = True
        self.era = 0
        self.spoilt = 0

    @classmethod
    def open(
        cls, disk: Disk, *, where_: str = "the log", segment_bytes: int = SEGMENT_BYTES,
        salt: Callable[[int], bytes] = os.urandom, survives: Survives = Survives.POWER,
        detail: str = "log", release: Callable[[], None] = lambda: None,
    ) -> Self:  # fmt: skip
        """Raises `Corrupt`, OSError."""
        shelf = cls(
            disk, where_=where_, segment_bytes=segment_bytes, salt=salt, survives=survives,
            detail=detail, release=release,
        )  # fmt: skip
        shelf._recover()
        return shelf

    def _recover(self) -> None:
        found = recover(self._disk, self._apply_frame)
        self._highest, self._number = found.highest, found.number
        self.torn = found.torn
        self.era = number_of(found.doubtful.get(ERA) or self._index.get(ERA) or b"") + 1
        last = found.segments[-1] if found.segments else None
        for segment in found.segments:
            self._admit(segment)
        self._begin_segment(last, {**found.doubtful, ERA: self.era.to_bytes(8, "big")})
        with suppress(OSError):
            for name in found.void:
                self._disk.unlink(name)
        self.spoilt = kept_aside(self._disk)

    def parts(self) -> Sequence[Damaged]:
        return parts_aside(self._disk, self._where)

    # -- reading ---------------------------------------------------------------------------------

    @contextmanager
    def view(self, *, writer: bool = False) -> Iterator[View]:
        with self._lock:
            yield self

    def get(self, row: bytes, /) -> bytes | None:
        if row[0] not in DATA:
            return self._index.get(row)
        spot = self._index.spot(row)
        return None if not spot else self._read(row, spot)

    def _read(self, row: bytes, spot: int) -> bytes:
        slot, offset, size = where(spot)
        segment = self._slots[slot]
        if segment is None:
            raise Spoilt("a value that was damaged when its segment went")
        name = segment.name
        try:
            described = self._disk.read(name, offset, size)
            if len(described) == size and size < 8 + (length := length_of(described)):
                described = self._disk.read(name, offset, 8 + length)
        except OSError as error:
            if error.errno in DAMAGED:
                raise Spoilt(f"{name} cannot be read: {error.strerror}") from error
            raise NotDone(
                f"{name} of the spool {self._where} cannot be opened ({error.strerror}). Nothing of"
                " this was done, and nothing is given up: when it can, all goes on. See what is"
                f" there: ls -l {self._where}"
            ) from error
        value = opened(row, described)
        if value is None:
            raise Spoilt(f"a value in {name} failed its crc")
        return value

    def walk(self, prefix: bytes, /, *, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        if prefix[0] not in DATA:
            yield from self._index.walk(prefix, start)
            return
        for place, spot in self._index.data(prefix[:1], number_of(start[1:9])):
            row = prefix[:1] + place.to_bytes(8, "big")
            try:
                yield row, self._read(row, spot)
            except Spoilt:
                yield row, b""

    # -- writing ---------------------------------------------------------------------------------

    def write(self, changes: Changes, /, *, sync: bool, grows: bool = False) -> None:
        self._check()
        frames: list[Changes] = []
        if self._must_clean():
            copies = self._clean(changes)
            if copies:
                frames.append(copies)
        frames.append(changes)
        sync = sync or self._unsynced_bytes > UNSYNCED_MAX_BYTES
        try:
            self._append(frames, sync=sync)
        except Full:
            self._cleaning = None  # the piece was not copied: begin again
            raise
        if sync and self._cleaning is not None and self._cleaning.done:
            self._remove_oldest()

    def _check(self) -> None:
        if self._trouble:
            raise Unavailable(self._trouble)

    def _append(self, frames: list[Changes], *, sync: bool) -> None:
        """All of the frames at the end of the log, and in the index once they are there."""
        segment = self._current
        if segment.size >= self._segment_bytes:
            segment = self._roll(segment)
        data, placed = self._encoded(frames, segment)
        if len(data) > BATCH_MAX_BYTES:
            raise Full(
                f"{len(data)} bytes came at once, and the spool {self._where} takes"
                f" {BATCH_MAX_BYTES}. Nothing of this was done; send it again later, or keep bodies"
                " smaller: unspool serve --body-max-bytes 1MiB"
            )
        try:
            self._disk.append(segment.name, data)
        except OSError as error:
            self._take_back(segment, error)
        segment.size += len(data)
        if sync:
            self._sync(segment)
        with self._lock:
            for frame, spots in placed:
                self._apply(segment, frame, spots)
        self._unsynced_bytes = 0 if sync else self._unsynced_bytes + len(data)

    def _encoded(
        self, frames: list[Changes], segment: Segment
    ) -> tuple[bytes, list[tuple[Changes, list[int]]]]:
        parts: list[bytes] = []
        placed: list[tuple[Changes, list[int]]] = []
        at = segment.size
        for frame in frames:
            self._number += 1
            data, spots = encode(frame, salt=segment.salt, number=self._number, synced=self._synced)
            placed.append((frame, [spot and at + spot for spot in spots]))
            parts.append(data)
            at += len(data)
        return b"".join(parts), placed

    def _take_back(self, segment: Segment, error: OSError) -> None:
        """What was written of a batch that failed. Raises `Full` or `Unavailable`."""
        if error.errno in NO_ROOM:
            with suppress(OSError):
                self._disk.truncate(segment.name, segment.size)
                raise Full(
                    f"The disk of the spool {self._where} is full. Nothing of this was done, and"
                    f" everything accepted before is kept. Make room: df -h {self._where}"
                ) from error
        self._fail(error)

    def _sync(self, segment: Segment) -> None:
        try:
            self._disk.sync(segment.name)
        except OSError as error:
            self._fail(error)
        self._synced = self._number

    def _fail(self, error: OSError) -> None:
        self._trouble = (
            f"The disk of the spool {self._where} failed ({error.strerror or error}), and nobody"
            " knows what it kept of the last batch. Nothing more is accepted until the log was"
            " read again; what was accepted before is in it. Look at the disk, then start the"
            " relay again: dmesg | tail; unspool serve"
        )
        raise Unavailable(self._trouble) from error

    # -- segments --------------------------------------------------------------------------------

    def _roll(self, last: Segment) -> Segment:
        """The segment is full: it is synced whole, and a new one begun."""
        self._sync(last)
        self._begin_segment(last, {})
        return self._current

    def _begin_segment(self, last: Segment | None, first: dict[bytes, bytes | None]) -> None:
        """On the disk, name and all, before anything is promised by what stands in it."""
        self._highest += 1
        salt = self._salt(SALT_BYTES)
        segment = Segment(self._highest, named(self._highest, salt), salt, 0)
        before = (last.number, last.size) if last else (0, 0)
        data, placed = self._encoded([{**first, PREVIOUS: previous(*before)}], segment)
        try:
            self._disk.create(segment.name)
            self._disk.append(segment.name, data)
        except OSError as error:
            with suppress(OSError):
                self._disk.unlink(segment.name)
            if error.errno in NO_ROOM:
                raise Full(
                    f"The disk of the spool {self._where} is full. Nothing of this was done, and"
                    f" everything accepted before is kept. Make room: df -h {self._where}"
                ) from error
            self._fail(error)
        segment.size = len(data)
        try:
            self._disk.sync(segment.name)
            self._disk.sync_names()
        except OSError as error:
            self._fail(error)
        self._synced = self._number
        with self._lock:
            self._admit(segment)
            self._current = segment
            for frame, spots in placed:
                self._apply(segment, frame, spots)

    def _admit(self, segment: Segment) -> None:
        """It is one of ours, and has a slot."""
        if segment.number in self._segments:
            return
        self._segments[segment.number] = segment
        free = next((n for n, held in enumerate(self._slots) if held is None), len(self._slots))
        assert free < SLOTS_MAX, "more than 4 TiB in one log"
        segment.slot = free
        self._slots[free:] = [segment, *self._slots[free + 1 :]]

    # -- the index -------------------------------------------------------------------------------

    def _apply_frame(self, segment: Segment, frame: Frame) -> None:
        self._admit(segment)
        for change in frame.changes:
            if change.row[0] not in DATA:
                self._set_row(change.row, change.value)
            else:
                gone = change.value is None
                self._set_spot(segment, change.row, change.offset, 0 if gone else change.end)

    def _apply(self, segment: Segment, frame: Changes, spots: list[int]) -> None:
        for (row, value), offset in zip(frame.items(), spots, strict=True):
            if row[0] not in DATA:
                self._set_row(row, value)
            else:
                assert value is None or offset, "data are never empty"
                end = 0 if value is None else offset + 8 + len(value)
                self._set_spot(segment, row, offset, end)

    def _set_row(self, row: bytes, value: bytes | None) -> None:
        if value is None:
            self._index.drop(row)
        elif row != PREVIOUS:
            self._index.put(row, value)

    def _set_spot(self, segment: Segment, row: bytes, offset: int, end: int) -> None:
        """`end` 0: it goes."""
        new = spot_of(segment.slot, offset, end - offset) if end else 0
        old = self._index.set_spot(row, new)
        segment.live += size_of(new)
        before = self._slots[where(old)[0]] if old else None
        if before is not None:
            before.live -= size_of(old)

    # -- compaction ------------------------------------------------------------------------------

    def _must_clean(self) -> bool:
        if self._cleaning is not None:
            return not self._cleaning.done
        if not self._may_clean or len(self._segments) < 3:
            return False
        total = sum(segment.size for segment in self._segments.values())
        live = sum(segment.live for segment in self._segments.values())
        return total > 2 * (live + ROW_BYTES * self._index.count) + self._segment_bytes

    def _clean(self, changes: Changes) -> Changes:
        """Of the next piece of the oldest segment, what still holds, as it is now."""
        if self._cleaning is None:
            oldest = self._segments[min(self._segments)]
            self._cleaning = Cleaning(self._disk, self._index, oldest)
        written = sum(len(row) + len(value or b"") for row, value in changes.items())
        try:
            return self._cleaning.piece(CLEAN_LEAST_BYTES + CLEAN_TIMES * written)
        except OSError:  # it stays where it is: whoever wants something of it will see
            self._may_clean, self._cleaning = False, None
            return {}

    def _remove_oldest(self) -> None:
        """Its name is gone for good before the next one's may go: a row must not come back."""
        assert self._cleaning is not None
        segment, self._cleaning = self._cleaning.segment, None
        with self._lock:
            try:
                self._disk.unlink(segment.name)
                self._disk.sync_names()
            except OSError:
                self._may_clean = False
            del self._segments[segment.number]
            self._slots[segment.slot] = None
        self.spoilt = kept_aside(self._disk)

    def close(self) -> None:
        """The last frame says that everything before it is on the disk."""
        try:
            if not self._trouble:
                with suppress(Unavailable, Full):
                    self._sync(self._current)
                    self._append([{}], sync=True)
        finally:
            with self._lock:
                self._disk.close()
            self._release()
