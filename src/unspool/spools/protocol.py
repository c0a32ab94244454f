"""The Spool protocol: what every place that keeps messages can do. This file is the manual.

    accept          take entries in: waiting, claimed (being tried now) or settled (an answer)
    survey          which destinations have something waiting, and since when it is due
    lease           the sole right to attempt messages, until a deadline
    settle          end leases with verdicts
    renew           hold leases for longer
    wait_arrival    something may have come in from elsewhere
    expire          the right to bounce what is too old
    find · browse · tally · seize · sweep          for receipts, people, metrics and the broom
    damaged · discard                              what was set aside, and an operator's end of it

A spool has no clock, no policy and no opinion. Instants come in as integer milliseconds. Every verb
takes and gives batches, and a batch is atomic: after a crash all of it is there or none.

The contract, clause by clause (the conformance suite proves each):

1. Custody. When `accept` returns, each New entry outlives what `promises.survives` says (I1).
2. Identity. A known key never creates and never alters (I5). Two entries with one key in one batch:
   the second is Duplicate or Mismatch. A fingerprint that differs makes a Mismatch, whatever else.
3. Claims. A claimed entry is a request that somebody is trying for a sender who still waits.
   Nothing was promised: it is not surveyed and not leased. If its lease has run out, the next
   `accept` of the same key takes it over: New, with the attempt one higher. The newcomer's
   `accepted_at` is the instant that counts.
4. Lease. `lease` gives up to `wants[d]` messages of each destination d, earliest due first,
   waiting, due by `now`, and in nobody's unexpired lease; it counts one more attempt, and holds
   until `until` (I4). An abandoned lease comes due at its end by itself. A lease of a message that
   may not be repeated (`message.repeat` is False) is durable before it is returned. A waiting entry
   may be accepted with a lease, `leased_until` and its token `attempt`: whoever accepts it is
   trying it already, and it is in custody all the same, as durably as every other.
5. Order. Of the waiting messages of one destination under one order key only the head, the one
   accepted first, can be leased: while it waits, is held or is leased, the others wait.
6. Fence. The attempt number is the token, and with it the message's nonce, which is fresh for every
   accept: it tells a claim from one that was forgotten under the same key. `settle` under a lease
   whose token is no longer the entry's, or of an entry that has settled, changes nothing and gives
   False (I3). A late settle that nobody has overtaken is good.
7. Settle. Delivered and Bounced end custody: the request is dropped, the answer (if any) kept.
   Deferred makes it waiting, due at its `due_at`, free at once. Forgotten removes a claim; of a
   message that waits it is refused: False.
8. Durability of verdicts. A settle is durable when it returns: nobody is shown an answer that a
   power cut could take back.
9. Survey by name, not by due time, so that a thousand closed lanes cannot hide an open one. Held
   messages (due NEVER) do not count, nor do those behind the head of their order; a leased one
   counts at its lease's end.
10. Browse in order of acceptance, from `after` on; behind an unknown `after` there is nothing.
    Tally counts waiting messages by age.
11. Sweep removes settled entries and abandoned claims whose `keep_until` has passed, and the
    answers whose `answer_until` has; at most `limit` a call. It never touches what waits.
12. Trouble. `Unavailable` after a write means that it may or may not have happened: doing it again
    is safe. `Full`, and `NotDone` among the `Unavailable`, mean that it did not happen. A record
    that fails its checksum is set aside and counted, and the rest goes on.
13. Cancellation. A cancelled call may have happened, as with Unavailable; it harms no other.
14. Expiry. `expire` leases messages whose `expires_at` has passed, due or not, ordered or not, so
    that their bounce can be written: where a lane is closed for days nobody leases them for an
    attempt (I2). Held messages do not expire, and a leased one has its attempt first. They come
    without their requests.
15. Renewal. `renew` moves the end of leases that have not ended, for work that takes longer than
    anybody knew. It is fenced like `settle` (6): False where the lease has passed on or has ended.
    A late renewal that nobody has overtaken is good.
16. Seizures. What `seize` and `expire` lease is not for an attempt: nobody sends anything under it.
    If such a lease runs out without a verdict, the next one is not `abandoned` by that; it is where
    the seizure itself took what an attempt had abandoned.
17. Damage. `damaged` lists the records that were set aside (12), behind the one marked `after`, in
    an order that stays; of each, what can still be read. `discard` forgets some of them for good:
    their bytes go and their keys are new again. Neither touches what is whole. Where a spool sets
    nothing aside, there is nothing to list, and discarding gives False.

Instants agree between all who share a spool within SKEW_MS; a lease's term is at least ten times
that, and longer than an attempt can take (asserted where leases are taken).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..core.lifecycle import State, Verdict
from ..core.message import SKEW_MS, Attempt, Destination, Instant, Key, Message, Response, Value
from ..core.scheduler import LaneDue

__all__ = [
    "SKEW_MS",
    "Acceptance",
    "Damaged",
    "Duplicate",
    "Entry",
    "LaneDue",
    "Lease",
    "Mismatch",
    "New",
    "Promises",
    "Query",
    "Spool",
    "Survives",
    "Tally",
]


class Survives(enum.IntEnum):
    """What an accepted message outlives. Measured when the spool is opened, not declared."""

    NOTHING = 0
    PROCESS = 1
    """kill -9"""
    POWER = 2
    """a power cut"""
    MACHINE = 3
    """the loss of the host"""


class Promises(Value, frozen=True):
    """What this spool, as opened and set up now, really gives."""

    survives: Survives
    shared: bool
    """May several processes lease from it at once? Then claims must be written down."""
    remembers: bool
    """Is a key known after it settled, until its keep_until?"""
    fences: bool
    """Is a settle under a lost lease refused?"""
    detail: str = ""
    """How it was measured, for people: "WAL, synchronous=FULL"."""


class Entry(Value, frozen=True):
    """A message as the spool knows it."""

    message: Message
    state: State
    due_at: Instant
    """While waiting: not before this; NEVER: held; AT_ONCE: by an operator's word. Never shows a
    lease."""
    attempt: int = 0
    """Attempts begun; the token of the latest lease."""
    leased_until: Instant = Instant(0)
    """Somebody's sole right until then; 0: nobody's."""
    trail: tuple[Attempt, ...] = ()
    answer: Response | None = None
    """Once delivered, until answer_until."""
    stored: bool = True
    """False: of the answer only the fact and the head were kept."""
    reason: str = ""
    """Why it bounced."""
    settled_at: Instant = Instant(0)
    keep_until: Instant = Instant(0)
    answer_until: Instant = Instant(0)


class Lease(Value, frozen=True):
    """The sole right to attempt one message, until a deadline. `entry.attempt` is its token."""

    entry: Entry
    until: Instant
    abandoned: bool = False
    """The lease before this one ran out without a verdict: its attempt may have been applied. Not
    where it was a seizure (15)."""


class New(Value, frozen=True):
    """It is ours now. A claim that was taken over is New too, with a higher attempt."""

    entry: Entry


class Duplicate(Value, frozen=True):
    """Same key, same fingerprint: here is what we have."""

    entry: Entry


class Mismatch(Value, frozen=True):
    """Same key, another request: the sender's mistake."""

    entry: Entry


