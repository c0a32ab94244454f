"""Sessions: the application's own database, whichever library it comes through.

    session = session_of(thing)     a Session; raises Misconfigured for what is not understood
    drive(session, steps)           run steps to their end: at once, or as a coroutine
    trouble(error)                  what of a database's error we have a name for

Understood, by the names of their classes, so that no library is needed that is not there:

    SQLAlchemy 2        Session, scoped_session, Connection; AsyncSession, AsyncConnection
    Django              a connection, or its alias (a str)
    psycopg 3           Connection, AsyncConnection
    sqlite3, aiosqlite  Connection

The steps of a co-commit are written once, as a generator that yields what a verb of the session
gave. A session that blocks gives results, an asynchronous one gives awaitables: `drive` sends them
back as results either way.

Who commits. Where no transaction is open the session begins one and ends it. Where one is open it
is joined: a savepoint is set, and whoever opened the transaction commits it. What SQLAlchemy's
Session opened by itself (autobegin) nobody has promised to commit: that is committed with the
block, and on an error undone to the block's beginning.

Bugs: with psycopg, sqlite3 and SQLAlchemy's Connection it cannot be told who opened a transaction,
so an implicit one is joined too, and must be committed by its owner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Protocol, TypeVar

from ..errors import Crossed, Misconfigured, UnspoolError
from .commit_alchemy import Alchemy, InGreenlet
from .commit_drivers import AioSqlite, AsyncPsycopg, Django, Psycopg, Sqlite, Values

T = TypeVar("T")
Steps = Generator[Any, Any, T]


class Session(Protocol):
    """What a driver does; each verb gives its result, or where `waits` an awaitable of it."""

    @property
    def waits(self) -> bool: ...
    @property
    def dialect(self) -> str:
        """`postgresql` or `sqlite`, once begun."""
        ...

    @property
    def joined(self) -> bool:
        """Is the transaction somebody else's to commit?"""
        ...

    @property
    def whole(self) -> bool:
        """Is there nothing in the transaction but what we do?"""
        ...

    @property
    def ended(self) -> bool:
        """Was it ended in between, by somebody else?"""
        ...

    def begin(self) -> Any: ...
    def run(self, text: str, values: Values, /) -> Any: ...
    def keep(self) -> Any: ...
    def undo(self, error: BaseException | None, /) -> Any: ...
    def abandon(self) -> Any:
        """`keep` failed: nothing may be left open, or the next to come would join it."""
        ...


def _alchemy(session: Any) -> Session:
    return Alchemy(session)


def _async_session(session: Any) -> Session:
    return InGreenlet(session, Alchemy(session.sync_session))


def _async_connection(connection: Any) -> Session:
    return InGreenlet(connection, Alchemy(connection.sync_connection))


def _django(alias: str) -> Session:
    from django.db import connections

    return Django(connections[alias])


UNDERSTOOD: Final[Mapping[tuple[str, str], Callable[[Any], Session]]] = {
    ("sqlalchemy", "Session"): _alchemy,
    ("sqlalchemy", "scoped_session"): lambda registry: _alchemy(registry()),
    ("sqlalchemy", "Connection"): _alchemy,
    ("sqlalchemy", "AsyncSession"): _async_session,
    ("sqlalchemy", "async_scoped_session"): lambda registry: _async_session(registry()),
    ("sqlalchemy", "AsyncConnection"): _async_connection,
    ("django", "BaseDatabaseWrapper"): Django,
    ("django", "ConnectionProxy"): lambda proxy: _django(proxy.alias),
    ("psycopg", "Connection"): Psycopg,
    ("psycopg", "AsyncConnection"): AsyncPsycopg,
    ("sqlite3", "Connection"): Sqlite,
    ("aiosqlite", "Connection"): AioSqlite,
}
"""(package, class) of a session or of one of its bases, and its driver."""


def session_of(thing: Any) -> Session:
    """Raises `Misconfigured` for what is not understood."""
    if isinstance(thing, str):
        return _django(thing)
    for base in type(thing).__mro__:
        driver = UNDERSTOOD.get((base.__module__.split(".")[0], base.__name__))
        if driver is not None:
            return driver(thing)
    known = ", ".join(sorted({f"{package}'s {name}" for package, name in UNDERSTOOD}))
    raise Misconfigured(
        f"{type(thing).__module__}.{type(thing).__qualname__} is no session that is understood"
        f" here, so nothing was run. Give one of: {known}, or the alias of a Django database."
    )


def drive(session: Session, steps: Steps[T]) -> Any:
    """The result of the steps; a coroutine of it where the session waits."""
    return _drive_waiting(steps) if session.waits else _drive(steps)


def _drive(steps: Steps[T]) -> T:
    try:
        found = next(steps)
        while True:
            found = steps.send(found)
    except StopIteration as end:
        result: T = end.value
        return result


async def _drive_waiting(steps: Steps[T]) -> T:
    try:
        waiting = next(steps)
        while True:
            try:
                found = await waiting
            except BaseException as error:
                waiting = steps.throw(error)
            else:
                waiting = steps.send(found)
    except StopIteration as end:
        result: T = end.value
        return result


def pause(session: Session, pause_ms: int) -> Any:
    if session.waits:
        return asyncio.sleep(pause_ms / 1000)
    time.sleep(pause_ms / 1000)
    return None


CROSSED: Final = frozenset({"40001", "40P01", "55P03"})
"""SQLSTATEs: serialization failure, deadlock, lock not available."""
NO_TABLE: Final = frozenset({"42P01"})
SQLITE_BUSY: Final = 5
SQLITE_LOCKED: Final = 6


def trouble(error: BaseException) -> UnspoolError | None:
    """Our name for an error of the database; None: it is the application's own."""
    one: BaseException | None = error
    while one is not None:
        state = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        code = getattr(one, "sqlite_errorcode", 0) & 0xFF
        if state in CROSSED or code in (SQLITE_BUSY, SQLITE_LOCKED):
            return Crossed(
                f"The database undid this transaction, for it crossed another: {one}. Nothing of it"
                " was kept. Run the whole of it again."
            )
        if (state in NO_TABLE or code == 1) and "unspool_once" in str(one):
            return Misconfigured(
                "There is no table unspool_once in this database, so nothing was run. Make it, by"
                " a migration or by: once.create(session)"
            )
        package = type(one).__module__.split(".")[0]
        one = one.__cause__ if package in ("django", "sqlalchemy") else None  # they wrap it
    return None
