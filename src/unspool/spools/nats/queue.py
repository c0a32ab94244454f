"""Queues and lines of the NATS index: who comes first. Pure.

    queue.push(at, place, is_so)                   place is due at this time
    queue.first(is_so) · queue.take(now, limit, is_so)

A queue is a heap of one number for each change (time << 64 | place). What has changed since is
thrown out when it comes to the top, or when it is the larger part: `is_so` says whether a number
still holds. So whoever waits costs 56 bytes here.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from ...core.message import Instant

SLACK: Final = 64
"""Numbers in a heap that are not worth throwing out."""
_PLACE: Final = (1 << 64) - 1


class Queue:
    """Places by time. What is no longer so is dropped when it is met."""

    def __init__(self) -> None:
        self._heap: list[int] = []
        self.live = 0
        """How many belong in it, counted by its owner."""

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, at: Instant, place: int, is_so: Callable[[int, int], bool]) -> None:
        heappush(self._heap, at << 64 | place)
        if len(self._heap) > 2 * self.live + SLACK:
            self._heap = [*{item for item in self._heap if is_so(item >> 64, item & _PLACE)}]
            heapify(self._heap)

    def first(self, is_so: Callable[[int, int], bool]) -> int | None:
        """When the first is due."""
        heap = self._heap
        while heap:
            if is_so(heap[0] >> 64, heap[0] & _PLACE):
                return heap[0] >> 64
            heappop(heap)
        return None

    def take(
        self, now: Instant, limit: int, is_so: Callable[[int, int], bool],
        also: Callable[[int], bool] = lambda place: True,
    ) -> list[int]:  # fmt: skip
        """The places of the first `limit` by now, of which `also` is true. They stay."""
        heap = self._heap
        kept: list[int] = []
        found: list[int] = []
        last = -1
        while heap and len(found) < limit and heap[0] >> 64 <= now:
            item = heappop(heap)
            if item == last or not is_so(item >> 64, item & _PLACE):
                continue
            last = item
            kept.append(item)
            if also(item & _PLACE):
                found.append(item & _PLACE)
        for item in kept:
            heappush(heap, item)
        return found


class Line:
    """Who waits under one order key, the first accepted first."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.seen = 0
        self.newest = 0
