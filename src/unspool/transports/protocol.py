"""The Transport protocol: one attempt out.

    await transport.attempt(request, repeat=…) -> Answer

A transport sends a request once and says what came back: a Response, or a Failure that tells
whether the request can have been received (`Sent.NEVER`, `Sent.MAYBE`). It decides nothing about
retries. The one thing it may do again by itself: a request that died on a pooled connection before
any answer byte goes out once more on a fresh connection, if nothing of it was sent or `repeat`.

A body that is too large to keep comes as `request.rest` and goes as `response.rest`, a Reader each.
Whoever receives a Response with a `rest` must read it to its end or close it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core.message import Answer, Request


class Begun(Protocol):
    """An attempt that is under way."""

    def abandon(self) -> None:
        """Nobody waits for it any longer: its connection is given up, and nobody is told."""
        ...


class Prompt(Protocol):
    """What a transport may offer besides: an attempt that is under way when the call returns."""

    def begin(
        self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
    ) -> Begun | None:
        """It was sent, and `done` gets the Answer, exactly once, perhaps before this returns.
        None: nothing was begun (no connection is at hand); `attempt` it. `done` must not raise."""
        ...


class Telling(Protocol):
    """What a transport may offer besides: to tell when the request may go out."""

    tells: bool
    """It does, always."""

    async def attempt(
        self, request: Request, /, *, repeat: bool, sending: Callable[[], None] | None = None
    ) -> Answer:
        """`sending` is called before a first byte of it may leave. Must not raise."""
        ...


class Transport(Protocol):
    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        """One try. Never raises for what the network does; cancelling gives the connection up."""
        ...

    async def aclose(self) -> None:
        """Close idle connections and give up the busy ones: every attempt under way, and any later
        one, gets a Failure with `Cause.CLOSING`."""
        ...
