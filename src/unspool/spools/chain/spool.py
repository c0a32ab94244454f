"""The custody chain: several spools in order, as one. "Try a second queue service."

    spool = ChainSpool([first, second], now=…)      custodians, the most wanted first
    await spool.begin()                             opens them; one that is up is enough
    spool.keep()                                    looks after them: probes, and bringing home
    await spool.accept_each(entries)                as accept, with what was refused in its place
    spool.grade(entry) · spool.other(key, nonce) · spool.blind · spool.views()      for receipts

The first custodian is home. What it cannot take (down, full, slower than its deadline) the next one
does, and so on. A custodian that has failed is asked by no request: it is probed by time, so an
outage costs those a wait who are under way when it begins, and nobody else.

What holds, and what cannot:

1. Custody. 202 is said when one custodian has it, of at least the grade that was asked for
   (`survives`); the receipt tells the grade of that one. A batch is atomic within each custodian.
2. Identity. A key is known while some custodian that knows it can be asked. Of a key that only the
   unreachable one knows nobody can tell: a repeat is taken as New by the next, so the destination
   may see that key twice (only what may be repeated has a key), and its answer away may be another
   than home's. When home is back, its record is the one for repeats; a receipt that was given away
   follows it there. Who cannot have that keeps one spool. Of keys that were brought home the one
   away keeps a note: they are known though home is down, and told of as waiting.
3. In doubt. `Unavailable` means maybe written (but for `NotDone`). The next takes the entry all the
   same if the message may be repeated; if not, the sender keeps it. When home is back the two are
   compared before anything is leased from either: home's is dropped if it went out from the other
   already, the other's if not. Others who share home cannot be told to wait: in the time between
   its return and the comparison they may send a repeatable message again, under its key.
4. Order. What has an order key is taken by the first alone: those before it may wait there. While
   it is away the sender is told 503 and keeps it.
5. Delivery. From where it lies, by whoever has that custodian open. What may be repeated is brought
   home once home is back (homing.py); what may not stays, and is delivered from there: it is
   never in two places. `lease` takes the earliest of each custodian, not of all.
6. Claims are where they were taken; relays that share home do not see those away.
7. Settles go to where the lease came from. If that one is down they are `Unavailable`, and done
   again. But what a claim was for is then taken by the next, as it ended: its sender waits.
8. People see what can be reached; what cannot is named in `views`.
9. One secret for all, or a key would be another at each: home's. The others are taught it. If home
   is down at the very first start the next one's is used; should home turn out to have another, it
   is left alone until the relay is started again, and keys of that time are not known any more.

Bugs: the custodians are told apart by their places alone. Where the order of the URLs is changed, a
message whose note lies at the new home stays where it is, and is delivered from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from ...core.lifecycle import Verdict
from ...core.message import Destination, Instant, Key
from ...errors import Refused, Unavailable
from ..arrivals import Arrivals
from ..protocol import (
    Acceptance,
    Damaged,
    Entry,
    LaneDue,
    Lease,
    Promises,
    Query,
    Survives,
    Tally,
)
from ..secret import SECRET_KEY
from .custodian import Custodian, View
from .homing import Homing
from .lending import Lending, Seize
from .looking import Looking
from .ranks import Ranks
from .secret import Secrets
from .taking import Answer, Taking

log: Final = logging.getLogger("unspool.chain")

KEEP_MS: Final = 30 * 24 * 3600 * 1000
LISTEN_PAUSE_S: Final = 0.02
"""Under load something arrives at a custodian all the time."""

T = TypeVar("T")


class ChainSpool:
    def __init__(
        self, custodians: Sequence[Custodian], *, now: Callable[[], Instant], keep_ms: int = KEEP_MS
    ) -> None:
        """`keep_ms`: how long there is a note of what was brought home."""
        self.ranks: Final = Ranks(custodians)
        self._arrivals = Arrivals()
        self.homing: Final = Homing(self.ranks, now=now, keep_ms=keep_ms, ring=self._arrivals.ring)
        self._looking = Looking(self.ranks)
        self._lending = Lending(self.ranks, gate=lambda: self.homing.compared)
        self._taking = Taking(
            self.ranks, self._looking, ring=self._arrivals.ring, stir=self.homing.stir
        )
        self._secrets = Secrets(self.ranks)
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[asyncio.Task[None]] = []

    # --- opening and looking after ----------------------------------------------------------

    async def begin(self) -> None:
        """Open every custodian. Raises what no waiting mends, and `Unavailable` if none is up."""
        try:
            begun = (one.begin(patient=False) for one in self.ranks.all)
            ups = await asyncio.gather(*begun)
            if not any(ups):  # then there is nothing to start on: wait for as long as it takes
                ups = await asyncio.gather(*(one.begin() for one in self.ranks.all))
            if not any(ups):
                raise Unavailable(
                    f"no spool can be opened: {self.blind}. Nothing was started. Give a second one"
                    " that does not need the first: --spool log:///unspool.log"
                )
        except BaseException:
            await self.aclose()
            raise

    def keep(self) -> None:
        """Look after the custodians from now on: a relay does, a command that looks in does not."""
        assert not self._tasks
        self.homing.shut()
        for custodian in self.ranks.all:
            self._tasks.append(asyncio.create_task(self._probes(custodian)))
        self._tasks.append(asyncio.create_task(self.homing.run()))

    async def _probes(self, custodian: Custodian) -> None:
        while True:
            await custodian.fell.wait()
            await asyncio.sleep(custodian.probe_in_s())
            try:
                if not await custodian.probe():
                    continue
                await self._secrets.teach(custodian)
            except Exception:
                log.exception("looking after %s was a mistake; it goes on", custodian.name)
            finally:
                custodian.returning = False
            if custodian.up:
                log.warning("the spool %s is back", custodian.name)
                self.homing.shut()
                self._arrivals.ring()

    async def aclose(self) -> None:
        for task in (*self._tasks, *self._listeners):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._listeners, return_exceptions=True)
        self._tasks, self._listeners = [], []
        await asyncio.gather(*(one.aclose() for one in self.ranks.all))

    # --- what it is -------------------------------------------------------------------------

    @property
    def promises(self) -> Promises:
        """What each that takes anything keeps at least."""
        pairs = [(c, c.promises) for c in self.ranks.all]
        found = [promises for _, promises in pairs if promises is not None]
        assert found, "none was ever open"
        good = [p.survives for c, p in pairs if p is not None and c.qualified]
        return Promises(
            survives=min(good) if good else max(one.survives for one in found),
            shared=any(one.shared for one in found),
            remembers=all(one.remembers for one in found),
            fences=all(one.fences for one in found),
            detail=", then ".join(one.detail for one in found),
        )

    @property
    def corrupt(self) -> int:
        return sum(getattr(custodian.spool, "corrupt", 0) for custodian in self.ranks.all)

    @property
    def blind(self) -> str:
        """Which custodian cannot be asked, and why; empty where all can."""
        return self.ranks.blind

    def views(self) -> list[View]:
        return [custodian.view() for custodian in self.ranks.all]

    def place(self, entry: Entry) -> str:
        """Where it lies, as far as we have seen it."""
        return self.ranks.all[self.ranks.where(entry)].name

    def grade(self, entry: Entry) -> Survives:
        """What this entry survives where it lies, as far as we have seen it."""
        promises = self.ranks.all[self.ranks.where(entry)].promises
        return self.promises.survives if promises is None else promises.survives

    # --- the verbs of `protocol` ------------------------------------------------------------

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        return _all(await self.accept_each(entries))

    def accept_each(self, entries: Sequence[Entry], /) -> Awaitable[Sequence[Answer]]:
        """Each one's answer, or why it alone was not taken."""
        if len(entries) == 1 and entries[0].message.key == SECRET_KEY:
            return self._agreed(entries[0])
        return self._taking.each(entries)

    async def _agreed(self, entry: Entry) -> Sequence[Answer]:
        return [await self._secrets.agree(entry)]

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        return await self._lending.survey(after=after, limit=limit)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        return await self._lending.lease(wants, now=now, until=until)

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        return _all(await self.settle_each(settlements))

    def settle_each(
        self, settlements: Sequence[tuple[Lease, Verdict]], /
    ) -> Awaitable[Sequence[bool | Refused]]:
        """Of each whether it counted, or why nobody can tell."""
        return self._settled(self._lending.settle(settlements), settlements)

    async def _settled(
        self,
        ending: Awaitable[Sequence[bool | Refused]],
        settlements: Sequence[tuple[Lease, Verdict]],
    ) -> Sequence[bool | Refused]:
        try:
            ended = [*await ending]
        except Refused as error:
            ended = [error] * len(settlements)
        await self._taking.instead(settlements, ended)
        if any(one is True for one in ended):
            self._arrivals.ring()
        return ended

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        return _all(await self._lending.renew(leases, until=until))

    async def wait_arrival(self) -> None:
        if not self._listeners:
            self._listeners = [
                asyncio.create_task(self._listen(custodian)) for custodian in self.ranks.all
            ]
        await self._arrivals.wait()

    async def _listen(self, custodian: Custodian) -> None:
        """What arrives at one rings for all: others may share it."""
        while True:
            spool = custodian.spool
            try:
                if spool is not None and custodian.up:
                    await spool.wait_arrival()
                    self._arrivals.ring()
                    await asyncio.sleep(LISTEN_PAUSE_S)
                    continue
            except Exception as error:
                log.info("%s does not tell of arrivals: %s", custodian.name, error)
            await asyncio.sleep(1.0)

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        return await self._looking.find(keys)

    async def other(self, key: Key, nonce: bytes) -> Entry | None:
        """The entry of this receipt, where another one speaks for its key."""
        return await self._looking.other(key, nonce)

    async def beside(self, entry: Entry) -> list[tuple[str, Entry]]:
        """What lies under the key of this entry elsewhere (2), with the spool's name."""
        found = await self._looking.beside(entry)
        return [(self.ranks.all[index].name, one) for index, one in found]

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        """One custodian after the other, each in order of acceptance."""
        return await self._looking.browse(query, after=after, limit=limit, requests=requests)

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        return await self._looking.tally(edges)

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        return await self._lending.seize(keys, now=now, until=until)

    def seizing(self, entry: Entry) -> Seize:
        """`seize` where this entry lies: another may wait under its key elsewhere."""
        return self._lending.seizing(self.ranks.where(entry))

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        return await self._lending.expire(now=now, until=until, limit=limit)

    async def sweep(self, *, now: Instant, limit: int) -> int:
        return await self._lending.sweep(now=now, limit=limit)

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        return await self._looking.damaged(after=after, limit=limit)

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        return await self._looking.discard(marks)


def _all(results: Sequence[T | Refused]) -> Sequence[T]:
    """The results, or the first refusal: the rest may have happened."""
    for result in results:
        if isinstance(result, Refused):
            raise result
    return results  # type: ignore[return-value]
