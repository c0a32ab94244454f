"""Co-commit under kill -9, SIGSTOP and a crowd of processes, on both engines."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from pathlib import Path

import psycopg
import pytest

from servers.postgres import Postgres
from unspool.middleware.once import once

from .kinds import Place
from .process import Shop

ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    server = request.getfixturevalue("server") if request.param == "postgresql" else None
    return Place.fresh(tmp_path, server)


def where(place: Place) -> str:
    return place.server.conninfo("shop") if place.server else f"sqlite:{place.file}"


def found(place: Place) -> tuple[list[str], int]:
    """What a stranger sees: the orders, and how many records."""
    orders = sorted(row[0] for row in place.rows("SELECT item FROM orders"))
    return orders, len(place.rows("SELECT key FROM unspool_once"))


def test_killed_before_the_commit_there_is_neither(place: Place) -> None:
    """F6, first half; and the next one runs, though the first left no word."""
    with Shop("commit", where(place), "1") as shop:
        assert shop.heard() == "begun"
        shop.kill()
    assert found(place) == ([], 0)
    with Shop("commit", where(place), "2") as shop:
        assert shop.heard() == "begun"
        shop.tell()
        assert shop.heard() == "committed False kept by 2"
    assert found(place) == (["by 2"], 1)


def test_killed_after_the_commit_there_are_both(place: Place) -> None:
    """F6, second half; and the next one is given what was kept."""
    with Shop("commit", where(place), "1") as shop:
        assert shop.heard() == "begun"
        shop.tell()
        assert shop.heard() == "committed False kept by 1"
        shop.kill()
    assert found(place) == (["by 1"], 1)
    with Shop("commit", where(place), "2") as shop:
        assert shop.heard() == "begun"
        shop.tell()
        assert shop.heard() == "committed True kept by 1"
    assert found(place) == (["by 1"], 1)


def test_killed_at_any_moment_rows_and_records_agree(place: Place) -> None:
    """F6: at a random moment of a run over many keys there are as many rows as records."""
    chance = random.Random(7)
    records = 0
    for turn in range(9):
        if turn >= 3 and records:
            break  # on a slow machine none has come so far as to its first commit: longer then
        with Shop("rivals", where(place), "2000") as shop:
            assert shop.heard() == "ready"
            shop.tell()
            time.sleep(chance.uniform(0.02, 0.2) * 2 ** max(0, turn - 2))
            shop.kill()
        if place.server is not None:
            _until_nobody_is_connected(place.server)
        orders, records = found(place)
        assert len(orders) == len(set(orders)) == records
    assert records > 0


def test_a_stopped_owner_is_undone_when_it_wakes(server: Postgres, tmp_path: Path) -> None:
    """F4 with SIGSTOP: its successor does not wait for it, and does the work; when it wakes and
    ends its block, its rows roll back."""
    place = Place.fresh(tmp_path, server)
    with Shop("commit", where(place), "1") as first, Shop("commit", where(place), "2") as second:
        assert first.heard() == "begun"
        first.signal(signal.SIGSTOP)
        assert second.heard() == "begun"
        second.tell()
        assert second.heard() == "committed False kept by 2"
        first.signal(signal.SIGCONT)
        first.tell()
        assert first.heard() == "Stale"
    assert found(place) == (["by 2"], 1)


def test_a_stopped_owner_in_sqlite_is_waited_for(tmp_path: Path) -> None:
    """SQLite has one writer: its successor waits, and is told what it kept. One effect."""
    place = Place.fresh(tmp_path, None)
    with Shop("commit", where(place), "1") as first:
        assert first.heard() == "begun"
        first.signal(signal.SIGSTOP)
        with Shop("commit", where(place), "2") as second:
            time.sleep(0.3)
            first.signal(signal.SIGCONT)
            first.tell()
            assert first.heard() == "committed False kept by 1"
            assert second.heard() == "begun"
            second.tell()
            assert second.heard() == "committed True kept by 1"
    assert found(place) == (["by 1"], 1)


def test_many_processes_one_effect(place: Place) -> None:
    """E2: each key is done once, whoever comes first."""
    keys = 25
    # All in one order, so that they meet at each key.
    shops = [Shop("rivals", where(place), str(keys)) for _ in range(4)]
    try:
        for shop in shops:
            assert shop.heard() == "ready"
        for shop in shops:
            shop.tell()
        ran = [int(shop.heard().split()[1]) for shop in shops]
    finally:
        for shop in shops:
            shop.__exit__(None, None, None)
    orders, records = found(place)
    assert orders == sorted(str(number) for number in range(keys))
    assert records == keys
    assert sum(ran) >= keys


def test_a_connection_that_is_lost_within_the_block(server: Postgres, tmp_path: Path) -> None:
    """The database undoes it; the error is the database's own; the next one runs."""
    place = Place.fresh(tmp_path, server)

    def work(session: psycopg.Connection[tuple[object, ...]]) -> None:
        with once.commit(session, "k1", scope="orders"):
            session.execute("INSERT INTO orders (item) VALUES ('lost')")
            with psycopg.connect(server.conninfo()) as other:
                # It waits until that one has gone.
                other.execute("SELECT pg_terminate_backend(%s, 60000)", [session.info.backend_pid])

    session = psycopg.connect(server.conninfo("shop"))
    with pytest.raises(psycopg.OperationalError):
        work(session)
    session.close()
    assert found(place) == ([], 0)
    with (
        psycopg.connect(server.conninfo("shop")) as another,
        once.commit(another, "k1", scope="orders") as done,
    ):
        assert not done.known


def test_a_file_that_somebody_else_writes(tmp_path: Path) -> None:
    """SQLite is busy for longer than the connection waits: Crossed, and nothing was run."""
    from unspool.errors import Crossed

    place = Place.fresh(tmp_path, None)
    holder = sqlite3.connect(place.file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    session = sqlite3.connect(place.file, timeout=0.05)
    with pytest.raises(Crossed, match="again"), once.commit(session, "k1", scope="orders"):
        raise AssertionError("it must not run")
    holder.rollback()
    with once.commit(session, "k1", scope="orders") as done:
        assert not done.known
    session.close()
    holder.close()


def _until_nobody_is_connected(server: Postgres) -> None:
    """What a killed process sent last may still be on its way into the database."""
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            one = session.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'"
            ).fetchone()
            if one == (0,):
                return
            time.sleep(0.02)
    raise AssertionError("a killed process's session stays")
