"""NatsSpool: the contract's verbs over a link and a watch. See `nats` for what it promises.

Who may do what is decided from the index; that it is still so when it is written, the server
sees to: each message is published under the revision that it was decided from, and a batch of which
one is not so any more is refused whole. Then what the batch touched is read again, and it is
decided anew, at most ROUNDS times.

A write goes on when its caller is cancelled (13), and is told to the index when it is
acknowledged, so that a relay sees its own writes at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ..core.lifecycle import LIFE, Deferred, State, Verdict
from ..core.message import Destination, Instant, Key
from ..core.record import Spoilt, Status
from ..errors import Corrupt, Unavailable
from .arrivals import Arrivals
from .keyed_rows import changed
from .memory import after_verdict
from .nats_index import Index, Row
from .nats_link import Conflict, Link
from .nats_read import Reader
from .nats_records import (
    Change,
    Facts,
    Known,
    line_of,
    lines_in,
    mails,
    restated,
    waits,
    written,
)
from .nats_watch import Watch
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
    Tally,
)

ROUNDS: Final = 20
PAUSE_S: Final = 0.002
CLOSE_S: Final = 5.0

T = TypeVar("T")


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
        self._writes: Final[set[asyncio.Task[Any]]] = set()
        self._closed = False

    @property
    def _index(self) -> Index:
        return self._watch.index

    @property
    def corrupt(self) -> int:
        """Records that failed their checksum and were set aside."""
        return len(self._index.spoilt)

    # -- writing ---------------------------------------------------------------------------------

    async def _commit(self, changes: Sequence[Change]) -> None:
        """Raises `Conflict`, having read again what it was about."""
        if not changes:
            return
        published = mails(self._link.names, changes)
        try:
            sequences = await self._link.commit(published)
        except Conflict:
            await self._reread(changes)
            raise
        lines = lines_in(changes)
        mains = sequences[len(sequences) - len(lines) - len(changes) :]
        for change, revision in zip(changes, mains, strict=False):
            self._watch.told(change, revision)
        for (line, expected), revision in zip(lines.items(), mains[len(changes) :], strict=True):
            self._watch.line_told(line, revision, expected)

    async def _reread(self, changes: Sequence[Change]) -> None:
        await self._reader.known([change.key for change in changes], apart=False)
        lines = [change.line for change in changes if change.line_expected is not None]
        if lines:
            await self._reader.learn_lines(lines)

    async def _again(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Until nobody has come between. Goes on when its caller is cancelled."""
        if self._closed:
            raise Unavailable(
                f"The spool {self._link.address.shown} is closed. Nothing of this was done; what"
                " was accepted is kept there. Start again: unspool serve"
            )
        task = asyncio.get_running_loop().create_task(self._rounds(attempt))
        self._writes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _rounds(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        for number in range(ROUNDS):
            try:
                return await attempt()
            except Conflict:
                await asyncio.sleep(number * PAUSE_S)
        raise self._link.gone("others write the same messages all the time")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

    # -- accept ----------------------------------------------------------------------------------

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        answers = await self._again(lambda: self._accept(entries))
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
            answer = _answer(old, entry)
            answers.append(answer)
            if not isinstance(answer, New):
                continue
            staged[key] = answer.entry
            changes.pop(key, None)  # taken over, it stands behind all that came before
            line = line_of(entry.message.destination, entry.message.order_key)
            changes[key] = written(
                answer.entry, place=0, part_bytes=self._part_bytes,
                expected=self._reader.revision(key, before),
                parts_before=before.facts.parts if before else 0,
                line=line if entry.state is State.WAITING else "",
            )  # fmt: skip
        if changes:
            size = sum(len(c.body) + sum(map(len, c.parts)) for c in changes.values())
            await self._room(size, len(changes))
            await self._commit([*changes.values()])
        return answers

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
            self._watch.spoilt(known.facts.key, known.revision)
            raise self._corrupt(1) from error

    def _refuse_spoilt(self, keys: Iterable[Key]) -> None:
        """Fail closed: it may have been applied (12)."""
        spoilt = self._index.spoilt
        if spoilt and (count := sum(key in spoilt for key in keys)):
            raise self._corrupt(count)

    def _corrupt(self, count: int) -> Corrupt:
        return self._reader.corrupt(count)

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
            for line in {line_of(facts.destination, facts.order_key) for _, facts in rows} - {""}:
                await self._reader.sure_of_line(line)
            if any(facts.order_key for _, facts in rows):
                rows = due()
            return await self._lease(rows, until, ordered=True)

        async with self._leasing:
            return await self._again(attempt)

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
                self._watch.spoilt(facts.key, revision)
                raise Conflict(facts.key) from error
            harmless = facts.leased_until == 0 or facts.seized
            leased = replace(
                facts, place=facts.place or revision, attempt=facts.attempt + 1,
                leased_until=until, seized=seize and harmless,
            )  # fmt: skip
            changes.append(self._restated(leased, found, ordered=ordered))
            entry = changed(entry, attempt=leased.attempt, leased_until=until)
            leases.append(Lease(entry, until, not harmless))
        await self._commit(changes)
        return leases

    def _restated(
        self, facts: Facts, known: Known, *, body: bytes | None = None, ordered: bool = False
    ) -> Change:
        """Other facts, and the same payload, unless another is given."""
        line = self._index.line(facts) if ordered and facts.order_key else None
        return Change(
            facts.key, known.revision, facts, known.body if body is None else body, (), 0,
            _line_with(known.facts, facts), None if line is None else line.seen,
        )  # fmt: skip

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
            taken = dict(zip(rows, leases, strict=True))
            return [taken.pop(key, None) for key in keys]

        async with self._leasing:
            return await self._again(attempt)

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        async def attempt() -> list[Lease]:
            rows = self._index.expired(now=now, limit=limit)
            return await self._lease(rows, until, seize=True, request=False)

        async with self._leasing:
            return await self._again(attempt)

    # -- settle and renew ------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept = await self._again(lambda: self._settle(settlements))
        if any(kept):
            self._arrivals.ring()
        return kept

    async def _settle(self, settlements: Sequence[tuple[Lease, Verdict]]) -> list[bool]:
        rows = await self._rows([lease for lease, _ in settlements])
        known = await self._known(
            [
                lease.entry.message.key
                for lease, verdict in settlements
                if isinstance(verdict, Deferred)
                and _still(rows.get(lease.entry.message.key), lease)
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
                and _under(facts, lease)
                and type(verdict) in LIFE[State(facts.state)]
                and not (key in staged and staged[key][1].facts is None)
            )
            kept.append(good)
            if row is not None and facts is not None and good:
                change = self._settled(row, facts, lease, verdict, known.get(key))
                staged[key] = change.facts or facts, change
        await self._commit([change for _, change in staged.values()])
        return kept

    def _settled(
        self, row: Row, facts: Facts, lease: Lease, verdict: Verdict, known: Known | None
    ) -> Change:
        """What the verdict makes of it. `facts`: after the verdicts before, of this batch."""
        revision, before = row
        place = before.place or revision
        # The envelope is what it was; what can have changed since is in the facts.
        entry = replace(
            lease.entry, state=State(facts.state), due_at=facts.due_at, attempt=facts.attempt,
            leased_until=facts.leased_until, keep_until=facts.keep_until,
            answer_until=facts.answer_until, answer=None,
        )  # fmt: skip
        after = after_verdict(entry, verdict)
        if after is None:
            return Change(
                before.key, revision, None, parts_before=before.parts, line=_line_with(before, None)
            )
        if after.state is State.WAITING:
            if known is None or known.revision != revision:
                raise Conflict(before.key)
            status = Status(after.trail, after.reason, after.stored, after.settled_at)
            waiting = replace(
                before, place=place, state=int(State.WAITING), due_at=after.due_at,
                leased_until=Instant(0), keep_until=Instant(0), seized=False,
            )  # fmt: skip
            try:
                body = restated(known, status)
            except Spoilt as error:
                self._watch.spoilt(before.key, revision)
                raise Conflict(before.key) from error
            return self._restated(waiting, known, body=body)
        return written(
            after, place=place, expected=revision, part_bytes=self._part_bytes,
            parts_before=before.parts, line=_line_with(before, None),
        )  # fmt: skip

    async def _rows(self, leases: Sequence[Lease]) -> dict[Key, Row]:
        """What is known of these entries. Where it is not what was leased, it is asked for: it may
        be that the news is late."""
        keys = [lease.entry.message.key for lease in leases]
        self._refuse_spoilt(keys)
        doubtful = [
            key for key, lease in zip(keys, leases, strict=True)
            if not _still(self._index.get(key), lease)
        ]  # fmt: skip
        if doubtful:
            await self._known(doubtful, apart=False)
        rows = {key: self._index.get(key) for key in keys}
        return {key: row for key, row in rows.items() if row is not None}

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        async def attempt() -> list[bool]:
            keys = [lease.entry.message.key for lease in leases]
            known = await self._known(keys, apart=False)
            kept: list[bool] = []
            changes: dict[Key, Change] = {}
            for key, lease in zip(keys, leases, strict=True):
                found = known.get(key)
                good = (
                    found is not None
                    and _under(found.facts, lease)
                    and found.facts.leased_until != 0
                )
                kept.append(good)
                if found is not None and good:
                    facts = found.facts
                    renewed = replace(
                        facts, place=facts.place or found.revision, leased_until=until
                    )
                    changes[key] = self._restated(renewed, found)
            await self._commit([*changes.values()])
            return kept

        return await self._again(attempt)

    # -- sweep -----------------------------------------------------------------------------------

    async def sweep(self, *, now: Instant, limit: int) -> int:
        async def attempt() -> int:
            rows = self._index.sweepable(now=now, limit=limit)
            answers = [facts.key for _, facts in rows if facts.keep_until > now]
            known = await self._reader.known(answers, apart=False) if answers else {}
            changes: list[Change] = []
            for revision, facts in rows:
                if facts.keep_until <= now:
                    changes.append(Change(facts.key, revision, None, parts_before=facts.parts))
                    continue
                found = known.get(facts.key)
                if found is None or found.revision != revision:
                    raise Conflict(facts.key)
                bare = replace(facts, place=facts.place or revision, answered=False, parts=0)
                try:
                    body = restated(found, None, large=b"")
                except Spoilt as error:
                    self._watch.spoilt(facts.key, revision)
                    raise Conflict(facts.key) from error
                changes.append(
                    Change(facts.key, revision, bare, body, (), parts_before=facts.parts)
                )
            await self._commit(changes)
            return len(changes)

        async with self._leasing:
            return await self._again(attempt)

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

    async def aclose(self) -> None:
        """Finish what was begun, and let go."""
        if self._closed:
            return
        self._closed = True
        if self._writes:
            await asyncio.wait(self._writes, timeout=CLOSE_S)
        for task in [*self._writes]:
            task.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._watch.aclose()
        await self._link.aclose()


def _answer(old: Entry | None, entry: Entry) -> Acceptance:
    """What becomes of an entry whose key has this one by now (2, 3)."""
    if old is None:
        return New(entry)
    if old.message.fingerprint != entry.message.fingerprint:
        return Mismatch(_bare(old))
    if old.state is not State.CLAIMED or old.leased_until > entry.message.accepted_at:
        return Duplicate(_bare(old))
    return New(replace(entry, attempt=old.attempt + 1))


def _bare(entry: Entry) -> Entry:
    if entry.message.request is None:
        return entry
    return replace(entry, message=replace(entry.message, request=None))


def _under(facts: Facts, lease: Lease) -> bool:
    """Is this still the entry that was leased, and the lease its latest? (6)"""
    return facts.attempt == lease.entry.attempt and facts.nonce == lease.entry.message.nonce


def _still(row: Row | None, lease: Lease) -> bool:
    return row is not None and _under(row[1], lease)


def _line_with(before: Facts, after: Facts | None) -> str:
    """The line whose register is written: of what waits in it, before or afterwards."""
    if waits(before) or (after is not None and waits(after)):
        return line_of(before.destination, before.order_key)
    return ""
