"""Bell: hears of what others bring to a shared spool, and rings the arrivals here.

    bell = Bell(link, arrivals)
    bell.listen()          from now on; again and again where the connection is lost
    await bell.close()

Each batch that may concern who waits is one message on the spool's channel. A message that is lost
costs time and nothing else: whoever waits also asks now and then (`RedisSpool.wait_arrival`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import redis.exceptions as trouble

from ..arrivals import Arrivals
from .link import Link

AGAIN_S: Final = 1.0
CLOSE_S: Final = 0.1
QUIET_S: Final = 15.0
"""After so long without a word it is asked whether it is still there."""


class Bell:
    def __init__(self, link: Link, arrivals: Arrivals) -> None:
        self._link: Final = link
        self._arrivals: Final = arrivals
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def listen(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._listen(), name="unspool redis bell")

    async def _listen(self) -> None:
        while True:
            with suppress(trouble.RedisError, OSError, TimeoutError):
                await self._hear()
            await asyncio.sleep(AGAIN_S)

    async def _hear(self) -> None:
        connection = await self._link.subscriber()
        try:
            await connection.send_command("SUBSCRIBE", self._link.bell, check_health=False)
            asked = False
            while True:
                said = await connection.read_response(disable_decoding=True, timeout=QUIET_S)
                if said is not None:
                    asked = False
                    if said[0] == b"message":
                        self._arrivals.ring()
                elif asked:
                    return
                else:
                    asked = True
                    await connection.send_command("PING", check_health=False)
        finally:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        self._closed = True
        while self._task is not None and not self._task.done():
            # Up to Python 3.11 `wait_for`, which the library sends with, may lose a cancellation.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSE_S)
