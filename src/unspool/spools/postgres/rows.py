"""The PostgreSQL spool on paper: tables, forms, rows to entries and back. Pure: nothing connects.

    message   what is looked at: small rows, with ids in order of acceptance
    body      the request until it settles, the answer once there is one
    about     whose tables these are, and their form

`ready_at` is what leases go by: when the message is due and in nobody's lease. NULL: it cannot be
leased at all (it has settled, is claimed, is held, or stands behind the head of its order key). A
lease is written as a new `ready_at`, so an abandoned one comes due by itself. `sweep_at` is when
something of the row may be forgotten. `seized` is the attempt number of the last lease that was a
seizure (16). Names and keys are bytea: a text column takes no NUL and nothing that is not UTF-8.

Forms. A form is a number and the statements that lead to it from the one before. `oldest` is the
least form whose programs can work with it: adding a column with a default, or an index, leaves it
as it was, so relays of two versions can share a spool while one after the other is upgraded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final
from zlib import crc32

from ...core import record
from ...core.lifecycle import LIFE, Bounced, Deferred, Delivered, State, Verdict
from ...core.message import NEVER, Destination, Key, Message
from ...core.record import Status
from ..protocol import Entry, Lease

PROGRAM: Final = "unspool spool"
FORM: Final = 1
SPOILT: Final = 16
"""Added to the state of a row that is set aside."""
LINES: Final = 256
"""Locks for lines: lines that fall on one wait for each other, and no server runs out of locks."""

# A row moves at least twice in its life, and no update can stay on its page's index entries, for
# `ready_at` is in an index: so vacuum comes early, and not by a fifth of ten million.
FORMS: Final[Mapping[int, tuple[int, Sequence[str]]]] = {
    1: (
        1,
        (
            "CREATE SEQUENCE {spool}.message_id",
            """
            CREATE TABLE {spool}.message (
                id           bigint   PRIMARY KEY,
                key          bytea    NOT NULL UNIQUE,
                destination  bytea    NOT NULL,
                state        integer  NOT NULL,
                due_at       bigint   NOT NULL,
                ready_at     bigint,
                attempt      integer  NOT NULL,
                leased_until bigint   NOT NULL,
                accepted_at  bigint   NOT NULL,
                expires_at   bigint   NOT NULL,
                order_key    bytea    NOT NULL,
                name         bytea    NOT NULL,
                fingerprint  bytea    NOT NULL,
                nonce        bytea    NOT NULL,
                repeat       boolean  NOT NULL,
                keep_until   bigint   NOT NULL,
                answer_until bigint   NOT NULL,
                sweep_at     bigint,
                seized       integer  NOT NULL DEFAULT 0,
                status       bytea    NOT NULL
            ) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01,
                    autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.02)
            """,
            """
            CREATE TABLE {spool}.body (id bigint PRIMARY KEY, request bytea, answer bytea)
            WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)
            """,
            """CREATE INDEX message_ready ON {spool}.message (destination, ready_at, id)
               WHERE ready_at IS NOT NULL""",
            """CREATE INDEX message_line ON {spool}.message (destination, order_key, id)
               WHERE order_key <> '' AND state = 0""",
            "CREATE INDEX message_expiry ON {spool}.message (expires_at, id) WHERE state = 0",
            """CREATE INDEX message_sweep ON {spool}.message (sweep_at, id)
               WHERE sweep_at IS NOT NULL""",
            "CREATE INDEX message_aside ON {spool}.message (id) WHERE state >= 16",
            """CREATE TABLE {spool}.about (
                   program text NOT NULL, form integer NOT NULL, oldest integer NOT NULL)""",
            f"INSERT INTO {{spool}}.about VALUES ('{PROGRAM}', 1, 1)",
        ),
    ),
}
"""Form: the least form whose programs can work with it, and how it is made of the one before."""

COLUMNS: Final = (
    "id", "key", "fingerprint", "destination", "accepted_at", "expires_at", "nonce", "name",
    "order_key", "repeat", "state", "due_at", "attempt", "leased_until", "keep_until",
    "answer_until", "seized", "status",
)  # fmt: skip
_ALL: Final = ", ".join(f"m.{column}" for column in COLUMNS)


def in_schema(text: str, spool: str) -> str:
    """Quoted where it names what is in it: `order` and `user` are words of SQL, too."""
    return text.replace("{spool}.", f'"{spool}".').replace("{spool}", spool)


def queries(spool: str) -> dict[str, str]:
    """The queries of `postgres.sql` for the spool in this schema, by name."""
    text = files(__package__).joinpath("postgres.sql").read_text("utf-8")
    filled = in_schema(
        text.replace("{columns}", _ALL).replace("{picked}", _ALL).replace("{never}", str(NEVER)),
        spool,
    )
    found: dict[str, str] = {}
    for part in filled.split("\n-- :")[1:]:
        head, _, query = part.partition("\n")
        found[head.split()[0]] = query.strip()
    return found


def packed(text: str) -> bytes:
    """Any text, also one that is no Unicode, as bytes of the same order."""
    return text.encode("utf-8", "surrogatepass")


def unpacked(data: bytes) -> str:
    """Raises `UnicodeDecodeError` where this was never a text."""
    return str(data, "utf-8", "surrogatepass")


def line_lock(destination: Destination, order_key: str) -> int:
    """Which of the locks is this line's."""
    return crc32(packed(destination) + b"\0" + packed(order_key)) % LINES


