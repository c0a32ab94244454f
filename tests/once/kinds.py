"""The kinds of sessions that co-commit understands, so that each test runs with every one.

session = await kind.open()                             a session of its own
result = await kind.block(session, body, "k1", …)       `once.commit` around `body(done, write)`
await kind.outer(session, body, commit=True)            the application's own transaction
kind.orders()                                           what is in the database, from outside
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import aiosqlite
import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from servers.postgres import Postgres
from unspool.middleware.once import once

TABLE = "CREATE TABLE orders (item text NOT NULL)"
OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = 'shop' AND pid <> pg_backend_pid()"
)
INSERT = "INSERT INTO orders (item) VALUES ('{}')"


class Place(NamedTuple):
    """A database of each engine."""

    file: Path
    server: Postgres | None

    @classmethod
    def fresh(cls, folder: Path, server: Postgres | None) -> Place:
        """Both tables are there, and empty."""
        place = cls(folder / "shop.db", server)
        if server is None:
            connection = sqlite3.connect(place.file)
            connection.execute(TABLE)
            once.create(connection)
            connection.close()
        else:
            new = "shop" not in server.made
            conninfo = server.database("shop") if new else server.conninfo("shop")
            with psycopg.connect(conninfo) as connection:
                connection.execute(OTHERS)  # a test before this one may have left somebody
                connection.execute("DROP TABLE IF EXISTS orders, unspool_once")
                connection.execute(TABLE)
                once.create(connection)
        return place

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        if self.server is None:
            connection = sqlite3.connect(self.file)
            try:
                return connection.execute(statement).fetchall()
            finally:
                connection.close()
        with psycopg.connect(self.server.conninfo("shop")) as found:
            return found.execute(statement.encode()).fetchall()


Write = Callable[[str], Awaitable[None]]
Body = Callable[[Any, Write], Awaitable[Any]]


class Kind:
    """A library and an engine. Sessions that are opened are closed with the kind."""

    engine: ClassVar[str] = "sqlite"
    waits: ClassVar[bool] = False

    def __init__(self, place: Place) -> None:
        self.place = place
        self.opened: list[Any] = []

    async def open(self) -> Any:
        session = await self.connect()
        self.opened.append(session)
        return session

    async def connect(self) -> Any:
        raise NotImplementedError

    async def execute(self, session: Any, text: str) -> None:
        session.execute(text)

    async def begin(self, session: Any) -> None:
        session.execute("BEGIN")

    async def end(self, session: Any, *, commit: bool) -> None:
        session.commit() if commit else session.rollback()

    async def shut(self) -> None:
        for session in self.opened:
            session.close()

    def close(self) -> None:
        if not self.waits:
            for session in self.opened:
                session.close()

    async def block(self, session: Any, body: Body, key: str = "k1", **options: Any) -> Any:
        async def write(item: str) -> None:
            await self.execute(session, INSERT.format(item))

        commit = once.commit(session, key, **{"scope": "orders", **options})
        if self.waits:
            async with commit as done:
                return await body(done, write)
        with commit as done:
            return await body(done, write)

    def orders(self) -> list[str]:
        return sorted(row[0] for row in self.place.rows("SELECT item FROM orders"))

    def records(self) -> list[tuple[Any, ...]]:
        return self.place.rows("SELECT scope, key, attempt FROM unspool_once")


class Sqlite3(Kind):
    async def connect(self) -> Any:
        return sqlite3.connect(self.place.file, timeout=5)


class Sqlite3Bare(Kind):
    """Without the module's own transactions, and with rows that are no tuples."""

    async def connect(self) -> Any:
        connection = sqlite3.connect(self.place.file, isolation_level=None)
        connection.row_factory = lambda cursor, row: {"not": "a tuple"}
        return connection


class AioSqlite(Kind):
    waits = True

    async def connect(self) -> Any:
        connection = await aiosqlite.connect(self.place.file)
        connection.row_factory = sqlite3.Row
        return connection

    async def execute(self, session: Any, text: str) -> None:
        await session.execute(text)

    async def begin(self, session: Any) -> None:
        await session.execute("BEGIN")

    async def end(self, session: Any, *, commit: bool) -> None:
        await (session.commit() if commit else session.rollback())

    async def shut(self) -> None:
        for session in self.opened:
            await session.close()


class Psycopg(Kind):
    engine = "postgresql"
    autocommit = False

    async def connect(self) -> Any:
        assert self.place.server is not None
        conninfo = self.place.server.conninfo("shop")
        row_factory: Any = psycopg.rows.dict_row
        return psycopg.connect(conninfo, autocommit=self.autocommit, row_factory=row_factory)


class PsycopgAuto(Psycopg):
    autocommit = True


class PsycopgAsync(Kind):
    engine = "postgresql"
    waits = True

    async def connect(self) -> Any:
        assert self.place.server is not None
        return await psycopg.AsyncConnection.connect(self.place.server.conninfo("shop"))

    execute = AioSqlite.execute
    begin = AioSqlite.begin
    end = AioSqlite.end
    shut = AioSqlite.shut


