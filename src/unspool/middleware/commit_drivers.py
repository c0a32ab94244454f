"""Drivers: one class for each library that a session may come from. `commit_sessions` has the rest.

    begin()            a transaction, or a savepoint where one is open already
    run(text, values)  a statement with `:named` values: its rows
    keep()             commit, or release the savepoint
    undo(error)        take back what was done since `begin`; None: not because of an error
    ended              was the transaction ended in between, by somebody else?

A driver asks only what its library says in public, and leaves the application's settings of it
alone: row factories, isolation levels, who commits.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

Ran = Sequence[Sequence[Any]]
Values = Mapping[str, Any]

SAVEPOINT: Final = "unspool_once"
IDLE: Final = 0
"""libpq's PQTRANS_IDLE: no transaction is open."""

_NAMED: Final = re.compile(r":(\w+)")


class Undone(Exception):
    """For libraries that undo only because of an error."""


@lru_cache(maxsize=64)
def in_percent(text: str) -> str:
    """`:named` values as psycopg and Django write them."""
    return _NAMED.sub(r"%(\1)s", text)


class Alchemy:
    """SQLAlchemy's Session or Connection. Bugs: a Session with several binds is not understood:
    give its Connection."""

    waits = False

    def __init__(self, session: Any) -> None:
        self._session: Final = session
        self.joined = False
        self._outer: Any = None
        self._inner: Any = None

    @property
    def _connection(self) -> Any:
        if hasattr(self._session, "connection") and callable(self._session.connection):
            return self._session.connection()
        return self._session

    @property
    def dialect(self) -> str:
        name: str = self._connection.dialect.name
        return name

    def begin(self) -> None:
        session = self._session
        self.joined, self._outer, self._inner = False, None, None
        if not session.in_transaction():
            self._outer = session.begin()
            self._begin_sqlite()
            return
        origin = getattr(session.get_transaction(), "origin", None)
        if (
            origin is not None
            and origin.name == "AUTOBEGIN"
            and not session.in_nested_transaction()
        ):
            self._outer = session.get_transaction()
        else:
            self.joined = True
        self._begin_sqlite()
        self._inner = session.begin_nested()

    def _begin_sqlite(self) -> None:
        """sqlite3 begins nothing before the first write; a savepoint that is set before that is no
        savepoint but the transaction itself."""
        connection = self._connection
        if connection.dialect.name != "sqlite":
            return
        if not connection.connection.driver_connection.in_transaction:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except BaseException:
                if self._outer is not None:
                    self._outer.rollback()
                raise

    def run(self, text: str, values: Values) -> Ran:
        from sqlalchemy import text as statement

        result = self._session.execute(statement(text), dict(values))
        return result.fetchall() if result.returns_rows else ()

    @property
    def ended(self) -> bool:
        return any(one is not None and not one.is_active for one in (self._outer, self._inner))

    def keep(self) -> None:
        if self._inner is not None:
            self._inner.commit()
        if self._outer is not None:
            self._outer.commit()

    def undo(self, error: BaseException | None) -> None:
        if self._inner is None:
            self._outer.rollback()
            return
        self._inner.rollback()
        if self._outer is not None and error is None:
            self._outer.commit()