def lines_of(entries: Iterable[Entry]) -> list[tuple[Destination, str]]:
    """The lines in which these stand, once each."""
    return sorted(
        {(e.message.destination, e.message.order_key) for e in entries if e.message.order_key}
    )


# --- entries to rows ------------------------------------------------------------------------------

NOTHING_YET: Final = record.pack_status(Status())
_NONE: Final = -1


def entry_row(entry: Entry) -> dict[str, Any]:
    """An entry as `accept` wants it. Ordered messages are made ready by `line_up`."""
    message = entry.message
    ready_at = sweep_at = _NONE
    if entry.state is State.WAITING:
        if not message.order_key and entry.due_at != NEVER:
            ready_at = max(entry.due_at, entry.leased_until)
    elif entry.state is State.CLAIMED:
        sweep_at = max(entry.keep_until, entry.leased_until)
    elif entry.answer is not None:
        sweep_at = min(entry.keep_until, entry.answer_until)
    else:
        sweep_at = entry.keep_until
    request = message.request if entry.state in (State.WAITING, State.CLAIMED) else None
    return {
        "key": packed(message.key),
        "destination": packed(message.destination),
        "state": entry.state.value,
        "due_at": entry.due_at,
        "ready_at": ready_at,
        "attempt": entry.attempt,
        "leased_until": entry.leased_until,
        "accepted_at": message.accepted_at,
        "expires_at": message.expires_at,
        "order_key": packed(message.order_key),
        "name": packed(message.name),
        "fingerprint": message.fingerprint,
        "nonce": message.nonce,
        "repeat": message.repeat,
        "keep_until": entry.keep_until,
        "answer_until": entry.answer_until,
        "sweep_at": sweep_at,
        "status": _status(entry),
        "request": b"" if request is None else record.pack_request(request),
        "answer": b"" if entry.answer is None else record.pack_answer(entry.answer),
    }


def _status(entry: Entry) -> bytes:
    if not entry.trail and not entry.reason and entry.stored and not entry.settled_at:
        return NOTHING_YET
    return record.pack_status(Status(entry.trail, entry.reason, entry.stored, entry.settled_at))


_MAY: Final = {
    kind: sum(1 << state for state, row in LIFE.items() if kind in row)
    for row in LIFE.values()
    for kind in row
}
"""Verdict: the states that it can end, a bit for each."""


def verdict_row(place: int, lease: Lease, verdict: Verdict) -> dict[str, Any]:
    """A verdict as `settle` wants it; the state -1 is gone."""
    row: dict[str, Any] = token_row(place, lease) | {
        "may": _MAY[type(verdict)],
        "state": _NONE,
        "due_at": _NONE,
        "keep_until": 0,
        "answer_until": _NONE,
        "sweep_at": _NONE,
        "status": b"",
        "answer": b"",
    }
    match verdict:
        case Deferred():
            status = Status(verdict.trail)
            row |= {"state": State.WAITING.value, "due_at": verdict.due_at}
        case Delivered():
            status = Status(verdict.trail, "", verdict.stored, verdict.settled_at)
            row |= {
                "state": State.DELIVERED.value,
                "keep_until": verdict.keep_until,
                "answer_until": verdict.answer_until,
                "sweep_at": min(verdict.keep_until, verdict.answer_until),
                "answer": record.pack_answer(verdict.answer),
            }
        case Bounced():
            status = Status(verdict.trail, verdict.reason.value, True, verdict.settled_at)
            row |= {
                "state": State.BOUNCED.value,
                "keep_until": verdict.keep_until,
                "sweep_at": verdict.keep_until,
            }
        case _:
            return row
    return row | {"status": record.pack_status(status)}


def token_row(place: int, lease: Lease) -> dict[str, Any]:
    """What the fence asks of a lease (6)."""
    message = lease.entry.message
    return {
        "place": place,
        "key": packed(message.key),
        "attempt": lease.entry.attempt,
        "nonce": message.nonce,
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as arrays, one for each column."""
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- rows to entries ------------------------------------------------------------------------------


def entry_of(row: Sequence[Any]) -> Entry:
    """A row of COLUMNS, request, answer as an entry. Raises `record.Spoilt`."""
    (
        _, key, fingerprint, destination, accepted_at, expires_at, nonce, name, order_key, repeat,
        state, due_at, attempt, leased_until, keep_until, answer_until, _seized, status, request,
        answer,
    ) = row  # fmt: skip
    if not 0 <= state < len(_STATES):
        raise record.Spoilt("a record was set aside")
    try:
        known = _FRESH if status == NOTHING_YET else record.unpack_status(status)
        message = Message(
            Key(unpacked(key)), fingerprint, Destination(unpacked(destination)), accepted_at,
            expires_at, nonce, unpacked(name), unpacked(order_key), repeat,
            None if request is None else record.unpack_request(request),
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise record.Spoilt(f"a column is not what was written: {error}") from error
    return Entry(
        message, _STATES[state], due_at, attempt, leased_until, known.trail,
        None if answer is None else record.unpack_answer(answer),
        known.stored, known.reason, known.settled_at, keep_until, answer_until,
    )  # fmt: skip


def abandoned(row: Sequence[Any]) -> bool:
    """Of a row that is being leased: did the lease before run out, and was it an attempt?"""
    attempt, leased_until, seized = row[12], row[13], row[16]
    return bool(leased_until) and seized != attempt


_STATES: Final = tuple(State)
_FRESH: Final = Status()
