"""Folder: a spool that is a folder of one process: made, marked as ours, and locked.

    folder = take(path, engine="leveldb", form=1, create=True)
    folder.fresh                 it was made just now, and is empty but for the mark
    folder.release()
    file_system(path)            its kind, as Linux tells it; what tmpfs promises is less

The mark is a file `UNSPOOL` in it that says `unspool <engine> <form>`: a folder with other things
in it is somebody else's and is left alone, without being opened; so is one of a newer form.

The lock is `<path>-lock`, an exclusive flock for as long as the spool is open, and in it stands who
has it: process and command. flock, not POSIX locks, so that two spools in one process count as two.

Bugs: a lock inherited over fork() keeps the folder "in use" until the child ends; open the spool
after forking. On a network file system flock is only as good as the server.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import CannotCreate, InUse, Misconfigured, Newer

MARK: Final = "UNSPOOL"
WAIT_S: Final = 1.0
"""A process that was just killed may take a moment to be gone."""
PAUSE_S: Final = 0.02
WHO_MAX_BYTES: Final = 300
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    path: Path
    fresh: bool
    lock: int
    """The open lock file."""

    def release(self) -> None:
        os.close(self.lock)


def take(path: Path, *, engine: str, form: int, create: bool) -> Folder:
    """Raises a `Broken` that says what to do."""
    _look(path, engine=engine, form=form, create=create)
    lock = _lock(path)
    try:
        fresh = _look(path, engine=engine, form=form, create=create)
        if fresh:
            _make(path, engine=engine, form=form)
    except BaseException:
        os.close(lock)
        raise
    return Folder(path=path, fresh=fresh, lock=lock)


def _look(path: Path, *, engine: str, form: int, create: bool) -> bool:
    """May it become ours? False: it is. Changes nothing."""
    quoted = shlex.quote(str(path))
    try:
        inside = set(os.listdir(path))
    except FileNotFoundError:
        inside = set()
        if not create:
            raise Misconfigured(
                f"There is no spool at {path}, and it was not to be made. Nothing was changed. See"
                f" what is there: ls -l {shlex.quote(str(path.parent))}"
            ) from None
        if not path.parent.is_dir():
            raise CannotCreate(
                f"The spool {path} cannot be made: its folder is missing. Nothing was changed."
                f" Make it: mkdir -p {shlex.quote(str(path.parent))}"
            ) from None
    except NotADirectoryError as error:
        raise Misconfigured(
            f"{path} is a file, and a {engine} spool is a folder. It was not changed. Name another"
            f" place, or see what it is: file {quoted}"
        ) from error
    except OSError as error:
        raise _denied(path, error) from error
    if MARK not in inside:
        if inside:
            raise Misconfigured(
                f"{path} has other things in it, and is no spool of ours. It was not changed. Name"
                f" another folder, or see what is in it: ls -l {quoted}"
            )
        return True
    mark = (path / MARK).read_text("utf-8", "replace").split()
    if len(mark) < 3 or mark[0] != "unspool" or not mark[2].isdigit():
        if not mark and inside == {MARK}:
            return True  # the power failed while it was made
        raise Misconfigured(
            f"{path} is marked as something else ({' '.join(mark)[:60]!r}). It was not changed."
            f" Name another folder, or look: cat {shlex.quote(str(path / MARK))}"
        )
    if mark[1] != engine:
        raise Misconfigured(
            f"{path} is a {mark[1]} spool. It was not changed. Say so: --spool {mark[1]}://{path}"
        )
    if int(mark[2]) > form:
        raise Newer(
            f"The spool {path} was written by a newer unspool (form {mark[2]}; this one knows"
            f" {form}). It was not changed, and everything in it is kept. Upgrade:"
            " pip install -U unspool"
        )
    return False


def _make(path: Path, *, engine: str, form: int) -> None:
    """So that nobody else may read it, and its name outlives a power cut as messages do (I1)."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        mark = os.open(path / MARK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(mark, f"unspool {engine} {form}\n".encode())
            os.fsync(mark)
        finally:
            os.close(mark)
        sync_folder(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _denied(path, error) from error


def sync_folder(path: Path) -> None:
    """Names made and removed in it outlive a power cut from here on."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _denied(path: Path, error: OSError) -> CannotCreate:
    return CannotCreate(
        f"The spool {path} cannot be opened for writing: {error.strerror}. Nothing was changed, and"
        " nothing is accepted without it. See who may write there:"
        f" ls -ld {shlex.quote(str(path.parent))} {shlex.quote(str(path))}"
    )


def _lock(path: Path) -> int:
    try:
        lock = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotCreate(
            f"The spool's lock {path}-lock cannot be made: {error.strerror}. Nothing was changed,"
            " and nothing is accepted without it. See who may write there:"
            f" ls -ld {shlex.quote(str(path.parent))}"
        ) from error
    until = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(PAUSE_S)
                continue
            who = os.pread(lock, WHO_MAX_BYTES, 0).decode("utf-8", "replace").strip()
            os.close(lock)
            raise _in_use(path, who) from None
        except BaseException:
            os.close(lock)
            raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, _who(), 0)
    return lock


def _who() -> bytes:
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    command = [program if program not in ("__main__.py", "-c", "-m") else "python", *sys.argv[1:]]
    if sys.argv and sys.argv[0].endswith("unspool/__main__.py"):
        command[0] = "unspool"
    return f"process {os.getpid()}: {shlex.join(command)}\n".encode()[:WHO_MAX_BYTES]


def _in_use(path: Path, who: str) -> InUse:
    return InUse(
        f"The spool {path} can be open in one process at a time, and {who or 'another process'} has"
        " it. Nothing was changed, and that one goes on. A relay lets operators' commands"
        " in once it has started; this one is no relay, or has not. Wait for it, or stop it."
        f" See who has it: fuser -v {shlex.quote(str(path))}-lock"
    )


def file_system(path: Path) -> str:
    """The kind of file system it is on, as Linux tells it; "unknown" elsewhere."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    for mount in mounts:
        found = re.match(r"\d+ \d+ (\S+) .* - (\S+) ", mount)
        if found and found[1] == wanted:
            return found[2]
    return "unknown"
