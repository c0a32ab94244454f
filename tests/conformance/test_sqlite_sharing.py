"""SQLite among several: processes and threads with one file, the living and the dead."""

# ruff: noqa: ASYNC220 - nothing else runs in these loops

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from unspool.core.lifecycle import State
from unspool.core.message import Instant
from unspool.errors import Unavailable
from unspool.spools.protocol import Duplicate, New, Query
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.spools.sqlite.store import SqliteStore
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    MINUTE,
    NOW,
    claimed,
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


HOLDER = """
import sys
from pathlib import Path
from unspool.testing.conformance.values import *
from unspool.spools.sqlite.store import SqliteStore
store = SqliteStore.open(Path(sys.argv[1]))
store.accept([waiting("a"), waiting("b", due_at=later(DAY)), claimed("c")])
store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
store.seize([key("b")], now=NOW, until=LEASED_UNTIL)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, with one message leased, one seized and one claimed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


async def test_leases_of_the_living_are_respected(
    path: Path, holder: subprocess.Popen[bytes]
) -> None:
    spool = await SqliteSpool.open(path)
    assert not spool.store.sole
    assert await lease_all(spool, now=later(MINUTE - 1), until=later(DAY)) == []
    [answer] = await spool.accept([claimed("c", at=later(MINUTE - 1), until=later(DAY))])
    assert isinstance(answer, Duplicate)
    await spool.aclose()


async def test_leases_of_the_dead_are_freed(path: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    spool = await SqliteSpool.open(path)
    assert spool.store.sole
    leases = await lease_all(spool, now=later(1), until=later(DAY))
    assert names_of(leases) == ["a"], "what was seized is still not due"
    assert (leases[0].entry.attempt, leases[0].abandoned) == (2, True)
    newcomer = claimed("c", at=later(1), until=later(DAY))
    [answer] = await spool.accept([newcomer])
    assert isinstance(answer, New)
    assert answer.entry.attempt == 2
    await spool.aclose()


async def test_an_open_spool_keeps_its_leases_from_the_next_opener(path: Path) -> None:
    first = await SqliteSpool.open(path)
    await first.accept([waiting("a")])
    await lease_one(first)
    for _ in range(3):  # openers come and go; the first still has it
        second = await SqliteSpool.open(path)
        assert not second.store.sole
        assert await lease_all(second) == []
        await second.aclose()
    await first.aclose()


WORKER = """
import sys
from pathlib import Path
from unspool.testing.conformance.values import *
from unspool.spools.sqlite.store import SqliteStore
store = SqliteStore.open(Path(sys.argv[1]))
sys.stdin.readline()
while leases := store.lease({HERE: 5}, now=NOW, until=LEASED_UNTIL):
    assert all(store.settle([(lease, delivered(sys.argv[2])) for lease in leases]))
    print(*(lease.entry.message.key for lease in leases), sep="\\n")
"""


async def test_processes_share_the_work(path: Path) -> None:
    """I4 between processes: each message is delivered once, by one of them."""
    spool = await SqliteSpool.open(path)
    keys = [f"{number:04}" for number in range(600)]
    await spool.accept([waiting(name) for name in keys])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ABC"
    ]
    outputs = await asyncio.gather(
        *(asyncio.to_thread(worker.communicate, "go\n") for worker in workers)
    )
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    done = [name for output, _ in outputs for name in output.split()]
    assert sorted(done) == sorted(key(name) for name in keys)
    entries = await spool.browse(Query(state=State.DELIVERED), after=None, limit=1_000)
    assert len(entries) == 600
    await spool.aclose()


def test_who_writes_all_the_time_lets_others_have_their_turn(path: Path) -> None:
    """It has the file for 20 ms, lets go for one, and has it again: not for seconds on end."""
    store = SqliteStore.open(path)
    holds, over = threading.Event(), threading.Event()
    turns = 0

    def hog() -> None:
        nonlocal turns
        greedy = apsw.Connection(str(path))
        greedy.set_busy_timeout(5_000)
        while not over.is_set():
            greedy.execute("BEGIN IMMEDIATE")
            holds.set()
            time.sleep(0.02 if turns else 0.3)  # the first is long: who waits is patient
            greedy.execute("COMMIT")
            turns += 1
            time.sleep(0.001)
        greedy.close()

    waited = 0
    for number in range(3):
        turns = 0
        holds.clear()
        over.clear()
        hogging = threading.Thread(target=hog)
        hogging.start()
        assert holds.wait(20)
        store.accept([waiting(f"{number}")])
        waited += turns
        over.set()
        hogging.join()
    store.close()
    assert waited < 60, "of SQLite's own looks one in twenty meets the gap: it would be 300"


async def test_another_process_wakes_who_waits(path: Path) -> None:
    spool = await SqliteSpool.open(path)
    waiter = asyncio.create_task(spool.wait_arrival())
    await asyncio.sleep(0.6)
    assert not waiter.done(), "nothing has changed"
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    await asyncio.wait_for(waiter, 30)
    assert names_of(await lease_all(spool, now=LEASED_UNTIL, until=later(DAY))) == ["a"]
    await spool.aclose()


async def test_a_file_that_is_locked_for_long_is_unavailable(path: Path) -> None:
    spool = await SqliteSpool.open(path)
    spool.store._db.set_busy_timeout(50)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked by another process"):
        await spool.accept([waiting("a")])
    other.execute("COMMIT")
    assert list(await spool.accept([waiting("a")])) == [New(waiting("a"))]
    await spool.aclose()


async def test_the_store_can_be_used_from_threads(path: Path) -> None:
    """The blocking side: several threads take turns, and each write is whole."""
    store = SqliteStore.open(path)
    await asyncio.gather(
        *(asyncio.to_thread(store.accept, [waiting(f"{n:03}{m}") for m in "ab"]) for n in range(40))
    )
    leases = await asyncio.gather(
        *(
            asyncio.to_thread(store.lease, {HERE: 3}, now=NOW, until=Instant(LEASED_UNTIL))
            for _ in range(40)
        )
    )
    names = names_of([lease for batch in leases for lease in batch])
    assert (len(names), len(set(names))) == (80, 80)
    store.close()
    store.close()
