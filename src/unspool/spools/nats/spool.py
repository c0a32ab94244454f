"""NatsSpool: the contract's verbs over a link and a watch. See `open` for what it promises.

Who may do what is decided from the index; that it is still so when it is written, the server
sees to: each message is published under the revision that it was decided from, and a batch of which
one is not so any more is refused whole, read again and decided anew (`commits`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from ...core.lifecycle import LIFE, Deferred, State, Verdict
from ...core.message import Destination, Instant, Key
from ...core.record import Spoilt
from ...errors import Full
from ..arrivals import Arrivals
from ..protocol import (
    Acceptance,
    Damaged,
    Entry,
    LaneDue,
    Lease,
    New,
    Promises,
    Query,
    Tally,
)
from .change import (
    Row,
    answer_to,
    leased,
    restating,
    settled,
    still,
    under,
    without_answer,
)
from .commits import Commits
from .index import Index
from .link import Conflict, Link
from .read import Reader
from .records import (
    Change,
    Facts,
    Known,
    line_of,
    parts_of,
    waits,
    written,
)
from .watch import Watch


class NatsSpool:
    def __init__(
        self, link: Link, watch: Watch, arrivals: Arrivals, *, promises: Promises,
        part_bytes: int, room: Callable[[int, int], Coroutine[Any, Any, None]],
    ) -> None:  # fmt: skip
        self.promises: Final = promises
        self._link: Final = link
        self._watch: Final = watch
        self._arrivals: Final = arrivals
        self._part_bytes: Final = part_bytes
        self._room: Final = room
        self._reader: Final = Reader(link, watch)
        self._leasing: Final = asyncio.Lock()
        """Who leases looks for the same messages: one after the other, or they would collide."""
        self._commits: Final = Commits(link, watch, self._reader)

    @property
    def _index(self) -> Index:
        return self._watch.index

    @property
    def corrupt(self) -> int:
        """Records that failed their checksum and were set aside."""
        return len(self._index.spoilt)

    # -- accept ----------------------------------------------------------------------------------

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        answers = await self._commits.until_done(lambda: self._accept(entries))
        if any(isinstance(a, New) and a.entry.state is State.WAITING for a in answers):
            self._arrivals.ring()
        return answers

    async def _accept(self, entries: Sequence[Entry]) -> list[Acceptance]:
        keys = [entry.message.key for entry in entries]
        self._refuse_spoilt(keys)
        # What is known here may have changed elsewhere: it is asked for, and the answer with it.
        known = await self._known([key for key in keys if self._index.get(key) is not None])
        staged: dict[Key, Entry] = {}
        changes: dict[Key, Change] = {}
        answers: list[Acceptance] = []
        for entry in entries:
            key = entry.message.key
            before = known.get(key)
            old = staged.get(key)
            if old is None and before is not None:
                old = await self._shown(before)
            answer = answer_to(old, entry)
            answers.append(answer)
            if not isinstance(answer, New):
                continue
            staged[key] = answer.entry
            changes.pop(key, None)  # taken over, it stands behind all that came before
            line = line_of(entry.message.destination, entry.message.order_key)
            changes[key] = written(
                answer.entry, place=0, part_bytes=self._part_bytes,
                expected=self._reader.revision(key, before),
                before=before.facts if before else None,
                line=line if entry.state is State.WAITING else "",
            )  # fmt: skip
        if changes:
            size = sum(len(c.body) + sum(map(len, c.parts)) for c in changes.values())
            await self._room(size, len(changes))
        return await self._commits.answered(
            entries, answers, changes, key=_key_of, again=self._accept, grows=True
        )

    async def _known(self, keys: Sequence[Key], *, apart: bool = True) -> dict[Key, Known]:
        """Raises `Corrupt` where one of them is damaged."""
        known = await self._reader.known(keys, apart=apart) if keys else {}
        self._refuse_spoilt(keys)
        return known

    async def _shown(self, known: Known) -> Entry:
        """With its answer. Raises `Corrupt`."""
        try:
            return await self._reader.entry(known, answer=True)
        except Spoilt as error:
            await self._reader.aside(known)
            raise self._reader.corrupt(1) from error

    def _refuse_spoilt(self, keys: Iterable[Key]) -> None:
        """Fail closed: it may have been applied (12)."""
        spoilt = self._index.spoilt
        if spoilt and (count := sum(key in spoilt for key in keys)):
            raise self._reader.corrupt(count)

    # -- lease -----------------------------------------------------------------------------------

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        return self._index.survey(after=after, limit=limit)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        def due() -> list[Row]:
            rows = []
            for name, limit in wants.items():
                rows += self._index.ready(name, now=now, limit=limit)
            return rows

        async def attempt() -> list[Lease]:
            rows = due()
            sure = {line_of(facts.destination, facts.order_key) for _, facts in rows} - {""}
            for line in sure:
                await self._reader.sure_of_line(line)
            if sure:  # it may be another's turn by now; who has come meanwhile has the next one
                rows = [
                    (revision, facts) for revision, facts in due()
                    if line_of(facts.destination, facts.order_key) in {"", *sure}
                ]  # fmt: skip
            return await self._lease(rows, until, ordered=True)

        async with self._leasing:
            return await self._commits.until_done(attempt)

    async def _lease(
        self, rows: Sequence[Row], until: Instant, *, seize: bool = False, request: bool = True,
        ordered: bool = False,
    ) -> list[Lease]:  # fmt: skip
        """Raises `Conflict` where one of them has changed."""
        known = await self._reader.known([facts.key for _, facts in rows], apart=request)
        changes: list[Change] = []
        leases: list[Lease] = []
        for revision, facts in rows:
            found = known.get(facts.key)
            if found is None or found.revision != revision:
                raise Conflict(facts.key)
            try:
                entry = await self._reader.entry(found, request=request)
            except Spoilt as error:
                await self._reader.aside(found)
                raise Conflict(facts.key) from error
            line = self._index.line(facts) if ordered else None
            seen = None if line is None else line.seen
            lease, change = leased(entry, found, until=until, seize=seize, line_seen=seen)
            leases.append(lease)
            changes.append(change)
        try:
            done = await self._commits.commit(changes, grows=True)
        except Full:
            if len(rows) == 1:
                raise
            few = rows[: len(rows) // 2]
            return await self._lease(few, until, seize=seize, request=request, ordered=ordered)
        return leases[:done]  # the others are somebody else's by now, or have their turn later

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        async def attempt() -> list[Lease | None]:
            await self._known(list(keys), apart=False)
            rows: dict[Key, Row] = {}
            for key in keys:
                row = self._index.get(key)
                if row is not None and waits(row[1]) and row[1].leased_until <= now:
                    rows[key] = row
            leases = await self._lease([*rows.values()], until, seize=True)
            taken = dict(zip(rows, leases, strict=False))
            return [taken.pop(key, None) for key in keys]

        async with self._leasing:
            return await self._commits.until_done(attempt)

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        async def attempt() -> list[Lease]:
            rows = self._index.expired(now=now, limit=limit)
            return await self._lease(rows, until, seize=True, request=False)

        async with self._leasing:
            return await self._commits.until_done(attempt)

    # -- settle and renew ------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept = await self._commits.until_done(lambda: self._settle(settlements))
        if any(kept):
            self._arrivals.ring()
        return kept

    async def _settle(self, settlements: Sequence[tuple[Lease, Verdict]]) -> list[bool]:
        rows = await self._rows([lease for lease, _ in settlements])
        known = await self._known(
            [
                lease.entry.message.key
                for lease, verdict in settlements
                if isinstance(verdict, Deferred) and still(rows.get(lease.entry.message.key), lease)
            ],
            apart=False,
        )
        staged: dict[Key, tuple[Facts, Change]] = {}
        kept: list[bool] = []
        for lease, verdict in settlements:
            key = lease.entry.message.key
            row = rows.get(key)
            facts = staged[key][0] if key in staged else row and row[1]
            good = (
                row is not None
                and facts is not None
                and under(facts, lease)
                and type(verdict) in LIFE[State(facts.state)]
                and not (key in staged and staged[key][1].facts is None)
            )
            kept.append(good)
            if row is not None and facts is not None and good:
                try:
                    change = settled(row, facts, lease, verdict, known.get(key), self._part_bytes)
                except Spoilt as error:
                    await self._reader.aside(known[key])
                    raise Conflict(key) from error
                if change is None:
                    raise Conflict(key)
                staged[key] = change.facts or facts, change
        return await self._commits.answered(
            settlements, kept, {key: change for key, (_, change) in staged.items()},
            key=_key_settled, again=self._settle,
        )  # fmt: skip

    async def _rows(self, leases: Sequence[Lease]) -> dict[Key, Row]:
        """What is known of these entries. Where it is not what was leased, it is asked for: it may
        be that the news is late."""
        keys = [lease.entry.message.key for lease in leases]
        self._refuse_spoilt(keys)
        doubtful = [
            key for key, lease in zip(keys, leases, strict=True)
            if not still(self._index.get(key), lease)
        ]  # fmt: skip
        if doubtful:
            await self._known(doubtful, apart=False)
        rows = {key: self._index.get(key) for key in keys}
        return {key: row for key, row in rows.items() if row is not None}

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        async def attempt(some: Sequence[Lease]) -> list[bool]:
            keys = [_key_of(lease.entry) for lease in some]
            known = await self._known(keys, apart=False)
            kept: list[bool] = []
            changes: dict[Key, Change] = {}
            for key, lease in zip(keys, some, strict=True):
                found = known.get(key)
                good = (
                    found is not None
                    and under(found.facts, lease)
                    and found.facts.leased_until != 0
                )
                kept.append(good)
                if found is not None and good:
                    facts = found.facts
                    renewed = replace(
                        facts, place=facts.place or found.revision, leased_until=until
                    )
                    changes[key] = restating(renewed, found)
            return await self._commits.answered(
                some, kept, changes, key=lambda lease: _key_of(lease.entry), again=attempt
            )

        return await self._commits.until_done(lambda: attempt(leases))

    # -- sweep -----------------------------------------------------------------------------------

    async def sweep(self, *, now: Instant, limit: int) -> int:
        async def attempt() -> int:
            rows = self._index.sweepable(now=now, limit=limit)
            answers = [facts.key for _, facts in rows if facts.keep_until > now]
            known = await self._reader.known(answers, apart=False) if answers else {}
            changes: list[Change] = []
            for revision, facts in rows:
                if facts.keep_until <= now:
                    changes.append(Change(facts.key, revision, None, gone=parts_of(facts)))
                    continue
                found = known.get(facts.key)
                if found is None or found.revision != revision:
                    raise Conflict(facts.key)
                try:
                    changes.append(without_answer(found))
                except Spoilt as error:
                    await self._reader.aside(found)
                    raise Conflict(facts.key) from error
            return await self._commits.commit(changes)

        async with self._leasing:
            return await self._commits.until_done(attempt)

    # -- looking ---------------------------------------------------------------------------------

    async def wait_arrival(self) -> None:
        await self._arrivals.wait()

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        return await self._reader.find(keys)

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        return await self._reader.browse(query, after=after, limit=limit, requests=requests)

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        return await self._reader.tally(edges)

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        return await self._reader.damaged(after=after, limit=limit)

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        async def attempt(some: Sequence[str]) -> list[bool]:
            changes = await self._reader.discarded(some)
            gone = [mark in changes and mark not in some[:at] for at, mark in enumerate(some)]
            return await self._commits.answered(some, gone, changes, key=str, again=attempt)

        return await self._commits.until_done(lambda: attempt(marks))

    async def aclose(self) -> None:
        """Finish what was begun, and let go."""
        await self._commits.aclose()
        await self._watch.aclose()
        await self._link.wire.aclose()


def _key_of(entry: Entry) -> Key:
    return entry.message.key


def _key_settled(settlement: tuple[Lease, Verdict]) -> Key:
    return settlement[0].entry.message.key
