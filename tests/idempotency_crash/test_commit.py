"""Co-commit, end to end: a POST, a killed or a sleeping process, one row (F4, F6).

The application keeps its orders in a database of its own; `running.commit` puts the record beside
them. Counted are the rows, not the runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from crash.launch import Quick
from crash.processes import eventually
from crash.wire import Severed
from unspool.middleware.once import once

from .fleet import Fleet, replayed, stored, until_not_busy

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LEASE_MS = 700
"""Of those who are killed or stopped."""
WORKS = {"lease_ms": 30_000}
"""Who works keeps its right to commit, though the machine may be held up at any place."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL").fetchall()
        db.execute("CREATE TABLE orders (key TEXT, token TEXT)")
        once.create(db)
    return path


def orders(shop: Path, key: str) -> list[str]:
    """The tokens of the executions whose rows are there."""
    with contextlib.closing(sqlite3.connect(shop)) as db:
        return [token for (token,) in db.execute("SELECT token FROM orders WHERE key = ?", (key,))]


@pytest.mark.parametrize(("do", "before"), [("hold-buy", 0), ("buy-hold", 1)])
async def test_a_crash_leaves_effect_and_record_or_neither(
    tmp_path: Path, launcher: Quick, shop: Path, do: str, before: int
) -> None:
    """F6: kill -9 before the commit, and between the commit and the answer. There is no row, or
    one; the repeat, once the lease has run out, makes it one and tells of that one."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS)
    try:
        owner, other = await fleet.start(), await fleet.start(options=WORKS)
        asking = asyncio.create_task(owner.ask("k", do=do))
        await eventually((tmp_path / "held-k").exists, "it came to its hold")
        owner.kill()
        with pytest.raises(Severed):
            await asking
        assert len(orders(shop, "k")) == before
        told, _ = await until_not_busy(other, "k", do="buy", seconds=60)
        assert (told.status, replayed(told), stored(told)) == (201, False, True)
        [token] = orders(shop, "k")
        assert told.body == f"done {token}".encode()
        again = await other.ask("k", do="buy")
        assert (replayed(again), again.body) == (True, told.body)
        assert (fleet.ledger.begun("k"), len(orders(shop, "k"))) == (2, 1)
    finally:
        await fleet.end()


async def test_a_late_owner_s_rows_roll_back(tmp_path: Path, launcher: Quick, shop: Path) -> None:
    """F4: stopped past its lease before its transaction; another takes over, buys and answers. It
    wakes and buys, too: its row is undone, its record refused, and one order is there."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS)
    try:
        sleeper, other = await fleet.start(), await fleet.start(options=WORKS)
        asking = asyncio.create_task(sleeper.ask("k", do="hold-buy"))
        await eventually((tmp_path / "held-k").exists, "it came to its hold")
        sleeper.pause()
        told, _ = await until_not_busy(other, "k", do="buy", seconds=60)
        assert (told.status, replayed(told)) == (201, False)
        fleet.go("k")
        sleeper.resume()
        slept = await asking
        [token] = orders(shop, "k")
        assert told.body == f"done {token}".encode()
        # Either it was undone (an error), or told what the other had kept.
        assert slept.status >= 500 or slept.body == told.body, slept
        for process in (sleeper, other):
            again = await process.ask("k", do="buy")
            assert (replayed(again), again.body) == (True, told.body)
        assert (fleet.ledger.begun("k"), len(orders(shop, "k"))) == (2, 1)
    finally:
        await fleet.end()
