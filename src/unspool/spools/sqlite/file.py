"""The SQLite spool's file: made, checked, locked and measured before anything is promised.

    opened = open_file(path, create=True)      a writer, two readers, the lock, what they promise
    translate(error, …) -> UnspoolError        SQLite's trouble in our words

At open: the file is made with mode 0600, or is found to be ours and not newer than we are; WAL and
synchronous=FULL are set and read back; SQLite is new enough not to have the WAL-reset bug; a file
in memory (tmpfs) is promised to survive a process and no more.

The lock is `<file>-lock`, a shared flock for as long as the spool is open. Whoever can have it
alone at open knows that every lease in the file is a dead process's, and frees them. flock, not
POSIX locks, so that two spools in one process count as two.

Who writes waits for who is writing, and looks every millisecond: SQLite's own waiting looks ten
times a second in the end, and of a process that writes all the time, and lets go for less than a
millisecond, the others would then wait for seconds to get their turn.

Bugs: a lock inherited over fork() keeps the file "in use" until the child ends; open the spool
after forking. Another SQLite library in this process (Python's own `sqlite3`) that closes the file
lets go of our locks, and may remove our WAL, which is then noticed (`place`). On a network file
system SQLite's WAL, and flock, are only as good as the server.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from ...errors import (
    Broken,
    CannotCreate,
    Corrupt,
    Full,
    Misconfigured,
    Newer,
    NotDone,
    PromiseBroken,
    Unavailable,
    UnspoolError,
)
from ..folder import IN_MEMORY, file_system
from ..protocol import Promises, Survives
from .place import Place
from .schema import ADDITIONS, APPLICATION_ID, FREE_ORPHANS, SCHEMA, USER_VERSION

SQLITE_MIN: Final = (3, 51, 3)
"""3.7.0 to 3.51.2 can corrupt a WAL when two connections write and checkpoint at once."""
PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 16 * 1024
READER_CACHE_KIB: Final = 8 * 1024
BUSY_MS: Final = 5_000
BUSY_LOOK_S: Final = 0.001
CHECKPOINT_PAGES: Final = 4_000
WAL_KEPT_BYTES: Final = 64 * 1024 * 1024
STATEMENTS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open spool file."""

    writer: apsw.Connection
    finder: apsw.Connection
    """Reads for receipts and the dispatcher, beside the writer's sync."""
    browser: apsw.Connection
    """Reads for people, who may look at everything."""
    lock: int
    """The open lock file."""
    place: Place
    promises: Promises
    sole: bool
    """Nobody else had it open."""


def open_file(path: Path, *, create: bool, synced: bool = True) -> Opened:
    """Raises a `Broken` that says what to do, or `Unavailable` where waiting helps."""
    _check_library()
    _touch(path, create=create)
    lock, sole = _lock(path)
    connections: list[apsw.Connection] = []
    try:
        writer = _connect(path, cache_kib=CACHE_KIB, synced=synced)
        connections.append(writer)
        _make_ours(writer, path)
        if sole:
            with writer:
                for statement in FREE_ORPHANS:
                    writer.execute(statement)
        fcntl.flock(lock, fcntl.LOCK_SH)
        connections += [_connect(path, cache_kib=READER_CACHE_KIB, synced=synced) for _ in "12"]
        return Opened(
            writer=writer,
            finder=connections[1],
            browser=connections[2],
            lock=lock,
            place=Place(path, lock),
            promises=_measure(writer, path, synced=synced),
            sole=sole,
        )
    except BaseException as error:
        for connection in connections:
            connection.close()
        os.close(lock)
        if isinstance(error, apsw.Error):
            raise _at_open(error, path) from error
        raise


def _check_library() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < SQLITE_MIN:
        raise PromiseBroken(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a spool that two connections write."
            " Nothing was opened. Install a newer one: pip install -U 'apsw>=3.51.3.0'"
        )


