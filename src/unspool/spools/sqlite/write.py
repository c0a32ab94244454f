"""Writing into the SQLite spool: rows come, end and go, inside a transaction of the caller's.

insert · delete · line_up · write_ends      each takes the connection that has the transaction
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from ...core import record
from ...core.lifecycle import Deferred, Delivered, Forgotten, State, Verdict
from ..protocol import Entry, Lease
from .read import encode_json
from .schema import (
    DELETE,
    INSERT_BODY,
    INSERT_MESSAGE,
    LINE_UP,
    SETTLE_BODY,
    SETTLE_MESSAGE,
    body_row,
    message_row,
    verdict_row,
    write_rows,
)


def end_rows(
    ends: Mapping[int, tuple[Lease, Verdict]],
) -> tuple[list[Sequence[Any]], list[Sequence[Any]], list[int]]:
    """Rows for SETTLE_MESSAGE, rows for SETTLE_BODY, and the ids of what is forgotten."""
    messages: list[Sequence[Any]] = []
    bodies: list[Sequence[Any]] = []
    gone: list[int] = []
    for id_, (lease, verdict) in ends.items():
        if isinstance(verdict, Forgotten):
            gone.append(id_)
            continue
        ordered = lease.entry.message.order_key != ""
        messages.append(verdict_row(id_, verdict, ordered=ordered))
        if isinstance(verdict, Delivered):
            bodies.append((id_, record.pack_answer(verdict.answer)))
        elif not isinstance(verdict, Deferred):
            bodies.append((id_, None))
    return messages, bodies, gone


def insert(db: apsw.Connection, entries: Sequence[Entry]) -> None:
    write_rows(db.execute, [message_row(entry) for entry in entries], head=INSERT_MESSAGE)
    # Inside one transaction the ids of new rows follow one another.
    first = db.last_insert_rowid() - len(entries) + 1
    bodies = [body_row(id_, entry) for id_, entry in enumerate(entries, first)]
    write_rows(db.execute, bodies, head=INSERT_BODY)
    line_up(db, [entry for entry in entries if entry.state is State.WAITING])


def delete(db: apsw.Connection, ids: Sequence[int]) -> None:
    listed = encode_json(ids).decode()
    for statement in DELETE:
        db.execute(statement, (listed,))


def line_up(db: apsw.Connection, entries: Sequence[Entry]) -> None:
    """Let the head of each of these lines be the one that is ready (5)."""
    lines = {
        (entry.message.destination, entry.message.order_key)
        for entry in entries
        if entry.message.order_key
    }
    for destination, order_key in lines:
        db.execute(LINE_UP, (destination, order_key, len(entries) + 2))


def write_ends(db: apsw.Connection, ends: Mapping[int, tuple[Lease, Verdict]]) -> None:
    messages, bodies, gone = end_rows(ends)
    write_rows(db.execute, messages, head=SETTLE_MESSAGE[0], tail=SETTLE_MESSAGE[1])
    write_rows(db.execute, bodies, head=SETTLE_BODY[0], tail=SETTLE_BODY[1])
    if gone:
        delete(db, gone)
    line_up(db, [lease.entry for lease, _ in ends.values()])
