"""The custody chain: several spools in order, as one. "Try a second queue service."

    spool = ChainSpool([first, second], now=…)      custodians, the most wanted first
    await spool.begin()                             opens them; one that is up is enough
    spool.keep()                                    look after them: probes, and bringing home
    await spool.accept_each(entries)                as accept, with what was refused in its place
    spool.grade(entry) · spool.other(key, nonce) · spool.blind · spool.views()      for receipts

The first custodian is home. What it cannot take (down, full, slower than its deadline) the next one
does, and so on. A custodian that has failed is asked by no request: it is probed by time, so an
outage costs those a wait who are under way when it begins, and nobody else.

What holds, and what cannot:

1. Custody. 202 is said when one custodian has it, of at least the grade that was asked (`survives`);
   the receipt tells the grade of that one. A batch is atomic within each custodian, not over two.
2. Identity. A key is known while some custodian that knows it can be asked. Of a key that only the
   unreachable one knows nobody can tell: a repeat is taken as New by the next, so the destination
   may see that key twice (only what may be repeated has a key), and its answer away may be another
   than home's. When home is back, its record is the one for repeats; a receipt that was given away
   follows it there. Who cannot have that keeps one spool. Of keys that were brought home the one
   away keeps a note: they are known though home is down, and told of as waiting.
3. In doubt. `Unavailable` means maybe written. The next takes the entry all the same if the message
   may be repeated; if not, the sender keeps it. When home is back the two are compared before
   anything is leased from either: home's is dropped if it went out from the other already, the
   other's if not. Others who share home cannot be told to wait: in the time between its return
   and the comparison they may send a repeatable message again, under its key.
4. Order. What has an order key is taken by the first alone: those before it may wait there. While it
   is away the sender is told 503 and keeps it.
5. Delivery. From where it lies, by whoever has that custodian open. What may be repeated is brought
   home once home is back (homing.py); what may not stays and is delivered from there: it is never in
   two places. `lease` takes the earliest of each custodian, not of all.
6. Claims are where they were taken; relays that share home do not see those away.
7. Settles go to where the lease came from. If that one is down they are `Unavailable`, and done again.
8. People see what can be reached; what cannot is named in `views`.
9. One secret for all, or a key would be another at each: home's. The others are taught it. If home is
   down at the very first start the next one's is used; should home turn out to have another, it is
   left alone until the relay is started again, and keys of that time are not known any more.

Bugs: the custodians are not told apart by what they are, only by place: to change the order of the
URLs while messages wait is safe, but keys that only the former first knows come home one look late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from msgspec.structs import replace

from ..core.custodian import follows, stands
from ..core.lifecycle import Reason, State, Verdict
from ..core.message import Destination, Instant, Key
from ..errors import Full, Homeless, Refused, Unavailable
from .arrivals import Arrivals
from .chain_looking import Looking
from .custodian import Custodian, View
from .homing import Homing
from .protocol import (
    Acceptance,
    Duplicate,
    Entry,
    LaneDue,
    Lease,
    Mismatch,
    New,
    Promises,
    Query,
    Spool,
    Survives,
    Tally,
)
from .secret import HOME_KEY, SECRET_KEY, secret_entry

log: Final = logging.getLogger("unspool.chain")

LIES_MAX: Final = 100_000
"""So many entries away are known by where they lie without asking."""
LISTEN_PAUSE_S: Final = 1.0

T = TypeVar("T")
Answer = Acceptance | Refused


def moved(entry: Entry) -> bool:
    """Only a note that home has it."""
    return entry.state is State.BOUNCED and entry.reason == Reason.MOVED


def at_home(entry: Entry) -> Entry:
    """A note, as it is told of while home cannot be asked: it waits there, as far as we know."""
    return replace(entry, state=State.WAITING, reason="", settled_at=Instant(0))


class ChainSpool:
    def __init__(
        self,
        custodians: Sequence[Custodian],
        *,
        now: Callable[[], Instant],
        keep_ms: int = 30 * 24 * 3600 * 1000,
    ) -> None:
        """`keep_ms`: how long a note is kept of what was brought home."""
        assert custodians
        self.custodians: Final = tuple(custodians)
        self._home: Final = self.custodians[0]
        self._away: Final = self.custodians[1:]
        self._now = now
        self._secret: Entry | None = None
        self._lies: dict[tuple[Key, bytes], int] = {}
        self._taker = 0
        self._arrivals = Arrivals()
        self._tasks: list[asyncio.Task[None]] = []
        self._listening = False
        self._looking = Looking(self)
        self.homing: Final = Homing(self, now=now, keep_ms=keep_ms)

    # --- what it is -------------------------------------------------------------------------

    @property
    def promises(self) -> Promises:
        """What each that takes anything keeps at least."""
        found = [c.promises for c in self.custodians if c.promises is not None]
        assert found, "none was ever open"
        good = [c.promises for c in self.custodians if c.promises is not None and c.qualified]
        grades = [one.survives for one in good or found]
        return Promises(
            survives=min(grades) if good else max(grades),
            shared=any(one.shared for one in found),
            remembers=all(one.remembers for one in found),
            fences=all(one.fences for one in found),
            detail=", then ".join(one.detail for one in found),
        )

    @property
    def corrupt(self) -> int:
        return sum(getattr(c.spool, "corrupt", 0) for c in self.custodians)

    @property
    def blind(self) -> str:
        """Which custodian cannot be asked, and why; empty where all can."""
        down = [f"{c.name} ({c.pulse.cause})" for c in self.custodians if not c.up]
        return ", ".join(down)

    def views(self) -> list[View]:
        return [custodian.view() for custodian in self.custodians]

    def grade(self, entry: Entry) -> Survives:
        """What this entry survives where it lies, as far as we have seen it."""
        promises = self.custodians[self._where(entry)].promises
        return self.promises.survives if promises is None else promises.survives

    def _where(self, entry: Entry) -> int:
        return self._lies.get((entry.message.key, entry.message.nonce), 0)

    def lies(self, entry: Entry, index: int) -> None:
        """It was seen there."""
        name = entry.message.key, entry.message.nonce
        if index:
            self._lies[name] = index
            if len(self._lies) > LIES_MAX:
                del self._lies[next(iter(self._lies))]
        else:
            self._lies.pop(name, None)

    @property
    def _all_clear(self) -> bool:
        """Nothing lies away of which home does not know."""
        return all(c.clear for c in self._away)

    # --- accept -----------------------------------------------------------------------------

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        answers: list[Acceptance] = []
        for answer in await self.accept_each(entries):
            if isinstance(answer, Refused):
                raise answer
            answers.append(answer)
        return answers

    def accept_each(self, entries: Sequence[Entry], /) -> Awaitable[Sequence[Answer]]:
        """Each one's answer, or why it alone was not taken."""
        if len(entries) == 1 and entries[0].message.key == SECRET_KEY:
            return self._agree(entries[0])
        home = self._home
        if self._all_clear and home.takes and home.spool is not None:
            # On its way before anybody awaits it: see BlockingSpool.
            return self._usual(home.spool.accept(entries), entries)
        return self._accept(entries)

    async def _usual(
        self, begun: Awaitable[Sequence[Acceptance]], entries: Sequence[Entry]
    ) -> Sequence[Answer]:
        try:
            answers = await self._home.finish(begun, write=True)
        except Full:
            doubt = False
        except Unavailable:
            doubt = True
        else:
            self._took(0, answers)
            return answers
        placed: list[Answer | None] = [None] * len(entries)
        return await self._place(entries, placed, custodians=self._away, doubt=doubt)

    async def _accept(self, entries: Sequence[Entry]) -> Sequence[Answer]:
        answers = await self._looking.known_away(entries)
        return await self._place(entries, answers, custodians=self.custodians, doubt=False)

    async def _place(
        self,
        entries: Sequence[Entry],
        answers: list[Answer | None],
        *,
        custodians: Sequence[Custodian],
        doubt: bool,
    ) -> Sequence[Answer]:
        """Those without an answer, at the first that takes them."""
        rest = [number for number, answer in enumerate(answers) if answer is None]
        others = False
        for custodian in custodians:
            if not rest:
                break
            index = self.custodians.index(custodian)
            mine = [n for n in rest if not index or follows(entries[n].message, doubt=doubt)]
            if not custodian.takes:
                continue
            others = True
            if not mine:
                continue
            batch = [entries[number] for number in mine]
            try:
                got = await custodian.ask(lambda spool, b=batch: spool.accept(b), write=True)  # type: ignore[misc]
            except Full:
                continue
            except Unavailable:
                doubt, others = True, False
                continue
            self._took(index, got)
            for number, answer in zip(mine, got, strict=True):
                answers[number] = answer
            rest = [number for number in rest if answers[number] is None]
        for number in rest:
            answers[number] = self._refusal(entries[number], doubt=doubt, others=others)
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def _refusal(self, entry: Entry, *, doubt: bool, others: bool) -> Refused:
        why = "; ".join(f"{c.name} {c.why_not()}" for c in self.custodians if not c.takes)
        if not others:
            state = "It may or may not have been taken" if doubt else "Nothing was taken"
            return Unavailable(
                f"no spool takes anything just now: {why}. {state}; it is still yours, send it"
                " again later. See them: unspool queue"
            )
        what = "is to keep its order" if entry.message.order_key else "may not be sent twice"
        state = "It may have been taken" if doubt else "It was not taken"
        return Homeless(
            f"a request that {what} is taken by the first spool alone, which cannot: {why}."
            f" {state}; send it again later. See them: unspool queue"
        )

    def _took(self, index: int, answers: Sequence[Acceptance]) -> None:
        custodian = self.custodians[index]
        fresh = [one.entry for one in answers if isinstance(one, New)]
        if index and fresh:
            custodian.clear = False
            custodian.arrivals += 1
            self.homing.stir()
        for answer in answers if index else ():
            self.lies(answer.entry, index)
        if any(entry.state is State.WAITING for entry in fresh):
            self._arrivals.ring()
        if fresh and index != self._taker:
            self._taker = index
            why = "; ".join(f"{c.name} {c.why_not()}" for c in self.custodians[:index])
            log.warning("custody is taken by %s%s", custodian.name, f": {why}" if why else " again")

    # --- leases -----------------------------------------------------------------------------

    @property
    def _gate(self) -> bool:
        """Closed between home's return and the comparison of what was taken meanwhile (3)."""
        return not self._home.up or self.homing.compared

    def _lenders(self) -> list[int]:
        """Where something may wait, what lies away first: it is the least, and the oldest."""
        if not self._gate:
            return []
        away = [n for n, c in enumerate(self.custodians) if n and c.up and not c.clear]
        return [*away, 0] if self._home.up else away

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        due: dict[Destination, Instant] = {}
        lenders = self._lenders()
        rows = await self.each(lenders, lambda spool: spool.survey(after=after, limit=limit))
        for lanes in rows.values():
            for lane in lanes:
                due[lane.destination] = min(due.get(lane.destination, lane.due_at), lane.due_at)
        return [LaneDue(name, due[name]) for name in sorted(due)[:limit]]

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        left = dict(wants)
        leases: list[Lease] = []
        lenders = self._lenders()
        answered = not lenders
        for index in lenders:
            if not (some := {name: count for name, count in left.items() if count > 0}):
                break
            try:
                got = await self.custodians[index].ask(
                    lambda spool, some=some: spool.lease(some, now=now, until=until),  # type: ignore[misc]
                    write=True,
                )
            except Refused:
                continue
            answered = True
            for lease in got:
                self.lies(lease.entry, index)
                left[lease.entry.message.destination] -= 1
            leases += got
        if not answered:
            raise self._nobody()
        return leases

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        leases: list[Lease] = []
        for index in self._lenders():
            left = limit - len(leases)
            with suppress(Refused):
                got = await self.custodians[index].ask(
                    lambda spool, left=left: spool.expire(now=now, until=until, limit=left),  # type: ignore[misc]
                    write=True,
                )
                for lease in got:
                    self.lies(lease.entry, index)
                leases += got
            if len(leases) >= limit:
                break
        return leases

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        leases: list[Lease | None] = [None] * len(keys)
        for index, custodian in enumerate(self.custodians):
            numbers = [number for number, lease in enumerate(leases) if lease is None]
            if not numbers or not custodian.up:
                continue
            some = [keys[number] for number in numbers]
            with suppress(Refused):
                got = await custodian.ask(
                    lambda spool, some=some: spool.seize(some, now=now, until=until),  # type: ignore[misc]
                    write=True,
                )
                for number, lease in zip(numbers, got, strict=True):
                    if lease is not None:
                        self.lies(lease.entry, index)
                        leases[number] = lease
        return leases

    # --- settle and renew -------------------------------------------------------------------

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        return _all(await self.settle_each(settlements))

    def settle_each(
        self, settlements: Sequence[tuple[Lease, Verdict]], /
    ) -> Awaitable[Sequence[bool | Refused]]:
        """Of each whether it counted, or why nobody can tell."""
        return self._end([lease for lease, _ in settlements], list(settlements), Spool.settle)

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        def verb(spool: Spool, some: Sequence[Lease], /) -> Awaitable[Sequence[bool]]:
            return spool.renew(some, until=until)

        return _all(await self._end(leases, leases, verb))

    async def _end(
        self,
        leases: Sequence[Lease],
        items: Sequence[T],
        verb: Callable[[Spool, Sequence[T]], Awaitable[Sequence[bool]]],
    ) -> Sequence[bool | Refused]:
        """Each where it was leased; and where that is not known any more, wherever it may be."""
        results: list[bool | Refused] = [False] * len(items)
        routes: dict[int, list[int]] = {}
        for number, lease in enumerate(leases):
            routes.setdefault(self._where(lease.entry), []).append(number)
        for index, numbers in routes.items():
            await self._end_at(index, numbers, items, verb, results)
        for index, custodian in enumerate(self.custodians):
            if custodian.clear or not custodian.up:
                continue
            lost = [n for n in range(len(items)) if results[n] is False]
            lost = [n for n in lost if self._where(leases[n].entry) != index]
            if lost:
                await self._end_at(index, lost, items, verb, results)
        if any(result is True for result in results):
            self._arrivals.ring()
        return results

    async def _end_at(
        self,
        index: int,
        numbers: Sequence[int],
        items: Sequence[T],
        verb: Callable[[Spool, Sequence[T]], Awaitable[Sequence[bool]]],
        results: list[bool | Refused],
    ) -> None:
        some = [items[number] for number in numbers]
        try:
            got: Sequence[bool | Refused] = await self.custodians[index].ask(
                lambda spool: _call(verb, spool, some), write=True
            )
        except Refused as error:
            got = [error] * len(some)
        for number, result in zip(numbers, got, strict=True):
            results[number] = result

    # --- looking ----------------------------------------------------------------------------

    async def each(
        self,
        indices: Sequence[int],
        verb: Callable[[Spool], Awaitable[T]],
        *,
        patient: bool = False,
    ) -> dict[int, T]:
        """What each of these says; those that fail are left out. Raises if none says anything."""
        said: dict[int, T] = {}
        for index in indices:
            with suppress(Refused):
                said[index] = await self.custodians[index].ask(verb, patient=patient)
        if indices and not said:
            raise self._nobody()
        return said

    @property
    def ups(self) -> list[int]:
        return [index for index, custodian in enumerate(self.custodians) if custodian.up]

    def _nobody(self) -> Unavailable:
        return Unavailable(f"no spool can be asked just now: {self.blind}. See them: unspool queue")

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        return await self._looking.find(keys)

    async def other(self, key: Key, nonce: bytes) -> Entry | None:
        """The entry of this receipt, where another one speaks for its key."""
        return await self._looking.other(key, nonce)

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        """One custodian after the other."""
        return await self._looking.browse(query, after=after, limit=limit, requests=requests)

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        return await self._looking.tally(edges)

    async def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        for index in self.ups:
            left = limit - went
            if left > 0:
                with suppress(Refused):
                    went += await self.custodians[index].ask(
                        lambda spool, left=left: spool.sweep(now=now, limit=left),  # type: ignore[misc]
                        patient=True,
                    )
        return went
