"""A visit at a desk: the spool that a relay of this machine holds, for an operator's command.

    spool = await DeskSpool.open(folder)       raises `NobodyServes` where no relay answers there
    …                                          the verbs of `protocol`, done by the relay
    await spool.aclose()

It is shared: what is leased here is leased there. Whoever goes away without a verdict, by whatever
death, is forgotten when his leases run out.

Larger batches go over in several calls: each is atomic, all together are not. A verb whose answer
does not come (ANSWER_S), or whose relay ends, raises `Unavailable`: it may have happened, and doing
it again is safe (12). `wait_arrival` looks every LOOK_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from msgspec.structs import replace

from ...core.lifecycle import Delivered, Verdict
from ...core.message import Destination, Instant, Key
from ...errors import Full, Refused, TooMuch, Unavailable
from ..protocol import Acceptance, Damaged, Entry, LaneDue, Lease, Promises, Query, Tally
from . import wire
from .serving import NAME, PAGE_MAX, WHOLE_MAX, address, caller, is_ours

CONNECT_S: Final = 5.0
ANSWER_S: Final = 120.0
LOOK_S: Final = 0.25
LINES_MAX: Final = 3
"""Connections at a time; who needs one more waits for one."""
CALL_BYTES: Final = 4 * 1024 * 1024
"""Bodies that go over in one call, if they are more than one."""

T = TypeVar("T")
_Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NobodyServes(Refused):
    """No relay answers at the spool's folder."""


