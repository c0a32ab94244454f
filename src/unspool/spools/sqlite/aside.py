"""Rows of the SQLite spool that were set aside: out of everybody's way, with all their bytes.

set_aside · strays · damaged · discard      each takes a connection; to write, in a transaction
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw

from ...core.message import Destination, Instant, Key
from ...errors import Corrupt
from ..protocol import Damaged
from .read import encode_json
from .schema import LINE_UP, SPOILT
from .write import delete

# SQLite writes no row that has, in any column, what the column's type is not: such a one could not
# even be set aside as it is. (Columns in an index are not touched: see `heal` for those.)
_BLANKS: Final = {
    "due_at": "0", "attempt": "0", "accepted_at": "0", "repeat": "0", "keep_until": "0",
    "answer_until": "0", "seized": "0", "name": "''", "fingerprint": "x''", "nonce": "x''",
    "status": "x''",
}  # fmt: skip
_TYPES: Final = {"0": "integer", "''": "text", "x''": "blob"}
_MENDED: Final = ", ".join(
    f"{column} = iif(typeof({column}) = '{_TYPES[blank]}', {column}, {blank})"
    for column, blank in _BLANKS.items()
)
SET_ASIDE: Final = (
    f"UPDATE message SET state = state + {SPOILT}, ready_at = NULL, sweep_at = NULL,"
    f" {_MENDED}"
    f" WHERE id = ? AND state < {SPOILT}"
)
LINE_OF: Final = (
    "SELECT CAST(destination AS BLOB), CAST(order_key AS BLOB) FROM message"
    " WHERE id = ? AND order_key <> ''"
)
# Its key is not what the index has it under: no verdict would ever find it.
STRAYS: Final = (
    "SELECT m.id FROM json_each(?) AS r CROSS JOIN message AS m ON m.id = r.value"
    " WHERE m.id IS NOT (SELECT k.id FROM message AS k WHERE k.key = m.key)"
)
# A text that is none would stop SQLite's reader here; typeof() keeps numbers that are none away.
DAMAGED: Final = (
    "SELECT m.id, CAST(m.key AS BLOB), CAST(m.destination AS BLOB), CAST(m.name AS BLOB),"
    " iif(typeof(m.accepted_at) = 'integer', m.accepted_at, 0), coalesce(length(m.status), 0)"
    " + coalesce(length(b.request), 0) + coalesce(length(b.answer), 0)"
    " FROM message AS m LEFT JOIN body AS b ON b.id = m.id"
    f" WHERE m.state >= {SPOILT} AND m.id > ? ORDER BY m.id LIMIT ?"
)
DISCARDABLE: Final = (
    f"SELECT id FROM message WHERE id IN (SELECT value FROM json_each(?)) AND state >= {SPOILT}"
)


def set_aside(db: apsw.Connection, id_: int) -> int:
    """Its line goes on without it (12). How many were: 0 where it was set aside before."""
    db.execute(SET_ASIDE, (id_,))
    count = db.changes()
    line: Any = db.execute(LINE_OF, (id_,)).fetchone()
    if line is not None:
        with suppress(UnicodeDecodeError):  # then nobody knows which line it was
            db.execute(LINE_UP, (*(str(part, "utf-8") for part in line), 2))
    return count


def strays(db: apsw.Connection, rows: Sequence[Any]) -> set[int]:
    """Which of these rows nobody finds by their keys. Leased, one of them would be delivered, and
    again whenever its lease ended, for its verdict finds it no more than anything else (6)."""
    asked = encode_json([row[0] for row in rows]).decode()
    return {id_ for (id_,) in db.execute(STRAYS, (asked,))} if rows else set()


def corrupt(path: Path, count: int) -> Corrupt:
    return Corrupt(
        f"{count} record(s) in the spool {path} failed their checksum. They were set aside with all"
        " their bytes; nothing is run under their keys, and the rest goes on. See them:"
        " unspool queue --corrupt"
    )


def discard(db: apsw.Connection, marks: Sequence[str]) -> list[bool]:
    asked = encode_json([int(mark) for mark in marks if mark.isdecimal()]).decode()
    rows: Any = db.execute(DISCARDABLE, (asked,)).fetchall()
    ids = {id_ for (id_,) in rows}
    delete(db, list(ids))
    return [mark.isdecimal() and int(mark) in ids for mark in marks]


def damaged(
    connection: apsw.Connection, path: Path, *, after: str | None, limit: int
) -> Sequence[Damaged]:
    start = int(after) if after and after.isdecimal() else 0
    listed: Any = connection.execute(DAMAGED, (start, limit)).fetchall()
    return [
        Damaged(
            str(id_), f"{path}, row {id_}", size, Key(_text(key)), Destination(_text(destination)),
            _text(name), Instant(accepted_at),
        )
        for id_, key, destination, name, accepted_at, size in listed
    ]  # fmt: skip


def _text(column: bytes) -> str:
    """Empty where it is none."""
    try:
        return str(column, "utf-8")
    except UnicodeDecodeError:
        return ""
