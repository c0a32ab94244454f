"""Express: a request that asked for nothing, on its way while all is well.

It is told its answer in the middle of the read that brought it, and passes it on if it stands and
the lane is as calm as before. Anything else the relay takes over, at step 5 of its road. There is
no policy here: what stands is said by the table of outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .core.message import Answer, Instant, Request, Response
from .core.outcome import STANDS


class TakesOver(Protocol):
    """The relay, as far as this knows it."""

    @property
    def calm(self) -> bool: ...
    def take_over(self, express: Express, answer: Answer, /) -> None: ...


class Express:
    """A request on the express road, told its answer in the middle of a read."""

    __slots__ = ("_relay", "began_at", "done", "onwards")

    def __init__(
        self,
        relay: TakesOver,
        onwards: Request,
        began_at: Instant,
        done: Callable[[Response], None],
    ) -> None:
        self._relay = relay
        self.onwards = onwards
        self.began_at = began_at
        self.done = done

    def __call__(self, answer: Answer) -> None:
        if type(answer) is Response and STANDS[answer.status] and self._relay.calm:
            self.done(answer)
        else:
            self._relay.take_over(self, answer)
