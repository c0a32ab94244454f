"""A custodian: one spool of a chain, behind a deadline, with its health.

    custodian = Custodian(name="log:///b.log", open=…, required=Survives.POWER, deadline_ms=3_000)
    await custodian.begin()                 open it; True: it is up
    await custodian.ask(verb, write=True)   the verb's result; in time, or Unavailable
    custodian.takes                         may it be given something to keep?
    custodian.view()                        for people

While it is down nobody waits for it: `ask` raises at once. `probe` is how it comes back.

A verb that outlasts the deadline counts as failed, and may have happened all the same (clauses 12
and 13). Whatever else it raises counts as a failure too, but for `Full`, after which it goes on
with what it has and is given nothing for a while, and `Corrupt`, which is one record's trouble.

Knows its own spool and nothing of the chain.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from ...core.custodian import Pulse
from ...core.message import Value
from ...errors import (
    Corrupt,
    Full,
    Misconfigured,
    Missing,
    Newer,
    NotDone,
    Unavailable,
    UnspoolError,
)
from ..protocol import New, Promises, Spool, Survives
from ..secret import SECRET_KEY

log: Final = logging.getLogger("unspool.chain")

PATIENT_S: Final = 60.0
"""For what people ask, and the broom: it may be everything that there is."""
OPEN_S: Final = 20.0
"""It may have to make its tables, or to read a log."""
CLOSE_S: Final = 10.0
ROOM_S: Final = 1.0
"""How long the room on a disk is believed."""
FATAL: Final = (Misconfigured, Missing, Newer)
"""Nothing that comes right by waiting: a person must act, and better at the start than later."""

T = TypeVar("T")


class View(Value, frozen=True):
    """A custodian as people see it."""

    spool: str
    state: str
    """up · full · down · below: it keeps less than `survives` asks, and takes nothing."""
    cause: str
    since: int
    """Milliseconds since 1970 of the last change between up and down."""
    survives: str
    detail: str
    settled: bool
    """Nothing lies here that the first does not know."""


class Custodian:
    def __init__(
        self,
        *,
        name: str,
        open: Callable[[], Awaitable[Spool]],
        deadline_ms: int,
        required: Survives = Survives.NOTHING,
        room: Callable[[], bool] | None = None,
        private: bool = False,
    ) -> None:
        """`private`: nobody else writes here, whatever its engine could do."""
        self.name: Final = name
        """Its URL, without passwords."""
        self.pulse: Final = Pulse()
        self.spool: Spool | None = None
        self.returning = False
        """It is up again, and has not been told the secret: nothing is lent or moved yet. Whoever
        probes it says when that is over, and shuts the gate for the comparison."""
        self.settled = False
        """Home knew everything that lay here, when it was last looked at."""
        self.arrivals = 0
        """Counts what was taken here, so that a look round can tell whether anything came since."""
        self._open = open
        self._deadline_s = deadline_ms / 1000
        self._required = required
        self._room = room
        self._private = private
        self._has_room = True
        self._looked_at = 0.0
        self._since = 0
        self._shut = ""
        self._promises: Promises | None = None
        self.fell = asyncio.Event()
        """Set when it goes down; whoever probes it waits for that."""

    @property
    def up(self) -> bool:
        return self.pulse.up

    @property
    def promises(self) -> Promises | None:
        """As it was opened; also once it is closed, for people."""
        if self.spool is not None:
            self._promises = self.spool.promises
        return self._promises

    @property
    def clear(self) -> bool:
        """Home knows everything that lies here. Of what others may write to nobody knows that."""
        return self.settled and (self._private or not (self.promises and self.promises.shared))

    @property
    def qualified(self) -> bool:
        """Does it keep what was asked of it?"""
        promises = self.promises
        return promises is not None and promises.survives >= self._required

    @property
    def takes(self) -> bool:
        if not self.pulse.takes(_at()) or not self.qualified:
            return False
        if self._room is not None and time.monotonic() - self._looked_at > ROOM_S:
            self._looked_at, self._has_room = time.monotonic(), self._room()
        return self._has_room

    def why_not(self) -> str:
        """Why it takes nothing just now, in words."""
        if self.pulse.takes(_at()) and not self.qualified:
            return "keeps less than `survives` asks"
        return self.pulse.cause or ("is down" if not self.up else "its disk is nearly full")

    def view(self) -> View:
        promises = self.promises
        state = "down"
        if self.up:
            state = "below" if not self.qualified else "up" if self.takes else "full"
        return View(
            spool=self.name,
            state=state,
            cause="" if state == "up" else self.why_not(),
            since=self._since,
            survives=promises.survives.name.lower() if promises else "",
            detail=promises.detail if promises else "",
            settled=self.settled,
        )

    async def ask(
        self, verb: Callable[[Spool], Awaitable[T]], *, write: bool = False, patient: bool = False
    ) -> T:
        """Raises `Unavailable` (it may have happened), `NotDone` and `Full` (it did not),
        `Corrupt`."""
        if self.spool is None or not self.up:
            raise NotDone(f"the spool {self.name} is down: {self.pulse.cause}")
        return await self.finish(_called(verb, self.spool), write=write, patient=patient)

    async def finish(self, begun: Awaitable[T], *, write: bool, patient: bool = False) -> T:
        """The same for what has begun."""
        try:
            async with asyncio.timeout(PATIENT_S if patient else self._deadline_s):
                result = await begun
        except Full as error:
            self.pulse.filled(_short(error), at=_at())
            raise
        except Corrupt:
            raise
        except TimeoutError as error:
            cause = f"no answer within {self._deadline_s:g} s"
            if patient:
                raise Unavailable(f"the spool {self.name} gave no answer in time") from error
            self.failed(cause)
            raise Unavailable(f"the spool {self.name} is down: {cause}") from error
        except Exception as error:
            if not isinstance(error, UnspoolError):
                log.exception("the spool %s made a mistake", self.name)
            self.failed(_short(error))
            kind = NotDone if isinstance(error, NotDone) else Unavailable
            raise kind(f"the spool {self.name} is down: {_short(error)}") from error
        if write and _changed(result):
            self.pulse.wrote()
        return result

    def failed(self, cause: str) -> None:
        if self.pulse.failed(cause, at=_at()):
            self._since = time.time_ns() // 1_000_000
            log.warning("the spool %s is down: %s", self.name, cause)
        self.fell.set()

    def shut(self, cause: str) -> None:
        """It is not used any more, whatever a probe would say."""
        self._shut = cause
        self.failed(cause)

    async def begin(self, *, patient: bool = True) -> bool:
        """Open it. True: it is up. Raises what no waiting mends. Not `patient`: another may be up
        by then, and this one can be opened behind it."""
        seconds = OPEN_S if patient else self._deadline_s
        try:
            async with asyncio.timeout(seconds):
                self.spool = await self._open()
        except FATAL:
            raise
        except TimeoutError:
            self.failed(f"it could not be opened within {seconds:g} s")
            return False
        except Exception as error:
            self.failed(_short(error))
            return False
        self._came_up()
        return True

    def _came_up(self) -> None:
        assert self.spool is not None
        self._promises = self.spool.promises
        self.fell.clear()
        self.pulse.answered()
        self._since = time.time_ns() // 1_000_000

    async def probe(self) -> bool:
        """Is it back? Called when its time has come; True: it is."""
        if self._shut:
            self.failed(self._shut)
            return False
        if self.spool is None:
            try:
                if not await self.begin():
                    return False
            except FATAL as error:
                self.failed(_short(error))
                return False
        else:
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self.spool.find([SECRET_KEY])
            except (Exception, TimeoutError) as error:
                self.failed(_short(error) or "no answer to a probe")
                return False
            self._came_up()
        self.returning = True  # in the very turn in which it came up
        return True

    def probe_in_s(self) -> float:
        return self.pulse.probe_in(_at()) / 1000

    async def aclose(self) -> None:
        """Let go, or give up on it: one that hangs must not hold a relay that is to end."""
        spool, self.spool = self.spool, None
        self.pulse.failed("it is closed", at=_at())
        if spool is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await spool.aclose()
            except (UnspoolError, TimeoutError) as error:
                log.warning("the spool %s was not closed: %s", self.name, _short(error))


def _changed(result: Any) -> bool:
    """Did an accept or a settle write anything? One that only read says nothing of writing."""
    return any(one is True or isinstance(one, New) for one in result)


async def _called(verb: Callable[[Spool], Awaitable[T]], spool: Spool) -> T:
    return await verb(spool)


def _at() -> int:
    return time.monotonic_ns() // 1_000_000


def _short(error: BaseException) -> str:
    """The first sentence: what follows is for whoever has this spool alone."""
    return str(error).split(". ", 1)[0] or type(error).__name__
