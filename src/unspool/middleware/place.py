"""A place in each process and loop for what an application keeps, made at the first use there.

    place = Place("sqlite:///idem.db", name="shop", owner="", alone=False, …, make=…, close=…)
    thing = await place.get()      `make(spool, secret)`, once in each loop
    await place.aclose()           this loop's thing; and the spool with the last one

An application is imported in one place and runs in another: before a fork, before there is an event
loop, in a test's third loop. So nothing is opened until it is needed, each process opens its own
spool, and each loop makes its own thing over it. What could not be opened is tried again by whoever
asks next.

Refuses (Misconfigured, PromiseBroken, CannotCreate): a spool that survives less than was asked for;
an open spool that came through a fork; a second process where one said that it is alone; and a name
that nobody gave, which another application has in this spool (`names`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import IO, Final, Generic, TypeVar

from ..chance import Chance
from ..clock import Clock
from ..core.admission import Terms
from ..custody import Custody
from ..errors import Misconfigured, PromiseBroken
from ..spools.closing import closed
from ..spools.open import open_spool
from ..spools.protocol import Spool, Survives
from ..spools.sole import sole
from .names import take_name

log = logging.getLogger("unspool.spool")

T = TypeVar("T")


class Place(Generic[T]):
    def __init__(
        self,
        spool: str | Spool,
        *,
        name: str,
        owner: str,
        alone: bool,
        survives: Survives,
        clock: Clock,
        make: Callable[[Spool, bytes], Awaitable[T]],
        close: Callable[[T], Awaitable[None]],
        crowded: Callable[[Collection[T]], None] = lambda _things: None,
    ) -> None:
        """`crowded` is told when several loops of this process have a thing each."""
        self._given: Final = spool
        self._given_in: Final = os.getpid()
        self._name: Final = name
        self._owner: Final = owner
        self._says_alone: Final = alone
        self._survives: Final = survives
        self._clock: Final = clock
        self._make: Final = make
        self._close: Final = close
        self._crowded: Final = crowded
        self._pid = 0
        self._taking = threading.Lock()
        self._spool: Spool | None = None
        self._secret = b""
        self._alone: IO[bytes] | None = None
        self._things: dict[asyncio.AbstractEventLoop, T] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Future[T]] = {}
        self._inherited: list[object] = []
        """Connections of the process before a fork: they are its own to close."""

    async def get(self) -> T:
        """This process's and loop's thing. Raises `Broken` where a person must act, and `Refused`
        where the spool does not answer."""
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._begin()
        elif (found := self._things.get(loop)) is not None:
            return found
        opening = self._opening.get(loop)
        if opening is None:
            opening = self._opening[loop] = asyncio.ensure_future(self._open())
            opening.add_done_callback(lambda done: self._opened(loop, done))
        return await asyncio.shield(opening)

    def here(self) -> T | None:
        """This process's and loop's thing, if it is there already."""
        if self._pid != os.getpid():
            return None
        return self._things.get(asyncio.get_running_loop())

    def _begin(self) -> None:
        """This process's first use."""
        self._inherited = [self._spool, self._things, self._alone]
        self._taking = threading.Lock()  # another thread's, before the fork, may be locked
        self._spool, self._secret, self._alone = None, b"", None
        self._things, self._opening = {}, {}
        self._pid = os.getpid()

    def _opened(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[T]) -> None:
        self._opening.pop(loop, None)
        if not done.cancelled():
            done.exception()  # whoever asked has it; there may be nobody left

    async def _open(self) -> T:
        self._prune()
        spool = self._spool
        if spool is None:
            spool = await self._take(await self._suitable())
        if not self._secret:
            terms = Terms(survives=spool.promises.survives, required=self._survives)
            custody = Custody(spool=spool, terms=terms)
            secret = await custody.open(now=self._clock.now(), chance=Chance())
            if self._owner:
                await take_name(spool, name=self._name, owner=self._owner, now=self._clock.now())
            self._secret = secret
        thing = await self._make(spool, self._secret)
        self._things[asyncio.get_running_loop()] = thing
        if len(self._things) > 1:
            self._crowded(self._things.values())
        return thing

    def _prune(self) -> None:
        """Loops that have ended took what they did with them."""
        for gone in [loop for loop in self._things if loop.is_closed()]:
            del self._things[gone]
        for gone in [loop for loop in self._opening if loop.is_closed()]:
            del self._opening[gone]

    async def _suitable(self) -> tuple[Spool, IO[bytes] | None]:
        """The spool, if it gives what was asked for; and the right to be alone with it."""
        given, alone = self._given, None
        if not isinstance(given, str):
            if self._given_in != os.getpid():
                raise Misconfigured(
                    "An open spool was given, and the process has forked since: its connections"
                    " are the other process's. Nothing was run under a key. Give its address, and"
                    ' each process opens its own: spool="sqlite:///idem.db"'
                )
            spool = given
        else:
            if self._says_alone and self._alone is None:
                alone = sole(given, self._name)
            try:
                spool = await open_spool(given)
            except BaseException:
                if alone is not None:
                    alone.close()
                raise
        promises = spool.promises
        if promises.survives < self._survives:
            await self._let_go(spool, alone)
            raise PromiseBroken(
                f"This spool survives {promises.survives.name.lower()} ({promises.detail}), and"
                f" {self._survives.name.lower()} was asked for: a key that is forgotten runs twice."
                " Nothing was run under a key. Put it on a disk, or say so by name:"
                f' survives="{promises.survives.name.lower()}"'
            )
        return spool, alone

    async def _take(self, opened: tuple[Spool, IO[bytes] | None]) -> Spool:
        """This process's spool from now on; unless another loop was quicker."""
        spool, alone = opened
        with self._taking:
            if self._spool is None:
                self._spool, self._alone = spool, alone
                return spool
            other = self._spool
        if spool is not other:
            await self._let_go(spool, alone)
        return other

    async def _let_go(self, spool: Spool, alone: IO[bytes] | None) -> None:
        if isinstance(self._given, str) and not await closed(spool):
            log.warning("the spool does not answer, and was not waited for; what it has is kept")
        if alone is not None:
            alone.close()

    async def aclose(self) -> None:
        """Let this loop's thing go; and the spool with the last one, if we opened it."""
        if self._pid != os.getpid():
            return
        thing = self._things.pop(asyncio.get_running_loop(), None)
        try:
            if thing is not None:
                await self._close(thing)
        finally:
            self._prune()
            if not self._things and self._spool is not None:
                spool, self._spool, self._secret = self._spool, None, b""
                alone, self._alone = self._alone, None
                await self._let_go(spool, alone)