class DeskSpool:
    def __init__(self, folder: Path, promises: Promises, first: _Line) -> None:
        self.promises: Final = replace(
            promises, shared=True, detail=f"{promises.detail}; through its relay"
        )
        self._folder: Final = folder
        self._idle: list[_Line] = [first]
        self._lines = asyncio.Semaphore(LINES_MAX)
        self._whole = WHOLE_MAX
        """Messages with their bodies in one call: fewer, where they turned out to be too large."""
        self._closed = False

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Raises `NobodyServes`; `Newer`, `Unavailable` where the relay has something to say."""
        line, promises = await _connected(folder)
        return cls(folder, promises, line)

    async def aclose(self) -> None:
        self._closed = True
        while self._idle:
            await _hung_up(self._idle.pop())

    # -- calling ---------------------------------------------------------------------------------

    async def _call(self, call: wire.Call) -> Any:
        payload = wire.encode_call(call)
        if len(payload) > wire.FRAME_MAX_BYTES:
            raise Full(
                f"A message of {len(payload)} bytes is larger than the relay that has the spool"
                f" {self._folder} takes from a command ({wire.FRAME_MAX_BYTES}). Nothing of this"
                " was done. Stop the relay, do it again, and start it: unspool serve"
            )
        if self._closed:
            raise Unavailable("The spool is closed. Nothing of this was done.")
        async with self._lines:
            line = await self._line()
            try:
                async with asyncio.timeout(ANSWER_S):
                    data = await _said(line, payload)
            except (OSError, EOFError, TimeoutError) as error:
                await _hung_up(line)
                raise self._gone() from error
            except BaseException:  # cancelled: what is still to come on this line is nobody's
                line[1].transport.abort()
                raise
            self._idle.append(line)
        try:
            return wire.result(call, data)
        except ValueError as error:
            raise self._gone() from error

    async def _pages(self, call: Callable[[Any, int], wire.Call], limit: int) -> list[Any]:
        """Page after page, each behind the last one's last. `call`: for so many behind that one;
        None: from the beginning."""
        found: list[Any] = []
        while len(found) < limit:
            asked = min(PAGE_MAX, limit - len(found))
            page = await self._call(call(found[-1] if found else None, asked))
            found += page
            if len(page) < asked:
                break
        return found

    async def _line(self) -> _Line:
        while self._idle:
            line = self._idle.pop()
            if not line[0].at_eof() and not line[1].is_closing():
                return line
            await _hung_up(line)
        return (await _connected(self._folder))[0]

    def _fewer(self, asked: int) -> None:
        """Raises `TooMuch` where one alone is."""
        if asked <= 1:
            raise TooMuch(
                f"A message in the spool {self._folder} is larger than its relay passes on at once"
                f" ({wire.FRAME_MAX_BYTES} bytes). It is as it was. Stop the relay, do it again,"
                " and start it: unspool serve"
            )
        self._whole = max(1, asked // 4)

    def _gone(self) -> Unavailable:
        return Unavailable(
            f"The relay that has the spool {self._folder} did not answer. It may or may not have"
            " done this; doing it again is safe. See whether it runs:"
            f" fuser -v {shlex.quote(str(self._folder))}-lock"
        )

    # -- verbs -----------------------------------------------------------------------------------

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        answers: list[Acceptance] = []
        for batch in _batches(entries, _size):
            answers += await self._call(wire.Accept.of(batch))
        return answers

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        return await self._pages(
            lambda last, count: wire.Survey(last.destination if last else after, count), limit
        )

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases: list[Lease] = []
        for destination, count in wants.items():
            left = count
            while left:
                asked = min(left, self._whole)
                page = await self._call(wire.Take({destination: asked}, now, until))
                leases += page
                left = left - asked if len(page) == asked else 0
        return leases

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept: list[bool] = []
        for batch in _batches(settlements, _answer_size):
            kept += await self._call(wire.Settle.of(batch))
        return kept

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        kept: list[bool] = []
        for batch in _parts(leases, PAGE_MAX):
            kept += await self._call(wire.Renew.of(batch, until))
        return kept

    async def wait_arrival(self) -> None:
        await asyncio.sleep(LOOK_S)

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        entries: list[Entry | None] = []
        left = keys
        while left:
            batch = left[: self._whole]
            try:
                entries += await self._call(wire.Find(tuple(batch)))
            except TooMuch:
                self._fewer(len(batch))
                continue
            left = left[len(batch) :]
        return entries

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        entries: list[Entry] = []
        while len(entries) < limit:
            asked = min(self._whole if requests else PAGE_MAX, limit - len(entries))
            try:
                page = await self._call(wire.Browse(query, after, asked, requests))
            except TooMuch:
                self._fewer(asked)
                continue
            entries += page
            if len(page) < asked:
                break
            after = page[-1].message.key
        return entries

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        rows: Sequence[Tally] = await self._call(wire.Count(tuple(edges)))
        return list(rows)

    async def seize(
        self, keys: Sequence[Key], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease | None]:
        leases: list[Lease | None] = []
        left = keys
        while left:
            batch, left = left[: self._whole], left[self._whole :]
            try:
                leases += await self._call(wire.Seize(tuple(batch), now, until))
            except TooMuch:  # they are leased, and nobody knows to whom: as good as another's
                self._fewer(len(batch))
                leases += [None] * len(batch)
        return leases

    async def expire(self, *, now: Instant, until: Instant, limit: int) -> Sequence[Lease]:
        return await self._pages(lambda _last, count: wire.Expire(now, until, count), limit)

    async def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        while went < limit:
            asked = min(PAGE_MAX, limit - went)
            here: int = await self._call(wire.Sweep(now, asked))
            went += here
            if here < asked:
                break
        return went

    async def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        return await self._pages(
            lambda last, count: wire.ListDamaged(last.mark if last else after, count), limit
        )

    async def discard(self, marks: Sequence[str], /) -> Sequence[bool]:
        gone: list[bool] = []
        for batch in _parts(marks, PAGE_MAX):
            gone += await self._call(wire.Discard(tuple(batch)))
        return gone


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _batches(items: Sequence[T], size_of: Callable[[T], int]) -> list[list[T]]:
    """Items as they go over: together as long as their bodies are small."""
    batches: list[list[T]] = [[]]
    size = 0
    for item in items:
        size += size_of(item)
        if batches[-1] and (size > CALL_BYTES or len(batches[-1]) == PAGE_MAX):
            batches.append([])
            size = size_of(item)
        batches[-1].append(item)
    return [batch for batch in batches if batch]


def _answer_size(settlement: tuple[Lease, Verdict]) -> int:
    verdict = settlement[1]
    return len(verdict.answer.body) if isinstance(verdict, Delivered) else 0


def _size(entry: Entry) -> int:
    request, answer = entry.message.request, entry.answer
    return (len(request.body) if request else 0) + (len(answer.body) if answer else 0)


async def _connected(folder: Path) -> tuple[_Line, Promises]:
    line: _Line | None = None
    try:
        async with asyncio.timeout(CONNECT_S):
            with address(folder) as name:
                line = await asyncio.open_unix_connection(name)
            if not is_ours(_theirs(line, folder)):
                raise PermissionError("the desk is another user's")
            data = await _heard(line)
            return line, wire.greeted(data, where=str(folder))
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        if line is not None:
            await _hung_up(line)
        raise NobodyServes(
            f"No relay answers at {folder / NAME} ({type(error).__name__}: {error}). Nothing was"
            " done. See who has the spool:"
            f" fuser -v {shlex.quote(str(folder))}-lock"
        ) from error
    except BaseException:
        if line is not None:
            await _hung_up(line)
        raise


def _theirs(line: _Line, folder: Path) -> int | None:
    """Whose relay is it? The folder's owner's, root's or ours: to others nothing is told."""
    user = caller(line[1].get_extra_info("socket"))
    return None if user == folder.stat().st_uid else user


async def _said(line: _Line, payload: bytes) -> bytes:
    line[1].write(wire.frame(payload))
    await line[1].drain()
    return await _heard(line)


async def _heard(line: _Line) -> bytes:
    length = int.from_bytes(await line[0].readexactly(wire.LENGTH_BYTES), "big")
    if length > wire.FRAME_MAX_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return await line[0].readexactly(length)


async def _hung_up(line: _Line) -> None:
    line[1].transport.abort()
    with contextlib.suppress(OSError):
        await line[1].wait_closed()
