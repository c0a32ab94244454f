"""Co-commit when many come at once, at each isolation level; what is kept; the table itself."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from servers.postgres import Postgres
from unspool.core.message import Response
from unspool.errors import Busy, Corrupt, Crossed, Misconfigured, Stale
from unspool.middleware.commit import WAIT_MS
from unspool.middleware.once import once
from unspool.middleware.running import Running

from .kinds import Place

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def shop(server: Postgres, tmp_path: Path) -> Place:
    return Place.fresh(tmp_path, server)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    place = Place.fresh(tmp_path, None)
    connection = sqlite3.connect(place.file)
    yield connection
    connection.close()


def items(place: Place) -> list[str]:
    return sorted(row[0] for row in place.rows("SELECT item FROM orders"))


@pytest.mark.parametrize("level", LEVELS)
def test_twenty_rivals_one_effect(shop: Place, level: str) -> None:
    """E1 and F4 with twenty threads, whichever isolation level they use. A crossed one runs again
    and is told."""
    assert shop.server is not None
    engine = sa.create_engine(
        shop.server.url("shop"),
        isolation_level=level,
        pool_size=20,  # type: ignore[arg-type]
    )
    gate = threading.Barrier(20)
    crossed: list[str] = []

    def rival(number: int) -> Any:
        gate.wait(60)
        while True:
            try:
                with (
                    Session(engine) as session,
                    once.commit(session, "k1", scope="orders", wait_ms=60_000) as done,
                ):
                    if not done.known:
                        session.execute(sa.text(f"INSERT INTO orders VALUES ('{number}')"))
                        time.sleep(0.02)
                        done.value = number
                    return done.value
            except Crossed as error:
                crossed.append(str(error))

    with ThreadPoolExecutor(20) as pool:
        told = set(pool.map(rival, range(20)))
    assert len(told) == 1
    assert items(shop) == [str(told.pop())]
    assert all("Run the whole of it again" in one for one in crossed)
    if level == "READ COMMITTED":
        assert not crossed
    engine.dispose()


async def test_twenty_tasks_one_effect(shop: Place) -> None:
    """The same in one event loop, where nobody may block the others."""
    assert shop.server is not None
    engine = create_async_engine(shop.server.url("shop"), pool_size=20)

    async def rival(number: int) -> Any:
        async with (
            AsyncSession(engine) as session,
            once.commit(session, "k1", scope="orders", wait_ms=60_000) as done,
        ):
            if done.known:
                return done.value
            await session.execute(sa.text(f"INSERT INTO orders VALUES ('{number}')"))
            await asyncio.sleep(0.02)
            done.value = number
            return number

    told = set(await asyncio.gather(*map(rival, range(20))))
    await engine.dispose()
    assert items(shop) == [str(told.pop())]
    assert not told


def test_a_snapshot_that_is_too_old_is_crossed(shop: Place) -> None:
    """REPEATABLE READ: the block's transaction began before the other committed."""
    assert shop.server is not None
    conninfo = shop.server.conninfo("shop")
    with psycopg.connect(conninfo) as one, psycopg.connect(conninfo) as other:
        one.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        one.execute("SELECT 1")
        with once.commit(other, "k1", scope="orders") as done:
            done.value = 7
        with pytest.raises(Crossed), once.commit(one, "k1", scope="orders"):
            one.execute("INSERT INTO orders VALUES ('late')")
        one.rollback()
        with once.commit(one, "k1", scope="orders") as done:
            assert (done.known, done.value) == (True, 7)
    assert items(shop) == []


def test_an_error_of_the_application_stays_its_own(shop: Place) -> None:
    """Only what the database undid because of another is Crossed."""
    assert shop.server is not None
    with psycopg.connect(shop.server.conninfo("shop")) as session:
        with pytest.raises(psycopg.errors.NotNullViolation), once.commit(session, "k", scope="o"):
            session.execute("INSERT INTO orders VALUES (NULL)")
        cause = psycopg.errors.SerializationFailure("another transaction")
        with pytest.raises(ValueError, match="mine"), once.commit(session, "k", scope="o"):
            raise ValueError("mine") from cause