Acceptance = New | Duplicate | Mismatch


class Query(Value, frozen=True):
    """Which entries to browse. None: any."""

    destination: Destination | None = None
    state: State | None = None
    name: str | None = None
    """The sender's Idempotency-Key, whoever the sender was."""
    key: Key | None = None
    """The entry of this key: found at once, however much there is."""
    held: bool | None = None


class Tally(Value, frozen=True):
    """One destination's waiting messages, counted by age."""

    destination: Destination
    counts: tuple[int, ...]
    """counts[i]: accepted from edges[i] on and before edges[i - 1]; the last: before them all."""
    held: int
    oldest_at: Instant


class Damaged(Value, frozen=True):
    """A record that was set aside, as far as it can be read (17)."""

    mark: str
    """What the spool calls it: for `after` and `discard`, and for nothing else."""
    where: str
    """Where its bytes are, for people."""
    size_bytes: int
    """How many there are."""
    key: Key = Key("")
    """Empty: it cannot be read; so are the others."""
    destination: Destination = Destination("")
    name: str = ""
    accepted_at: Instant = Instant(0)


class Spool(Protocol):
    """Durable custody of messages. The module's text is the contract; numbers below cite it."""

    @property
    def promises(self) -> Promises: ...

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        """Take entries in (1, 2, 3). The answers are in their order.

        An entry is one of: WAITING with `due_at`, perhaps leased to the caller (4); CLAIMED with
        `leased_until` and `keep_until`; DELIVERED with `answer`, `keep_until` and `answer_until`
        (the request may be left out).
        What comes from another spool is kept as it was: WAITING, perhaps held, with the attempts
        and the trail that it has; DELIVERED, perhaps with its answer forgotten; BOUNCED with
        `reason`, `settled_at` and `keep_until`.
        Raises `Full`, `Unavailable`.
        """
        ...

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        """The next `limit` destinations by name with something waiting, each with its earliest
        due instant (9)."""
        ...

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        """Up to `wants[d]` messages of each destination d, with their requests (4, 5)."""
        ...

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        """End leases. False: the lease had passed on, and nothing was changed (6, 7, 8)."""
        ...

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        """Hold these leases until then. False: it had passed on, or had ended (15)."""
        ...

    async def wait_arrival(self) -> None:
        """Return when something may have arrived. May return early; may never return."""
        ...

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        """The entries of these keys, in their order, without requests, with answers."""
        ...

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        """Entries in order of acceptance, behind the entry of `after` (10). Answers are left out;
        requests too unless asked for."""
        ...

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        """Waiting messages by destination and age; `edges` descend from the newest (10)."""
        ...

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        """Lease these, due or not, held or not; None: unknown, not waiting, or in somebody's
        unexpired lease. Counts no attempt that would look like a delivery (15): the number rises,
        for it is the token, and the verdict's trail says what was done."""
        ...

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        """Up to `limit` messages that are too old, the oldest first (14)."""
        ...

    async def sweep(self, *, now: Instant, limit: int) -> int:
        """Forget what was kept long enough (11). How many entries and answers went."""
        ...

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        """Records that were set aside, behind the one with the mark `after` (17)."""
        ...

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        """Forget these for good. False: no such record is set aside (17)."""
        ...

    async def aclose(self) -> None:
        """Let go. Nothing accepted is lost by it."""
        ...
