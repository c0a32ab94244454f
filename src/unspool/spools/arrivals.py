"""Arrivals: the bell that wakes a dispatcher.

    arrivals.ring()          something was accepted, or came due earlier
    await arrivals.wait()    until a ring that no earlier wait has answered

A ring before the wait is not lost, so a dispatcher that looks, finds nothing and then waits cannot
sleep through what came in between. Belongs to no event loop; `ring` is called in the waiter's.

Bugs: a ring wakes all who wait, and whoever comes later waits for the next one: meant for one
dispatcher in a process.
"""

from __future__ import annotations

import asyncio


class Arrivals:
    def __init__(self) -> None:
        self._rung = 0
        self._answered = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        self._rung += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        if self._answered == self._rung:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        self._answered = self._rung
