"""Opening: a spool and its ledger, made at the first use, in whichever process and loop that is.

    opening = Opening(spool="sqlite:///idem.db", name="shop", …)
    ledger, secret = await opening.ledger()
    await opening.aclose()

An application is imported in one place and runs in another: before a fork, before there is an event
loop, in a test's third loop. So nothing is opened until it is needed, each process opens its own,
and each loop has a ledger of its own over its process's spool.

Refuses (Misconfigured, PromiseBroken): a spool that survives less than was asked for, and a name
that another application has in this spool. Two applications that share a spool have two names, or
one would be given the other's answers; who has a name is remembered in the spool.
"""

from __future__ import annotations

import asyncio
import os
from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from ..chance import Chance
from ..clock import Clock, SystemClock
from ..core.admission import Terms
from ..core.lifecycle import State
from ..core.message import NEVER, Destination, Instant, Key, Message, Response
from ..core.tenure import Tenure
from ..custody import Custody
from ..errors import Misconfigured, PromiseBroken
from ..ledger import Ledger
from ..spools.open import open_spool
from ..spools.protocol import Entry, Mismatch, Spool, Survives

OWNER_PREFIX: Final = "unspool.app."


class Opening:
    """What an application remembers of its keys."""

    def __init__(
        self,
        spool: str | Spool,
        *,
        name: str,
        owner: str,
        tenure: Tenure,
        survives: Survives,
        clock: Clock | None = None,
    ) -> None:
        """`owner` tells the application from others: the name of its scope function will do."""
        self._given: Final = spool
        self._name: Final = name
        self._owner: Final = owner
        self.tenure: Final = tenure
        self._survives: Final = survives
        self.clock: Final = clock or SystemClock()
        self._pid = 0
        self._spool: Spool | None = None
        self._ledgers: dict[asyncio.AbstractEventLoop, tuple[Ledger, bytes]] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Future[tuple[Ledger, bytes]]] = {}

    async def ledger(self) -> tuple[Ledger, bytes]:
        """The ledger of this process and loop, and the spool's secret. Opened at the first call."""
        loop = asyncio.get_running_loop()
        if self._pid == os.getpid() and (found := self._ledgers.get(loop)) is not None:
            return found
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._spool, self._ledgers, self._opening = None, {}, {}
        opening = self._opening.get(loop)
        if opening is None:
            opening = self._opening[loop] = asyncio.ensure_future(self._open())
            opening.add_done_callback(lambda _: self._opening.pop(loop, None))
        return await asyncio.shield(opening)

    async def _open(self) -> tuple[Ledger, bytes]:
        for loop in [loop for loop in self._ledgers if loop.is_closed()]:
            del self._ledgers[loop]
        if self._spool is None:
            given = self._given
            self._spool = await open_spool(given) if isinstance(given, str) else given
        spool = self._spool
        promises = spool.promises
        if promises.survives < self._survives:
            raise PromiseBroken(
                f"This spool survives {promises.survives.name.lower()} ({promises.detail}), and"
                f" {self._survives.name.lower()} was asked for: a key that is forgotten runs twice."
                " Nothing was run under a key. Put it on a disk, or say so by name:"
                f' survives="{promises.survives.name.lower()}"'
            )
        chance = Chance()
        custody = Custody(
            spool=spool, terms=Terms(survives=promises.survives, required=self._survives)
        )
        secret = await custody.open(now=self.clock.now(), chance=chance)
        await self._take_name(custody)
        ledger = Ledger(custody=custody, clock=self.clock, tenure=self.tenure, chance=chance)
        found = self._ledgers[asyncio.get_running_loop()] = (ledger, secret)
        return found

    async def _take_name(self, custody: Custody) -> None:
        """The name is this application's, or it is refused."""
        digest = blake2b(self._name.encode(), digest_size=8, person=b"unspool app").digest()
        now = self.clock.now()
        entry = Entry(
            message=Message(
                key=Key(OWNER_PREFIX + urlsafe_b64encode(digest).decode()[:10]),
                fingerprint=blake2b(self._owner.encode(), digest_size=16).digest(),
                destination=Destination(""),
                accepted_at=now,
                expires_at=NEVER,
                nonce=b"",
                name=self._name,
            ),
            state=State.DELIVERED,
            due_at=NEVER,
            answer=Response(status=200, reason=b"", fields=(), body=self._owner.encode()),
            settled_at=now,
            keep_until=NEVER,
            answer_until=NEVER,
        )
        known = await custody.accept(entry, now=Instant(now))
        if isinstance(known, Mismatch):
            [other] = await custody.spool.find([entry.message.key])
            who = other.answer.body.decode() if other and other.answer else "another"
            raise Misconfigured(
                f"The name {self._name!r} in this spool belongs to the application {who}, and this"
                f" is {self._owner}. With one name they would get each other's answers. Nothing"
                " was run under a key. Give this one a name of its own, or the one it had:"
                f' name="{self._name}-2"'
            )

    async def aclose(self) -> None:
        """Let this loop's ledger go; and the spool with the last one, if we opened it."""
        found = self._ledgers.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found[0].aclose()
        if not self._ledgers and self._spool is not None and self._pid == os.getpid():
            spool, self._spool = self._spool, None
            if isinstance(self._given, str):
                await spool.aclose()
