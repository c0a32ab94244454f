"""An outbox takes so many bytes and no more, of all processes on its file; and says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from unspool import Delivered, FellBack, Queued, Undelivered
from unspool.client import AsyncClient
from unspool.client.room import Room
from unspool.errors import Misconfigured, NotDone
from unspool.spools.sqlite.scale import Scale
from unspool.spools.thread import OneThread

from .kit import DOWN, OK, World

KIB = 1024
ORDER = b"x" * 8 * KIB
CAP = 64 * KIB
MANY = """
import sys
from unspool import Client, Queued, Undelivered
path, cap = sys.argv[1], int(sys.argv[2])
queued = refused = 0
with Client("http://127.0.0.1:1", outbox=path, outbox_max_bytes=cap, sends=False) as client:
    print(flush=True)
    sys.stdin.readline()
    for number in range(20):
        try:
            result = client.post("/orders", content=b"x" * 8192, deadline=0.3, attempts=1)
            assert isinstance(result, Queued), result
            queued += 1
        except Undelivered as error:
            assert "outbox_max_bytes" in str(error), error
            refused += 1
print(queued, refused)
"""


def waiting(path: Path) -> int:
    with closing(Scale(path)) as scale:
        return scale.weigh()


async def test_what_there_is_no_room_for_is_refused_and_room_comes_back(tmp_path: Path) -> None:
    world = World(a=DOWN)
    path = tmp_path / "outbox.db"
    async with world.client("a", outbox=str(path), outbox_max_bytes=CAP) as client:
        for _ in range(7):
            assert isinstance(await client.post("/o", content=ORDER, deadline=0.3), Queued)
        with pytest.raises(Undelivered, match=f"at most {CAP} may .*unspool outbox list"):
            await client.post("/o", content=ORDER, deadline=0.3)
        assert isinstance(await client.post("/o", content=b"small", deadline=0.3), Queued)
        assert 7 * len(ORDER) < waiting(path) <= CAP
        world.servers["a"].then(OK)
        assert (await client.drain(60)).waiting == 0
        world.servers["a"].then(DOWN)
        assert isinstance(await client.post("/o", content=ORDER, deadline=0.3), Queued)


async def test_before_it_is_sent_too(tmp_path: Path) -> None:
    """And then it is not sent; with a fallback plan that is what happens. What has been answered
    makes room, however much there was of it."""
    world = World(a=OK)
    client = world.client(
        "a", outbox=str(tmp_path / "outbox.db"), outbox_max_bytes=CAP, durability="before",
        fallback=lambda request: len(request.body),
    )  # fmt: skip
    async with client:
        for _ in range(20):
            assert isinstance(await client.post("/o", content=ORDER), Delivered)
        large = await client.post("/o", content=b"x" * (CAP + 1))
    assert isinstance(large, FellBack)
    assert large.value == CAP + 1
    assert world.asked("a") == 20


async def test_what_was_there_before_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "outbox.db")
    world = World(a=DOWN)
    async with world.client("a", outbox=path) as client:
        for _ in range(4):
            assert isinstance(await client.post("/o", content=ORDER, deadline=0.3), Queued)
    async with world.client("a", outbox=path, outbox_max_bytes=4 * len(ORDER)) as client:
        with pytest.raises(Undelivered, match="outbox_max_bytes"):
            await client.post("/o", content=b"1", deadline=0.3)


@pytest.mark.parametrize("limit", [{"outbox_max_bytes": 9 * KIB}, {"outbox_max": 1}])
async def test_what_is_in_a_full_outbox_is_not_refused(tmp_path: Path, limit: Any) -> None:
    """Nobody is told that it is still his: he would do it in another way as well."""
    world = World(a=DOWN)
    async with world.client(
        "a", outbox=str(tmp_path / "outbox.db"), durability="before", **limit
    ) as client:
        for _ in range(2):
            result = await client.post("/o", content=ORDER, key="order-7", deadline=0.3)
            assert isinstance(result, Queued)
        with pytest.raises(Undelivered, match="takes no more"):
            await client.post("/o", content=ORDER, deadline=0.3)


def test_several_processes_have_one_limit(tmp_path: Path) -> None:
    """Each of three wants more than the whole; together they get it, and each at most what it is
    just writing beyond. What was said to be queued is there, and nothing else."""
    path = tmp_path / "outbox.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, str(path), str(CAP)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=100)[0] for process in processes]
    counts = [tuple(map(int, line.split())) for line in told]
    queued, refused = sum(q for q, _ in counts), sum(r for _, r in counts)
    assert queued + refused == 60
    assert refused > 30
    found = waiting(path)
    assert queued * len(ORDER) <= found < queued * (len(ORDER) + KIB)
    assert CAP - 2 * len(ORDER) < found < CAP + 2 * (len(ORDER) + KIB)


async def test_who_waits_for_a_disk_that_hangs_is_told_at_the_end() -> None:
    class Hung:
        def changed(self) -> bool:
            goes_on.wait(20)
            return False

        def close(self) -> None:
            pass

    goes_on = threading.Event()
    room = Room(Hung(), OneThread("hung"), max_bytes=CAP)  # type: ignore[arg-type]
    waits = asyncio.create_task(room.take(1))
    await asyncio.sleep(0.01)
    await room.aclose()
    try:
        async with asyncio.timeout(15):
            with pytest.raises(NotDone):
                await waits
    finally:
        goes_on.set()


def test_where_it_cannot_be_told_it_is_not_promised() -> None:
    for outbox in ("memory:", "log:///outbox.log", None):
        with pytest.raises(Misconfigured, match="SQLite"):
            AsyncClient("https://a.example", outbox=outbox, outbox_max_bytes=1)
