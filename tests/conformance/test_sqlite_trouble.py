"""SQLite in trouble: spoilt records, a full disk, a disk that fails, callers who vanish."""

# ruff: noqa: ASYNC221 - nothing else runs in these loops

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from unspool.errors import Corrupt, Full, NotDone, Unavailable
from unspool.spools.protocol import Query, Spool
from unspool.spools.sqlite.file import translate
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.spools.sqlite.store import SqliteStore
from unspool.testing.conformance.values import (
    DAY,
    claimed,
    delivered,
    key,
    later,
    lease_all,
    lease_one,
    names_of,
    waiting,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unspool.db"


def plain(path: Path) -> apsw.Connection:
    """The file as anybody else would open it."""
    return apsw.Connection(str(path))


def spoil(path: Path, column: str, name: str, *, byte: int = -1) -> None:
    """Flip one bit of a record, behind everybody's back."""
    table = "message" if column == "status" else "body"
    connection = plain(path)
    [[id_]] = connection.execute("SELECT id FROM message WHERE key = ?", (key(name),)).fetchall()
    [[blob]] = connection.execute(f"SELECT {column} FROM {table} WHERE id = ?", (id_,)).fetchall()
    bytes_ = bytearray(blob)
    bytes_[byte] ^= 1
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (bytes(bytes_), id_))
    connection.close()


async def test_a_spoilt_request_is_set_aside(path: Path) -> None:
    """12. It is set aside and counted, and the rest goes on; its key is never run again."""
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting("a", order_key="x"), waiting("b", order_key="x"), waiting("c")])
    spoil(path, "request", "a")
    assert names_of(await lease_all(spool)) == ["c"]
    assert spool.corrupt == 1
    assert names_of(await lease_all(spool)) == ["b"], "its line goes on without it"
    assert await lease_all(spool, now=later(DAY), until=later(2 * DAY), limit=0) == []
    with pytest.raises(Corrupt, match="set aside"):
        await spool.find([key("b"), key("a")])
    with pytest.raises(Corrupt, match="set aside"):
        await spool.accept([waiting("d"), waiting("a")])
    assert list(await spool.find([key("d")])) == [None], "a batch is atomic"
    await spool.aclose()
    spool = await SqliteSpool.open(path)
    assert spool.corrupt == 1
    assert names_of(list(await spool.browse(Query(), after=None, limit=9))) == ["b", "c"]
    await spool.aclose()
    body = "SELECT request IS NOT NULL FROM body ORDER BY id LIMIT 1"
    assert plain(path).execute(body).fetchall() == [(1,)], "its bytes stay"


@pytest.mark.parametrize("column", ["answer", "status"])
async def test_a_spoilt_answer_fails_closed(path: Path, column: str) -> None:
    """12. What may have been done is not done again because we cannot read what came of it."""
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting("a")])
    await spool.settle([(await lease_one(spool), delivered())])
    spoil(path, column, "a")
    for _ in "12":
        with pytest.raises(Corrupt):
            await spool.find([key("a")])
        with pytest.raises(Corrupt):
            await spool.accept([claimed("a")])
    assert spool.corrupt == 1
    assert await spool.sweep(now=later(10_000 * DAY), limit=9) == 0, "kept for whoever mends it"
    await spool.aclose()


async def test_a_full_spool_says_so_and_goes_on(path: Path) -> None:
    """12. Full means that it did not happen; what is there can be read and settled."""
    spool = await SqliteSpool.open(path)
    db = spool.store._db
    await spool.accept([waiting("a")])
    lease = await lease_one(spool)
    db.pragma("max_page_count", int(str(db.pragma("page_count"))) + 10)
    with pytest.raises(Full, match="df -h") as caught:
        await spool.accept([waiting(f"{number:04}") for number in range(2_000)])
    assert isinstance(caught.value.__cause__, apsw.FullError)
    assert list(await spool.find([key("0000")])) == [None]
    assert list(await spool.settle([(lease, delivered())])) == [True]
    db.pragma("max_page_count", 1_000_000)
    assert len(await spool.accept([waiting(f"{number:04}") for number in range(2_000)])) == 2_000
    await spool.aclose()


