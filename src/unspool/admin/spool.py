"""The spool as operators reach it: opened by the settings, never made, read in pages.

    @options                     --spool and --config, as `serve` has them
    using(flags, work)           open the spool, await work(Desk), close it
    reached(url)                 another spool beside it, for as long as a `with` lasts
    desk.pages(query)            entries in order of acceptance, never all at once
    desk.named(word)             the entries that people call so
    utf8(word)                   a word of the command line, where it is text

The spool's secret is an entry too, and nobody's business: it is left out everywhere.

Opening beside a running relay is safe: operators take leases like everybody else. A spool that one
process has to itself is reached through that process (`spools/desk`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from ..clock import SystemClock
from ..config import load
from ..core.lifecycle import State
from ..core.message import Instant, Key
from ..errors import CannotCreate, UnspoolError
from ..house.walk import pages
from ..settings import Settings
from ..spools.protocol import Entry, Query, Spool
from .wording import said

if TYPE_CHECKING:
    from ..spools.chain.custodian import View  # with all that it needs; the command line does not

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
    secrets: frozenset[Key]
    """The entries that hold the spool's secrets."""

    def now(self) -> Instant:
        return SystemClock().now()

    async def pages(
        self, query: Query, *, after: Key | None = None, size: int = PAGE
    ) -> AsyncGenerator[Entry, None]:
        """What `query` means, behind `after`: a page is read when it is wanted."""
        walk = pages(self.spool, query, clock=SystemClock(), after=after, size=size)
        async with aclosing(walk) as found:
            async for page in found:
                for entry in page:
                    if entry.message.key not in self.secrets:
                        yield entry

    def views(self) -> list[View]:
        """Of several spools, how each does; empty where there is one."""
        from ..spools.chain.spool import ChainSpool

        return self.spool.views() if isinstance(self.spool, ChainSpool) else []

    def place(self, entry: Entry) -> str:
        """Which of several spools it lies in; empty where there is one."""
        from ..spools.chain.spool import ChainSpool

        return self.spool.place(entry) if isinstance(self.spool, ChainSpool) else ""

    async def beside(self, entry: Entry) -> list[tuple[str, Entry]]:
        """What another of several spools has under the same key, and the spool's URL."""
        from ..spools.chain.spool import ChainSpool

        return await self.spool.beside(entry) if isinstance(self.spool, ChainSpool) else []

    async def named(self, word: str) -> list[Entry]:
        """The entry of this spool key or receipt, or those of this Idempotency-Key. No requests."""
        from ..receipts import read_token

        receipt = read_token(utf8(word).rsplit("/receipts/", 1)[-1].removesuffix("/response"))
        keys = [Key(word), receipt[1]] if receipt else [Key(word)]
        for entry in await self.spool.find(keys):
            if entry is not None and entry.message.key not in self.secrets:
                return [entry]
        name = word[1:-1] if len(word) > 2 and word[0] == word[-1] == '"' else word
        if not name:
            return []
        rows = await self.spool.browse(Query(name=name), after=None, limit=MATCHES_MAX)
        keys = [
            *dict.fromkeys(row.message.key for row in rows)
        ]  # of several spools two may have it
        found = await self.spool.find(keys) if keys else ()
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


def utf8(word: str) -> str:
    """A word of the command line as text. Raises where it is none: nothing is called so."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise click.UsageError(
            f"{said(word)} is no text in UTF-8, and nothing is called so"
        ) from None
    return word


def options(command: F) -> F:
    """The flags by which an operator's command finds the spool."""
    command = click.option("--config", metavar="FILE", help="The file with the settings.")(command)
    return click.option(
        "--spool",
        metavar="URL",
        multiple=True,
        help="The spool, where it is not the one of the settings; several in their order.",
    )(command)


@asynccontextmanager
async def reached(
    *urls: str, create: bool = False, deadline_ms: int = 3_000
) -> AsyncGenerator[Spool, None]:
    """The spool of this URL, open, perhaps through its relay; of several, those that can be, and
    what cannot be seen is said. `create`: make it where it is not."""
    from ..spools.chain.open import open_spools
    from ..spools.open import reach_spool

    missing = [error for url in urls if (error := _missing(url, create=create)) is not None]
    if len(missing) == len(urls):
        raise missing[0]
    opened = await open_spools(
        urls,
        now=SystemClock().now,
        deadline_ms=deadline_ms,
        opener=reach_spool if create else _reach_what_is,
    )
    try:
        if blind := getattr(opened, "blind", ""):
            click.echo(f"unspool: cannot be looked at: {said(blind)}", err=True)
        yield opened
    finally:
        await opened.aclose()


def using(
    work: Callable[[Desk], Awaitable[T]], *, spool: tuple[str, ...], config: str | None,
    create: bool = False,
) -> T:  # fmt: skip
    """Open the spool, do `work`, close it."""
    import asyncio  # with all that it needs, most of what `unspool version` would load

    settings = load({"spool": spool}, os.environ, config=config or "").settings

    async def run() -> T:
        from ..spools.secret import SECRETS

        spools = reached(*settings.spool, create=create, deadline_ms=settings.spool_ms)
        async with spools as opened:
            return await work(Desk(spool=opened, settings=settings, secrets=SECRETS))

    return asyncio.run(run())


async def _reach_what_is(url: str) -> Spool:
    from ..errors import Unavailable
    from ..spools.open import reach_spool

    if (missing := _missing(url)) is not None:
        raise Unavailable(str(missing))  # of several: the others are looked at
    return await reach_spool(url, create=False)


def is_there(path: Path) -> bool:
    """Raises `CannotCreate` where we may not even look."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CannotCreate(
            f"{path} cannot be looked at: {error.strerror}. Nothing was changed. Run this as the"
            f" user whose it is; see: ls -ld {shlex.quote(str(path.parent))}"
        ) from error
    return True


def _missing(url: str, *, create: bool = False) -> NoSuch | None:
    """Looking must not make an empty spool where somebody mistyped the name of a full one."""
    from ..spools.open import path_of

    path = path_of(url)
    if path is not None and not create and not is_there(path):
        return NoSuch(
            f"there is no spool at {path}: nothing was ever accepted there, or it is elsewhere. "
            "Name it with --spool, or run this where the relay runs."
        )
    if url.startswith("memory:"):
        return NoSuch("a spool in memory is its relay's own, and cannot be looked at from here")
    return None
