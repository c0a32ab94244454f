"""Co-commit where the commit itself fails, or is cancelled at its start: nothing stays open."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from pathlib import Path

import aiosqlite
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from servers.postgres import Postgres
from unspool.errors import Crossed, Misconfigured
from unspool.middleware.once import once


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (item text)")
        connection.execute("INSERT INTO orders VALUES ('x'), ('y')")
        once.create(connection)
    connection.close()
    return path


def counted(path: Path) -> tuple[int, int]:
    connection = sqlite3.connect(path)
    [(orders,)] = connection.execute("SELECT count(*) FROM orders WHERE item = 'tea'")
    [(records,)] = connection.execute("SELECT count(*) FROM unspool_once")
    connection.close()
    return orders, records


def held(path: Path) -> tuple[sqlite3.Connection, sqlite3.Cursor]:
    """Somebody in the middle of reading: without a WAL nobody commits meanwhile."""
    connection = sqlite3.connect(path)
    cursor = connection.cursor()
    cursor.execute("SELECT * FROM orders")
    cursor.fetchone()
    return connection, cursor


def test_a_commit_that_fails_leaves_nothing_open_and_may_be_repeated(file: Path) -> None:
    """`Crossed` says to run the whole of it again: that must do it, and be on the disk."""
    connection = sqlite3.connect(file, timeout=0.1)

    def place(key: str) -> str:
        with once.commit(connection, key, scope="orders") as done:
            if done.known:
                return "known"
            connection.execute("INSERT INTO orders VALUES ('tea')")
        return "ran"

    other, cursor = held(file)
    with pytest.raises(Crossed):
        place("k1")
    assert not connection.in_transaction
    cursor.close()
    other.close()
    assert [place("k1"), place("k1"), place("k2")] == ["ran", "known", "ran"]
    connection.close()
    assert counted(file) == (2, 2)


def test_a_commit_that_fails_is_not_left_in_a_pool(file: Path) -> None:
    """SQLAlchemy's next session would find the dead one's transaction, and its record, there."""
    engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.1})

    def place(key: str) -> str:
        with Session(engine) as session, once.commit(session, key, scope="orders") as done:
            if done.known:
                return "known"
            session.execute(sa.text("INSERT INTO orders VALUES ('tea')"))
        return "ran"

    other, cursor = held(file)
    with pytest.raises(Crossed):
        place("k1")
    cursor.close()
    other.close()
    assert [place("k1"), place("k1")] == ["ran", "known"]
    engine.dispose()
    assert counted(file) == (1, 1)


async def test_one_who_is_cancelled_at_the_start_leaves_no_transaction(file: Path) -> None:
    """aiosqlite's thread goes on waiting for the lock, and gets it when nobody wants it."""
    connection = await aiosqlite.connect(file, timeout=60)

    async def place(key: str) -> str:
        async with once.commit(connection, key, scope="orders") as done:
            if done.known:
                return "known"
            await connection.execute("INSERT INTO orders VALUES ('tea')")
        return "ran"

    writer = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    placing = asyncio.create_task(place("k1"))
    await asyncio.sleep(0.05)
    placing.cancel()
    timer = threading.Timer(0.2, lambda: writer.execute("COMMIT"))
    timer.start()
    with pytest.raises(asyncio.CancelledError):
        await placing
    assert not connection.in_transaction
    assert [await place("k1"), await place("k2")] == ["ran", "ran"]
    await connection.close()
    timer.join()
    writer.close()
    assert counted(file) == (2, 2)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 brought it")
def test_a_connection_that_commits_by_itself_is_committed_by_the_block(file: Path) -> None:
    """With `autocommit=True` sqlite3's own commit() does nothing."""
    connection = sqlite3.connect(file, autocommit=True)  # type: ignore[call-arg, unused-ignore]
    for key in ("k1", "k2"):
        with once.commit(connection, key, scope="orders"):
            connection.execute("INSERT INTO orders VALUES ('tea')")
        assert not connection.in_transaction
    connection.close()
    assert counted(file) == (2, 2)


def test_an_engine_that_commits_each_statement_is_refused(server: Postgres) -> None:
    """There nothing could be undone (AUTOCOMMIT)."""
    engine = sa.create_engine(server.url(), isolation_level="AUTOCOMMIT")
    with (
        Session(engine) as session,
        pytest.raises(Misconfigured, match="AUTOCOMMIT"),
        once.commit(session, "k1", scope="orders"),
    ):
        pass
    engine.dispose()
