"""KeyedStore: the contract's verbs over a shelf, for a spool that one process has to itself.

    store = KeyedStore(shelf, path)
    store.accept(entries) · lease(…) · settle(…) · find(…) · …        see `protocol`
    store.close()

Every write is one batch of the shelf. Accepts and settlements are synced before they return; so is
a lease of what may not be repeated. Other leases, renewals and sweeps are written and ride on the
next sync: a power cut that takes one back frees a dead process's lease, or sweeps once more.

Leases are in memory, for the process has the spool alone; what is written of them is the attempt's
number, and that there was one. So is the list of destinations with something waiting. Nothing here
grows with the backlog.

A record that is spoilt is set aside at the first look: it is never leased again, `find` and
`accept` of its key raise `Corrupt` (fail closed: it may have been applied), `corrupt` counts.

A folder that was removed or replaced while it is open takes nothing more: see `present`.

May be called from several threads; those that write take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ...core.lifecycle import LIFE, State, Verdict
from ...core.message import Destination, Instant, Key
from ...core.record import Spoilt
from ...errors import Corrupt, Unavailable
from ..memory import after_verdict, bare, under
from ..present import Present
from ..protocol import (
    Acceptance,
    Damaged,
    Duplicate,
    Entry,
    LaneDue,
    Lease,
    Mismatch,
    New,
    Promises,
    Query,
    Tally,
)
from . import read
from .draft import Draft
from .lanes import Lanes
from .rows import ERA_BITS, Row, changed, confirms, place_of, with_request
from .shelf import Shelf

SWEEP_ROWS: Final = 500
"""Entries forgotten in one batch: others wait behind it."""


class _SpoiltAt(Exception):
    """An entry that cannot be read, found in the middle of a batch."""

    def __init__(self, place: int) -> None:
        super().__init__(f"spoilt: {place}")
        self.place = place


class KeyedStore:
    def __init__(self, shelf: Shelf, path: Path) -> None:
        self.path: Final = path
        self.shelf: Final = shelf
        self.promises: Final = Promises(
            survives=shelf.survives, shared=False, remembers=True, fences=True, detail=shelf.detail
        )
        self._present = Present(path)
        self._writing = threading.RLock()
        self._closed = False
        self._place = shelf.era << ERA_BITS
        self._lanes = Lanes()
        self._generation = shelf.generation
        with shelf.view() as view:
            self._lanes.load(view)
            self._set_aside = sum(1 for _ in view.walk(b"x"))

    @property
    def corrupt(self) -> int:
        """Records set aside, and parts of the shelf that are no records any more."""
        return self._set_aside + self.shelf.spoilt

    def close(self) -> None:
        with self._writing:
            if not self._closed:
                self._closed = True
                self.shelf.close()

    # -- writing ---------------------------------------------------------------------------------

    @contextmanager
    def _draft(self, *, grows: bool = False, sync: bool = True) -> Iterator[Draft]:
        """All or nothing, synced at the end (1, 8) unless it may ride on the next."""
        with self._writing:
            self._check_open()
            with self.shelf.view(writer=True) as view:
                draft = Draft(view, self.shelf.era)
                yield draft
                draft.line_up()
            self._write(draft, grows=grows, sync=sync)

    def _write(self, draft: Draft, *, grows: bool, sync: bool) -> None:
        if not draft.changes:
            return
        sync = sync or draft.set_aside > 0 or draft.binding
        self.shelf.write(draft.changes, sync=sync, grows=grows)
        self._set_aside += draft.set_aside
        with self.shelf.view(writer=True) as view:
            if self.shelf.generation != self._generation:
                self._generation = self.shelf.generation
                self._lanes.load(view)
            self._lanes.note(draft.changes, draft.leased, view)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(
                f"The spool {self.path} is closed. Nothing of this was done; what was accepted is"
                " on the disk. Start again: unspool serve"
            )

    def accept(self, entries: Sequence[Entry], /) -> list[Acceptance]:
        self._present.check()
        try:
            with self._draft(grows=True) as draft:
                return [self._accept(draft, entry) for entry in entries]
        except _SpoiltAt as found:  # of a batch with a spoilt one in it nothing is done (12)
            raise self._fail_closed([found.place]) from found

    def _accept(self, draft: Draft, entry: Entry) -> Acceptance:
        place = self._place_or_corrupt(draft, entry.message.key)
        if place is not None:
            try:
                old = draft.row(place)
                answer = read.answer_of(draft.get, old)
            except Spoilt as error:
                raise _SpoiltAt(place) from error
            known = old.entry
            if known.message.fingerprint != entry.message.fingerprint:
                return Mismatch(changed(known, answer=answer))
            if known.state is not State.CLAIMED or known.leased_until > entry.message.accepted_at:
                return Duplicate(changed(known, answer=answer))
            entry = changed(entry, attempt=known.attempt + 1, answer=entry.answer)  # (3)
            draft.forget(old)
        self._place += 1
        waits = entry.state in (State.WAITING, State.CLAIMED)
        draft.add(
            Row(self._place, changed(bare(entry)), entry.answer is not None),
            request=entry.message.request if waits else None,
            answer=entry.answer,
        )
        return New(entry)

    def _place_or_corrupt(self, draft: Draft, key: Key) -> int | None:
        try:
            return draft.place(key)
        except Spoilt as error:
            raise self._damaged(error) from error

    def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> list[Lease]:
        leases: list[Lease] = []
        with self._draft(sync=False) as draft:
            for destination, limit in wants.items():
                for ready, order_key in self._lanes.ready(draft.view, destination, now, limit):
                    lease = self._lease(draft, place_of(ready), until, by=ready, line=order_key)
                    if lease is not None:
                        leases.append(lease)
        return leases

    def _lease(
        self, draft: Draft, place: int, until: Instant, *, by: bytes = b"", line: bytes = b"",
        whole: bool = True, seized: bool = False,
    ) -> Lease | None:  # fmt: skip
        """`by`: the row that led here, if any. `whole`: without its request it is spoilt."""
        try:
            row = draft.row(place)
            request = draft.request(place) if whole else None
        except Spoilt:
            draft.aside(place, by=[by] if by else (), order_key=line)
            return None
        if by and not confirms(row, by):
            draft.changes[by] = None
            return None
        entry = changed(row.entry, attempt=row.entry.attempt + 1, leased_until=until)
        harmless = row.entry.leased_until == 0 or row.seized
        draft.lease(row, entry, seized=seized and harmless)
        if whole and not entry.message.repeat:
            draft.binding = True
        leased = changed(entry, message=with_request(entry.message, request))
        return Lease(leased, until, not harmless)

    def seize(self, keys: Sequence[Key], /, *, now: Instant, until: Instant) -> list[Lease | None]:
        leases: list[Lease | None] = []
        taken: set[Key] = set()
        with self._draft(sync=False) as draft:
            for key in keys:
                lease = None
                if key not in taken:
                    place = self._place_or_corrupt(draft, key)
                    if place is not None and self._is_free(draft, place, now):
                        lease = self._lease(draft, place, until, seized=True)
                taken.add(key)
                leases.append(lease)
        return leases

    def _is_free(self, draft: Draft, place: int, now: Instant) -> bool:
        try:
            entry = draft.row(place).entry
        except Spoilt:
            draft.aside(place)
            return False
        return entry.state is State.WAITING and entry.leased_until <= now

    def expire(self, *, now: Instant, until: Instant, limit: int) -> list[Lease]:
        leases: list[Lease] = []
        with self._draft(sync=False) as draft:
            for row, _ in draft.view.walk(b"e"):
                if len(leases) == limit or int.from_bytes(row[1:9], "big") > now:
                    break
                try:
                    if draft.row(place_of(row)).entry.leased_until > now:
                        continue
                except Spoilt:
                    draft.aside(place_of(row), by=[row])
                    continue
                lease = self._lease(draft, place_of(row), until, by=row, whole=False, seized=True)
                if lease is not None:
                    leases.append(lease)
        return leases

    def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> list[bool]:
        kept: list[bool] = []
        with self._draft() as draft:
            for lease, verdict in settlements:
                row = self._held(draft, lease)
                good = row is not None and type(verdict) in LIFE[row.entry.state]
                kept.append(good)
                if row is not None and good:
                    draft.settle(row, after_verdict(row.entry, verdict))
        return kept

    def _held(self, draft: Draft, lease: Lease) -> Row | None:
        """The entry, if it is still the one that was leased and the lease its latest (6)."""
        place = self._place_or_corrupt(draft, lease.entry.message.key)
        if place is None:
            return None
        try:
            row = draft.row(place)
        except Spoilt:
            draft.aside(place)
            return None
        return row if under(row.entry, lease) else None  # I3

    def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> list[bool]:
        kept: list[bool] = []
        with self._draft(sync=False) as draft:
            for lease in leases:
                row = self._held(draft, lease)
                good = row is not None and row.entry.leased_until != 0
                kept.append(good)
                if row is not None and good:
                    draft.lease(row, changed(row.entry, leased_until=until), seized=row.seized)
        return kept

    def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        while went < limit:
            count = min(SWEEP_ROWS, limit - went)
            here = self._sweep(now, count)
            went += here
            if here < count:
                break
        return went

    def _sweep(self, now: Instant, count: int) -> int:
        went = 0
        with self._draft(sync=False) as draft:
            for walked, _ in draft.view.walk(b"w"):
                if went == count or int.from_bytes(walked[1:9], "big") > now:
                    break
                try:
                    row = draft.row(place_of(walked))
                except Spoilt:
                    draft.aside(place_of(walked), by=[walked])
                    continue
                entry = row.entry
                if not confirms(row, walked):
                    draft.changes[walked] = None
                    continue
                if entry.state is State.CLAIMED and entry.leased_until > now:
                    continue  # there are no more of these than are being tried just now
                if entry.keep_until <= now:
                    draft.forget(row)
                else:
                    draft.forget_answer(row)
                went += 1
        return went

    def changed(self) -> bool:
        """Nobody else can have it open."""
        return False

    # -- what is spoilt --------------------------------------------------------------------------

    def _fail_closed(self, places: Sequence[int]) -> Corrupt:
        with self._draft() as draft:
            for place in places:
                draft.aside(place)
        return Corrupt(
            f"{len(places)} record(s) in the spool {self.path} failed their checksum. They were set"
            " aside with all their bytes; nothing is run under their keys, and the rest goes on."
            " See them: unspool queue --corrupt"
        )

    def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        self._check_open()
        return read.damaged(self.shelf, self.path, after=after, limit=limit)

    def discard(self, marks: Sequence[str], /) -> list[bool]:
        """Of those whose key cannot be read, all keys are looked through."""
        gone: list[bool] = []
        with self._draft() as draft:
            for mark in marks:
                place = int(mark) if mark.isdecimal() else -1
                gone.append(place >= 0 and draft.discard(place))
        self._set_aside -= sum(gone)
        return gone

    def _damaged(self, error: Spoilt) -> Corrupt:
        return Corrupt(
            f"A part of the spool {self.path} cannot be read ({error}), and nobody knows what it"
            " knew. Nothing of this was done. Stop unspool, and keep a copy of the folder:"
            f" cp -a {self.path} {self.path}.kept"
        )

    # -- reading ---------------------------------------------------------------------------------

    def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        self._check_open()
        with self.shelf.view() as view:
            try:
                entries, spoilt = read.find(view, keys, era=self.shelf.era)
            except Spoilt as error:
                raise self._damaged(error) from error
        if spoilt:
            raise self._fail_closed(spoilt)
        return entries

    def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        self._check_open()
        with self.shelf.view() as view:
            return self._lanes.survey(view, after=after, limit=limit)

    def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        self._check_open()
        entries, spoilt = read.browse(
            self.shelf, query, after=after, limit=limit, requests=requests
        )
        if spoilt:
            self._fail_closed(spoilt)  # set aside; the people see the rest
        return entries

    def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        self._check_open()
        return read.tally(self.shelf, edges)
