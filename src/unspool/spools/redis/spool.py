"""RedisSpool: the spool in Redis or Valkey, shared by as many relays on as many hosts as like.

    spool = await RedisSpool.open("redis://127.0.0.1:6379/0")           rediss:, valkey: likewise
    spool = await RedisSpool.open("redis://127.0.0.1/0?name=orders")    another spool beside it
    …                                                                   the verbs of `protocol`
    await spool.aclose()

Every verb is one call of `redis.lua`, where the whole contract is kept; this packs what goes in and
reads what comes out. What survives is measured: see `server`. Deadlines, connections and the
engine's errors are `link`'s.

Other relays' accepts are heard on a channel, and asked after once a second behind it.

Every lease is synced, also of what may be repeated: the server may lose its power while the holder
lives, and then two would hold one token.

Hard about Redis: it holds everything in memory, some 1.3 KB for each waiting message beside its
request; it runs one script at a time, so a batch of thousands makes all others wait; replicas are
asynchronous, so a failover may lose what was accepted. A record whose crc is wrong is set aside:
`find` and `accept` of its key raise `Corrupt` (fail closed: it may have been applied). But of an
answer that cannot be read an `accept` that finds it says Duplicate, without it: the batch is done.

Does not: run in a cluster, or gather callers into batches (`committer` does). Lanes by the ten
thousand make `tally` slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Self

from msgspec.structs import replace

from ...core.lifecycle import State, Verdict
from ...core.message import Destination, Instant, Key
from ...core.record import Spoilt
from ...errors import Corrupt
from ..arrivals import Arrivals
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
from .bell import Bell
from .link import Link, Patience
from .rows import (
    Row,
    Rows,
    accept_item,
    aside_item,
    double,
    entry_of,
    is_answered,
    is_settled,
    lease_item,
    message_of,
    page,
    query_args,
    renew_item,
    settle_item,
    text,
    with_answer,
    word,
)
from .url import read_url

POLL_S: Final = 1.0
SWEEP_KEYS: Final = 500
"""Forgotten in one call: others wait behind it. So with what is looked at in one call."""
LOOKS: Final = 1_000
LANES: Final = 500


class RedisSpool:
    def __init__(self, link: Link) -> None:
        self._link: Final = link
        self._arrivals: Final = Arrivals()
        self._bell: Final = Bell(link, self._arrivals)
        self._rings = link.rings
        assert link.measured is not None, "it was measured when it was opened"
        self.promises: Final = Promises(
            survives=link.measured.survives,
            shared=True,
            remembers=True,
            fences=True,
            detail=link.measured.detail,
        )

    @classmethod
    async def open(cls, url: str, *, create: bool = True, patience: Patience | None = None) -> Self:
        """`create`: make it where it is not. Raises `Misconfigured`, `PromiseBroken`, `Newer`,
        `Unavailable`, `NoSpool`."""
        link = Link(read_url(url), patience)
        await link.open(create=create)
        return cls(link)

    @property
    def corrupt(self) -> int:
        """Records that failed their crc and were set aside, as of when it was last asked: once a
        second, while somebody waits for arrivals."""
        return self._link.corrupt

    # -- writing ---------------------------------------------------------------------------------

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        if not entries:
            return []
        items = [accept_item(entry) for entry in entries]
        found = self._whole(await self._link.call("accept", items=items, durable=True))
        answers: list[Acceptance] = []
        spoilt: list[Row] = []
        for entry in entries:
            kind = found.mark()
            if kind == b"N":
                attempt = found.integer()
                changed = attempt != entry.attempt
                answers.append(New(replace(entry, attempt=attempt) if changed else entry))
                continue
            row = found.row()
            known = await self._known(row, spoilt) or entry_of(row)
            answers.append(Duplicate(known) if kind == b"D" else Mismatch(known))
        await self._set_aside(spoilt)
        if any(isinstance(a, New) and a.entry.state is State.WAITING for a in answers):
            self._arrivals.ring()
        return answers

    async def _known(self, row: Row, spoilt: list[Row]) -> Entry | None:
        """With its answer, or set down as spoilt. An answer that was left out, where the whole
        would have been too large, is asked for with all that its entry is by now; None: gone."""
        if is_answered(row) and not row.answer:
            item = text(row.key)
            found = Rows(await self._link.call("find", items=[item], durable=_shows))
            if found.mark() != b"A":
                spoilt.append(row)
                return entry_of(row)
            if found.mark() != b"E":
                return None
            row = found.row()
        try:
            return with_answer(entry_of(row), row)
        except Spoilt:
            spoilt.append(row)
            return entry_of(row)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        if not wants:
            return []
        items = [lease_item(destination, limit) for destination, limit in wants.items()]
        args = double.pack(now) + double.pack(until)
        found = Rows(await self._link.call("lease", args=args, items=items, durable=True))
        leases: list[Lease] = []
        spoilt: list[Row] = []
        while found.left:
            _lease(found.row(), until, leases, spoilt)
        await self._set_aside(spoilt)
        return leases

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        if not keys:
            return []
        args = double.pack(now) + double.pack(until)
        items = [text(key) for key in keys]
        found = Rows(await self._link.call("seize", args=args, items=items, durable=True))
        answers: list[Lease | None] = []
        spoilt: list[Row] = []
        for _ in keys:
            leases: list[Lease] = []
            if found.mark() == b"L":
                row = found.row()
                if not row.request:
                    request = await self._link.call("part", items=[text(row.key)])
                    row = replace(row, request=request)
                _lease(row, until, leases, spoilt)
            answers.append(leases[0] if leases else None)
        await self._set_aside(spoilt)
        return answers

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        args = double.pack(now) + double.pack(until) + limit.to_bytes(4, "big")
        found = Rows(await self._link.call("expire", args=args, durable=True))
        leases: list[Lease] = []
        spoilt: list[Row] = []
        while found.left:
            _lease(found.row(), until, leases, spoilt, whole=False)
        await self._set_aside(spoilt)
        return leases

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        if not settlements:
            return []
        items = [settle_item(lease, verdict) for lease, verdict in settlements]
        kept = _bits(await self._link.call("settle", items=items, durable=True))
        if any(kept):
            self._arrivals.ring()
        return kept

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        if not leases:
            return []
        items = [renew_item(lease) for lease in leases]
        return _bits(
            await self._link.call("renew", args=double.pack(until), items=items, durable=True)
        )

    async def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        while went < limit:
            count = min(SWEEP_KEYS, limit - went)
            args = double.pack(now) + count.to_bytes(4, "big")
            gone = int(await self._link.call("sweep", args=args))
            went += gone
            if gone < count:
                break
        return went

    # -- looking ---------------------------------------------------------------------------------

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        found = Rows(await self._link.call("survey", args=page(limit, after)))
        lanes: list[LaneDue] = []
        while found.left:
            due_at = Instant(found.number())
            lanes.append(LaneDue(Destination(word(found.string())), due_at))
        return lanes

    async def wait_arrival(self) -> None:
        self._bell.listen()
        while not await self._arrived(POLL_S):
            found = Rows(await self._link.call("rings"))
            rings, self._link.corrupt = found.number(), found.integer()
            if rings != self._rings:
                self._rings = rings
                return

    async def _arrived(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._arrivals.wait()
        except TimeoutError:
            return False
        return True

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        if not keys:
            return []
        items = [text(key) for key in keys]
        found = self._whole(await self._link.call("find", items=items, durable=_shows))
        entries: list[Entry | None] = []
        spoilt: list[Row] = []
        for _ in keys:
            known = found.mark() == b"E"
            entries.append(await self._known(found.row(), spoilt) if known else None)
        if spoilt:
            await self._set_aside(spoilt)
            raise self._corrupt(len(spoilt))
        return entries

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        place = 0
        if after is not None:
            place = Rows(await self._link.call("place", items=[text(after)])).number()
            if not place:
                return []
        items = [] if query.key is None else [text(query.key)]
        entries: list[Entry] = []
        spoilt: list[Row] = []
        more = True
        while more and len(entries) < limit:
            args = query_args(
                query, after=place, looks=LOOKS, limit=limit - len(entries), requests=requests
            )
            found = Rows(await self._link.call("browse", args=args, items=items))
            place, more = found.number(), found.mark() == b"\1"
            while found.left:
                row = found.row()
                try:
                    entries.append(entry_of(row, whole=requests))
                except Spoilt:
                    spoilt.append(row)
        await self._set_aside(spoilt)
        return entries

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        tallies: list[Tally] = []
        items = [b"%d" % edge for edge in edges]
        while True:
            after = tallies[-1].destination if tallies else None
            found = Rows(await self._link.call("tally", args=page(LANES, after), items=items))
            count = 0
            while found.left:
                destination = Destination(word(found.string()))
                held, oldest_at = found.number(), Instant(found.number())
                counts = tuple(found.number() for _ in range(len(edges) + 1))
                tallies.append(Tally(destination, counts, held, oldest_at))
                count += 1
            if count < LANES:
                return tallies

    # -- what is spoilt --------------------------------------------------------------------------

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        found = Rows(await self._link.call("damaged", args=page(limit, after)))
        records: list[Damaged] = []
        while found.left:
            key, size, envelope = Key(word(found.string())), found.number(), found.string()
            where = f"{word(self._link.about[:-5])}e:{key}"
            record = Damaged(mark=key, where=where, size_bytes=size, key=key)
            if envelope:
                message = message_of(key, envelope)
                record = replace(
                    record,
                    destination=message.destination,
                    name=message.name,
                    accepted_at=message.accepted_at,
                )
            records.append(record)
        return records

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        if not marks:
            return []
        items = [text(mark) for mark in marks]
        gone = _bits(await self._link.call("discard", items=items, durable=True))
        self._link.corrupt = max(0, self._link.corrupt - sum(gone))
        return gone

    async def _set_aside(self, rows: Sequence[Row]) -> None:
        """Their requests or answers could not be read here (12)."""
        if rows:
            items = [aside_item(row) for row in rows]
            went = await self._link.call("aside", items=items, durable=True)
            self._link.corrupt += int(went)

    def _whole(self, answer: bytes) -> Rows:
        """Raises `Corrupt` where nothing was done, because something of it was spoilt."""
        found = Rows(answer)
        if found.mark() == b"C":
            count = found.integer()
            self._link.corrupt += found.integer()
            raise self._corrupt(count)
        return found

    def _corrupt(self, count: int) -> Corrupt:
        return Corrupt(
            f"{count} record(s) in the spool at {self._link.place.shown} failed their crc. They"
            " were set aside with all their bytes; nothing is run under their keys, and the rest"
            " goes on. See them: unspool queue --corrupt"
        )

    async def aclose(self) -> None:
        await self._bell.close()
        await self._link.close()


def _shows(answer: bytes) -> bool:
    """Nobody is shown an end that a power cut could take back: another relay may just have written
    it, and wait for the sync (8)."""
    found = Rows(answer)
    if found.mark() != b"A":
        return False
    while found.left:
        if found.mark() == b"E" and is_settled(found.row()):
            return True
    return False


def _lease(
    row: Row, until: Instant, leases: list[Lease], spoilt: list[Row], *, whole: bool = True
) -> None:
    try:
        leases.append(Lease(entry_of(row, whole=whole), until, abandoned=bool(row.flag)))
    except Spoilt:
        spoilt.append(row)


def _bits(answer: bytes) -> list[bool]:
    return [bit == 0x31 for bit in answer]
