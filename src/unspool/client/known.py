"""What a client remembers of keys: which are on their way, and which requests they were used for.

    known.check(request)            raises `Reused`: the key is another request's
    known.queued(key)               it was put into the outbox, and nothing was heard since
    async with known.turn(request): one at a time under one key; the others wait, until the deadline

A key under other credentials is another one. Only of keys that callers give: a minted one is
nobody's to reuse. At most KEYS_MAX, the latest; the outbox remembers what it keeps, and the servers
remember longer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Final

from ..core.message import fingerprint
from ..errors import Busy, Reused
from .request import Request

KEYS_MAX: Final = 10_000

Name = tuple[str, bytes]
"""A key, and a digest of whose it is."""


class Turn:
    """One key's, for as long as somebody wants it."""

    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock: Final = asyncio.Lock()
        self.wanted = 0


class Known:
    def __init__(self) -> None:
        self._prints: OrderedDict[Name, bytes] = OrderedDict()
        self._queued: set[str] = set()
        self._turns: dict[Name, Turn] = {}

    def check(self, request: Request) -> None:
        """Remember what this key is used for. Raises `Reused`."""
        if request.minted or not request.key:
            return
        now, name = fingerprint(request.wire), _name(request)
        before = self._prints.get(name)
        if before is not None and before != now:
            raise reused(request)
        self._prints[name] = now
        self._prints.move_to_end(name)
        if len(self._prints) > KEYS_MAX:
            (gone, _), _ = self._prints.popitem(last=False)
            self._queued.discard(gone)

    def queued(self, key: str) -> bool:
        return key in self._queued

    def queue(self, request: Request) -> None:
        if not request.minted:
            self._queued.add(request.key)

    def settled(self, key: str) -> None:
        self._queued.discard(key)

    @contextlib.asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """Wait for whoever is sending under this key. Raises `Busy` when the deadline is over: what
        becomes of it is the other call's to say, and no fallback plan is wanted for it."""
        if request.minted or not request.key:
            yield
            return
        name = _name(request)
        turn = self._turns.setdefault(name, Turn())
        turn.wanted += 1
        try:
            try:
                async with asyncio.timeout(request.deadline_ms / 1000):
                    await turn.lock.acquire()
            except TimeoutError as error:
                raise busy(request) from error
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                self._turns.pop(name, None)


def _name(request: Request) -> Name:
    scope = request.scope
    return request.key, blake2b(repr(scope).encode(), digest_size=16).digest() if scope else b""


def busy(request: Request) -> Busy:
    return Busy(
        f"Another call under the key {request.key!r} was still under way when the deadline of this"
        " one was over. This one was not sent, and the other goes on. Ask again in a moment, under"
        " the same key"
    )


def reused(request: Request) -> Reused:
    error = Reused(
        f"The key {request.key!r} was used for another request. This one was not sent, and the"
        " first is unharmed. Give each new request a key of its own; to send the first again, give"
        " all of it as it was"
    )
    error.request = request
    return error
