"""Export: a spool as JSON lines, in order of acceptance.

    counts = await export(spool, sink, clock=…)             all of it
    counts = await export(spool, sink, after=key, …)        what comes behind a key, without a head
    begun = look(file)                                      how far a partly written file goes

It is a copy: nothing is leased and nothing changes, and what is delivered meanwhile stands in it as
it was found. Claims are left out, for nothing was promised of them; their senders still wait.

Memory: a page of messages, whatever there is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import BinaryIO, Final

import msgspec
from msgspec.structs import replace

from ..clock import Clock
from ..core.lifecycle import State
from ..core.message import Key
from ..spools.protocol import Entry, Query, Spool
from ..spools.secret import SECRETS
from .lines import LINE_MAX_BYTES, Brought, Head, Secret, Tail, Unfit, line, read
from .secret import mark_of, secret_of
from .walk import found_of, pages

_KEPT: Final = frozenset({State.DELIVERED, State.BOUNCED})


class Begun(msgspec.Struct):
    """How far an export got."""

    size: int = 0
    """Bytes of whole lines."""
    messages: int = 0
    after: Key | None = None
    """The last message that is whole."""
    mark: str = ""
    whole: bool = False
    """It has its last line."""


def look(file: BinaryIO) -> Begun:
    """Raises `Unfit` where this is no export, or has a bad line that is not its last."""
    begun = Begun()
    number = 0
    while text := file.readline(LINE_MAX_BYTES + 1):
        number += 1
        if not text.endswith(b"\n") and len(text) <= LINE_MAX_BYTES:
            break  # cut short: it is written again
        try:
            found = read(text)
        except Unfit as error:
            raise Unfit(f"line {number}: {error}") from None
        if (number == 1) != isinstance(found, Head):
            raise Unfit(f"line {number}: an export has its head in line 1, and nowhere else")
        if isinstance(found, Head):
            begun.mark = found.secret_mark
        elif isinstance(found, Brought):
            begun.after = found.entry.message.key
            begun.messages += 1
        begun.whole = isinstance(found, Tail)
        begun.size += len(text)
    return begun


async def export(
    spool: Spool, write: Callable[[bytes], object], *, clock: Clock, after: Key | None = None,
    before: int = 0, headed: bool = True, secret: bool = True,
    went: Callable[[int], object] = lambda count: None,
) -> int:  # fmt: skip
    """How many messages the export has in all. `before`: so many are there already."""
    if headed:
        known = await secret_of(spool)
        write(line(Head(version=1, exported_at=clock.now(), secret_mark=mark_of(known))))
        if secret and known is not None:
            write(line(Secret(known)))
    count = before
    walk = pages(spool, Query(), clock=clock, after=after, requests=True)
    async with aclosing(walk) as found:
        async for page in found:
            kept = [one for one in page if one.state is not State.CLAIMED]
            whole = [one for one in await _whole(spool, kept) if one.message.key not in SECRETS]
            for entry in whole:
                write(line(entry))
            count += len(whole)
            went(sum(one.state is State.WAITING for one in whole))
    write(line(Tail(count)))
    return count


async def _whole(spool: Spool, entries: list[Entry]) -> list[Entry]:
    """With their answers, which only `find` gives. What has settled meanwhile has its end."""
    settled = [entry.message.key for entry in entries if entry.state in _KEPT]
    if not settled:
        return entries
    found = {
        key: one for key, one in zip(settled, await found_of(spool, settled), strict=True) if one
    }
    return [
        replace(one, answer=found[one.message.key].answer)
        if one.state in _KEPT and one.message.key in found
        else one
        for one in entries
    ]