def test_a_rival_of_the_same_attempt_is_waited_for_and_no_longer(shop: Place) -> None:
    """`wait_ms`, in a transaction of its own and in one that is open."""
    assert shop.server is not None
    conninfo = shop.server.conninfo("shop")
    with psycopg.connect(conninfo) as one, psycopg.connect(conninfo) as other:
        with once.commit(one, "k1", scope="orders"):
            for _ in range(2):
                began = time.monotonic()
                with (
                    pytest.raises(Busy, match="k1"),
                    once.commit(other, "k1", scope="orders", wait_ms=60),
                ):
                    raise AssertionError("it must not run")
                assert 0.05 < time.monotonic() - began < WAIT_MS / 1000 - 1
                other.rollback()
                other.execute("SELECT 1")  # the second time it joins
        other.rollback()
        with once.commit(other, "k1", scope="orders", wait_ms=0) as done:
            assert done.known


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)


def alchemy(place: Place) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{place.file}", poolclass=sa.NullPool)


def test_what_a_session_opened_by_itself_is_committed_with_the_block(tmp_path: Path) -> None:
    """SQLAlchemy's autobegin: nobody has promised to commit it. On an error what came before the
    block is left as it was."""
    place = Place.fresh(tmp_path, None)
    with Session(alchemy(place)) as session:
        session.execute(sa.text("INSERT INTO orders VALUES ('before')"))
        with once.commit(session, "k1", scope="orders") as done:
            assert not done.joined
            session.execute(sa.text("INSERT INTO orders VALUES ('tea')"))
        assert items(place) == ["before", "tea"]
        session.execute(sa.text("INSERT INTO orders VALUES ('undecided')"))
        with contextlib.suppress(KeyError), once.commit(session, "k2", scope="orders"):
            session.execute(sa.text("INSERT INTO orders VALUES ('undone')"))
            raise KeyError
        session.commit()
        assert items(place) == ["before", "tea", "undecided"]
        session.execute(sa.text("INSERT INTO orders VALUES ('with it')"))
        with once.commit(session, "k1", scope="orders") as done:
            assert done.known
        assert items(place) == ["before", "tea", "undecided", "with it"]


def test_objects_of_the_orm(tmp_path: Path) -> None:
    """They are flushed in the block's transaction, and a violation found then undoes all of it."""
    place = Place.fresh(tmp_path, None)
    engine = alchemy(place)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        with once.commit(session, "k1", scope="items") as done:
            item = Item(id=7)
            session.add(item)
            session.flush()
            done.value = item.id
        session.expunge_all()
        with pytest.raises(sa.exc.IntegrityError), once.commit(session, "k2", scope="items"):
            session.add(Item(id=7))
        session.rollback()
        with once.commit(session, "k2", scope="items") as done:
            assert not done.known
            session.add(Item(id=8))
    assert place.rows("SELECT id FROM items") == [(7,), (8,)]
    assert len(place.rows("SELECT key FROM unspool_once")) == 2


def test_a_savepoint_in_sqlite_is_one(tmp_path: Path) -> None:
    """sqlite3 opens no transaction for a savepoint, and releasing it would be a commit: the outer
    transaction's rollback must still take all of it back."""
    place = Place.fresh(tmp_path, None)
    with Session(alchemy(place)) as session:
        with session.begin() as outer:
            with once.commit(session, "k1", scope="orders") as done:
                assert done.joined
                session.execute(sa.text("INSERT INTO orders VALUES ('tea')"))
            outer.rollback()
        assert (items(place), place.rows("SELECT key FROM unspool_once")) == ([], [])


def test_a_transaction_that_the_block_ended_itself(file: sqlite3.Connection) -> None:
    """A commit within the block takes the rows out of it: said loudly."""

    def hasty() -> None:
        with once.commit(file, "k", scope="o"):
            file.execute("INSERT INTO orders VALUES ('tea')")
            file.commit()

    with pytest.raises(Misconfigured, match="within the block"):
        hasty()


