"""Cleaning: the oldest segment of a log, piece by piece, as far as it still holds.

    cleaning = Cleaning(disk, index, segment)
    copies = cleaning.piece(budget_bytes)     rows to be written again, in front of what comes next
    cleaning.done                             after the next sync the segment may go

Of a row that is not data the copy is its value now, wherever that was written: an older one in a
younger place would undo what has been done since. Of data the copy is made where they are still
found here. What is damaged is kept aside; whoever looks for it will find nothing, and set it aside.
"""

from __future__ import annotations

from typing import Final

from ..keyed.rows import DATA
from .disk import Disk
from .frames import Damage, Frame
from .index import LogIndex, where
from .segments import PREVIOUS, Segment, items_of, keep_aside


class Cleaning:
    def __init__(self, disk: Disk, index: LogIndex, segment: Segment) -> None:
        self.segment: Final = segment
        self.done = False
        self._disk = disk
        self._index = index
        self._items = items_of(disk, segment)

    def piece(self, budget_bytes: int) -> dict[bytes, bytes | None]:
        """Raises OSError: then it is over, and the segment stays."""
        copies: dict[bytes, bytes | None] = {}
        while budget_bytes > 0 and not self.done:
            item = next(self._items, None)
            if item is None:
                self.done = True
                break
            budget_bytes -= item.end - item.start
            if isinstance(item, Damage) or item.spoilt:
                keep_aside(self._disk, self.segment, item.start, item.end)
            if isinstance(item, Frame):
                self._still_hold(item, copies)
        return copies

    def _still_hold(self, frame: Frame, copies: dict[bytes, bytes | None]) -> None:
        for change in frame.changes:
            row = change.row
            if change.value is None or row == PREVIOUS:
                continue
            if row[0] not in DATA:
                now = self._index.get(row)
                if now is not None:
                    copies[row] = now
            elif not change.spoilt:
                spot = self._index.spot(row)
                if spot and where(spot)[:2] == (self.segment.slot, change.offset):
                    copies[row] = change.value
