"""Walk: all entries of a spool in order of acceptance, while others take from it and add to it.

    async for page in pages(spool, query, …)        lists of entries, claims among them
    await found_of(spool, keys)                     `find`, passing over what is corrupt

Behind an unknown `after` there is nothing (contract 10), and a claim may be forgotten between two
pages: whoever goes on from it would see the end where there is none. So the walk goes on from an
entry that stays: one that waits, for it is kept when it settles, or one that is kept for a while
yet. What lay behind it comes again; nothing is left out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

from ..clock import Clock
from ..core.lifecycle import State
from ..core.message import NEVER, Instant, Key
from ..errors import Corrupt
from ..spools.protocol import Entry, Query, Spool

PAGE: Final = 64
"""Messages with their bodies held in memory at once."""
FIRST: Final = 8
"""In the first page: nobody knows yet how large they are."""
PAGE_BYTES: Final = 16 * 1024 * 1024
PAGE_MAX: Final = 1 << 16
STAYS_MS: Final = 60_000


async def found_of(spool: Spool, keys: Sequence[Key]) -> Sequence[Entry | None]:
    """None also where the record is set aside: that one stays where it is, the rest goes on."""
    try:
        return await spool.find(keys)
    except Corrupt:
        if len(keys) == 1:
            return [None]
        return [entry for key in keys for entry in await found_of(spool, [key])]


async def pages(
    spool: Spool, query: Query, *, clock: Clock, after: Key | None = None, size: int = PAGE,
    requests: bool = False,
) -> AsyncGenerator[Sequence[Entry], None]:  # fmt: skip
    """Pages of entries, none twice. With their requests: as many at a time as are small."""
    if requests:
        size = min(size, FIRST)
    wanted = size
    shown: set[Key] = set()
    while page := await spool.browse(query, after=after, limit=wanted, requests=requests):
        if fresh := [entry for entry in page if entry.message.key not in shown]:
            yield fresh
        if requests:
            size = _as_many_as_fit(page)
        if len(page) < wanted:
            return
        anchor = _anchor(page, clock.now(), least=wanted < PAGE_MAX)
        if anchor is None:
            wanted = min(PAGE_MAX, 2 * wanted)
            shown = {entry.message.key for entry in page}
        else:
            after, wanted = page[anchor].message.key, size
            shown = {entry.message.key for entry in page[anchor + 1 :]}


def _as_many_as_fit(page: Sequence[Entry]) -> int:
    requests = [entry.message.request for entry in page]
    largest = max(len(request.body) if request is not None else 0 for request in requests)
    return max(1, min(PAGE, PAGE_BYTES // max(1, largest)))


def _anchor(page: Sequence[Entry], now: Instant, *, least: bool) -> int | None:
    """From which entry to go on. Not `least`: from whichever stays the longest."""
    lives = [_stays_until(entry) - now for entry in page]
    for at in reversed(range(len(page))):
        if lives[at] > STAYS_MS:
            return at
    return None if least else lives.index(max(lives))


def _stays_until(entry: Entry) -> int:
    if entry.state is State.WAITING:
        return NEVER
    return 0 if entry.state is State.CLAIMED else entry.keep_until