VALUES: list[Any] = [
    None, 0, "", b"", [], {}, False, 1.5, b"\x00\xff", "tea", {"a": [1, None]},
    Response(201, b"Created", ((b"Location", b"/orders/7"),), b"\x00"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_what_is_kept_comes_back(file: sqlite3.Connection, value: Any) -> None:
    """Falsy values, bytes, and a whole response."""
    with once.commit(file, "k1", scope="orders") as done:
        done.value = value
    with once.commit(file, "k1", scope="orders") as done:
        assert done.known
        assert (done.value, type(done.value)) == (value, type(value))


def test_an_id_is_kept_and_the_row_found_by_it(file: sqlite3.Connection) -> None:
    """`encode` and `decode`; `type` for what plain data does not tell."""
    rows = {7: object()}
    with once.commit(file, "k1", scope="orders", encode=lambda row: 7) as done:
        done.value = rows[7]
    with once.commit(file, "k1", scope="orders", decode=rows.get) as done:
        assert done.value is rows[7]
    with once.commit(file, "k2", scope="orders") as done:
        done.value = (1, 2)
    with once.commit(file, "k2", scope="orders", type=tuple[int, int]) as done:
        assert done.value == (1, 2)


def test_a_record_that_is_spoilt_fails_closed(file: sqlite3.Connection) -> None:
    """D9: nothing is run, and nothing unpickled."""
    import pickle

    for spoilt in (b"", b"v\xc1", b"x", pickle.dumps(7), b"a123"):
        with once.commit(file, "k1", scope="orders"):
            pass
        with file:
            file.execute("UPDATE unspool_once SET value = ?", [spoilt])
        with pytest.raises(Corrupt), once.commit(file, "k1", scope="orders"):
            raise AssertionError("it must not run")
        with file:
            file.execute("DELETE FROM unspool_once")


def test_a_record_stands_for_as_long_as_was_said(file: sqlite3.Connection, shop: Place) -> None:
    """J1, J6: by its time and not by what the sweep has got to."""
    assert shop.server is not None
    with psycopg.connect(shop.server.conninfo("shop")) as session:
        for one in (file, session):
            with once.commit(one, "k1", scope="orders", keep_ms=0):
                pass
            with once.commit(one, "k1", scope="orders") as done:
                assert not done.known
            with once.commit(one, "k1", scope="orders") as done:
                assert done.known


def test_the_sweep(file: sqlite3.Connection, shop: Place) -> None:
    """J5: in batches, the oldest first, and never what is still to be kept."""
    assert shop.server is not None
    with psycopg.connect(shop.server.conninfo("shop")) as session:
        for one in (file, session):
            for number in range(5):
                with once.commit(one, f"old{number}", scope="orders", keep_ms=0):
                    pass
            with once.commit(one, "new", scope="orders"):
                pass
            one.commit()
            time.sleep(0.002)
            assert [once.sweep(one, limit=3) for _ in range(3)] == [3, 2, 0]
            with once.commit(one, "new", scope="orders") as done:
                assert done.known


@contextlib.asynccontextmanager
async def async_session(place: Place) -> AsyncIterator[AsyncSession]:
    assert place.server is not None
    engine = create_async_engine(place.server.url("bare"))
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


async def test_the_table_is_made_where_there_is_none(shop: Place) -> None:
    """By `create`, twice, asynchronously, and by twenty at once; without it the block says so."""
    assert shop.server is not None
    conninfo = shop.server.database("bare")
    async with async_session(shop) as session:
        with pytest.raises(Misconfigured, match=r"once\.create"):
            async with once.commit(session, "k1", scope="orders"):
                raise AssertionError("it must not run")

        def make(_: int) -> None:
            with psycopg.connect(conninfo) as one:
                once.create(one)

        with ThreadPoolExecutor(20) as pool:
            await asyncio.get_running_loop().run_in_executor(
                None, lambda: list(pool.map(make, range(20)))
            )
        await once.create(session)
        async with once.commit(session, "k1", scope="orders") as done:
            assert not done.known
        assert await once.sweep(session) == 0


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_the_table_of_sqlalchemy_is_the_table(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """`once.table(metadata)` and the DDL make the same columns, keys and indexes."""
    if engine == "sqlite":
        urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other")]
    else:
        server = request.getfixturevalue("server")
        urls = []
        for name in ("one", "other"):
            server.database(name)
            urls.append(server.url(name))
    metadata = sa.MetaData()
    once.table(metadata)
    seen = []
    for number, url in enumerate(urls):
        found = sa.create_engine(url, poolclass=sa.NullPool)
        if number:
            metadata.create_all(found)
        else:
            with found.connect() as connection:
                once.create(connection)
        look = sa.inspect(found)
        columns = [
            (one["name"], str(one["type"]), one["nullable"])
            for one in look.get_columns("unspool_once")
        ]
        indexes = [one["column_names"] for one in look.get_indexes("unspool_once")]
        key = look.get_pk_constraint("unspool_once")["constrained_columns"]
        seen.append((columns, key, indexes))
    assert seen[0] == seen[1]


def test_what_is_no_session_says_what_is(file: sqlite3.Connection) -> None:
    """And a key or scope that could not be stored is refused before anything is run."""
    with pytest.raises(Misconfigured, match="psycopg's Connection"):
        once.commit(object(), "k1", scope="orders")
    wrong: list[tuple[Any, str]] = [
        ("", "orders"), (None, "orders"), (True, "orders"), (1.5, "orders"), ("k\0", "orders"),
        ("k" * 2000, "orders"), ("\ud800", "orders"), ("k", "\0"),
    ]  # fmt: skip
    for key, scope in wrong:
        with pytest.raises(Misconfigured):
            once.commit(file, key, scope=scope)
    engine = sa.create_engine("sqlite://")
    with pytest.raises(Misconfigured, match="Engine"):
        once.commit(engine, "k1", scope="orders")


def test_a_stale_one_is_given_what_the_other_kept(shop: Place) -> None:
    """After `Stale` the same call again is known."""
    assert shop.server is not None
    conninfo = shop.server.conninfo("shop")
    with psycopg.connect(conninfo) as one, psycopg.connect(conninfo) as other:

        def slow() -> None:
            with (
                once.commit(one, "k1", scope="orders", attempt=1),
                once.commit(other, "k1", scope="orders", attempt=2) as done,
            ):
                done.value = "theirs"

        with pytest.raises(Stale):
            slow()
        with once.commit(one, "k1", scope="orders", attempt=1) as done:
            assert (done.known, done.value, done.attempt) == (True, "theirs", 2)


def running(attempt: int = 1) -> Running:
    return Running(key="K", name="k1", fingerprint=b"f", attempt=attempt, secret=b"s" * 32)


def test_the_blocks_of_a_run(file: sqlite3.Connection) -> None:
    """Each has a name, and each is done once over all attempts. Two without would be one, and the
    second would be skipped: that is refused, within one another and one after another."""

    def work(ctx: Running) -> list[bool]:
        found = []
        for step in ("", "ship"):
            with ctx.commit(file, step=step) as done:
                found.append(done.known)
                if not done.known:
                    file.execute("INSERT INTO orders VALUES (?)", [step])
        return found

    assert (work(running()), work(running(2))) == ([False, False], [True, True])
    file.execute("DELETE FROM unspool_once")
    file.commit()
    one = running()
    with one.commit(file):
        pass
    with pytest.raises(Misconfigured, match="step="), one.commit(file):
        raise AssertionError("it must not run")
    other = running(2)
    with other.commit(file) as done:
        assert done.known
        with pytest.raises(Misconfigured, match="step="), other.commit(file):
            raise AssertionError("it must not run")
    with other.commit(file) as done:  # one that was told, or failed, may ask again
        assert done.known


def test_the_blocks_of_a_run_in_somebody_else_s_transaction(file: sqlite3.Connection) -> None:
    """A second one under the same name, or without any, is refused there too, and never skipped in
    silence: whether the transaction is still open, or was committed in between. One that was undone
    with it may be done again."""
    for committed in (False, True):
        ctx = running(1 + committed)
        file.execute("DELETE FROM unspool_once")
        with ctx.commit(file) as done:
            assert done.joined
            file.execute("INSERT INTO orders VALUES ('tea')")
        if committed:
            file.commit()
        with pytest.raises(Misconfigured, match=r'without a name.*step="ship"'), ctx.commit(file):
            raise AssertionError("it must not run")
        with ctx.commit(file, step="ship") as done:
            assert not done.known
        with pytest.raises(Misconfigured, match="'ship'"), ctx.commit(file, step="ship"):
            raise AssertionError("it must not run")
        file.rollback()
        with running(2 + committed).commit(file) as done:
            assert done.known is committed
        file.commit()
    undone = running()
    file.execute("DELETE FROM unspool_once")
    for _ in "12":
        with undone.commit(file) as done:
            assert done.joined
            assert not done.known
        file.rollback()
        file.execute("DELETE FROM unspool_once")


def test_a_failed_block_may_be_tried_again_in_the_same_run(file: sqlite3.Connection) -> None:
    ctx = running()
    with contextlib.suppress(KeyError), ctx.commit(file):
        raise KeyError
    with ctx.commit(file) as done:
        assert not done.known
