"""The store is down, goes away, or is spoilt (J7, F10, D9). What cannot be remembered is not run.

Each kind of trouble is real: a folder that is missing, a file that is no database, a lock that
somebody holds, a disk that is full, bytes that have changed.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from crash.disks import ram_disk
from crash.launch import Quick
from crash.processes import eventually
from crash.wire import Told

from .fleet import Fleet, Process, busy, problem, replayed, stored

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ROOT = sys.platform == "linux" and os.geteuid() == 0


def is_down(told: Told) -> bool:
    """503, ours, and when to come back."""
    return (told.status, problem(told)) == (503, "memory-down") and int(
        told.fields["retry-after"]
    ) >= 1


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody writes, and does not come to an end."""
    db = apsw.Connection(str(path))
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")
    finally:
        db.close()


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte of room left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    yield
    filler.unlink()


# --- down from the start (J7) ---------------------------------------------------------------------


def no_folder(spool: Path) -> Callable[[], object]:
    return spool.parent.mkdir


def no_database(spool: Path) -> Callable[[], object]:
    spool.parent.mkdir()
    spool.write_bytes(b"something else entirely " * 1000)
    return spool.unlink


def a_folder_instead(spool: Path) -> Callable[[], object]:
    spool.mkdir(parents=True)
    return spool.rmdir


@pytest.mark.parametrize("trouble", [no_folder, no_database, a_folder_instead])
async def test_a_store_that_cannot_be_opened_runs_nothing(
    tmp_path: Path, launcher: Quick, trouble: Callable[[Path], Callable[[], object]]
) -> None:
    """J7: 503 memory-down and Retry-After for what has a key; the rest passes; and once the store
    can be opened all is well, without a restart."""
    spool = tmp_path / "store" / "idem.db"
    mend = trouble(spool)
    fleet = Fleet(launcher, tmp_path, spool=spool)
    try:
        process = await fleet.start(lifespan="off")
        for _ in range(3):
            told = await process.ask("k")
            assert is_down(told), told
        assert fleet.ledger.begun("k") == 0
        mend()
        told = await process.ask("k")
        assert (told.status, stored(told)) == (201, True)
        assert replayed(await process.ask("k"))
        assert fleet.ledger.begun("k") == 1
    finally:
        await fleet.end()


@pytest.mark.skipif(not ROOT, reason="it takes root to be somebody else")
async def test_a_store_that_may_not_be_read_runs_nothing(tmp_path: Path, launcher: Quick) -> None:
    """J7: the file, and then its folder, belong to somebody else."""
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o700)
    readable = tmp_path / "readable"
    readable.mkdir(mode=0o755)
    (readable / "idem.db").touch(mode=0o600)
    os.chmod(tmp_path, 0o777)
    for parent in tmp_path.parents:  # somebody else must get there, however deep it is
        if parent.stat().st_uid == os.getuid() and parent.stat().st_mode & 0o777 == 0o700:
            os.chmod(parent, 0o755)
    for place in (shut, readable):
        fleet = Fleet(launcher, tmp_path, spool=place / "idem.db")
        os.chmod(tmp_path / "ledger", 0o666)
        try:
            process = await fleet.start(lifespan="off", uid=65534)
            told = await process.ask("k")
            assert is_down(told), told
            assert fleet.ledger.begun("k") == 0
        finally:
            await fleet.end()


async def test_a_locked_store_runs_nothing(tmp_path: Path, launcher: Quick) -> None:
    """J7: somebody holds SQLite's lock for longer than we wait for it. Then he lets go."""
    fleet = Fleet(launcher, tmp_path)
    try:
        process = await fleet.start()
        before = await process.ask("before")
        with locked(fleet.spool):
            told = await process.ask("k")
            assert is_down(told), told
            assert fleet.ledger.begun("k") == 0
        told = await process.ask("k")
        assert (told.status, fleet.ledger.begun("k")) == (201, 1)
        again = await process.ask("before")
        assert (replayed(again), again.body) == (True, before.body)
    finally:
        await fleet.end()


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="it takes root to mount a tmpfs")
async def test_a_full_disk_runs_nothing(tmp_path: Path, launcher: Quick) -> None:
    """J7: no room for a claim, nothing is run; with room again it is, without a restart. What was
    kept before is replayed meanwhile."""
    with ram_disk(tmp_path, size_mib=4) as mount:
        fleet = Fleet(launcher, tmp_path, spool=mount / "idem.db")
        try:
            process = await fleet.start()
            before = await process.ask("before")
            with filled(mount):
                refused = 0
                for number in range(200):  # what is left of the file's last pages is used first
                    told = await process.ask(f"k-{number}")
                    if told.status == 503:
                        assert is_down(told), told
                        assert fleet.ledger.begun(f"k-{number}") == 0
                        refused += 1
                        if refused == 5:
                            break
                assert refused == 5
                again = await process.ask("before")
                assert replayed(again) or is_down(again)
                assert fleet.ledger.begun("before") == 1
            told = await process.ask(f"k-{number}")
            assert (told.status, stored(told)) == (201, True)
            again = await process.ask("before")
            assert (replayed(again), again.body) == (True, before.body)
        finally:
            await fleet.end()


# --- away between claim and record (F10) ----------------------------------------------------------


async def gone_before_the_record(
    fleet: Fleet, process: Process, away: Callable[[], object]
) -> Told:
    """Claimed, run, and then nothing could be written."""
    asking = asyncio.create_task(process.ask("k", do="hold"))
    await fleet.began("k")
    away()
    fleet.go("k")
    told = await asking
    assert (told.status, stored(told)) == (201, False)
    for _ in range(3):
        assert busy(await process.ask("k")), "it is not run again because we could not write"
    assert fleet.ledger.begun("k") == 1
    return told