@pytest.mark.root
async def test_a_full_disk(tmp_path: Path) -> None:
    """12. The same with a real disk, which fills behind our back, at the commit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "unspool-test", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small disk")
    try:
        spool = await SqliteSpool.open(disk / "unspool.db")
        await spool.accept([waiting("a")])
        lease = await lease_one(spool)
        taken = await _fill(spool)
        assert taken > 0
        await _all_or_none(spool, taken)
        with pytest.raises(Full):
            await spool.settle([(lease, delivered("x" * 100_000))])
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert list(await spool.settle([(lease, delivered("x" * 100_000))])) == [True]
        assert len(await spool.accept([waiting("z")])) == 1
        await spool.aclose()
        spool = await SqliteSpool.open(disk / "unspool.db")
        await _all_or_none(spool, taken)
        assert plain(disk / "unspool.db").execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        await spool.aclose()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def _fill(spool: Spool) -> int:
    """Accept until it is Full. How many batches were taken."""
    for batch in range(1_000):
        try:
            await spool.accept([waiting(f"{batch:04}{number:04}") for number in range(64)])
        except Full:
            return batch
    raise AssertionError("a disk of 4 MiB took 64,000 messages")


async def _all_or_none(spool: Spool, batches: int) -> None:
    """Every batch that was accepted is there whole, and of the one refused nothing is."""
    first = await spool.find([key(f"{batch:04}{63:04}") for batch in range(batches)])
    assert all(first)
    refused = await spool.find([key(f"{batches:04}{number:04}") for number in range(64)])
    assert list(refused) == [None] * 64


ACCEPTS = """
import sys
from pathlib import Path
from unspool.errors import UnspoolError
from unspool.testing.conformance.values import *
from unspool.spools.sqlite.store import SqliteStore
store = SqliteStore.open(Path(sys.argv[1]))
for name in "abcdef":
    try:
        [answer] = store.accept([waiting(name)])
        print(name, type(answer).__name__)
    except UnspoolError as error:
        print(name, type(error).__name__)
        [answer] = store.accept([waiting(name)])
        print(name, "again", type(answer).__name__)
