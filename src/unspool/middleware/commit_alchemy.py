"""SQLAlchemy 2 as a session of co-commit, blocking or not. See `commit_drivers` for the verbs.

Where no transaction is open one is begun, and ended. Where somebody opened one it is joined by a
savepoint. One that a Session opened by itself (autobegin) nobody has promised to commit: it gets a
savepoint, too, and is committed with the block.

Bugs: a Connection does not tell who opened its transaction, so it is joined. A Session with several
binds is not understood: give its Connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from ..errors import Misconfigured
from .commit_drivers import Ran, Values


class Alchemy:
    """A Session or Connection."""

    waits = False

    def __init__(self, session: Any) -> None:
        self._session: Final = session
        self.joined = False
        self._outer: Any = None
        self._inner: Any = None
        self._driver: Any = None

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
        self._refuse_autocommit()
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

    @property
    def whole(self) -> bool:
        return self._inner is None

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

    def _refuse_autocommit(self) -> None:
        """There each statement is a transaction: nothing could be undone."""
        driver = self._connection.connection.dbapi_connection
        if self.dialect == "postgresql" and (
            getattr(driver, "autocommit", None) is True
            or getattr(driver, "isolation_level", None) == "autocommit"
        ):
            raise Misconfigured(
                "This engine commits each statement by itself (isolation_level AUTOCOMMIT), so a"
                " record and rows could not be one transaction. Nothing was run. Use another:"
                ' engine.execution_options(isolation_level="READ COMMITTED")'
            )

    def abandon(self) -> None:
        """The commit failed. SQLAlchemy may take that for the end, and give the driver's
        transaction back to its pool, still open."""
        if self.joined:
            return
        driver = self._driver
        with suppress(Exception):
            self._outer.rollback()
        if driver is not None:
            with suppress(Exception):
                driver.rollback()

    def keep(self) -> None:
        # Of an async driver the greenlet's stand-in, which blocks; else the driver's own.
        self._driver = self._connection.connection.dbapi_connection
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
    """An AsyncSession or AsyncConnection: the same, in its greenlet."""

    waits = True

    def __init__(self, session: Any, inner: Alchemy) -> None:
        self._session: Final = session
        self._inner: Final = inner
        self.dialect = ""

    @property
    def joined(self) -> bool:
        return self._inner.joined

    @property
    def whole(self) -> bool:
        return self._inner.whole

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

    def abandon(self) -> Awaitable[Any]:
        return self._there(self._inner.abandon)
