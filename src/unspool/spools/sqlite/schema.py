"""The SQLite spool's file, on paper: tables, indexes, statements, and rows to entries and back.

    message    what the scheduler looks at: small rows, in order of acceptance
    body       the request until it settles, the answer once there is one

`ready_at` is what leases go by: when the message is due and in nobody's lease. NULL means that it
cannot be leased at all: it has settled, is claimed, is held, or stands behind the head of its order
key. So a lease is written as a new due time, an abandoned one comes due by itself, and `due_at`
stays the message's own. `sweep_at` is when something of the row may be forgotten. `seized` is the
attempt number of the last lease that was a seizure and no attempt: while the two are equal, a lease
that has run out was nobody's attempt (15).

A state of SPOILT or more is a row set aside: its record failed its checksum, or a column beside it
holds what no column can: text that is no UTF-8, a number that is none. Its key stays known
(nothing runs twice because we forgot it), its bytes stay for whoever can read them.

Forms. `user_version` says which form a file has; a newer one than ours is refused. What an older
unspool can pass over without harm (a column with a default that it does not name, an index) is an
addition and no new form: ADDITIONS are made in every file that lacks them, and a file that has them
can be given back to the older program.

Pure: no connection is opened here.

Bugs: the checksums are over the records (status, request, answer); the columns beside them have
none: a bit that rots in one is noticed where it makes a text or a number that is none, or a key
that nobody finds, and where it makes another name or another time it is not. What stands in line
behind a message whose order key rotted waits for the next arrival in that line. `browse` by state,
name or destination and `tally` read all rows (see `read`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

from ...core import record
from ...core.lifecycle import Bounced, Deferred, Delivered, State, Verdict
from ...core.message import NEVER, Message
from ...core.record import Status
from ..protocol import Entry

APPLICATION_ID: Final = 0x756E7370
"""'unsp', for file(1) and for us."""
USER_VERSION: Final = 1
SPOILT: Final = 16
"""Added to the state of a row that is set aside."""
CHUNK_MAX: Final = 256
"""Rows in one statement. Each step of a statement gives the interpreter lock away and must get it
back from a busy event loop: 64 rows in one step cost the thread one wait, not 64."""

SCHEMA: Final = (
    """
    CREATE TABLE message (
        id           INTEGER PRIMARY KEY,
        key          TEXT    NOT NULL UNIQUE,
        destination  TEXT    NOT NULL,
        state        INTEGER NOT NULL,
        due_at       INTEGER NOT NULL,
        ready_at     INTEGER,
        attempt      INTEGER NOT NULL,
        leased_until INTEGER NOT NULL,
        accepted_at  INTEGER NOT NULL,
        expires_at   INTEGER NOT NULL,
        order_key    TEXT    NOT NULL,
        name         TEXT    NOT NULL,
        fingerprint  BLOB    NOT NULL,
        nonce        BLOB    NOT NULL,
        repeat       INTEGER NOT NULL,
        keep_until   INTEGER NOT NULL,
        answer_until INTEGER NOT NULL,
        sweep_at     INTEGER,
        status       BLOB    NOT NULL,
        seized       INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    """
    CREATE TABLE body (
        id      INTEGER PRIMARY KEY,
        request BLOB,
        answer  BLOB
    ) STRICT
    """,
    "CREATE INDEX message_ready ON message (destination, ready_at) WHERE ready_at IS NOT NULL",
    """CREATE INDEX message_line ON message (destination, order_key, id)
       WHERE order_key <> '' AND state = 0""",
    # What is held does not expire (14), however much of it is too old: nobody looks at it again.
    f"CREATE INDEX message_expiry ON message (expires_at) WHERE state = 0 AND due_at <> {NEVER}",
    "CREATE INDEX message_sweep ON message (sweep_at) WHERE sweep_at IS NOT NULL",
    # As small as what is in flight, and what is broken: found at start without looking at all.
    "CREATE INDEX message_leased ON message (leased_until) WHERE leased_until > 1",
    f"CREATE INDEX message_spoilt ON message (id) WHERE state >= {SPOILT}",
)

ADDITIONS: Final = (
    (
        "SELECT 1 FROM pragma_table_info('message') WHERE name = 'seized'",
        "ALTER TABLE message ADD COLUMN seized INTEGER NOT NULL DEFAULT 0",
    ),
)
"""Where the first finds nothing, the second is done."""

