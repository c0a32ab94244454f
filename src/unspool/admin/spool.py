"""The spool as operators reach it: opened by the settings, never made, read in pages.

    @options                     --spool and --config, as `serve` has them
    using(flags, work)           open the spool, await work(Desk), close it
    reached(url)                 another spool beside it, for as long as a `with` lasts
    desk.pages(query)            entries in order of acceptance, never all at once
    desk.named(word)             the entries that people call so

The spool's secret is an entry too, and nobody's business: it is left out everywhere.

Opening beside a running relay is safe: operators take leases like everybody else. A spool that one
process has to itself is reached through that process (`spools/desk`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import click
import msgspec

from ..clock import SystemClock
from ..config import load
from ..core.lifecycle import State
from ..core.message import Instant, Key
from ..errors import UnspoolError
from ..settings import Settings
from ..spools.protocol import Entry, Query, Spool

PAGE: Final = 200
SCAN: Final = 5_000
"""Rows in a page of which only the keys are wanted."""
MATCHES_MAX: Final = 20
"""So many entries of one name are told apart by listing them."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class NoSuch(UnspoolError):
    """What was named is not there."""

    exit_code = os.EX_NOINPUT


class Ambiguous(UnspoolError):
    """What was named is there more than once."""

    exit_code = os.EX_DATAERR


class Desk(msgspec.Struct, frozen=True):
    """An open spool, and the settings by which it was opened."""

    spool: Spool
    settings: Settings
    secret: Key
    """The entry that holds the spool's secret."""

    def now(self) -> Instant:
        return SystemClock().now()

    async def pages(
        self, query: Query, *, after: Key | None = None, size: int = PAGE
    ) -> AsyncGenerator[Entry, None]:
        """What `query` means, behind `after`: a page is read when it is wanted."""
        while page := await self.spool.browse(query, after=after, limit=size):
            for entry in page:
                if entry.message.key != self.secret:
                    yield entry
            if len(page) < size:
                return
            after = page[-1].message.key

    async def named(self, word: str) -> list[Entry]:
        """The entry of this spool key or receipt, or those of this Idempotency-Key. No requests."""
        from ..receipts import read_token

        receipt = read_token(word.rsplit("/receipts/", 1)[-1].removesuffix("/response"))
        keys = [Key(word), receipt[1]] if receipt else [Key(word)]
        for entry in await self.spool.find(keys):
            if entry is not None and entry.message.key != self.secret:
                return [entry]
        name = word[1:-1] if len(word) > 2 and word[0] == word[-1] == '"' else word
        if not name:
            return []
        rows = await self.spool.browse(Query(name=name), after=None, limit=MATCHES_MAX)
        found = await self.spool.find([row.message.key for row in rows]) if rows else ()
        return [entry for entry in found if entry is not None]

    async def whole(self, entry: Entry) -> Entry:
        """The same entry with its request, where that is still kept: only `browse` gives those."""
        if entry.state in (State.DELIVERED, State.BOUNCED):
            return entry
        key = entry.message.key
        found = await self.spool.browse(Query(key=key), after=None, limit=1, requests=True)
        if found and found[0].message.key == key:
            return msgspec.structs.replace(entry, message=found[0].message)
        return entry


def options(command: F) -> F:
    """The flags by which an operator's command finds the spool."""
    command = click.option("--config", metavar="FILE", help="The file with the settings.")(command)
    return click.option(
        "--spool", metavar="URL", help="The spool, where it is not the one of the settings."
    )(command)


@asynccontextmanager
async def reached(url: str, *, create: bool = False) -> AsyncGenerator[Spool, None]:
    """The spool of this URL, open, perhaps through its relay. `create`: make it where it is not."""
    from ..spools.open import reach_spool

    _must_exist(url, create=create)
    opened = await reach_spool(url)
    try:
        yield opened
    finally:
        await opened.aclose()


def using(
    work: Callable[[Desk], Awaitable[T]], *, spool: str | None, config: str | None,
    create: bool = False,
) -> T:  # fmt: skip
    """Open the spool, do `work`, close it."""
    import asyncio  # with all that it needs, most of what `unspool version` would load

    flags = {"spool": (spool,)} if spool else {}
    settings = load(flags, os.environ, config=config or "").settings
    url = settings.spool[0]

    async def run() -> T:
        from ..custody import SECRET_KEY

        async with reached(url, create=create) as opened:
            return await work(Desk(spool=opened, settings=settings, secret=SECRET_KEY))

    return asyncio.run(run())


def _must_exist(url: str, *, create: bool) -> None:
    """Looking must not make an empty spool where somebody mistyped the name of a full one."""
    from ..spools.open import path_of

    path = path_of(url)
    if path is not None and not path.exists() and not create:
        raise NoSuch(
            f"there is no spool at {path}: nothing was ever accepted there, or it is elsewhere. "
            "Name it with --spool, or run this where the relay runs."
        )
    if url.startswith("memory:"):
        raise NoSuch("a spool in memory is its relay's own, and cannot be looked at from here")
