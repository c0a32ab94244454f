"""What is LevelDB's own: tombstones, damaged blocks, writes that fail, syncs."""

# ruff: noqa: ASYNC240 - nothing else runs in these loops

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unspool.errors import Corrupt, Full, Unavailable
from unspool.spools.keyed.rows import lane_prefix
from unspool.spools.leveldb.spool import open_leveldb
from unspool.testing.conformance.values import (
    HERE,
    NOW,
    delivered,
    key,
    lease_all,
    lease_one,
    names_of,
    waiting,
)

pytest.importorskip("plyvel")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unspool.leveldb"


async def test_nobody_walks_over_what_was_taken(path: Path) -> None:
    """The head of a lane is full of tombstones: walks begin behind them, and whoever comes in
    earlier moves the beginning back."""
    spool = await open_leveldb(path, test_hook_no_sync=True)
    await spool.accept([waiting(f"{number:04}") for number in range(2_000)])
    while leases := await lease_all(spool, limit=200):
        await spool.settle([(lease, delivered()) for lease in leases])
    shelf: Any = spool.store.shelf
    lane = lane_prefix(HERE)
    assert shelf.low(lane) > lane + b"\x1f", "it is empty, and nobody looks into it"
    await spool.accept([waiting("b")])
    await lease_all(spool, limit=0)
    assert shelf.low(lane).startswith(lane + NOW.to_bytes(8, "big"))
    await spool.accept([waiting("a", due_at=NOW - 1)])
    assert names_of(await lease_all(spool)) == ["a", "b"]
    await spool.aclose()


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process can be written beyond: the disk fails in the middle of a record."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_nothing_is_written_behind_a_failed_write(path: Path) -> None:
    """12. Half a record in LevelDB's log hides what comes behind it: the folder is opened anew
    before anything more is promised, and everything that was is there in the end."""
    spool = await open_leveldb(path)
    await spool.accept([waiting(f"before{number}") for number in range(5)])
    leases = await lease_all(spool, limit=2)
    log = max(path.glob("*.log"))
    with files_end_at(log.stat().st_size + 100):
        with pytest.raises(Unavailable, match="did not answer"):
            await spool.accept([waiting("lost")])
        assert (await spool.find([key("before0")]))[0] is not None, "reading goes on"
    await spool.accept([waiting(f"after{number}") for number in range(5)])
    assert all(await spool.settle([(lease, delivered()) for lease in leases])), "leases stay"
    await spool.accept([waiting("lost")])
    await spool.aclose()
    spool = await open_leveldb(path)
    names = names_of(await lease_all(spool, limit=99))
    before, after = ([f"{word}{n}" for n in range(5)] for word in ("before", "after"))
    assert names == [*before[2:], *after, "lost"]
    await spool.aclose()


async def test_a_full_disk_is_refused_before_leveldb_fails(path: Path) -> None:
    """12. Full means that it did not happen; what is there can be read and settled."""
    spool = await open_leveldb(path)
    shelf: Any = spool.store.shelf
    await spool.accept([waiting("a")])
    lease = await lease_one(spool)
    shelf.room_bytes = 1 << 60
    with pytest.raises(Full, match="df -h"):
        await spool.accept([waiting("b")])
    assert list(await spool.find([key("b")])) == [None]
    assert list(await spool.settle([(lease, delivered())])) == [True]
    shelf.room_bytes = 0
    await spool.accept([waiting("b")])
    await spool.aclose()


async def test_a_damaged_table_costs_its_records_and_no_others(path: Path) -> None:
    """12. A bit flips in a table at rest: what cannot be read any more is set aside or refused,
    everything else is leased, whole."""
    spool = await open_leveldb(path, test_hook_no_sync=True)
    entries = [waiting(f"{number:04}") for number in range(500)]
    await spool.accept(entries)
    shelf: Any = spool.store.shelf
    shelf._db.compact_range()
    with shelf.view() as view:
        [request, *_] = [value for _, value in view.walk(b"r", start=b"r" + b"\0" * 8)]
    await spool.aclose()
    table = max(path.glob("*.ldb"), key=lambda found: found.stat().st_size)
    bytes_ = bytearray(table.read_bytes())
    bytes_[bytes_.index(request) + 20] ^= 1
    table.write_bytes(bytes_)
    spool = await open_leveldb(path, test_hook_no_sync=True)
    leases = await lease_all(spool, limit=500)
    wanted = {entry.message.key: entry.message for entry in entries}
    assert all(wanted[lease.entry.message.key] == lease.entry.message for lease in leases)
    assert 0 < spool.corrupt <= 40, "one block of LevelDB"
    assert len(leases) + spool.corrupt == 500
    await spool.aclose()


async def test_a_damaged_manifest_is_said(path: Path) -> None:
    await (await open_leveldb(path)).aclose()
    manifest = next(path.glob("MANIFEST-*"))
    manifest.write_bytes(b"\xff" * manifest.stat().st_size)
    with pytest.raises((Corrupt, Unavailable), match=r"damaged|did not answer"):
        await open_leveldb(path)