def _touch(path: Path, *, create: bool) -> None:
    """Make the file, so that it is never readable by others, or see that it can be written."""
    flags = os.O_RDWR | os.O_CLOEXEC
    quoted = shlex.quote(str(path))
    try:
        if create and not path.exists():
            os.close(os.open(path, flags | os.O_CREAT, 0o600))
            # The name must outlive a power cut as the messages do (I1).
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        else:
            os.close(os.open(path, flags))
    except FileNotFoundError as error:
        if path.parent.is_dir():
            raise Misconfigured(
                f"There is no spool at {path}, and it was not to be made. Nothing was changed."
                f" See what is there: ls -l {shlex.quote(str(path.parent))}"
            ) from error
        raise CannotCreate(
            f"The spool {path} cannot be made: its folder is missing. Nothing was changed."
            f" Make it: mkdir -p {shlex.quote(str(path.parent))}"
        ) from error
    except OSError as error:
        raise CannotCreate(
            f"The spool {path} cannot be opened for writing: {error.strerror}. Nothing was changed,"
            " and nothing is accepted without it. See who may write there:"
            f" ls -ld {shlex.quote(str(path.parent))} {quoted}"
        ) from error


def _lock(path: Path) -> tuple[int, bool]:
    """The lock file, held; and whether nobody else holds it."""
    name = f"{path}-lock"
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotCreate(
            f"The spool's lock {name} cannot be made: {error.strerror}. Nothing was changed, and"
            " nothing is accepted without it. See who may write there:"
            f" ls -ld {shlex.quote(str(path.parent))}"
        ) from error
    _belong(lock, path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Somebody has it: either for good, shared, or for the moment of opening, which we await.
        fcntl.flock(lock, fcntl.LOCK_SH)
        return lock, False
    return lock, True


def _belong(lock: int, path: Path) -> None:
    """Where root looks at the spool first, the lock is still its owner's, as SQLite's files are."""
    owner = os.stat(path)
    mine = os.fstat(lock)
    # Only what can be nothing but our lock: whoever owns the folder may have put a link there.
    if (
        os.geteuid() == 0
        and mine.st_uid != owner.st_uid
        and mine.st_nlink == 1
        and not mine.st_size
    ):
        os.fchown(lock, owner.st_uid, owner.st_gid)


def _connect(path: Path, *, cache_kib: int, synced: bool) -> apsw.Connection:
    connection = apsw.Connection(
        str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=STATEMENTS
    )
    try:
        connection.set_busy_handler(_turn())
        if connection.pragma("schema_version") == 0:
            connection.pragma("page_size", PAGE_BYTES)
        elif connection.pragma("application_id") != APPLICATION_ID:
            raise Misconfigured(
                f"{path} is a database, but not a spool. It was not changed. Name another file, or"
                f" see what it is: file {shlex.quote(str(path))}"
            )
        version = connection.pragma("user_version")
        if isinstance(version, int) and version > USER_VERSION:
            raise Newer(
                f"The spool {path} was written by a newer unspool (form {version}; this one knows"
                f" {USER_VERSION}). It was not changed, and everything in it is kept. Upgrade:"
                " pip install -U unspool"
            )
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full" if synced else "off")
        connection.pragma("fullfsync", 1)  # where the system's fsync is less than its name
        connection.pragma("checkpoint_fullfsync", 1)
        connection.pragma("cache_size", -cache_kib)
        connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        connection.pragma("journal_size_limit", WAL_KEPT_BYTES)
    except BaseException:
        connection.close()
        raise
    return connection


def _turn() -> Callable[[int], bool]:
    """What SQLite asks each time that somebody else is writing: wait on? For BUSY_MS at most."""
    until = 0.0

    def waits_on(looks: int, /) -> bool:
        nonlocal until
        now = time.monotonic()
        if not looks:
            until = now + BUSY_MS / 1000
        if now >= until:
            return False
        time.sleep(BUSY_LOOK_S)
        return True

    return waits_on


def _make_ours(connection: apsw.Connection, path: Path) -> None:
    """Lay down the tables in a new file, and in an older one what it lacks: all of it or nothing,
    whoever else is opening it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.pragma("application_id") != APPLICATION_ID:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", USER_VERSION)
        for lacks, addition in ADDITIONS:
            if not connection.execute(lacks).fetchall():
                connection.execute(addition)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _measure(connection: apsw.Connection, path: Path, *, synced: bool) -> Promises:
    """What the file, as it is set up now, survives: read back, not believed."""
    mode = connection.pragma("journal_mode")
    level = connection.pragma("synchronous")
    if mode != "wal" or level != (2 if synced else 0):
        raise PromiseBroken(
            f"The spool {path} came up with journal_mode={mode}, synchronous={level} instead of"
            " wal, 2 (FULL): it would not survive a power cut. Nothing was accepted. Use a local"
            f" disk: df -T {shlex.quote(str(path.parent))}"
        )
    kind = file_system(path)
    version = apsw.sqlite_lib_version()
    detail = f"SQLite {version}, WAL, synchronous={'FULL' if synced else 'OFF'}, {kind}"
    durable = synced and kind not in IN_MEMORY
    return Promises(
        survives=Survives.POWER if durable else Survives.PROCESS,
        shared=True,
        remembers=True,
        fences=True,
        detail=detail,
    )


def _at_open(error: apsw.Error, path: Path) -> UnspoolError:
    quoted = shlex.quote(str(path))
    match error:
        case apsw.NotADBError():
            return Misconfigured(
                f"{path} is not a database. It was not changed. Name another file, or see what it"
                f" is: file {quoted}"
            )
        case apsw.CantOpenError() | apsw.ReadOnlyError():
            return CannotCreate(
                f"The spool {path} cannot be opened for writing ({error}). Nothing was changed. See"
                f" who may write there: ls -ld {shlex.quote(str(path.parent))} {quoted}"
            )
        case apsw.FullError() | apsw.IOError():
            return CannotCreate(
                f"The spool {path} cannot be written ({error}). What was accepted earlier is kept."
                f" Make room or mend the disk, then start again: df -h {quoted}"
            )
    return translate(error, path=path, committing=False)


def translate(error: apsw.Error, *, path: Path, committing: bool) -> UnspoolError:
    """SQLite's trouble in the words of clause 12. The transaction was rolled back before."""
    quoted = shlex.quote(str(path))
    match error:
        case apsw.FullError():
            # In WAL the mark of the commit is the last thing written: without room for it, the
            # batch did not happen, even where the error came from COMMIT.
            return Full(
                f"The disk of the spool {path} is full. Nothing of this was done, and everything"
                f" accepted before is kept. Make room: df -h {quoted}"
            )
        case apsw.IOError() if not committing:
            return Full(
                f"The disk of the spool {path} failed ({error}). Nothing of this was done."
                f" Look at the disk: dmesg | tail; df -h {quoted}"
            )
        case apsw.CorruptError() | apsw.NotADBError():
            return Corrupt(
                f"The spool {path} is damaged ({error}). Nothing of this was done. Stop unspool,"
                f" and save what can be read in a new spool: {_salvage(path)}"
            )
        case apsw.BusyError():
            return (Unavailable if committing else NotDone)(
                f"The spool {path} was locked by another process for {BUSY_MS} ms. Nothing of this"
                f" was done; repeat it. See who has it: fuser -v {quoted}"
            )
    return Unavailable(
        f"The spool {path} did not answer ({error}). It may or may not have done this; repeat it"
        f" under the same key. Look at the disk: df -h {quoted}"
    )


def _salvage(path: Path) -> str:
    """What is before the damage and what is behind it, by any sqlite3: many have no `.recover`."""
    old, new = shlex.quote(str(path)), shlex.quote(f"{path}.saved")
    return (
        f"(sqlite3 {old} .dump | sed 's/^ROLLBACK;.*/COMMIT;/'; echo 'PRAGMA application_id ="
        f" {APPLICATION_ID}; PRAGMA user_version = {USER_VERSION};') | sqlite3 {new}"
    )


def close_file(opened: Opened) -> None:
    """Let go of the file; the last one out folds the WAL into it."""
    try:
        for connection in (opened.browser, opened.finder, opened.writer):
            connection.close()
    except apsw.Error as error:
        raise Broken(
            f"The spool did not close well ({error}). Everything accepted is in its file and its"
            " WAL, and is found at the next start: unspool serve"
        ) from error
    finally:
        opened.place.close()
        os.close(opened.lock)
