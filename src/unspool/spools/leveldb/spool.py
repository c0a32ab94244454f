"""LevelDB: "a database on each node, maybe LevelDB". The spool in one folder of one process.

    spool = await open_leveldb("unspool.leveldb")          a `BlockingSpool` over a `KeyedStore`
    store = open_store(path)                               the store alone, for whoever may block

Promises: survives a power cut (every batch that promises something is written with sync=True; a
folder on tmpfs: a process), is not shared, remembers, fences. Needs plyvel: the extra `leveldb`.

A queue is the worst that can be done to an LSM tree: what was taken leaves a tombstone at the very
place where everybody looks next. So each order has a low-water row: nothing is in front of it, and
walks begin there. LRU of LOWS_MAX orders; without its low-water row a walk is slow once.

A failed write is final for the database that is open: LevelDB may have written half a record to its
log, and what it would write behind it could not be found again. So nothing more is written until
the folder has been opened anew, which reads the log up to the damage and syncs what it read; that
is tried at the next write, once a second. Before that happens, a disk with less than ROOM_BYTES
left is refused by us: then nothing was begun, and that is what `Full` says.

Cannot: be opened by two processes, so `--workers` must be 1; operators' commands go through the
relay that has it open (`desk`). A record that rots is set aside alone, by its own crc; of keys,
LevelDB gives up a block of 4 KiB: those in it are neither found nor accepted any more (fail
closed). A message whose row in the order rots is not leased again, and bounces when it expires. Rot
in the bones of a block stops whoever walks there with `Corrupt` (plyvel.repair_db).

Bugs: LevelDB does not sync the folder when it begins a new log; ext4, xfs and btrfs make the name
of a synced file durable all the same.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from ...core.record import Spoilt
from ...errors import Corrupt, Full, Missing, Unavailable, UnspoolError
from ..blocking import BlockingSpool
from ..folder import IN_MEMORY, Folder, file_system, take
from ..keyed.rows import end_of, prefix_of
from ..keyed.shelf import Changes, View
from ..keyed.store import KeyedStore
from ..protocol import Damaged, Survives

FORM: Final = 1
ROOM_BYTES: Final = 32 * 1024 * 1024
"""Left free on the disk, so that LevelDB can compact, and never runs into its end."""
LOWS_MAX: Final = 10_000
REOPEN_S: Final = 1.0
OPTIONS: Final = {
    "write_buffer_size": 8 * 1024 * 1024,
    "lru_cache_size": 16 * 1024 * 1024,
    "max_file_size": 8 * 1024 * 1024,
    "max_open_files": 74,  # LevelDB keeps 10 for itself; each table may be mapped into memory
    "bloom_filter_bits": 10,  # a key that nobody knows costs no look at the disk
    "compression": None,  # a bit that rots spoils what it is in, and no more
}
ERA: Final = b"i"
FORMAT: Final = b"f"
OURS: Final = b"unspool leveldb 1"


async def open_leveldb(
    path: str | Path, *, create: bool = True, test_hook_no_sync: bool = False
) -> BlockingSpool[KeyedStore]:
    """Raises a `Broken` that says what to do. The hook is for power cuts that must lose."""

    return await BlockingSpool.over(
        lambda: open_store(Path(path), create=create, synced=not test_hook_no_sync),
        name="unspool-leveldb",
    )


def open_store(path: Path, *, create: bool = True, synced: bool = True) -> KeyedStore:
    """For whoever may block. Raises as `open_leveldb`."""
    where = path.absolute()
    shelf = LevelShelf.open(where, create=create, synced=synced)
    try:
        return KeyedStore(shelf, where)
    except BaseException:
        shelf.close()
        raise


def plyvel() -> Any:
    try:
        import plyvel as found
    except ImportError as error:
        raise Missing(
            "The LevelDB spool needs plyvel, which is not installed. Nothing was opened. Install"
            " it: pip install 'unspool[leveldb]'"
        ) from error
    return found


class LevelShelf:
    def __init__(self, db: Any, folder: Folder, *, synced: bool) -> None:
        self.path: Final = folder.path
        self.generation = 0
        self.room_bytes = ROOM_BYTES
        self._plyvel = plyvel()
        self._db = db
        self._folder = folder
        self._synced = synced
        self._kind = file_system(folder.path)
        self._lows: OrderedDict[bytes, bytes] = OrderedDict()
        self._idle = threading.Condition()
        self._views = 0
        self._trouble = ""
        self._tried_at = 0.0
        self.era = int.from_bytes(db.get(ERA) or b"", "big") + 1
        db.put(ERA, self.era.to_bytes(8, "big"), sync=synced)

    @classmethod
    def open(cls, path: Path, *, create: bool = True, synced: bool = True) -> Self:
        library = plyvel()
        folder = take(path, engine="leveldb", form=FORM, create=create)
        db = None
        try:
            db = library.DB(str(path), create_if_missing=True, **OPTIONS)
            made = db.get(FORMAT)
            if made is None:
                db.put(FORMAT, OURS, sync=True)
            elif made != OURS:
                raise Corrupt(
                    f"The spool {path} is marked as ours, and the database in it is not"
                    f" ({made[:40]!r}). Nothing was changed. See what is there:"
                    f" ls -l {shlex.quote(str(path))}"
                )
            return cls(db, folder, synced=synced)
        except BaseException as error:
            if db is not None:
                db.close()
            folder.release()
            if isinstance(error, library.Error):
                raise _translated(error, path) from error
            raise

    @property
    def survives(self) -> Survives:
        durable = self._synced and self._kind not in IN_MEMORY
        return Survives.POWER if durable else Survives.PROCESS

    @property
    def detail(self) -> str:
        sync = "sync=True" if self._synced else "sync=False"
        return f"LevelDB {self._plyvel.__leveldb_version__}, {sync}, {self._kind}"

    @property
    def spoilt(self) -> int:
        return 0  # LevelDB does not tell

    def parts(self) -> Sequence[Damaged]:
        return ()

    @contextmanager
    def view(self, *, writer: bool = False) -> Iterator[View]:
        with self._idle:
            if self._db.closed:
                raise Unavailable(self._trouble or f"The spool {self.path} is closed.")
            self._views += 1
        try:
            snapshot = self._db.snapshot()
            try:
                yield _LevelView(self, snapshot, writer=writer)
            finally:
                snapshot.close()
        finally:
            with self._idle:
                self._views -= 1
                self._idle.notify_all()

    def write(self, changes: Changes, /, *, sync: bool, grows: bool = False) -> None:
        if self._trouble:
            self._reopen()
        if grows:
            self._check_room(changes)
        batch = self._db.write_batch(sync=sync and self._synced)
        for row, value in changes.items():
            if value is None:
                batch.delete(row)
            else:
                batch.put(row, value)
                self._came(row)
        try:
            batch.write()
        except self._plyvel.Error as error:
            problem = _translated(error, self.path)
            self._trouble = str(problem)
            raise problem from error

    def _check_room(self, changes: Changes) -> None:
        found = os.statvfs(self.path)
        size = sum(len(row) + len(value or b"") for row, value in changes.items())
        if found.f_bavail * found.f_frsize < self.room_bytes + size:
            raise Full(
                f"The disk of the spool {self.path} is full but for what LevelDB needs to put its"
                " tables in order. Nothing of this was done, and everything accepted before is"
                f" kept. Make room: df -h {shlex.quote(str(self.path))}"
            )

    def _reopen(self) -> None:
        """Read back what the disk has; only then may anything be written behind it."""
        if time.monotonic() - self._tried_at < REOPEN_S:
            raise Unavailable(self._trouble)
        self._tried_at = time.monotonic()
        with self._idle:
            self._idle.wait_for(lambda: not self._views)
            self._db.close()
            try:
                self._db = self._plyvel.DB(str(self.path), **OPTIONS)
            except self._plyvel.Error as error:
                raise _translated(error, self.path) from error
            self._lows.clear()
            self._trouble = ""
            self.generation += 1

    def close(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._views)
            self._db.close()
        self._folder.release()

    # -- low-water rows --------------------------------------------------------------------------

    def low(self, prefix: bytes) -> bytes:
        """Nothing that begins with `prefix` is before this row."""
        return self._lows.get(prefix, prefix)

    def raise_low(self, prefix: bytes, row: bytes) -> None:
        self._lows[prefix] = row
        self._lows.move_to_end(prefix)
        if len(self._lows) > LOWS_MAX:
            self._lows.popitem(last=False)

    def _came(self, row: bytes) -> None:
        prefix = prefix_of(row)
        if self._lows.get(prefix, b"") > row:
            self._lows[prefix] = row


class _LevelView:
    """A snapshot. `writer`: what it finds at the head of an order is remembered."""

    def __init__(self, shelf: LevelShelf, snapshot: Any, *, writer: bool) -> None:
        self._shelf = shelf
        self._snapshot = snapshot
        self._writer = writer
        self._corruption = plyvel().CorruptionError

    def get(self, row: bytes, /) -> bytes | None:
        try:
            # Data have checksums of their own, and one that is spoilt is not to take its whole
            # block with it. Of a key that may have been damaged nobody may say that it is new (2).
            found: bytes | None = self._snapshot.get(row, verify_checksums=row[:1] == b"k")
        except self._corruption as error:
            raise Spoilt(f"LevelDB: {_words(error)}") from error
        except self._shelf._plyvel.Error as error:
            raise _translated(error, self._shelf.path) from error
        return found

    def walk(self, prefix: bytes, /, *, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        low = self._shelf.low(prefix)
        notes = self._writer and start <= prefix
        stop = end_of(prefix)
        walked = self._snapshot.iterator(
            start=max(start, low),
            stop=stop,  # unverified: each row is held against its entry
        )
        try:
            for row, value in walked:
                if notes:
                    notes = False
                    self._shelf.raise_low(prefix, row)
                yield row, value
            if notes:
                self._shelf.raise_low(prefix, stop)
        except self._corruption as error:
            raise _translated(error, self._shelf.path) from error
        finally:
            walked.close()


def _words(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)


def _translated(error: Exception, path: Path) -> UnspoolError:
    """LevelDB's trouble in the words of clause 12."""
    quoted = shlex.quote(str(path))
    words = _words(error)
    if isinstance(error, plyvel().CorruptionError) or words.startswith("Corruption"):
        return Corrupt(
            f"The spool {path} is damaged ({words}). Nothing of this was done. Stop unspool, keep a"
            f" copy, and let LevelDB save what can be read: cp -a {quoted} {quoted}.kept; python -c"
            f" 'import plyvel, sys; plyvel.repair_db(sys.argv[1])' {quoted}"
        )
    if "No space left" in words:
        return Unavailable(
            f"The disk of the spool {path} is full ({words}). Nobody knows whether this was done;"
            " repeat it under the same key. What was accepted before is kept. Make room:"
            f" df -h {quoted}"
        )
    return Unavailable(
        f"The spool {path} did not answer ({words}). It may or may not have done this; repeat it"
        f" under the same key. Look at the disk: dmesg | tail; df -h {quoted}"
    )
