"""FaultyDisk: a folder's files in memory, whose power can be cut and whose syncs can fail.

    disk = FaultyDisk()
    disk.cut_at = 17             the 17th thing that is done to it raises PowerCut, half done
    disk.fail(17, errno.EIO)     the 17th fails instead
    after = disk.after_cut(How.TORN, random.Random(1))      what the next boot finds

It speaks `unspool.spools.log.disk.Disk`. What was written and not synced may be lost, kept or torn
at a power cut, each write by itself and in any order: a later one may be there without an earlier.
A torn write is there up to some byte, or its length is and its bytes are zeros. Names that were
made or removed without `sync_names` are there or not. What was synced is there, always.

A sync that fails forgets what it could not write, as Linux does: the pages are clean then, reading
gives the new bytes, a second sync says that all is well, and the disk has the old ones.

Does not: rot (change `durable` for that), lie about its syncs, or reorder what was synced.
"""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass, field
from random import Random
from typing import Final

SECTOR: Final = 512
PARTS: Final = ("kept", "kept", "lost", "torn", "zero")
"""What becomes of a write that was not synced."""


class PowerCut(BaseException):
    """The power fails. Not an Exception: nobody handles it."""


class How(enum.Enum):
    """What becomes of all that was not synced."""

    LOST = "lost"
    KEPT = "kept"
    TORN = "torn"
    """Each write, and each name, by itself: lost, kept, or in part."""


@dataclass
class _File:
    durable: bytes = b""
    now: bytearray = field(default_factory=bytearray)
    """As the page cache has it."""
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes that no sync has seen: where, and what."""
    cut_to: int = -1
    """A truncation that no sync has seen."""


class FaultyDisk:
    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self._files: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        for name, data in (files or {}).items():
            self._files[name] = self._durable_names[name] = _File(data, bytearray(data))
        self.done = 0
        """Things done to it that a power cut could fall into."""
        self.cut_at = 0
        self.room_bytes: int | None = None
        """How much more can be written; None: any amount."""
        self.syncs = 0
        self._fails: dict[int, int] = {}
        self._off = False

    def fail(self, number: int, code: int) -> None:
        """Let the `number`-th thing done fail with this errno."""
        self._fails[number] = code

    def _step(self) -> tuple[bool, int]:
        """Is this where the power is cut? Is this where it fails?"""
        if self._off:
            raise PowerCut
        self.done += 1
        return self.done == self.cut_at, self._fails.pop(self.done, 0)

    def _end(self, *, cut: bool, code: int) -> None:
        if cut:
            self._off = True
            raise PowerCut
        if code:
            raise OSError(code, os.strerror(code))

    # -- a folder --------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> int:
        return len(self._files[name].now)

    def read(self, name: str, offset: int, length: int) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return bytes(self._files[name].now[offset : offset + length])

    def create(self, name: str) -> None:
        cut, code = self._step()
        if not code:
            assert name not in self._files
            self._files[name] = _File()
        self._end(cut=cut, code=code)

    def append(self, name: str, data: bytes) -> None:
        cut, code = self._step()
        file = self._files[name]
        if self.room_bytes is not None and len(data) > self.room_bytes:
            data, code = data[: self.room_bytes], errno.ENOSPC
        elif code:
            data = data[: len(data) // 2]
        if data:
            file.pending.append((len(file.now), data))
            file.now += data
        if self.room_bytes is not None:
            self.room_bytes -= len(data)
        self._end(cut=cut, code=code)

    def truncate(self, name: str, size: int) -> None:
        cut, code = self._step()
        if not code:
            file = self._files[name]
            if self.room_bytes is not None:
                self.room_bytes += len(file.now) - size
            del file.now[size:]
            file.pending = [
                (offset, data[: size - offset]) for offset, data in file.pending if offset < size
            ]
            if size < len(file.durable):
                file.cut_to = size
        self._end(cut=cut, code=code)

    def sync(self, name: str) -> None:
        cut, code = self._step()
        file = self._files[name]
        if code:
            file.pending = []  # clean, as far as anybody will ever be told
        elif not cut:
            self.syncs += 1
            # What a failed sync forgot is not written by a later one: only what is pending is.
            durable = bytearray(file.durable if file.cut_to < 0 else file.durable[: file.cut_to])
            for offset, data in file.pending:
                _put(durable, offset, data)
            file.durable, file.pending, file.cut_to = bytes(durable), [], -1
        self._end(cut=cut, code=code)

    def unlink(self, name: str) -> None:
        cut, code = self._step()
        if name not in self._files:
            code = code or errno.ENOENT
        if not code:
            del self._files[name]
        self._end(cut=cut, code=code)

    def sync_names(self) -> None:
        cut, code = self._step()
        if not cut and not code:
            self._durable_names = dict(self._files)
        self._end(cut=cut, code=code)

    def close(self) -> None:
        """Nothing is synced by it."""

    # -- the next boot ---------------------------------------------------------------------------

    def after_kill(self) -> FaultyDisk:
        """The process died and the kernel lives: everything that was written is there."""
        disk = FaultyDisk()
        disk._files, disk._durable_names = self._files, self._durable_names
        return disk

    def after_cut(self, how: How, random: Random) -> FaultyDisk:
        found: dict[str, bytes] = {}
        for name in sorted(self._files.keys() | self._durable_names.keys()):
            old, new = self._durable_names.get(name), self._files.get(name)
            keeps = how is How.KEPT or (how is How.TORN and random.random() < 0.5)
            file = new if old is new or keeps else old
            if file is not None:
                found[name] = _content(file, how, random)
        return FaultyDisk(found)


def _put(data: bytearray, offset: int, new: bytes) -> None:
    if len(data) < offset:
        data += bytes(offset - len(data))
    data[offset : offset + len(new)] = new


def _content(file: _File, how: How, random: Random) -> bytes:
    if how is How.LOST:
        return file.durable
    data = bytearray(file.durable)
    if file.cut_to >= 0 and (how is How.KEPT or random.random() < 0.5):
        del data[file.cut_to :]
    for offset, new in file.pending:
        part = (
            "kept" if how is How.KEPT else random.choice(("kept", "kept", "lost", "torn", "zero"))
        )
        if part == "kept":
            _put(data, offset, new)
        elif part == "torn":
            end = random.randrange(len(new) + 1)
            if random.random() < 0.5:
                end -= (offset + end) % SECTOR
            _put(data, offset, new[: max(0, end)])
        elif part == "zero":
            _put(data, offset, bytes(len(new)))
    return bytes(data)