"""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("fsync,fdatasync:error=EIO:when=4", "Unavailable"),
        ("pwrite64:error=EIO:when=9", "Unavailable"),
        ("pwrite64:error=ENOSPC:when=9", "Full"),
        ("pwrite64:error=EDQUOT:when=9", "Unavailable"),
    ],
)
def test_a_disk_that_fails_once(path: Path, tmp_path: Path, fault: str, error: str) -> None:
    """12. One accept fails as it must, is repeated, and everything is there: the real disk's
    errors, put in from outside at the WAL."""
    SqliteStore.open(path).close()
    log = tmp_path / "strace"
    trace = ["strace", "-f", "-o", str(log), "-P", f"{path}-wal", "-e", f"inject={fault}"]
    try:
        ran = subprocess.run(
            [*trace, sys.executable, "-c", ACCEPTS, str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if "INJECTED" not in (log.read_text() if log.exists() else ""):
        pytest.skip(f"strace puts no faults in here: {ran.stderr[-200:]}")
    lines = ran.stdout.split("\n")
    failed = [line.split()[0] for line in lines if line.endswith(error)]
    assert len(failed) == 1, ran
    assert f"{failed[0]} again New" in lines or f"{failed[0]} again Duplicate" in lines
    assert len([line for line in lines if line.endswith("New") or "again" in line]) == 6
    store = SqliteStore.open(path)
    assert all(store.find([key(name) for name in "abcdef"]))
    store.close()


def test_each_trouble_has_its_word(path: Path) -> None:
    """12. Full only where nothing can have happened; at the commit only a full disk is that."""
    table = [
        (apsw.FullError, True, Full),
        (apsw.FullError, False, Full),
        (apsw.IOError, False, Full),
        (apsw.IOError, True, Unavailable),
        (apsw.BusyError, False, NotDone),
        (apsw.BusyError, True, Unavailable),
        (apsw.CantOpenError, False, Unavailable),
        (apsw.CorruptError, False, Corrupt),
        (apsw.NotADBError, True, Corrupt),
    ]
    for foreign, committing, ours in table:
        error = translate(foreign("trouble"), path=path, committing=committing)
        assert type(error) is ours, (foreign, committing)
        assert str(path) in str(error)


async def test_a_caller_who_vanishes_troubles_nobody(path: Path) -> None:
    """13. Not the thread, not the loop, not whoever comes next."""
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting("c")])
    spoil(path, "status", "c")
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    good = asyncio.ensure_future(spool.accept([waiting("a")]))
    bad = asyncio.ensure_future(spool.find([key("c")]))  # this one ends in an error
    await asyncio.sleep(0)
    good.cancel()
    bad.cancel()
    await spool.accept([waiting("b")])
    assert len(await spool.find([key("b")])) == 1
    await spool.aclose()
    await asyncio.sleep(0.01)
    assert complaints == []


async def test_a_row_set_aside_takes_nobodys_place(path: Path) -> None:
    """12. The rest goes on: a page of what people look at is a page of what can be read."""
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting("a"), waiting("b")])
    spoil(path, "status", "a")
    with pytest.raises(Corrupt):
        await spool.find([key("a")])
    assert names_of(list(await spool.browse(Query(), after=None, limit=1))) == ["b"]
    await spool.aclose()


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
async def test_what_is_spoilt_ends_no_page(path: Path, limit: int) -> None:
    """10, 12. A page is short only at the end: who walks the spool from page to page, as an export
    does, would take it for the end, and say that it has all."""
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting(name) for name in "abcdef"])
    spoil(path, "request", "b")
    spoil(path, "request", "c")
    page = list(await spool.browse(Query(), after=None, limit=limit, requests=True))
    assert names_of(page) == ["a", "d", "e", "f"][:limit]
    await spool.aclose()


def put_in(path: Path, column: str, value: str, name: str) -> None:
    """A value of another type than the column's, as a bit in the head of its row makes one."""
    connection = plain(path)
    table = "SELECT sql FROM sqlite_schema WHERE name = 'message'"
    [[strict]] = connection.execute(table).fetchall()
    for sql in (str(strict).rstrip().removesuffix("STRICT"), strict):
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'message'", (sql,))
        connection.execute("PRAGMA writable_schema = RESET")
        if sql != strict:
            change = f"UPDATE message SET {column} = {value} WHERE key = ?"
            connection.execute(change, (key(name),))
    connection.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attempt", "x'01'"), ("seized", "x'01'"), ("repeat", "x'01'"), ("due_at", "'x'"),
        ("accepted_at", "1.5"), ("fingerprint", "'text'"), ("nonce", "'text'"), ("name", "x'ff'"),
        ("status", "'text'"),
    ],
)  # fmt: skip
async def test_a_column_of_another_type_stops_nobody_else(
    path: Path, column: str, value: str
) -> None:
    """12. SQLite writes no such row, not even to set it aside as it is: it is, all the same."""
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting("a"), waiting("b"), waiting("c")])
    put_in(path, column, value, "b")
    assert names_of(await lease_all(spool)) == ["a", "c"]
    assert spool.corrupt == 1
    with pytest.raises(Corrupt, match="set aside"):
        await spool.accept([waiting("b")])
    [damaged] = await spool.damaged(after=None, limit=9)
    assert list(await spool.discard([damaged.mark])) == [True]
    await spool.aclose()


def test_what_can_be_read_of_a_damaged_file_is_saved_as_it_says(tmp_path: Path) -> None:
    """12. The command in the message, as it stands there: all but the page that is gone, in a file
    that is a spool."""
    if shutil.which("sqlite3") is None:
        pytest.skip("sqlite3 is not installed")
    path = tmp_path / "a spool.db"
    store = SqliteStore.open(path)
    store.accept([waiting(f"{number:03}") for number in range(600)])
    store.close()
    content = bytearray(path.read_bytes())
    row = content.index(key("300").encode())
    while content[row // 4096 * 4096] != 13:  # a leaf of the table, and not of an index
        row = content.index(key("300").encode(), row + 1)
    page = row // 4096 * 4096
    content[page : page + 8] = b"\xff" * 8
    path.write_bytes(content)
    store = SqliteStore.open(path)
    with pytest.raises(Corrupt) as caught:
        store.browse(Query(), after=None, limit=600)
    store.close()
    command = str(caught.value).partition("in a new spool: ")[2]
    ran = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    saved = SqliteStore.open(Path(f"{path}.saved"), create=False)
    found = saved.browse(Query(), after=None, limit=600, requests=True)
    assert 560 < len(found) < 600, ran
    assert names_of(list(found))[-1] == "599"
    saved.close()
