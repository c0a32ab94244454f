"""Looking: what the custodians of a chain know together.

    await looking.find(keys)              whoever speaks for each key
    await looking.known_away(entries)     acceptances of those that are known elsewhere than at home
    await looking.other(key, nonce)       the entry of a receipt for whose key another one speaks
    await looking.browse(…) · tally(…)    for people

Home speaks for a key that it knows; else whoever knows it. Notes of what was brought home are shown
to nobody while home can be asked, and as waiting while it cannot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from ...core.custodian import stands
from ...core.lifecycle import State
from ...core.message import Destination, Instant, Key
from ...errors import Refused
from ..protocol import Acceptance, Damaged, Duplicate, Entry, Mismatch, New, Query, Spool, Tally
from ..secret import SECRETS
from .ranks import Ranks, at_home, moved

PAGES_MAX: Final = 64


class Looking:
    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pages: dict[Key, int] = {}
        """The ends of the last pages, and which custodian they were of."""
        self._page: dict[Key, int] = {}
        """The same of all that was shown last: a key may be known at two."""

    async def find(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        ranks = self._ranks
        found: list[Entry | None] = [None] * len(keys)
        asked = False
        if ranks.home.up:
            with suppress(Refused):
                found = [*await ranks.home.ask(lambda spool: spool.find(keys))]
                asked = True
        away = ranks.strangers if asked else [index for index in ranks.ups if index]
        for index in away:
            numbers = [n for n, one in enumerate(found) if one is None or _open(one) or moved(one)]
            if not numbers:
                break
            some = [keys[number] for number in numbers]
            with suppress(Refused):
                seen = await ranks.all[index].ask(lambda spool, some=some: spool.find(some))  # type: ignore[misc]
                asked = True
                for number, entry in zip(numbers, seen, strict=True):
                    self._weigh(found, number, entry, index)
        if keys and not asked:
            raise ranks.nobody()
        return found

    def _weigh(
        self, found: list[Entry | None], number: int, entry: Entry | None, index: int
    ) -> None:
        """Is it this one that speaks for the key?"""
        best = found[number]
        if entry is None:
            return
        if moved(entry):
            if best is None and not self._ranks.home.up:
                found[number] = at_home(entry)
        elif stands(None if best is None or moved(best) else best.state, entry.state):
            found[number] = entry
            self._ranks.lies(entry, index)

    async def known_away(self, entries: Sequence[Entry]) -> Sequence[Acceptance | None]:
        """None: no custodian but home can know it. A claim is asked for where it lies: it may have
        run out, and is taken over there."""
        ranks = self._ranks
        answers: list[Acceptance | None] = [None] * len(entries)
        indices = ranks.strangers if ranks.home.up else [index for index in ranks.ups if index]
        keys = [entry.message.key for entry in entries]
        found: list[Entry | None] = [None] * len(entries)
        places = [0] * len(entries)
        for index in indices:
            with suppress(Refused):
                seen = await ranks.all[index].ask(lambda spool: spool.find(keys))
                for number, entry in enumerate(seen):
                    before = found[number]
                    self._weigh(found, number, entry, index)
                    if found[number] is not before:
                        places[number] = index
        numbers = [number for number, entry in enumerate(found) if entry is not None]
        if numbers and ranks.home.up:
            some = [keys[number] for number in numbers]
            with suppress(Refused):
                homes = await ranks.home.ask(lambda spool: spool.find(some))
                for number, home in zip(numbers, homes, strict=True):
                    entry = found[number]
                    if home is not None and entry is not None and not moved(home):
                        found[number] = entry if stands(home.state, entry.state) else None
        for number, entry in enumerate(found):
            if entry is not None:
                answers[number] = await self._known(entries[number], entry, places[number])
        return answers

    async def _known(self, entry: Entry, old: Entry, index: int) -> Acceptance | None:
        if old.message.fingerprint != entry.message.fingerprint:
            return Mismatch(old)
        if old.state is not State.CLAIMED:
            return Duplicate(old)
        custodian = self._ranks.all[index]
        try:
            [answer] = await custodian.ask(lambda spool: spool.accept([entry]), write=True)
        except Refused:
            return Duplicate(old)  # somebody was trying it when we last could see
        self._ranks.lies(answer.entry, index)
        return answer

    async def read(self, answer: Acceptance) -> Acceptance:
        """The same; where it is only a note, what the note stands for."""
        if isinstance(answer, New) or not moved(answer.entry):
            return answer
        entry = at_home(answer.entry)
        with suppress(Refused):
            key = entry.message.key
            [home] = await self._ranks.home.ask(lambda spool: spool.find([key]))
            entry = home or entry
        return replace(answer, entry=entry)

    async def other(self, key: Key, nonce: bytes) -> Entry | None:
        ranks = self._ranks
        rows = await ranks.each(ranks.ups, lambda spool: spool.find([key]))
        for index, [entry] in rows.items():
            if entry is None or entry.message.nonce != nonce:
                continue
            if not moved(entry):
                ranks.lies(entry, index)
                return entry
            if not ranks.home.up:
                return at_home(entry)
            [home] = rows.get(0, [None])
            return home
        return None

    async def beside(self, entry: Entry) -> list[tuple[int, Entry]]:
        """What other custodians have under the key of this one, which speaks for it."""
        rows = await self._ranks.each(
            self._ranks.ups, lambda spool: spool.find([entry.message.key])
        )
        here = self._ranks.where(entry)
        return [
            (index, one)
            for index, [one] in rows.items()
            if one is not None and index != here and not moved(one)
        ]

    # --- for people -------------------------------------------------------------------------

    async def browse(
        self, query: Query, *, after: Key | None, limit: int, requests: bool
    ) -> Sequence[Entry]:
        """One custodian after the other, each in its order."""
        start = 0 if after is None else await self._page_of(after)
        found: list[Entry] = []
        if start is None:
            return found
        for index in self._ranks.ups:
            if index < start or len(found) >= limit:
                continue
            cursor = after if index == start else None
            with suppress(Refused):
                found += await self._shown(
                    index, query, after=cursor, limit=limit - len(found), requests=requests
                )
        if found:
            last = found[-1]
            self._page = {entry.message.key: self._ranks.where(entry) for entry in found}
            self._pages[last.message.key] = self._ranks.where(last)
            if len(self._pages) > PAGES_MAX:
                del self._pages[next(iter(self._pages))]
        return found

    async def _shown(
        self, index: int, query: Query, *, after: Key | None, limit: int, requests: bool
    ) -> list[Entry]:
        """So many of one custodian's, without the notes and secrets that are among them."""
        found: list[Entry] = []
        while (want := limit - len(found)) > 0:

            def page_of(
                spool: Spool, after: Key | None = after, want: int = want
            ) -> Awaitable[Sequence[Entry]]:
                return spool.browse(query, after=after, limit=want, requests=requests)

            page = await self._ranks.all[index].ask(page_of, patient=True)
            for entry in page:
                note = index and moved(entry)
                if not note and entry.message.key not in SECRETS:
                    self._ranks.lies(entry, index)
                    found.append(entry)
            if len(page) < want:
                break
            after = page[-1].message.key
        return found

    async def _page_of(self, after: Key) -> int | None:
        """Whose entry a page ended with."""
        for known_of in (self._page, self._pages):
            if after in known_of:
                return known_of[after]
        rows = await self._ranks.each(self._ranks.ups, lambda spool: spool.find([after]))
        known = [index for index, [entry] in rows.items() if entry is not None]
        return known[0] if known else None

    async def tally(self, edges: Sequence[Instant]) -> Sequence[Tally]:
        sums: dict[Destination, Tally] = {}
        rows = await self._ranks.each(
            self._ranks.ups, lambda spool: spool.tally(edges), patient=True
        )
        for tallies in rows.values():
            for one in tallies:
                other = sums.get(one.destination)
                sums[one.destination] = one if other is None else _sum(one, other)
        return [sums[name] for name in sorted(sums)]

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        """The custodian's number goes before its mark."""
        first, _, mark = (after or "0:").partition(":")
        found: list[Damaged] = []
        for index in self._ranks.ups:
            if index < int(first) or len(found) >= limit:
                continue
            behind = mark if index == int(first) and mark else None

            def damaged(
                spool: Spool, behind: str | None = behind, left: int = limit - len(found)
            ) -> Awaitable[Sequence[Damaged]]:
                return spool.damaged(after=behind, limit=left)

            with suppress(Refused):
                rows = await self._ranks.all[index].ask(damaged, patient=True)
                found += [replace(one, mark=f"{index}:{one.mark}") for one in rows]
        return found

    async def discard(self, marks: Sequence[str]) -> Sequence[bool]:
        gone = [False] * len(marks)
        for index in self._ranks.ups:
            prefix = f"{index}:"
            numbers = [n for n, mark in enumerate(marks) if mark.startswith(prefix)]
            if numbers:
                some = [marks[number].removeprefix(prefix) for number in numbers]
                custodian = self._ranks.all[index]
                did = await custodian.ask(lambda spool, some=some: spool.discard(some))  # type: ignore[misc]
                for number, one in zip(numbers, did, strict=True):
                    gone[number] = one
        return gone


def _open(entry: Entry) -> bool:
    return entry.state is State.CLAIMED


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(
        one.destination,
        tuple(a + b for a, b in zip(one.counts, other.counts, strict=True)),
        one.held + other.held,
        min(one.oldest_at, other.oldest_at),
    )
