"""Scale: how many bytes of requests wait in an SQLite spool. Beside the spool, and reads only.

    scale = Scale(path)          the file is there; blocks, as all of it does
    scale.weigh() -> bytes       the requests of all that waits, as they are kept
    scale.changed() -> bool      has anybody written to the file since it was last weighed?
    scale.close()

Costs a look at each row that waits: some 15 ms for ten thousand. `length` of a blob reads its head
and not the blob.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import apsw

from ...core.lifecycle import State
from .file import BUSY_MS, translate

WEIGH: Final = (
    "SELECT coalesce(sum(length(b.request)), 0) FROM message AS m JOIN body AS b ON b.id = m.id"
    f" WHERE m.state = {State.WAITING.value}"
)


class Scale:
    def __init__(self, path: Path) -> None:
        """Raises as the spool does."""
        self._path: Final = path
        try:
            self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            self._connection.set_busy_timeout(BUSY_MS)
        except apsw.Error as error:
            raise translate(error, path=path, committing=False) from error
        self._version = -1

    def weigh(self) -> int:
        version = self._asked(
            "PRAGMA data_version"
        )  # first: what comes meanwhile is looked at again
        weight = self._asked(WEIGH)
        self._version = version
        return weight

    def changed(self) -> bool:
        return self._asked("PRAGMA data_version") != self._version

    def _asked(self, statement: str) -> int:
        try:
            [[found]] = self._connection.execute(statement)
        except apsw.Error as error:
            raise translate(error, path=self._path, committing=False) from error
        value: Any = found
        return int(value)

    def close(self) -> None:
        self._connection.close()
