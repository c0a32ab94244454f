"""Room: nothing new is taken in where the last of it is needed to end what is there.

    await room.take(bytes)      raises `Full`

A stream at its `max_bytes` (or an account at its storage) refuses every write, leases, verdicts and
the sweep's tombstones too: it could never be emptied again. So a part of it is for those
alone. Where neither has a limit, nothing is asked. How full it is, is asked at most
once in LOOK_S, and reckoned in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from .link import Link

RESERVE: Final = 16
"""One part in so many …"""
RESERVE_BYTES: Final = 8 * 1024 * 1024
"""… and at least so much: the largest answer, or a batch of leases."""
ROOM_MIN_BYTES: Final = 4 * RESERVE_BYTES
LOOK_S: Final = 1.0
OVERHEAD_BYTES: Final = 600
"""Of a message on the server: subject, headers and its own."""


class Room:
    def __init__(
        self, link: Link, *, stream: Mapping[str, Any], account: Mapping[str, Any]
    ) -> None:
        config = stream["config"]
        self._link: Final = link
        self._max_bytes: Final = int(config.get("max_bytes", -1))
        kind = "storage" if config["storage"] == "file" else "memory"
        limit = int(account.get("limits", {}).get(f"max_{kind}", -1))
        self._account_max: Final = limit if limit > 0 else -1
        self._kind: Final = kind
        self._left = 0
        self._looked_at = -LOOK_S

    @property
    def is_enough(self) -> bool:
        limits = [limit for limit in (self._max_bytes, self._account_max) if limit > 0]
        return not limits or min(limits) >= ROOM_MIN_BYTES

    async def take(self, size: int, count: int) -> None:
        if self._max_bytes <= 0 and self._account_max <= 0:
            return
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._left = await self._look()
        self._left -= size + count * OVERHEAD_BYTES
        if self._left < 0:
            raise self._link.wire.full("the rest is kept for what ends messages")

    async def _look(self) -> int:
        left = 2**62
        if self._max_bytes > 0:
            used = int((await self._link.info())["state"]["bytes"])
            left = _for_new(self._max_bytes) - used
        if self._account_max > 0:
            used = int((await self._link.account()).get(self._kind, 0))
            left = min(left, _for_new(self._account_max) - used)
        return left


def _for_new(limit: int) -> int:
    return limit - max(limit // RESERVE, RESERVE_BYTES)