# OR ROLLBACK: a write that fails takes its whole transaction with it, which is what we want, and
# SQLite then needs no statement journal, which for many rows it would spill to a temporary file.
INSERT_MESSAGE: Final = (
    "INSERT OR ROLLBACK INTO message (key, destination, state, due_at, ready_at, attempt,"
    " leased_until, accepted_at, expires_at, order_key, name, fingerprint, nonce, repeat,"
    " keep_until, answer_until, sweep_at, status) VALUES "
)
INSERT_BODY: Final = "INSERT OR ROLLBACK INTO body (id, request, answer) VALUES "

SETTLE_MESSAGE: Final = (
    "WITH v (id, state, due_at, ready_at, keep_until, answer_until, sweep_at, status) AS (VALUES ",
    """) UPDATE OR ROLLBACK message SET state = v.state,
       due_at = coalesce(v.due_at, message.due_at), ready_at = v.ready_at, leased_until = 0,
       keep_until = v.keep_until,
       answer_until = coalesce(v.answer_until, message.answer_until), sweep_at = v.sweep_at,
       status = v.status FROM v WHERE message.id = v.id""",
)
SETTLE_BODY: Final = (
    "WITH v (id, answer) AS (VALUES ",
    """) UPDATE OR ROLLBACK body SET request = NULL, answer = coalesce(v.answer, body.answer)
       FROM v WHERE body.id = v.id""",
)

COLUMNS: Final = (
    "m.id, m.key, m.fingerprint, m.destination, m.accepted_at, m.expires_at, m.nonce, m.name,"
    " m.order_key, m.repeat, m.state, m.due_at, m.attempt, m.leased_until, m.keep_until,"
    " m.answer_until, m.seized, m.status"
)

TEXTS: Final = {1: "m.key", 3: "m.destination", 7: "m.name", 8: "m.order_key"}
"""Which of them are texts, and where."""
BLOBS: Final = frozenset({"m.fingerprint", "m.nonce", "m.status", *TEXTS.values()})
BYTES: Final = ", ".join(
    f"CAST({column} AS BLOB)"
    if column in BLOBS
    else f"iif(typeof({column}) = 'integer', {column}, NULL)"
    for column in COLUMNS.split(", ")
)
"""The same without a text that SQLite would have to read: for reading on where one is none."""