class Alchemy(Kind):
    """SQLAlchemy's Session."""

    def engine_of(self) -> sa.Engine:
        if self.place.server is None:
            return sa.create_engine(f"sqlite:///{self.place.file}", poolclass=sa.NullPool)
        return sa.create_engine(self.place.server.url("shop"), poolclass=sa.NullPool)

    async def connect(self) -> Any:
        return Session(self.engine_of())

    async def execute(self, session: Any, text: str) -> None:
        session.execute(sa.text(text))

    async def begin(self, session: Any) -> None:
        session.begin()


class AlchemyPg(Alchemy):
    engine = "postgresql"


class AlchemyCore(Alchemy):
    """Its Connection."""

    async def connect(self) -> Any:
        return self.engine_of().connect()


class AlchemyCorePg(AlchemyCore):
    engine = "postgresql"


class AlchemyAsync(Alchemy):
    waits = True

    async def connect(self) -> Any:
        if self.place.server is None:
            url = f"sqlite+aiosqlite:///{self.place.file}"
        else:
            url = self.place.server.url("shop")
        return AsyncSession(create_async_engine(url, poolclass=sa.NullPool))

    async def execute(self, session: Any, text: str) -> None:
        await session.execute(sa.text(text))

    async def begin(self, session: Any) -> None:
        await session.begin()

    end = AioSqlite.end
    shut = AioSqlite.shut


class AlchemyAsyncPg(AlchemyAsync):
    engine = "postgresql"


class AlchemyAsyncpg(AlchemyAsync):
    """The other driver: it prepares each statement, and looks at the type of each value."""

    engine = "postgresql"

    async def connect(self) -> Any:
        assert self.place.server is not None
        url = self.place.server.url("shop", driver="postgresql+asyncpg")
        return AsyncSession(create_async_engine(url, poolclass=sa.NullPool))


class AlchemyAsyncCore(AlchemyAsync):
    async def connect(self) -> Any:
        url = f"sqlite+aiosqlite:///{self.place.file}"
        return await create_async_engine(url, poolclass=sa.NullPool).connect()


class DjangoSqlite(Kind):
    """Django's connections belong to a thread, so a second session is a second alias."""

    def settings(self) -> dict[str, Any]:
        if self.place.server is None:
            return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(self.place.file)}
        return {
            "ENGINE": "django.db.backends.postgresql", "NAME": "shop", "HOST": "127.0.0.1",
            "PORT": self.place.server.port, "USER": self.place.server.user,
        }  # fmt: skip

    async def connect(self) -> Any:
        import django
        from django.conf import settings
        from django.db.utils import load_backend

        if not settings.configured:
            settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()
        from django.db import connections

        alias = f"shop{len(self.opened)}"
        full = connections.configure_settings({"default": {}, alias: self.settings()})[alias]
        connections.settings[alias] = full
        session = load_backend(full["ENGINE"]).DatabaseWrapper(full, alias)
        _unwatched(lambda: connections.__setitem__(alias, session))
        return session

    async def execute(self, session: Any, text: str) -> None:
        def run() -> None:
            with session.cursor() as cursor:
                cursor.execute(text)

        _unwatched(run)

    async def block(self, session: Any, body: Body, key: str = "k1", **options: Any) -> Any:
        async def write(item: str) -> None:
            await self.execute(session, INSERT.format(item))

        commit = once.commit(session, key, **{"scope": "orders", **options})
        _unwatched(commit.__enter__)
        try:
            result = await body(commit, write)
        except BaseException as error:
            caught = error
            _unwatched(lambda: commit.__exit__(type(caught), caught, None))
            raise
        _unwatched(lambda: commit.__exit__(None, None, None))
        return result

    async def begin(self, session: Any) -> None:
        from django.db import transaction

        self.atomic = transaction.atomic(using=session.alias)
        _unwatched(self.atomic.__enter__)

    async def end(self, session: Any, *, commit: bool) -> None:
        error = None if commit else RuntimeError("undo")
        kind = None if error is None else type(error)
        _unwatched(lambda: self.atomic.__exit__(kind, error, None))

    def close(self) -> None:
        for session in self.opened:
            session.close()


class DjangoPg(DjangoSqlite):
    engine = "postgresql"


def _unwatched(function: Callable[[], Any]) -> Any:
    """Django refuses to block a thread with a running loop; here nobody else is in it."""
    import asyncio

    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return function()
    finally:
        asyncio._set_running_loop(loop)


KINDS: dict[str, type[Kind]] = {
    "sqlite3": Sqlite3,
    "sqlite3-bare": Sqlite3Bare,
    "aiosqlite": AioSqlite,
    "psycopg": Psycopg,
    "psycopg-autocommit": PsycopgAuto,
    "psycopg-async": PsycopgAsync,
    "session-sqlite": Alchemy,
    "session-postgresql": AlchemyPg,
    "connection-sqlite": AlchemyCore,
    "connection-postgresql": AlchemyCorePg,
    "async-session-sqlite": AlchemyAsync,
    "async-session-postgresql": AlchemyAsyncPg,
    "async-session-asyncpg": AlchemyAsyncpg,
    "async-connection-sqlite": AlchemyAsyncCore,
    "django-sqlite": DjangoSqlite,
    "django-postgresql": DjangoPg,
}
