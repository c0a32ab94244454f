"""Where random bytes come from: the machine's own source, asked for many at a time.

    chance = Chance();  nonce = chance(16)

A saved request wants 27 random bytes, and a system call for them costs as much as sealing it. Each
process makes its own, after it was forked: two that shared a pool would give two senders one
receipt.
"""

from __future__ import annotations

import os
from typing import Final

POOL_BYTES: Final = 4096


class Chance:
    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        """`count` bytes that nobody else has seen, fit for secrets (`os.urandom`)."""
        at = self._at
        if at + count > len(self._pool):
            self._pool = os.urandom(max(POOL_BYTES, count))
            at = 0
        self._at = at + count
        return self._pool[at : at + count]
