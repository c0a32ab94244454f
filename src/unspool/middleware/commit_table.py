"""The table `unspool_once`, in the application's own database: what was done under which key.

    DDL["postgresql"], DDL["sqlite"]     the statements that make it, for migrations
    table(metadata)                      the same for SQLAlchemy and Alembic
    create(session)                      make it now, unless it is there
    sweep(session, limit=…)              forget what was kept long enough

A row is written in the transaction of the work that it tells of, and never changed (I3): there is
none for work that is under way, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..clock import SystemClock
from ..errors import Missing
from .commit_drivers import Ran
from .commit_sessions import Steps, drive, session_of

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

NAME: Final = "unspool_once"

DDL: Final[Mapping[str, tuple[str, ...]]] = {
    "postgresql": (
        """\
CREATE TABLE IF NOT EXISTS unspool_once (
    scope       text   NOT NULL,
    key         text   NOT NULL,
    name        text   NOT NULL,
    fingerprint bytea  NOT NULL,
    attempt     bigint NOT NULL,
    value       bytea  NOT NULL,
    at          bigint NOT NULL,
    keep_until  bigint NOT NULL,
    PRIMARY KEY (scope, key)
)""",
        "CREATE INDEX IF NOT EXISTS unspool_once_keep_until ON unspool_once (keep_until)",
    ),
    "sqlite": (
        """\
CREATE TABLE IF NOT EXISTS unspool_once (
    scope       text    NOT NULL,
    key         text    NOT NULL,
    name        text    NOT NULL,
    fingerprint blob    NOT NULL,
    attempt     integer NOT NULL,
    value       blob    NOT NULL,
    at          integer NOT NULL,
    keep_until  integer NOT NULL,
    PRIMARY KEY (scope, key)
)""",
        "CREATE INDEX IF NOT EXISTS unspool_once_keep_until ON unspool_once (keep_until)",
    ),
}
"""`name` is the key as its sender wrote it; `at` and `keep_until` are milliseconds since 1970."""

SWEEP: Final = (
    "DELETE FROM unspool_once WHERE (scope, key) IN (SELECT scope, key FROM unspool_once"
    " WHERE keep_until <= :now ORDER BY keep_until LIMIT :limit) RETURNING 1"
)
SWEEP_MAX: Final = 1_000
TURN: Final = 0x756E73706F6F6C  # "unspool": whoever makes the table has this advisory lock


def create(session: Any) -> Any:
    """Make the table unless it is there; to be awaited where the session is asynchronous.

    Joins the session's transaction where one is open. Raises `Misconfigured` for a session that is
    not understood.
    """
    found = session_of(session)

    def steps() -> Steps[Any]:
        yield found.begin()
        try:
            if found.dialect == "postgresql":  # two who make it at once would trip each other
                yield found.run("SELECT pg_advisory_xact_lock(:turn)", {"turn": TURN})
            for statement in DDL.get(found.dialect, ()):
                yield found.run(statement, {})
        except BaseException as error:
            yield found.undo(error)
            raise
        yield found.keep()

    return drive(found, steps())


def sweep(session: Any, *, limit: int = SWEEP_MAX) -> Any:
    """Forget up to `limit` records whose `keep_until` has passed: how many went.

    To be awaited where the session is asynchronous. Call it now and then until it gives less than
    `limit`. Any number of processes may do so at once.
    """
    found = session_of(session)
    now = SystemClock().now()

    def steps() -> Steps[Any]:
        yield found.begin()
        try:
            ran: Ran = yield found.run(SWEEP, {"now": now, "limit": limit})
        except BaseException as error:
            yield found.undo(error)
            raise
        yield found.keep()
        return len(ran)

    return drive(found, steps())


def table(metadata: MetaData) -> Table:
    """The table for SQLAlchemy's `metadata`, so that `create_all` and Alembic make it.

    Raises `Missing` without SQLAlchemy.
    """
    try:
        from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text
    except ImportError as error:
        raise Missing("SQLAlchemy is not installed. Try: pip install sqlalchemy") from error
    number = BigInteger().with_variant(Integer(), "sqlite")
    return Table(
        NAME,
        metadata,
        Column("scope", Text(), primary_key=True),
        Column("key", Text(), primary_key=True),
        Column("name", Text(), nullable=False),
        Column("fingerprint", LargeBinary(), nullable=False),
        Column("attempt", number, nullable=False),
        Column("value", LargeBinary(), nullable=False),
        Column("at", number, nullable=False),
        Column("keep_until", number, nullable=False, index=True),
    )