FIND: Final = (
    f"SELECT {COLUMNS}, NULL, b.answer FROM json_each(?) AS k"
    " CROSS JOIN message AS m ON m.key = k.value LEFT JOIN body AS b ON b.id = m.id"
)
LEASABLE: Final = (
    f"SELECT {COLUMNS}, b.request, NULL FROM message AS m LEFT JOIN body AS b ON b.id = m.id"
    " WHERE m.destination = ? AND m.ready_at <= ? ORDER BY m.ready_at, m.id LIMIT ?"
)
SEIZABLE: Final = (
    f"SELECT {COLUMNS}, b.request, NULL FROM json_each(?) AS k"
    " CROSS JOIN message AS m ON m.key = k.value LEFT JOIN body AS b ON b.id = m.id"
    " WHERE m.state = 0 AND m.leased_until <= ?"
)
EXPIRED: Final = (
    f"SELECT {COLUMNS}, NULL, NULL FROM message AS m"
    " WHERE m.state = 0 AND m.expires_at <= ?1 AND m.leased_until <= ?1"
    f" AND m.due_at <> {NEVER} ORDER BY m.expires_at, m.id LIMIT ?2"
)
# A message that is held, or not the head of its line, is not made ready by being seized.
LEASE: Final = (
    "UPDATE message SET attempt = attempt + 1, leased_until = ?1,"
    " ready_at = iif(ready_at IS NULL, NULL, max(due_at, ?1))"
    " WHERE id IN (SELECT value FROM json_each(?2))"
)
RENEWABLE: Final = (
    "SELECT m.key, m.id, m.state, m.attempt, m.nonce FROM json_each(?) AS k"
    " CROSS JOIN message AS m ON m.key = k.value WHERE m.leased_until > 0"
)
RENEW: Final = (
    "UPDATE message SET leased_until = ?1,"
    " ready_at = iif(ready_at IS NULL, NULL, max(due_at, ?1)),"
    " sweep_at = iif(sweep_at IS NULL, NULL, max(keep_until, ?1))"
    " WHERE id IN (SELECT value FROM json_each(?2))"
)
# What an abandoned attempt left open stays open: it must not look as if it had never been.
SEIZE: Final = LEASE.replace(
    "SET attempt = attempt + 1,",
    "SET attempt = attempt + 1,"
    " seized = iif(leased_until = 0 OR seized = attempt, attempt + 1, seized),",
)
# One row for the whole batch: see CHUNK_MAX. The key as it was asked for: that one is text.
TOKENS: Final = (
    "SELECT json_group_array(json_array(k.value, m.id, m.state, m.attempt, hex(m.nonce)))"
    " FROM json_each(?) AS k CROSS JOIN message AS m ON m.key = k.value"
)
# Only the head of a line is ready (5). Newcomers join at the end, and a claim that turns into a
# waiting message can come in before the old head, so the first few of the line are looked at.
LINE_UP: Final = f"""
    UPDATE message SET ready_at = iif(
        id = (SELECT min(id) FROM message WHERE destination = ?1 AND order_key = ?2 AND state = 0
              AND order_key <> ''),
        nullif(max(due_at, leased_until), {NEVER}), NULL)
    WHERE id IN (SELECT id FROM message WHERE destination = ?1 AND order_key = ?2 AND state = 0
                 AND order_key <> '' ORDER BY id LIMIT ?3)
"""
# A loose index scan: one seek for each destination, whatever waits there.
SURVEY: Final = """
    WITH RECURSIVE lane (destination) AS (
        SELECT min(destination) FROM message WHERE ready_at IS NOT NULL AND destination >= ?1
        UNION ALL
        SELECT (SELECT min(destination) FROM message
                WHERE ready_at IS NOT NULL AND destination > lane.destination)
        FROM lane WHERE lane.destination IS NOT NULL LIMIT ?2
    )
    SELECT CAST(destination AS BLOB), (SELECT min(ready_at) FROM message AS m
                         WHERE m.destination = lane.destination AND m.ready_at IS NOT NULL)
    FROM lane WHERE destination IS NOT NULL
"""
DELETE: Final = (
    "DELETE FROM body WHERE id IN (SELECT value FROM json_each(?))",
    "DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))",
)
SWEEPABLE: Final = (
    "SELECT id, keep_until FROM message WHERE sweep_at <= ? ORDER BY sweep_at, id LIMIT ?"
)
FORGET_ANSWERS: Final = (
    "UPDATE body SET answer = NULL WHERE id IN (SELECT value FROM json_each(?))",
    "UPDATE message SET sweep_at = keep_until WHERE id IN (SELECT value FROM json_each(?))",
)
READY_FOR: Final = (
    "SELECT id FROM message WHERE destination = CAST(? AS TEXT) AND ready_at IS NOT NULL LIMIT ?"
)
COUNT_SPOILT: Final = f"SELECT count(*) FROM message WHERE state >= {SPOILT}"
# Nobody else has the spool open, so whoever held these is dead. 1 is past, and not "nobody's":
# the next lease still says that the one before was abandoned.
FREE_ORPHANS: Final = (
    """UPDATE message SET leased_until = 1, ready_at = iif(ready_at IS NULL, NULL, due_at)
       WHERE state = 0 AND leased_until > 1""",
    """UPDATE message SET leased_until = 1, sweep_at = keep_until
       WHERE state = 1 AND leased_until > 1""",
)

NOTHING_YET: Final = record.pack_status(Status())


@cache
def rows_of(head: str, width: int, count: int, tail: str) -> str:
    """A statement with `count` rows of `width` parameters each."""
    row = "(" + ",".join("?" * width) + ")"
    return head + ",".join([row] * count) + tail


def write_rows(
    execute: Callable[..., object], rows: Sequence[Sequence[Any]], *, head: str, tail: str = ""
) -> None:
    """Write these rows in few steps: in powers of two, so that the statements stay prepared."""
    start, left = 0, len(rows)
    while left:
        count = min(CHUNK_MAX, 1 << (left.bit_length() - 1))
        statement = rows_of(head, len(rows[0]), count, tail)
        execute(statement, tuple(chain.from_iterable(rows[start : start + count])))
        start, left = start + count, left - count


def message_row(entry: Entry) -> tuple[Any, ...]:
    """An entry as INSERT_MESSAGE wants it. Ordered messages are made ready by LINE_UP."""
    message = entry.message
    ready_at: int | None = None
    sweep_at: int | None = None
    if entry.state is State.WAITING:
        if not message.order_key and entry.due_at != NEVER:
            ready_at = max(entry.due_at, entry.leased_until)
    elif entry.state is State.CLAIMED:
        sweep_at = max(entry.keep_until, entry.leased_until)
    elif entry.answer is not None:
        sweep_at = min(entry.keep_until, entry.answer_until)
    else:
        sweep_at = entry.keep_until
    return (
        message.key, message.destination, entry.state, entry.due_at, ready_at, entry.attempt,
        entry.leased_until, message.accepted_at, message.expires_at, message.order_key,
        message.name, message.fingerprint, message.nonce, message.repeat, entry.keep_until,
        entry.answer_until, sweep_at, _status(entry),
    )  # fmt: skip


