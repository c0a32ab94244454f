"""Import: an export's lines into a spool. Doing it twice changes nothing.

    check_head(first_line)                       before a spool is made for the rest
    sums = await bring(spool, lines, …)

Each message is accepted under its own key, with its attempts, its trail and its end: what is known
there already stays as it is. A line that cannot be read stops the import, by its number; everything
before it is in the spool, and the same command goes on from there, for what is known is passed
over. With `skip_bad` it is counted and passed over too.

What the exported spool knew as moved elsewhere is passed over: it goes on there, and the note would
keep it from being brought from there.

A message that somebody was trying when it was exported, and that may not be repeated, comes in as
bounced: unknown. It may have been applied, and the attempt's end is not in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from ..clock import Clock
from ..core.lifecycle import Reason, State
from ..core.message import Attempt, Instant, Sent
from ..errors import Unacceptable
from ..spools.protocol import Acceptance, Entry, Mismatch, New, Spool
from ..spools.secret import SECRETS
from .lines import Brought, Head, Secret, Tail, Unfit, read
from .secret import settle_in

BATCH: Final = 128
BATCH_BYTES: Final = 8 * 1024 * 1024


class BadLine(Unacceptable):
    """A line of an export cannot be read."""


class Sums(msgspec.Struct):
    new: int = 0
    known: int = 0
    """Here already, and left as they are."""
    ahead: int = 0
    """Of these: settled in the file, and still waiting here."""
    running: int = 0
    """Being tried here just now for a sender who waits: not taken."""
    other: int = 0
    """Their keys are another request's here."""
    elsewhere: int = 0
    """Had been moved to another spool: it is there that they go on, and that they come from."""
    bad: int = 0
    """Lines that were passed over."""
    whole: bool = False
    """The file had its last line."""
    word: str = ""
    """On the secret, for people."""


def check_head(text: bytes) -> None:
    """Of line 1, before a spool is made for it. Raises `BadLine`."""
    try:
        if not isinstance(read(text), Head):
            raise Unfit("an export has its head in line 1, and nowhere else")
    except Unfit as error:
        raise _stopped(1, error, Sums()) from None


class _Bringing:
    def __init__(self, spool: Spool, *, clock: Clock, key_ms: int) -> None:
        self.sums = Sums()
        self.batch: list[Entry] = []
        self.size = 0
        self._spool = spool
        self._clock = clock
        self._key_ms = key_ms

    def take(self, brought: Brought) -> None:
        entry = brought.entry
        if entry.reason == Reason.MOVED:
            self.sums.elsewhere += 1
            return
        if brought.leased and not entry.message.repeat and entry.state is State.WAITING:
            entry = _unknown(entry, now=self._clock.now(), key_ms=self._key_ms)
        self.batch.append(entry)
        request, answer = entry.message.request, entry.answer
        self.size += (len(request.body) if request else 0) + (len(answer.body) if answer else 0)

    @property
    def full(self) -> bool:
        return len(self.batch) >= BATCH or self.size >= BATCH_BYTES

    async def flush(self) -> int:
        batch, self.batch, self.size = self.batch, [], 0
        if batch:
            for entry, answer in zip(batch, await self._spool.accept(batch), strict=True):
                self._count(entry, answer)
        return len(batch)

    def _count(self, entry: Entry, answer: Acceptance) -> None:
        sums = self.sums
        match answer:
            case New():
                sums.new += 1
            case Mismatch():
                sums.other += 1
            case _ if answer.entry.state is State.CLAIMED:
                sums.running += 1
            case _:
                sums.known += 1
                waits = answer.entry.state is State.WAITING
                sums.ahead += waits and entry.state is not State.WAITING


def _unknown(entry: Entry, *, now: Instant, key_ms: int) -> Entry:
    cause = "exported while it was being tried"
    end = Attempt(entry.attempt, now, 0, cause, Sent.MAYBE.value)
    return replace(
        entry, state=State.BOUNCED, reason=Reason.UNKNOWN.value, trail=(*entry.trail, end),
        settled_at=now, keep_until=Instant(now + key_ms),
    )  # fmt: skip


async def bring(
    spool: Spool, lines: Iterable[bytes], *, clock: Clock, key_ms: int, where: str,
    other_secret: bool = False, skip_bad: Callable[[str], object] | None = None,
    went: Callable[[int], object] = lambda count: None,
) -> Sums:  # fmt: skip
    """Raises `BadLine`, `OtherSecret`, and what the spool does."""
    bringing = _Bringing(spool, clock=clock, key_ms=key_ms)
    sums = bringing.sums
    head: Head | None = None
    settled = False
    for number, text in enumerate(lines, 1):
        try:
            found = read(text)
            if (number == 1) != isinstance(found, Head):
                raise Unfit("an export has its head in line 1, and nowhere else")
        except Unfit as error:
            if skip_bad is None or head is None:
                went(await bringing.flush())
                raise _stopped(number, error, sums) from None
            skip_bad(f"line {number}: {error}")
            sums.bad += 1
            continue
        if isinstance(found, Head):
            head = found
            continue
        assert head is not None, "line 1 is the head"
        if not settled:
            settled = True
            secret = found.secret if isinstance(found, Secret) else None
            sums.word = await settle_in(
                spool, secret=secret, mark=head.secret_mark, now=clock.now(), other=other_secret,
                where=where,
            )  # fmt: skip
        sums.whole = isinstance(found, Tail)
        if isinstance(found, Brought) and found.entry.message.key not in SECRETS:
            bringing.take(found)
            if bringing.full:
                went(await bringing.flush())
    went(await bringing.flush())
    return sums


def _stopped(number: int, error: Unfit, sums: Sums) -> BadLine:
    if number == 1:
        return BadLine(
            f"Line 1 is no line of an export: {error}. Nothing was imported. Name a file that"
            " `unspool export` wrote."
        )
    return BadLine(
        f"Line {number} is no line of an export: {error}. It stopped there. The"
        f" {sums.new + sums.known} messages before it are in the spool; the others are in the file"
        " only. Mend the line and run the same command again, which passes over what is there; or"
        " leave it out: --skip-bad"
    )
