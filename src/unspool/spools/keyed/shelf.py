"""Shelf: an ordered map of bytes that survives. What a spool of one process stands on.

    with shelf.view() as view:       one consistent look: nothing changes while it lasts
        view.get(row)                its value; None: it is not there
        view.walk(prefix)            (row, value) of all rows that begin so, in order
    shelf.write(changes, sync=True)  all of them or none, on the disk when it returns

`store` keeps the contract of `protocol` on top of one; `leveldb.spool` and `log.shelf` are
two. A shelf knows nothing of messages, but which rows are large (`rows.DATA`): those it may
leave on the disk, the others are what everything is found by.

One thread writes; any may view. A view must be left before its thread writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ..protocol import Damaged, Survives

Changes = Mapping[bytes, bytes | None]
"""Row: its new value, or None: it goes."""


class View(Protocol):
    def get(self, row: bytes, /) -> bytes | None:
        """Raises `core.record.Spoilt` where there is a value that cannot be read."""
        ...

    def walk(self, prefix: bytes, /, *, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """From `start` on, where that is given. Raises `Corrupt` where the order is damaged."""
        ...


class Shelf(Protocol):
    era: int
    """One more than when it was opened last."""
    generation: int
    """Rises when it may not hold any more, or again, what was written last: look again."""

    @property
    def survives(self) -> Survives: ...

    @property
    def detail(self) -> str:
        """How that was measured, for people."""
        ...

    @property
    def spoilt(self) -> int:
        """Parts that could not even be told apart into rows, and were set aside."""
        ...

    def parts(self) -> Sequence[Damaged]:
        """Those, by their marks: each a path. They are files now, and an operator's to remove."""
        ...

    def view(self, *, writer: bool = False) -> AbstractContextManager[View]:
        """`writer`: only for the thread that writes."""
        ...

    def write(self, changes: Changes, /, *, sync: bool, grows: bool = False) -> None:
        """`grows`: may be refused while there is little room; what ends things may not.

        Raises `Full` (it did not happen) and `Unavailable` (nobody knows).
        """
        ...

    def close(self) -> None: ...
