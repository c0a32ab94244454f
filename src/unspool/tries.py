"""Tries: which keys are being tried in this process just now, each by one, however many come (I5).

    turn = await tries.begin(key, fingerprint, until=…)     a Turn, or the name of a problem
    turn.tries()        nobody knows the key: from now on others wait, or are told
    turn.ends()         over, or saved: others may look for themselves
    tries.has(key)      it is being tried

While somebody only looks a key up, others wait for that: it does not take long. Once it is being
tried, here or in another process, they wait as long as their sender likes.
"""

from __future__ import annotations

import asyncio

from .clock import Clock
from .core.message import Instant, Key


class LoopClock:
    """Milliseconds that pass as the running loop's do, and never step: for how long to wait."""

    __slots__ = ()

    def now(self) -> Instant:
        return Instant(int(asyncio.get_running_loop().time() * 1000))


class Turn:
    """The right to look a key up and to try it, as far as this process goes."""

    __slots__ = ("_key", "_tries", "_waiting", "fingerprint", "looked")

    def __init__(self, tries: Tries, key: Key, fingerprint: bytes) -> None:
        self._tries = tries
        self._key = key
        self.fingerprint = fingerprint
        self.looked = False
        self._waiting: list[asyncio.Future[None]] = []  # nearly always nobody

    def tries(self) -> None:
        self.looked = True
        if self._waiting:
            self._tell()

    def ends(self) -> None:
        self._tries.leave(self._key, self)
        if self._waiting:
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def moves(self, timeout_s: float | None = None) -> None:
        """Until something has changed, or the time is up."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await asyncio.wait([future], timeout=timeout_s)
        finally:
            if future in self._waiting:
                self._waiting.remove(future)


class Tries:
    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._turns: dict[Key, Turn] = {}

    async def begin(self, key: Key, fingerprint: bytes, *, until: int) -> Turn | str:
        """Ours to look up, or `key-reused` or `running`. Waits until the instant `until`."""
        # No await between finding the key free and taking it: one runs, however many come.
        while (turn := self.begin_now(key, fingerprint)) is None:
            other = self._turns[key]
            if not other.looked:
                await other.moves()
                continue
            if other.fingerprint != fingerprint:
                return "key-reused"
            left = until - self._clock.now()
            if left <= 0:
                return "running"
            await other.moves(left / 1000)
        return turn

    def begin_now(self, key: Key, fingerprint: bytes) -> Turn | None:
        """Ours to look up; None while it is somebody else's."""
        if key in self._turns:
            return None
        turn = self._turns[key] = Turn(self, key, fingerprint)
        return turn

    def has(self, key: Key) -> bool:
        """Is somebody trying it, who found nobody else to know it?"""
        turn = self._turns.get(key)
        return turn is not None and turn.looked

    def leave(self, key: Key, turn: Turn) -> None:
        if self._turns.get(key) is turn:
            del self._turns[key]