def _status(entry: Entry) -> bytes:
    if not entry.trail and not entry.reason and entry.stored and not entry.settled_at:
        return NOTHING_YET
    return record.pack_status(Status(entry.trail, entry.reason, entry.stored, entry.settled_at))


def body_row(id_: int, entry: Entry) -> tuple[int, bytes | None, bytes | None]:
    request = entry.message.request
    if entry.state not in (State.WAITING, State.CLAIMED):
        request = None  # it has settled: the answer is what is kept
    return (
        id_,
        None if request is None else record.pack_request(request),
        None if entry.answer is None else record.pack_answer(entry.answer),
    )


def verdict_row(id_: int, verdict: Verdict, *, ordered: bool) -> tuple[Any, ...]:
    """A verdict as SETTLE_MESSAGE wants it. NULL leaves a column as it is."""
    match verdict:
        case Deferred():
            status = record.pack_status(Status(verdict.trail))
            due_at = verdict.due_at
            ready_at = None if ordered or due_at == NEVER else due_at
            return (id_, State.WAITING, due_at, ready_at, 0, None, None, status)
        case Delivered():
            status = record.pack_status(
                Status(verdict.trail, "", verdict.stored, verdict.settled_at)
            )
            keep, answer = verdict.keep_until, verdict.answer_until
            sweep = min(keep, answer)
            return (id_, State.DELIVERED, None, None, keep, answer, sweep, status)
        case Bounced():
            status = record.pack_status(
                Status(verdict.trail, verdict.reason.value, True, verdict.settled_at)
            )
            keep = verdict.keep_until
            return (id_, State.BOUNCED, None, None, keep, None, keep, status)
    raise AssertionError("Forgotten is a deletion, not a row")


def abandoned(row: Sequence[Any]) -> bool:
    """Of a row that is being leased: did the lease before run out, and was it an attempt?"""
    attempt, leased_until, seized = row[12], row[13], row[16]
    return bool(leased_until) and seized != attempt


def as_bytes(statement: str) -> str:
    """A statement with COLUMNS as one that gives rows for `decoded`."""
    for column in ("b.request", "b.answer"):
        statement = statement.replace(f", {column}", f", CAST({column} AS BLOB)")
    return statement.replace(COLUMNS, BYTES)


def decoded(row: Sequence[Any]) -> Sequence[Any]:
    """A row of BYTES as one of COLUMNS; one whose texts are none as one that is set aside."""
    found = list(row)
    for place in TEXTS:
        try:
            found[place] = str(found[place], "utf-8")
        except (UnicodeDecodeError, TypeError):
            found[place] = ""
            found[10] = SPOILT
    return found


def entry_of(row: Sequence[Any]) -> Entry:
    """A row of COLUMNS, request, answer as an entry. Raises `record.Spoilt`."""
    (
        _, key, fingerprint, destination, accepted_at, expires_at, nonce, name, order_key, repeat,
        state, due_at, attempt, leased_until, keep_until, answer_until, seized, status, request,
        answer,
    ) = row  # fmt: skip
    try:
        if state >= SPOILT:
            raise record.Spoilt("a record was set aside")
        # A column that rotted into another type: these take whole numbers, bytes, and texts alone.
        _ = accepted_at | expires_at | due_at | attempt | leased_until | keep_until | answer_until
        _ = repeat | seized, fingerprint[:0] + nonce[:0] + b"", key[:0] + name[:0] + ""
        known = _FRESH if status == NOTHING_YET else record.unpack_status(status)
        # By position, and without the names of the types: this is made for every message that
        # moves.
        message = Message(
            key, fingerprint, destination, accepted_at, expires_at, nonce, name, order_key,
            repeat == 1, None if request is None else record.unpack_request(request),
        )  # fmt: skip
        return Entry(
            message, STATES[state], due_at, attempt, leased_until, known.trail,
            None if answer is None else record.unpack_answer(answer),
            known.stored, known.reason, known.settled_at, keep_until, answer_until,
        )  # fmt: skip
    except (TypeError, IndexError) as error:
        raise record.Spoilt(f"a column is not what was written: {error}") from error


STATES: Final = tuple(State)
"""By their numbers."""
_FRESH: Final = Status()
