"""A queue in memory: the reference. Shortest, obviously right, and survives nothing.

    server = MemoryServer()
    queue = MemoryQueue(server)      as often as you like: each is a holder of its own

What another queue does differently from this one is written in its header.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from ..errors import Unavailable
from .protocol import PAYLOAD_MAX_BYTES, Promises, Survives, Taken, too_large


class MemoryServer:
    """What waits, by name."""

    def __init__(self) -> None:
        self.waiting: Final[dict[str, deque[bytes]]] = {}
        self.rung: Final[set[asyncio.Event]] = set()

    def keep(self, name: str, payloads: Sequence[bytes], *, first: bool = False) -> None:
        waiting = self.waiting.setdefault(name, deque())
        if first:
            waiting.extendleft(reversed(payloads))
        else:
            waiting.extend(payloads)
        for event in self.rung:
            event.set()


class MemoryQueue:
    def __init__(
        self,
        server: MemoryServer | None = None,
        *,
        name: str = "unspool",
        payload_max_bytes: int = PAYLOAD_MAX_BYTES,
    ) -> None:
        self._server = server or MemoryServer()
        self._name = name
        self._held: dict[int, bytes] = {}
        self._count = 0
        self._closed = False
        self.promises: Final = Promises(
            survives=Survives.NOTHING,
            exclusive=True,
            payload_max_bytes=payload_max_bytes,
            aside=f"{name}.aside",
            detail="in memory",
        )

    async def put(self, payloads: Sequence[bytes], /) -> None:
        self._open()
        for payload in payloads:
            if len(payload) > self.promises.payload_max_bytes:
                raise too_large(payload, self.promises)
        self._server.keep(self._name, payloads)

    async def take(self, *, limit: int, wait_ms: int) -> Sequence[Taken]:
        self._open()
        waiting = self._server.waiting.setdefault(self._name, deque())
        if not waiting and wait_ms > 0:
            await self._arrival(waiting, wait_ms)
        taken: list[Taken] = []
        while waiting and len(taken) < limit:
            self._count += 1
            self._held[self._count] = waiting.popleft()
            taken.append(Taken(self._held[self._count], f"{self._name}/{self._count}", self._count))
        return taken

    async def _arrival(self, waiting: deque[bytes], wait_ms: int) -> None:
        event = asyncio.Event()
        self._server.rung.add(event)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                while not waiting:
                    await event.wait()
                    event.clear()
        except TimeoutError:
            return
        finally:
            self._server.rung.discard(event)

    async def complete(self, taken: Sequence[Taken], /) -> None:
        for one in taken:
            self._let_go(one)

    async def give_back(self, taken: Sequence[Taken], /) -> None:
        held = [payload for one in taken if (payload := self._let_go(one)) is not None]
        self._server.keep(self._name, held, first=True)

    async def set_aside(self, taken: Sequence[Taken], /) -> None:
        held = [payload for one in taken if (payload := self._let_go(one)) is not None]
        self._server.keep(self.promises.aside, held)

    def _let_go(self, one: Taken) -> bytes | None:
        assert isinstance(one.handle, int)
        return self._held.pop(one.handle, None)

    def _open(self) -> None:
        if self._closed:
            raise Unavailable("the queue was closed. Nothing was handed over. Open another.")

    async def aclose(self) -> None:
        self._closed = True
        self._server.keep(self._name, list(self._held.values()), first=True)
        self._held.clear()
