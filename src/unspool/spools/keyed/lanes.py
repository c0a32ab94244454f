"""Lanes: of each destination with something waiting, its name, and the leases held on it.

    lanes.load(view)                       once, when the spool is opened
    lanes.ready(view, name, now, limit)    the `q` rows that may be leased, earliest due first (4)
    lanes.survey(view, after=…, limit=…)   by name, each with its earliest due instant (9)
    lanes.note(changes, leased, view)      after a batch was written

A lease does not move its message in the order on the shelf: it is remembered here, and whoever
walks the order steps over it. So memory is as large as the windows are wide and the destinations
many, however much waits. (A message that is leased stays where its due time put it, so a walk of
`limit` rows and as many as are leased has seen all that can be taken.)
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence

from ...core.message import Destination, Instant
from ..protocol import LaneDue
from .rows import due_of, end_of, lane_of, lane_prefix, place_of
from .shelf import View


class Lanes:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[Destination] = []
        self._leased: dict[Destination, dict[int, Instant]] = {}

    def load(self, view: View) -> None:
        """One step for each destination, whatever waits there."""
        names: list[Destination] = []
        start = b"q"
        while (found := next(iter(view.walk(b"q", start=start)), None)) is not None:
            names.append(lane_of(found[0]))
            start = end_of(lane_prefix(names[-1]))
        with self._lock:
            self._names = names

    def ready(
        self, view: View, destination: Destination, now: Instant, limit: int
    ) -> Sequence[tuple[bytes, bytes]]:
        """`q` rows and their order keys."""
        leased = self._leased.get(destination, {})
        found: list[tuple[Instant, int, bytes, bytes]] = []
        free = 0
        for row, order_key in view.walk(lane_prefix(destination)):
            due_at, place = due_of(row), place_of(row)
            if free == limit or due_at > now:
                break
            until = leased.get(place)
            if until is None:
                free += 1
                found.append((due_at, place, row, order_key))
            elif until <= now:
                found.append((max(due_at, until), place, row, order_key))
        found.sort()
        return [(row, order_key) for _, _, row, order_key in found[:limit]]

    def survey(self, view: View, *, after: Destination | None, limit: int) -> list[LaneDue]:
        with self._lock:
            start = 0 if after is None else bisect_right(self._names, after)
            names = self._names[start:]
        lanes: list[LaneDue] = []
        for name in names:
            if len(lanes) == limit:
                break
            due_at = self._due(view, name)
            if due_at is not None:
                lanes.append(LaneDue(name, due_at))
        return lanes

    def _due(self, view: View, name: Destination) -> Instant | None:
        leased = self._leased.get(name, {})
        earliest: Instant | None = None
        for row, _ in view.walk(lane_prefix(name)):
            due_at = due_of(row)
            if earliest is not None and due_at >= earliest:
                break
            until = leased.get(place_of(row))
            ready = due_at if until is None else max(due_at, until)
            earliest = ready if earliest is None else min(earliest, ready)
            if until is None:
                break
        return earliest

    def note(
        self,
        changes: Mapping[bytes, bytes | None],
        leased: Sequence[tuple[Destination, int, Instant]],
        view: View,
    ) -> None:
        """What was written: who came, who went, whose lease began or ended."""
        came: set[Destination] = set()
        went: set[Destination] = set()
        for row, value in changes.items():
            if row[:1] == b"q":
                (went if value is None else came).add(lane_of(row))
        for destination, place, until in leased:
            here = self._leased.setdefault(destination, {})
            if until:
                here[place] = until
            else:
                here.pop(place, None)
                if not here:
                    del self._leased[destination]
        empty = [name for name in went if next(iter(view.walk(lane_prefix(name))), None) is None]
        with self._lock:
            for name in came:
                at = bisect_left(self._names, name)
                if at == len(self._names) or self._names[at] != name:
                    insort(self._names, name)
            for name in empty:
                at = bisect_left(self._names, name)
                if at < len(self._names) and self._names[at] == name:
                    del self._names[at]
