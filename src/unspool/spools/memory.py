"""Memory: the reference model of a spool. Nothing here outlives the process.

    spool = MemorySpool()

It is the contract of `protocol` in the fewest words, and every other spool is held against it: one
dict from key to entry, in order of acceptance, and every verb a loop over it. No verb waits, so
each is atomic, whatever is cancelled.

Does not: survive anything, share with other processes, or scale: a lease looks at every entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ..core.lifecycle import LIFE, Bounced, Deferred, Delivered, Forgotten, State, Verdict
from ..core.message import NEVER, Destination, Instant, Key
from .arrivals import Arrivals
from .protocol import (
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
    Survives,
    Tally,
)

FREE: Final = Instant(0)


def bare(entry: Entry) -> Entry:
    """The entry without its request: what people and repeats are shown."""
    if entry.message.request is None:
        return entry
    return replace(entry, message=replace(entry.message, request=None))


def ready_at(entry: Entry) -> Instant:
    """When it may be leased: when it is due and nobody holds it (4)."""
    return max(entry.due_at, entry.leased_until)


def under(entry: Entry, lease: Lease) -> bool:
    """Is this still the entry that was leased, and the lease its latest? (6)

    The nonce tells a claim from the one that was forgotten before it under the same key.
    """
    return entry.attempt == lease.entry.attempt and entry.message.nonce == lease.entry.message.nonce


def after_verdict(entry: Entry, verdict: Verdict) -> Entry | None:
    """The entry once it is settled (7). None: it is gone."""
    match verdict:
        case Deferred():
            return replace(
                entry,
                state=State.WAITING,
                due_at=verdict.due_at,
                leased_until=FREE,
                trail=verdict.trail,
                keep_until=Instant(0),
            )
        case Delivered():
            return replace(
                bare(entry),
                state=State.DELIVERED,
                leased_until=FREE,
                trail=verdict.trail,
                answer=verdict.answer,
                stored=verdict.stored,
                settled_at=verdict.settled_at,
                keep_until=verdict.keep_until,
                answer_until=verdict.answer_until,
            )
        case Bounced():
            return replace(
                bare(entry),
                state=State.BOUNCED,
                leased_until=FREE,
                trail=verdict.trail,
                reason=verdict.reason.value,
                settled_at=verdict.settled_at,
                keep_until=verdict.keep_until,
            )
        case Forgotten():
            return None


class MemorySpool:
    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        """In order of acceptance. Tests reach in here to act out a restart."""
        self._seized: dict[Key, int] = {}
        """The attempt numbers of leases that were seizures and no attempts (15)."""
        self._arrivals = Arrivals()

    @property
    def promises(self) -> Promises:
        return Promises(
            survives=Survives.NOTHING, shared=False, remembers=True, fences=True, detail="memory"
        )

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        answers = [self._accept(entry) for entry in entries]
        if any(isinstance(a, New) and a.entry.state is State.WAITING for a in answers):
            self._arrivals.ring()
        return answers

    def _accept(self, entry: Entry) -> Acceptance:
        key = entry.message.key
        old = self.entries.get(key)
        if old is not None:
            if old.message.fingerprint != entry.message.fingerprint:
                return Mismatch(bare(old))
            if old.state is not State.CLAIMED or old.leased_until > entry.message.accepted_at:
                return Duplicate(bare(old))
            # A claim whose lease has run out is taken over, and moves to the end of the order (3).
            entry = replace(entry, attempt=old.attempt + 1)
            del self.entries[key]
        waits = entry.state in (State.WAITING, State.CLAIMED)
        self.entries[key] = entry if waits else bare(entry)
        return New(entry)

    def _leasable(self) -> list[Entry]:
        """What waits and is not held, less what stands behind the head of its order (5, 9)."""
        heads: dict[tuple[Destination, str], Key] = {}
        leasable: list[Entry] = []
        for key, entry in self.entries.items():
            if entry.state is not State.WAITING:
                continue
            message = entry.message
            if message.order_key:
                head = heads.setdefault((message.destination, message.order_key), key)
                if head != key:
                    continue
            if entry.due_at != NEVER:
                leasable.append(entry)
        return leasable

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        due: dict[Destination, Instant] = {}
        for entry in self._leasable():
            name = entry.message.destination
            if after is None or name > after:
                due[name] = min(due.get(name, NEVER), ready_at(entry))
        return [LaneDue(name, due[name]) for name in sorted(due)[:limit]]

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases: list[Lease] = []
        leasable = self._leasable()
        for destination, limit in wants.items():
            due = [
                entry
                for entry in leasable
                if entry.message.destination == destination and ready_at(entry) <= now
            ]
            leases += [self._lease(entry, until) for entry in sorted(due, key=ready_at)[:limit]]
        return leases

    def _lease(self, entry: Entry, until: Instant, *, seize: bool = False) -> Lease:
        key = entry.message.key
        leased = replace(entry, attempt=entry.attempt + 1, leased_until=until)
        harmless = entry.leased_until == FREE or self._seized.get(key) == entry.attempt
        if seize and harmless:
            self._seized[key] = leased.attempt
        else:
            self._seized.pop(key, None)
        self.entries[key] = leased
        return Lease(leased, until, abandoned=not harmless)

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept = [self._settle(lease, verdict) for lease, verdict in settlements]
        if any(kept):
            self._arrivals.ring()
        return kept

    def _settle(self, lease: Lease, verdict: Verdict) -> bool:
        key = lease.entry.message.key
        entry = self.entries.get(key)
        if entry is None or not under(entry, lease) or type(verdict) not in LIFE[entry.state]:
            return False  # I3
        after = after_verdict(entry, verdict)
        if after is None:
            del self.entries[key]
        else:
            self.entries[key] = after
        return True

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        return [self._renew(lease, until) for lease in leases]

    def _renew(self, lease: Lease, until: Instant) -> bool:
        key = lease.entry.message.key
        entry = self.entries.get(key)
        if entry is None or not under(entry, lease) or entry.leased_until == FREE:
            return False
        self.entries[key] = replace(entry, leased_until=until)
        return True

    async def wait_arrival(self) -> None:
        await self._arrivals.wait()

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        return [bare(self.entries[key]) if key in self.entries else None for key in keys]

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        entries = list(self.entries.values())
        if after is not None:
            keys = list(self.entries)
            entries = entries[keys.index(after) + 1 :] if after in self.entries else []
        found = [entry for entry in entries if asked_for(entry, query)][:limit]
        return [replace(entry if requests else bare(entry), answer=None) for entry in found]

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        waiting: dict[Destination, list[Entry]] = {}
        for entry in self.entries.values():
            if entry.state is State.WAITING:
                waiting.setdefault(entry.message.destination, []).append(entry)
        tallies: list[Tally] = []
        for destination, entries in sorted(waiting.items()):
            counts = [0] * (len(edges) + 1)
            held = 0
            for entry in entries:
                if entry.due_at == NEVER:
                    held += 1
                else:
                    counts[sum(entry.message.accepted_at < edge for edge in edges)] += 1
            oldest_at = min(entry.message.accepted_at for entry in entries)
            tallies.append(Tally(destination, tuple(counts), held, oldest_at))
        return tallies

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        leases: list[Lease | None] = []
        for key in keys:
            entry = self.entries.get(key)
            free = entry and entry.state is State.WAITING and entry.leased_until <= now
            leases.append(self._lease(entry, until, seize=True) if entry and free else None)
        return leases

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        expired = [
            entry
            for entry in self.entries.values()
            if entry.state is State.WAITING
            and entry.due_at != NEVER
            and entry.message.expires_at <= now
            and entry.leased_until <= now
        ]
        expired.sort(key=lambda entry: entry.message.expires_at)
        leases = [self._lease(entry, until, seize=True) for entry in expired[:limit]]
        return [_bare_lease(lease) for lease in leases]

    async def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        for key, entry in list(self.entries.items()):
            if went == limit:
                break
            claimed = entry.state is State.CLAIMED
            if entry.state is State.WAITING or (claimed and entry.leased_until > now):
                continue
            if entry.keep_until <= now:
                del self.entries[key]
                went += 1
            elif entry.answer is not None and entry.answer_until <= now:
                self.entries[key] = replace(entry, answer=None)
                went += 1
        return went

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        return []

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        return [False for _ in marks]

    async def aclose(self) -> None:
        """Nothing is held that needs letting go."""


def _bare_lease(lease: Lease) -> Lease:
    return replace(lease, entry=bare(lease.entry))


def asked_for(entry: Entry, query: Query) -> bool:
    message = entry.message
    held = entry.state is State.WAITING and entry.due_at == NEVER
    return (
        (query.destination is None or message.destination == query.destination)
        and (query.state is None or entry.state is query.state)
        and (query.name is None or message.name == query.name)
        and (query.key is None or message.key == query.key)
        and (query.held is None or held == query.held)
    )
