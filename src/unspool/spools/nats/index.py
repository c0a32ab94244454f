"""Index: what a relay knows of a NATS bucket: everything but the requests and the answers. Pure.

    index.apply(revision, facts) · index.remove(revision, key) · index.spoil(revision, key)
    index.get(key) -> (revision, facts)
    index.ready(destination, now=…, limit=…) · index.survey(…)         waiting, heads of lines only
    index.expired(now=…, limit=…) · index.sweepable(now=…, limit=…)
    index.after(key) -> places, in order of acceptance

What is told may come twice and out of turn (our own writes are told when they are acknowledged,
before the watch shows them): of a key the highest revision holds. What was removed is remembered
until the watch has passed it (`passed`).

Order is kept in heaps of one number for each change (time << 64 | place), from which what has
changed since is thrown out when it comes to the top, or when it is the larger part. So a message
that waits costs some 600 bytes, a key that is remembered some 400 (docs/howto/choose-a-spool.md;
`tests/conformance/test_nats.py` watches).

A line (the waiting messages of one order key) has a register on the server, written with every
change in it. `seen` is the register's revision up to which everything is known here; where it is
behind `newest`, somebody else may have changed the line meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key
from ..protocol import LaneDue
from .queue import SLACK, Line, Queue
from .records import (
    Facts,
    held,
    line_of,
    pack_facts,
    ready_at,
    sweep_at,
    unpack_facts,
    waits,
)

Row = tuple[int, Facts]


class Index:
    def __init__(self) -> None:
        self.position = 0
        """The watch has shown everything up to this sequence."""
        self.spoilt: dict[Key, int] = {}
        """Keys whose record is damaged, with its revision."""
        self.lines: dict[str, Line] = {}
        """By the names of their registers."""
        self._places: dict[Key, int] = {}
        self._rows: dict[int, bytes] = {}
        """By place: revision and packed facts."""
        self._order = array("Q")
        """Places, rising; some of them have gone."""
        self._gone: dict[Key, int] = {}
        self._lanes: dict[Destination, Queue] = {}
        self._names: list[Destination] = []
        self._expiry = Queue()
        self._sweeping = Queue()

    def __len__(self) -> int:
        return len(self._places)

    # -- what is there ---------------------------------------------------------------------------

    def get(self, key: Key) -> Row | None:
        place = self._places.get(key)
        return None if place is None else self._row(place)

    def row(self, place: int) -> Row | None:
        return self._row(place) if place in self._rows else None

    def _row(self, place: int) -> Row:
        data = self._rows[place]
        return int.from_bytes(data[:8], "big"), unpack_facts(data[8:])

    def _facts(self, place: int) -> Facts | None:
        data = self._rows.get(place)
        return None if data is None else unpack_facts(data[8:])

    # -- what is told ----------------------------------------------------------------------------

    def apply(self, revision: int, facts: Facts) -> bool:
        """This is what is known of its key by now. False: it was known, or is older."""
        key = facts.key
        if self._known(key) >= revision:
            return False
        self.spoilt.pop(key, None)
        self._gone.pop(key, None)
        place = facts.place or revision
        before_at = self._places.get(key)
        before = None
        if before_at == place:
            before = self._facts(place)
        elif before_at is not None:
            self._drop(key, before_at)
        self._places[key] = place
        self._rows[place] = revision.to_bytes(8, "big") + pack_facts(facts)
        if before is None:
            self._add_place(place)
        self._line_up(place, before, facts)
        self._queue(place, before, facts)
        return True

    def remove(self, revision: int, key: Key) -> bool:
        """It is gone as of this revision."""
        if self._known(key) >= revision:
            return False
        self.spoilt.pop(key, None)
        place = self._places.get(key)
        if revision > self.position:
            self._gone[key] = revision
        if place is not None:
            self._drop(key, place)
        return place is not None

    def spoil(self, revision: int, key: Key) -> bool:
        """Its record is damaged: out of everybody's way (12)."""
        known = self.get(key)
        if self.spoilt.get(key, 0) >= revision:
            return False
        if (known is not None and known[0] > revision) or self._gone.get(key, 0) > revision:
            return False
        place = self._places.get(key)
        if place is not None:
            self._drop(key, place)
        self.spoilt[key] = revision
        return True

    def passed(self, position: int) -> None:
        """The watch has shown everything up to there."""
        self.position = max(self.position, position)
        if self._gone and min(self._gone.values()) <= self.position:
            self._gone = {k: at for k, at in self._gone.items() if at > self.position}

    def _known(self, key: Key) -> int:
        place = self._places.get(key)
        if place is not None:
            return int.from_bytes(self._rows[place][:8], "big")
        return max(self._gone.get(key, 0), self.spoilt.get(key, 0))

    def _drop(self, key: Key, place: int) -> None:
        facts = self._facts(place)
        assert facts is not None
        del self._places[key]
        del self._rows[place]
        if waits(facts):
            self._leave(place, facts)
        else:
            self._sweeping.live -= 1
        if len(self._order) > 2 * len(self._rows) + SLACK:
            self._order = array("Q", (at for at in self._order if at in self._rows))

    def _add_place(self, place: int) -> None:
        order = self._order
        if not order or place > order[-1]:
            order.append(place)
        else:
            at = bisect_left(order, place)
            if at == len(order) or order[at] != place:
                order.insert(at, place)

    # -- queues ----------------------------------------------------------------------------------

    def _queue(self, place: int, before: Facts | None, facts: Facts) -> None:
        """Into the queues that it belongs in by now."""
        waited = before is not None and waits(before)
        if waits(facts):
            lane = self._lane(facts.destination)
            if not waited:
                lane.live += 1
                self._expiry.live += 1
                if before is not None:
                    self._sweeping.live -= 1
            if not held(facts):
                if self._is_head(place, facts):
                    lane.push(ready_at(facts), place, self._is_ready)
                if before is None or not waited or held(before):
                    self._expiry.push(facts.expires_at, place, self._is_expiring)
            return
        if waited and before is not None:
            self._leave(place, before)
        if before is None or waited:
            self._sweeping.live += 1
        if before is None or waited or sweep_at(before) != sweep_at(facts):
            self._sweeping.push(sweep_at(facts), place, self._is_sweepable)

    def _leave(self, place: int, facts: Facts) -> None:
        """It waits no longer."""
        lane = self._lanes[facts.destination]
        lane.live -= 1
        self._expiry.live -= 1
        self._leave_line(place, facts)
        if not lane.live:
            del self._lanes[facts.destination]
            del self._names[bisect_left(self._names, facts.destination)]

    def _lane(self, name: Destination) -> Queue:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Queue()
            insort(self._names, name)
        return lane

    def _is_ready(self, at: int, place: int) -> bool:
        facts = self._facts(place)
        return (
            facts is not None
            and facts.state == State.WAITING
            and facts.due_at != NEVER
            and ready_at(facts) == at
            and self._is_head(place, facts)
        )

    def _is_expiring(self, at: int, place: int) -> bool:
        facts = self._facts(place)
        return facts is not None and waits(facts) and not held(facts)

    def _is_sweepable(self, at: int, place: int) -> bool:
        facts = self._facts(place)
        return facts is not None and not waits(facts) and sweep_at(facts) == at

    # -- lines -----------------------------------------------------------------------------------

    def line(self, facts: Facts) -> Line | None:
        return self.lines.get(line_of(facts.destination, facts.order_key))

    def line_seen(self, name: str, revision: int) -> None:
        """Everything of this line is known up to there."""
        line = self.lines.get(name)
        if line is not None:
            line.seen = max(line.seen, revision)

    def line_written(self, name: str, revision: int, expected: int | None) -> None:
        """By us. Under an expectation that held: then nobody came between."""
        line = self.lines.get(name)
        if line is None:
            return
        line.newest = max(line.newest, revision)
        if expected is not None and expected == line.seen:
            line.seen = revision

    def line_void(self, name: str) -> None:
        """Its register has gone with age, and everything is known."""
        line = self.lines.get(name)
        if line is not None:
            line.seen = line.newest = 0

    def _is_head(self, place: int, facts: Facts) -> bool:
        if not facts.order_key:
            return True
        line = self.lines.get(line_of(facts.destination, facts.order_key))
        return line is not None and line.places[0] == place

    def _line_up(self, place: int, before: Facts | None, facts: Facts) -> None:
        if not facts.order_key or not waits(facts) or (before is not None and waits(before)):
            return
        line = self.lines.setdefault(line_of(facts.destination, facts.order_key), Line())
        insort(line.places, place)

    def _leave_line(self, place: int, facts: Facts) -> None:
        if not facts.order_key:
            return
        name = line_of(facts.destination, facts.order_key)
        line = self.lines[name]
        was_head = line.places[0] == place
        del line.places[bisect_left(line.places, place)]
        if not line.places:
            del self.lines[name]
        elif was_head:
            head = self._facts(line.places[0])
            if head is not None and not held(head):
                self._lanes[head.destination].push(ready_at(head), line.places[0], self._is_ready)

    # -- what is asked ---------------------------------------------------------------------------

    def ready(self, destination: Destination, *, now: Instant, limit: int) -> list[Row]:
        """What may be leased, earliest due first (4, 5)."""
        lane = self._lanes.get(destination)
        return [] if lane is None else self._all(lane.take(now, limit, self._is_ready))

    def survey(self, *, after: Destination | None, limit: int) -> list[LaneDue]:
        start = 0 if after is None else bisect_right(self._names, after)
        lanes: list[LaneDue] = []
        for name in self._names[start:]:
            if len(lanes) == limit:
                break
            due_at = self._lanes[name].first(self._is_ready)
            if due_at is not None:
                lanes.append(LaneDue(name, Instant(due_at)))
        return lanes

    def expired(self, *, now: Instant, limit: int) -> list[Row]:
        """Too old and in nobody's lease, the oldest first (14)."""

        def free(place: int) -> bool:
            facts = self._facts(place)
            return facts is not None and facts.leased_until <= now

        return self._all(self._expiry.take(now, limit, self._is_expiring, free))

    def sweepable(self, *, now: Instant, limit: int) -> list[Row]:
        """What was kept long enough (11)."""

        def free(place: int) -> bool:
            facts = self._facts(place)
            return facts is not None and (facts.state != State.CLAIMED or facts.leased_until <= now)

        return self._all(self._sweeping.take(now, limit, self._is_sweepable, free))

    def _all(self, places: list[int]) -> list[Row]:
        return [self._row(place) for place in places]

    def behind(self, key: Key | None, sought: Key) -> Iterator[int]:
        """The place of the one that is sought, if it is behind that one."""
        place = self._places.get(sought)
        first = 0 if key is None else self._places.get(key)
        if place is not None and first is not None and place > first:
            yield place

    def after(self, key: Key | None) -> Iterator[int]:
        """Places of entries in order of acceptance, behind this one (10). While they are walked
        the index may change; what has gone meanwhile is left out."""
        place = 0
        if key is not None:
            known = self._places.get(key)
            if known is None:
                return
            place = known
        while True:
            at = bisect_right(self._order, place)
            while at < len(self._order) and self._order[at] not in self._rows:
                at += 1
            if at == len(self._order):
                return
            place = self._order[at]
            yield place
