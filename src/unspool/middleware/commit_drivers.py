"""Drivers: one class for each library that a session may come from (SQLAlchemy: `commit_alchemy`).

    begin()            a transaction, or a savepoint where one is open already
    joined             is the transaction somebody else's to commit?
    whole              is there nothing in it but what we do?
    run(text, values)  a statement with `:named` values: its rows
    keep()             commit, or release the savepoint
    undo(error)        take back what was done since `begin`; None: not because of an error
    ended              was the transaction ended in between, by somebody else?

A driver asks only what its library says in public, and leaves the application's settings of it
alone: row factories, isolation levels, who commits.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
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
    def whole(self) -> bool:
        return not self.joined

    @property
    def ended(self) -> bool:
        return not self._connection.in_atomic_block

    def keep(self) -> None:
        self._atomic.__exit__(None, None, None)

    def undo(self, error: BaseException | None) -> None:
        error = error or Undone()
        self._atomic.__exit__(type(error), error, error.__traceback__)

    def abandon(self) -> None:
        """`atomic` has seen to it."""


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
    def whole(self) -> bool:
        return not self.joined

    @property
    def ended(self) -> bool:
        status: int = self._connection.info.transaction_status
        return status == IDLE

    def keep(self) -> None:
        self._transaction.__exit__(None, None, None)

    def undo(self, error: BaseException | None) -> None:
        error = error or Undone()
        self._transaction.__exit__(type(error), error, error.__traceback__)

    def abandon(self) -> None:
        """psycopg has seen to it."""


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
    def whole(self) -> bool:
        return not self.joined

    @property
    def ended(self) -> bool:
        status: int = self._connection.info.transaction_status
        return status == IDLE

    async def keep(self) -> None:
        await self._transaction.__aexit__(None, None, None)

    async def undo(self, error: BaseException | None) -> None:
        error = error or Undone()
        await self._transaction.__aexit__(type(error), error, error.__traceback__)

    async def abandon(self) -> None:
        """psycopg has seen to it."""


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
    def whole(self) -> bool:
        return not self._saved

    @property
    def ended(self) -> bool:
        return not self._connection.in_transaction

    def keep(self) -> None:
        if self._saved:
            self._connection.execute(f"RELEASE {SAVEPOINT}")
        if not self.joined:
            self._commit()

    def abandon(self) -> None:
        if not self.joined and self._connection.in_transaction:
            self._roll_back()

    def _commit(self) -> None:
        if self._saved:
            self._connection.commit()
        else:  # as it was begun: with `autocommit=True` (Python 3.12) `commit()` does nothing
            self._connection.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._saved:
            self._connection.rollback()
        else:
            self._connection.execute("ROLLBACK")

    def undo(self, error: BaseException | None) -> None:
        if not self._connection.in_transaction:
            return  # SQLite took it back by itself
        if self._saved:
            self._connection.execute(f"ROLLBACK TO {SAVEPOINT}")
            self._connection.execute(f"RELEASE {SAVEPOINT}")
            if self.joined or error is not None:
                return
            self._commit()
        else:
            self._roll_back()


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
        opens = statement == "BEGIN IMMEDIATE"
        beginning = asyncio.ensure_future(self.run(statement, {}))
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # Its thread goes on waiting for the lock: a transaction of nobody's must not be left.
            await asyncio.wait([beginning])
            if opens and not beginning.cancelled() and beginning.exception() is None:
                await self._roll_back()
            raise
        self._saved = not opens

    async def run(self, text: str, values: Values) -> Ran:
        cursor = await self._connection.cursor()
        try:
            cursor.row_factory = None
            await cursor.execute(text, values)
            return await cursor.fetchall()  # type: ignore[no-any-return]
        finally:
            await cursor.close()

    @property
    def whole(self) -> bool:
        return not self._saved

    @property
    def ended(self) -> bool:
        return not self._connection.in_transaction

    async def keep(self) -> None:
        if self._saved:
            await self.run(f"RELEASE {SAVEPOINT}", {})
        if not self.joined:
            await self._commit()

    async def abandon(self) -> None:
        if not self.joined and self._connection.in_transaction:
            await self._roll_back()

    async def _commit(self) -> None:
        if self._saved:
            await self._connection.commit()
        else:
            await self.run("COMMIT", {})

    async def _roll_back(self) -> None:
        if self._saved:
            await self._connection.rollback()
        else:
            await self.run("ROLLBACK", {})

    async def undo(self, error: BaseException | None) -> None:
        if not self._connection.in_transaction:
            return
        if self._saved:
            await self.run(f"ROLLBACK TO {SAVEPOINT}", {})
            await self.run(f"RELEASE {SAVEPOINT}", {})
            if self.joined or error is not None:
                return
            await self._commit()
        else:
            await self._roll_back()
