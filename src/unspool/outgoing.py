"""Outgoing: what was written in one turn of the event loop goes out together, at its end.

    outgoing.add(somebody)      call somebody.flush() once this turn has read all there was to read

A write to a socket wakes whoever waits for it. Written one by one between reads, each answer wakes
its reader anew, who has gone to sleep again meanwhile; written one after the other, the first wakes
them all. A turn is short: what waits for its end waits microseconds.

Whoever adds itself keeps its bytes, in order, and flushes by itself before it closes anything or
writes past us. `flush` must not raise: others stand behind it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Flushes(Protocol):
    def flush(self) -> None:
        """Write what you hold; nothing, if that has happened meanwhile."""
        ...


class Outgoing:
    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Flushes] = []

    def add(self, one: Flushes) -> None:
        waiting = self._waiting
        if not waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        waiting.append(one)

    def _flush(self) -> None:
        waiting = self._waiting
        self._waiting = []
        for one in waiting:
            one.flush()
