"""Events: what a client does, told to whoever wants to know, as it happens.

    Client(…, on_event=print)

    Tried       one direct attempt is over
    Offered     one offer to a queue is over
    Ended       a call is over, with its result; or with none, where it raised
    News        a request that had been queued has settled

The callback is called in the client's own loop and must not block. What it raises is logged and
goes no further. There is no registry and no global: a client tells its own callback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ..core.message import Value
from .results import Settled, Try

log: Final = logging.getLogger("unspool.client")


class Tried(Value, frozen=True):
    """One direct attempt is over. `background`: of a request that had been queued."""

    key: str
    attempt: Try
    number: int
    """From 1, over servers."""
    background: bool


class Offered(Value, frozen=True):
    """One offer to a relay or a queue is over."""

    key: str
    attempt: Try
    background: bool


class Ended(Value, frozen=True):
    """A call is over. `result` is the name of its type, or `Undelivered` where it raised."""

    key: str
    result: str
    took_ms: int
    tries: int


class News(Value, frozen=True):
    """A request that had been queued has settled."""

    settled: Settled


Event = Tried | Offered | Ended | News
OnEvent = Callable[[Event], None]


def teller(on_event: OnEvent | None) -> OnEvent:
    """Tell, whatever the one who is told does with it."""

    def tell(event: Event) -> None:
        if on_event is None:
            return
        try:
            on_event(event)
        except Exception:
            log.exception("on_event made a mistake; the request goes on")

    return tell
