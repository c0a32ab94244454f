"""Lending: leases of a chain, and how they end.

    await lending.survey(…) · lease(…) · expire(…) · seize(…)
    await lending.settle(…) · renew(…)        of each True, False, or why nobody can tell

A message is leased from where it lies and settled there. What lies away comes first: it is the
least, and mostly the oldest. While `gate` is shut nothing is lent: home is back, and what was taken
meanwhile is being compared (`spool`, 3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ...core.lifecycle import Verdict
from ...core.message import Destination, Instant, Key
from ...errors import Refused
from ..protocol import LaneDue, Lease, Spool
from .ranks import Ranks

T = TypeVar("T")
Seize = Callable[..., Awaitable[Sequence[Lease | None]]]
_Verb = Callable[[Spool, Sequence[T]], Awaitable[Sequence[bool]]]


class Lending:
    def __init__(self, ranks: Ranks, *, gate: Callable[[], bool]) -> None:
        self._ranks = ranks
        self._gate = gate

    def _lenders(self) -> list[int]:
        if self._ranks.home.up and not self._gate():
            return []
        lenders = [*self._ranks.strangers, *([0] if self._ranks.home.up else ())]
        return [index for index in lenders if not self._ranks.all[index].returning]

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        ranks = self._ranks
        due: dict[Destination, Instant] = {}
        if not ranks.ups:
            raise ranks.nobody()
        rows = await ranks.each(
            self._lenders(), lambda spool: spool.survey(after=after, limit=limit)
        )
        for lanes in rows.values():
            for lane in lanes:
                due[lane.destination] = min(due.get(lane.destination, lane.due_at), lane.due_at)
        return [LaneDue(name, due[name]) for name in sorted(due)[:limit]]

    async def lease(
        self, wants: Mapping[Destination, int], *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        left = dict(wants)
        leases: list[Lease] = []
        lenders = self._lenders()
        answered = not wants or (not lenders and bool(self._ranks.ups))
        for index in lenders:
            some = {name: count for name, count in left.items() if count > 0}
            if not some:
                break

            def lease(
                spool: Spool, some: Mapping[Destination, int] = some
            ) -> Awaitable[Sequence[Lease]]:
                return spool.lease(some, now=now, until=until)

            with suppress(Refused):
                got = await self._ranks.all[index].ask(lease)
                answered = True
                leases += self._lent(got, index)
                for one in got:
                    left[one.entry.message.destination] -= 1
        if not answered:
            raise self._ranks.nobody()
        return leases

    def _lent(self, leases: Sequence[Lease], index: int) -> Sequence[Lease]:
        for lease in leases:
            self._ranks.lies(lease.entry, index)
        return leases

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        leases: list[Lease] = []
        for index in self._lenders():
            if (left := limit - len(leases)) <= 0:
                break

            def expire(spool: Spool, left: int = left) -> Awaitable[Sequence[Lease]]:
                return spool.expire(now=now, until=until, limit=left)

            with suppress(Refused):
                leases += self._lent(await self._ranks.all[index].ask(expire), index)
        return leases

    async def seize(
        self, keys: Sequence[Key], *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        """By whoever has it, home first. A key given twice is seized once."""
        return await self._seize(self._ranks.ups, keys, now=now, until=until)

    def seizing(self, index: int) -> Seize:
        """The same at this one alone."""
        return partial(self._seize, [index])

    async def _seize(
        self, indices: Sequence[int], keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        leases: list[Lease | None] = [None] * len(keys)
        for index in indices:
            numbers = [n for n, key in enumerate(keys) if leases[n] is None and key not in keys[:n]]
            if not numbers:
                break
            some = [keys[number] for number in numbers]

            def seize(
                spool: Spool, some: Sequence[Key] = some
            ) -> Awaitable[Sequence[Lease | None]]:
                return spool.seize(some, now=now, until=until)

            with suppress(Refused):
                got = await self._ranks.all[index].ask(seize)
                for number, lease in zip(numbers, got, strict=True):
                    if lease is not None:
                        self._ranks.lies(lease.entry, index)
                        leases[number] = lease
        return leases

    async def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        for index in self._ranks.ups:
            if (left := limit - went) <= 0:
                break

            def sweep(spool: Spool, left: int = left) -> Awaitable[int]:
                return spool.sweep(now=now, limit=left)

            with suppress(Refused):
                went += await self._ranks.all[index].ask(sweep, patient=True)
        return went

    def settle(
        self, settlements: Sequence[tuple[Lease, Verdict]]
    ) -> Awaitable[Sequence[bool | Refused]]:
        def settle(
            spool: Spool, some: Sequence[tuple[Lease, Verdict]]
        ) -> Awaitable[Sequence[bool]]:
            return spool.settle(some)

        return self._end([lease for lease, _ in settlements], settlements, settle)

    def renew(
        self, leases: Sequence[Lease], *, until: Instant
    ) -> Awaitable[Sequence[bool | Refused]]:
        def renew(spool: Spool, some: Sequence[Lease]) -> Awaitable[Sequence[bool]]:
            return spool.renew(some, until=until)

        return self._end(leases, leases, renew)

    def _end(
        self, leases: Sequence[Lease], items: Sequence[T], verb: _Verb[T]
    ) -> Awaitable[Sequence[bool | Refused]]:
        """Each where it was leased; what is not good there, wherever else it may lie by now."""
        ranks = self._ranks
        home = ranks.home
        if ranks.clear and home.up and home.spool is not None:
            return home.finish(verb(home.spool, items), write=True)
        return self._end_each([ranks.where(lease.entry) for lease in leases], items, verb)

    async def _end_each(
        self, places: Sequence[int], items: Sequence[T], verb: _Verb[T]
    ) -> Sequence[bool | Refused]:
        results: list[bool | Refused] = [False] * len(items)
        for index in sorted({*places}):
            numbers = [number for number, place in enumerate(places) if place == index]
            await self._end_at(index, numbers, items, verb, results)
        for index in self._ranks.ups:
            lost = [n for n, place in enumerate(places) if results[n] is False and place != index]
            if lost and not (index and self._ranks.all[index].clear):
                await self._end_at(index, lost, items, verb, results)
        return results

    async def _end_at(
        self,
        index: int,
        numbers: Sequence[int],
        items: Sequence[T],
        verb: _Verb[T],
        results: list[bool | Refused],
    ) -> None:
        some = [items[number] for number in numbers]
        try:
            got: Sequence[bool | Refused] = await self._ranks.all[index].ask(
                lambda spool: verb(spool, some), write=True
            )
        except Refused as error:
            got = [error] * len(some)
        for number, result in zip(numbers, got, strict=True):
            results[number] = result