async def is_back(fleet: Fleet, told: Told, *processes: Process) -> None:
    """The answer is there for everybody, soon."""

    async def kept() -> bool:
        again = await processes[0].ask("k")
        assert replayed(again) or busy(again) or is_down(again), again
        return replayed(again)

    await eventually(kept, "the answer was stored", seconds=60)
    for process in processes:
        again = await process.ask("k")
        assert (replayed(again), again.body) == (True, told.body)
    assert fleet.ledger.begun("k") == 1


async def test_an_answer_that_could_not_be_stored_is_given_and_stored_later(
    tmp_path: Path, launcher: Quick
) -> None:
    """F10: the store is locked between claim and record. The caller gets the answer and is told;
    a repeat does not run; once the store is back the answer is replayed, everywhere."""
    fleet = Fleet(launcher, tmp_path)
    try:
        process, other = await fleet.start(), await fleet.start()
        lock = locked(fleet.spool)
        told = await gone_before_the_record(fleet, process, lock.__enter__)
        elsewhere = await other.ask("k")
        assert is_down(elsewhere) or busy(elsewhere), elsewhere
        lock.__exit__(None, None, None)
        await is_back(fleet, told, process, other)
    finally:
        await fleet.end()


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="it takes root to mount a tmpfs")
@pytest.mark.parametrize("alone", [False, True])
async def test_an_answer_without_room_is_given_and_stored_later(
    tmp_path: Path, launcher: Quick, alone: bool
) -> None:
    """F10 on a full disk, on a shared spool and on a private one, where no claim was written."""
    with ram_disk(tmp_path, size_mib=4) as mount:
        fleet = Fleet(launcher, tmp_path, spool=mount / "idem.db", alone=alone)
        try:
            process = await fleet.start()
            full = filled(mount)
            told = await gone_before_the_record(fleet, process, full.__enter__)
            full.__exit__(None, None, None)
            await is_back(fleet, told, process)
        finally:
            await fleet.end()


# --- spoilt (D9) ----------------------------------------------------------------------------------


class Trap:
    """Unpickled, it makes a file: so it shows whether anybody did."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path(self._path),)  # type: ignore[return-value]


def changed(blob: bytes, place: int) -> bytes:
    out = bytearray(blob)
    out[place] ^= 0xFF
    return bytes(out)


def write(spool: Path, column: str, value: bytes) -> None:
    """Into the record of the key "k", beneath everybody."""
    db = apsw.Connection(str(spool))
    try:
        table = "message" if column == "status" else "body"
        db.execute(
            f"UPDATE {table} SET {column} = ? WHERE id = (SELECT id FROM message WHERE name = 'k')",
            (value,),
        )
        assert db.changes() == 1
    finally:
        db.close()


def read_one(spool: Path, column: str) -> bytes:
    db = apsw.Connection(str(spool))
    try:
        table = "message" if column == "status" else "body"
        found = db.execute(
            f"SELECT {column} FROM {table} WHERE id = (SELECT id FROM message WHERE name = 'k')"
        ).fetchone()
        blob: bytes = found[0]
        return blob
    finally:
        db.close()


@pytest.mark.parametrize("how", ["first", "middle", "last", "short", "empty", "pickle"])
@pytest.mark.parametrize("column", ["status", "answer"])
async def test_a_spoilt_record_is_never_run_and_never_unpickled(
    tmp_path: Path, launcher: Quick, column: str, how: str
) -> None:
    """D9: bytes of a record were changed. 503 for its key, now and later, in every process; it is
    not run; the keys beside it are well."""
    fleet = Fleet(launcher, tmp_path)
    try:
        process, other = await fleet.start(), await fleet.start()
        assert (await process.ask("k")).status == 201
        beside = await process.ask("beside")
        blob = read_one(fleet.spool, column)
        trap = tmp_path / "unpickled"
        spoilt = {
            "first": changed(blob, 0),
            "middle": changed(blob, len(blob) // 2),
            "last": changed(blob, -1),
            "short": blob[:-3],
            "empty": b"",
            "pickle": pickle.dumps(Trap(trap)),
        }[how]
        write(fleet.spool, column, spoilt)
        for one in (process, other, process):
            told = await one.ask("k")
            assert is_down(told), told
            again = await one.ask("beside")
            assert (replayed(again), again.body) == (True, beside.body)
        assert (fleet.ledger.begun("k"), fleet.ledger.begun("beside")) == (1, 1)
        assert not trap.exists()
    finally:
        await fleet.end()


async def test_bytes_changed_in_the_file_itself_are_noticed(
    tmp_path: Path, launcher: Quick
) -> None:
    """D9: not through SQLite but on the disk, while nobody runs: the kept answer's own bytes."""
    fleet = Fleet(launcher, tmp_path)
    try:
        first = await fleet.start()
        told = await first.ask("k")
        beside = await first.ask("beside")
        first.kill()
        await first.gone()
        db = apsw.Connection(str(fleet.spool))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        raw = fleet.spool.read_bytes()
        place = raw.index(told.body)
        fleet.spool.write_bytes(raw[:place] + b"DONE" + raw[place + 4 :])
        process = await fleet.start()
        for _ in range(2):
            assert is_down(await process.ask("k"))
        again = await process.ask("beside")
        assert (replayed(again), again.body) == (True, beside.body)
        assert fleet.ledger.begun("k") == 1
    finally:
        await fleet.end()