class InGreenlet:
    """SQLAlchemy's AsyncSession or AsyncConnection: the same, in its greenlet."""

    waits = True

    def __init__(self, session: Any, inner: Alchemy) -> None:
        self._session: Final = session
        self._inner: Final = inner
        self.dialect = ""

    @property
    def joined(self) -> bool:
        return self._inner.joined

    @property
    def ended(self) -> bool:
        return self._inner.ended

    def _there(self, function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        awaitable: Awaitable[Any] = self._session.run_sync(lambda _: function(*arguments))
        return awaitable

    def begin(self) -> Awaitable[Any]:
        def begin() -> None:
            self._inner.begin()
            self.dialect = self._inner.dialect

        return self._there(begin)

    def run(self, text: str, values: Values) -> Awaitable[Any]:
        return self._there(self._inner.run, text, values)

    def keep(self) -> Awaitable[Any]:
        return self._there(self._inner.keep)

    def undo(self, error: BaseException | None) -> Awaitable[Any]:
        return self._there(self._inner.undo, error)


class Django:
    """One of Django's connections. `atomic` knows by itself whether it is the outermost."""

    waits = False

    def __init__(self, connection: Any) -> None:
        self._connection: Final = connection
        self.dialect: str = connection.vendor
        self.joined = False
        self._atomic: Any = None

    def begin(self) -> None:
        from django.db import transaction

        self.joined = self._connection.in_atomic_block
        atomic = transaction.atomic(using=self._connection.alias)
        atomic.__enter__()
        self._atomic = atomic

    def run(self, text: str, values: Values) -> Ran:
        with self._connection.cursor() as cursor:
            cursor.execute(in_percent(text), dict(values))
            return cursor.fetchall() if cursor.description else ()

    @property
    def ended(self) -> bool:
        return not self._connection.in_atomic_block

    def keep(self) -> None:
        self._atomic.__exit__(None, None, None)

    def undo(self, error: BaseException | None) -> None:
        error = error or Undone()
        self._atomic.__exit__(type(error), error, error.__traceback__)


class Psycopg:
    """psycopg's Connection."""

    waits = False
    dialect = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection: Final = connection
        self.joined = False
        self._transaction: Any = None

    def begin(self) -> None:
        self.joined = self._connection.info.transaction_status != IDLE
        transaction = self._connection.transaction()
        transaction.__enter__()
        self._transaction = transaction

    def run(self, text: str, values: Values) -> Ran:
        from psycopg.rows import tuple_row

        with self._connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(in_percent(text), values)
            return cursor.fetchall() if cursor.description else ()

    @property
    def ended(self) -> bool:
        status: int = self._connection.info.transaction_status
        return status == IDLE

    def keep(self) -> None:
        self._transaction.__exit__(None, None, None)

    def undo(self, error: BaseException | None) -> None:
        error = error or Undone()
        self._transaction.__exit__(type(error), error, error.__traceback__)


class AsyncPsycopg:
    """psycopg's AsyncConnection."""

    waits = True
    dialect = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection: Final = connection
        self.joined = False
        self._transaction: Any = None

    async def begin(self) -> None:
        self.joined = self._connection.info.transaction_status != IDLE
        transaction = self._connection.transaction()
        await transaction.__aenter__()
        self._transaction = transaction

    async def run(self, text: str, values: Values) -> Ran:
        from psycopg.rows import tuple_row

        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(in_percent(text), values)
            return await cursor.fetchall() if cursor.description else ()

    @property
    def ended(self) -> bool:
        status: int = self._connection.info.transaction_status
        return status == IDLE

    async def keep(self) -> None:
        await self._transaction.__aexit__(None, None, None)

    async def undo(self, error: BaseException | None) -> None:
        error = error or Undone()
        await self._transaction.__aexit__(type(error), error, error.__traceback__)


def _opens(connection: Any) -> tuple[str, bool]:
    """The statement that begins, and whether it joins what is open. Python 3.12 can keep a
    transaction open at all times (`autocommit=False`): then it is open, and nobody opened it."""
    if not connection.in_transaction:
        return "BEGIN IMMEDIATE", False
    return f"SAVEPOINT {SAVEPOINT}", getattr(connection, "autocommit", True) is not False


class Sqlite:
    """sqlite3's Connection."""

    waits = False
    dialect = "sqlite"

    def __init__(self, connection: Any) -> None:
        self._connection: Final = connection
        self.joined = False
        self._saved = False

    def begin(self) -> None:
        statement, self.joined = _opens(self._connection)
        self._connection.execute(statement)
        self._saved = statement != "BEGIN IMMEDIATE"

    def run(self, text: str, values: Values) -> Ran:
        cursor = self._connection.cursor()
        try:
            cursor.row_factory = None
            cursor.execute(text, values)
            return cursor.fetchall()  # type: ignore[no-any-return]
        finally:
            cursor.close()

    @property
    def ended(self) -> bool:
        return not self._connection.in_transaction

    def keep(self) -> None:
        if self._saved:
            self._connection.execute(f"RELEASE {SAVEPOINT}")
        if not self.joined:
            self._connection.commit()

    def undo(self, error: BaseException | None) -> None:
        if not self._connection.in_transaction:
            return  # SQLite took it back by itself
        if self._saved:
            self._connection.execute(f"ROLLBACK TO {SAVEPOINT}")
            self._connection.execute(f"RELEASE {SAVEPOINT}")
            if self.joined or error is not None:
                return
            self._connection.commit()
        else:
            self._connection.rollback()


class AioSqlite:
    """aiosqlite's Connection."""

    waits = True
    dialect = "sqlite"

    def __init__(self, connection: Any) -> None:
        self._connection: Final = connection
        self.joined = False
        self._saved = False

    async def begin(self) -> None:
        statement, self.joined = _opens(self._connection)
        await self.run(statement, {})
        self._saved = statement != "BEGIN IMMEDIATE"

    async def run(self, text: str, values: Values) -> Ran:
        cursor = await self._connection.cursor()
        try:
            cursor.row_factory = None
            await cursor.execute(text, values)
            return await cursor.fetchall()  # type: ignore[no-any-return]
        finally:
            await cursor.close()

    @property
    def ended(self) -> bool:
        return not self._connection.in_transaction

    async def keep(self) -> None:
        if self._saved:
            await self.run(f"RELEASE {SAVEPOINT}", {})
        if not self.joined:
            await self._connection.commit()

    async def undo(self, error: BaseException | None) -> None:
        if not self._connection.in_transaction:
            return
        if self._saved:
            await self.run(f"ROLLBACK TO {SAVEPOINT}", {})
            await self.run(f"RELEASE {SAVEPOINT}", {})
            if self.joined or error is not None:
                return
            await self._connection.commit()
        else:
            await self._connection.rollback()
