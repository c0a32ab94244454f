"""Place: are the files of an open SQLite spool still where they were?

    place = Place(path, lock)    the database, its WAL and its index, as they are now
    place.look()                 before each transaction; raises `NotDone` where none may be begun
    place.look(takes=True)       the same, before anything is taken

A file that was removed, or put aside for another, goes on for whoever has it open, and what is
written to it is nowhere when he ends. So each transaction looks here first. Nothing is taken into
files that nobody will find. What was taken before is delivered, while he lasts, where the database
was removed for good: nobody else can have it. Where it has only moved, somebody may open it there,
and without its WAL; then nothing is done at all. At the end SQLite looks itself: of a file that has
moved it folds no WAL, and removes nothing by its name.

Removing the lock does no harm by itself, but the next to open the spool would think himself alone,
and free our leases.

A WAL that grows and grows is told of here too: whoever reads the file for long (a tool that was
left open), or a disk that fails under the database, keeps SQLite from folding it, and nothing else
says so before the disk is full.

Costs five looks at names, a few µs. Does not: notice another file's bytes copied into ours, or what
happens in the midst of a commit.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
from pathlib import Path
from typing import Final

from ...errors import NotDone

log: Final = logging.getLogger("unspool.spool")

PARTS: Final = ("", "-wal", "-shm")
WAL_LARGE_BYTES: Final = 1 << 30
"""A commit of the largest messages takes half of it."""


class Place:
    def __init__(self, path: Path, lock: int) -> None:
        """Of those that are there; SQLite has made them all by now."""
        files = {name: _file(name) for name in (f"{path}{part}" for part in PARTS)}
        self._files: Final = {name: file for name, file in files.items() if file and any(file)}
        # Not opened for reading: closing that would let go of SQLite's own locks on it.
        only_place = getattr(os, "O_PATH", 0)
        self._database: Final = os.open(path, only_place | os.O_CLOEXEC) if only_place else -1
        self._lock_name: Final = f"{path}-lock"
        self._lock: Final = lock
        self._path: Final = path
        self._large_bytes = WAL_LARGE_BYTES

    def look(self, *, takes: bool = False) -> None:
        if (gone := self._gone()) and (takes or not self._nameless):
            raise _removed(self._path, gone)
        self._relock()
        self.weigh()

    def _gone(self) -> str:
        """The first that is not there any more, or is another; empty: all are."""
        for name, file in self._files.items():
            if _file(name) not in (file, None):
                return name
        return ""

    @property
    def _nameless(self) -> bool:
        """Has the database no name any more, anywhere?"""
        return self._database >= 0 and os.fstat(self._database).st_nlink == 0

    def close(self) -> None:
        if self._database >= 0:
            os.close(self._database)

    def weigh(self) -> None:
        """Say so, where the WAL is large, and again when it is twice as large."""
        try:
            size = os.stat(f"{self._path}-wal").st_size
        except OSError:
            return
        if size < self._large_bytes:
            return
        self._large_bytes = 2 * size
        log.warning(
            "the WAL of the spool %s has %d MB and cannot be folded into it: somebody reads it for"
            " long, or the disk fails there. Nothing is lost, but the disk fills up. See who has it"
            " open: fuser -v %s",
            self._path, size // 1_000_000, shlex.quote(str(self._path)),
        )  # fmt: skip

    def _relock(self) -> None:
        held = os.fstat(self._lock)
        if _file(self._lock_name) in ((held.st_dev, held.st_ino), None):
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            again = os.open(self._lock_name, flags, 0o600)
        except OSError:
            return  # what is wrong there, whoever opens the spool will be told
        try:
            fcntl.flock(again, fcntl.LOCK_SH)
            os.dup2(again, self._lock, inheritable=False)
        finally:
            os.close(again)


def _removed(path: Path, gone: str) -> NotDone:
    return NotDone(
        f"The spool {path} was removed or replaced while it was open ({gone} is not the file that"
        " it was), and nothing is taken for it any more. Nothing of this was done. What was taken"
        " before is lost when this process ends, unless it is delivered by then. Put the files back"
        " as they were, or save them from this process, and start again:"
        f" ls -l /proc/{os.getpid()}/fd"
    )


def _file(name: str) -> tuple[int, int] | None:
    """Which it is; (0, 0): none; None: that cannot be told just now."""
    try:
        found = os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0
    except OSError:
        return None
    return found.st_dev, found.st_ino
