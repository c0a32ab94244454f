"""Several servers for one destination: tried in order, each with a weather of its own.

    Servers([first, second]).attempt(request, repeat=…)

The first is the one we want; another is tried when an attempt was not sent or may be repeated
(design section 6). A server that is known to be down costs nothing: its lane is closed, and it is
probed by a request now and then. When all are closed the first is tried all the same: the lane of
the destination, above us, decides whether there is an attempt at all.

What comes back is the best that is true: an answer that stands, else the last response, else the
last failure, and "maybe applied" if it may have been at any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from random import random
from typing import Final

import msgspec

from ..clock import Clock
from ..core.lane import Conduct, Lane
from ..core.message import Answer, Failure, Key, Request, Response, Sent
from ..core.outcome import Outcome, cause_of, judge, repeatable, retry_after
from .protocol import Transport


class Servers:
    def __init__(
        self,
        servers: Sequence[Transport],
        *,
        clock: Clock,
        conduct: Conduct,
        chance: Callable[[], float] = random,
    ) -> None:
        assert servers, "a destination without a server"
        self._servers: Final = [(server, Lane(conduct=conduct)) for server in servers]
        self._clock = clock
        self._chance = chance
        self._count = 0
        self.tells: Final = all(getattr(server, "tells", False) for server in servers)

    async def attempt(
        self, request: Request, /, *, repeat: bool, sending: Callable[[], None] | None = None
    ) -> Answer:
        best: Answer | None = None
        maybe = False
        told = {} if sending is None or not self.tells else {"sending": sending}
        for server, lane in self._open():
            answer = await server.attempt(request, repeat=repeat, **told)
            judgement = judge(answer)
            if judgement.outcome is not Outcome.ERROR:
                if not lane.calm:
                    self._saw(lane, answer)
                _drop(best)
                return answer
            self._saw(lane, answer)
            maybe = maybe or judgement.sent is Sent.MAYBE
            if (
                best is None
                or isinstance(answer, Response)
                or isinstance(best, Failure)
                # What may not be repeated must not look as if it had never been applied.
                or (judgement.sent is Sent.MAYBE and not repeat)
            ):
                _drop(best)
                best = answer
            if request.rest is not None or not repeatable(judgement, repeat=repeat):
                break
        assert best is not None
        if maybe and isinstance(best, Failure) and best.sent is Sent.NEVER:
            return msgspec.structs.replace(best, sent=Sent.MAYBE)
        return best

    def _open(self) -> Iterator[tuple[Transport, Lane]]:
        """Those that may be tried, asked one by one: a probe that is not needed is not taken."""
        none = True
        for pair in self._servers:
            if pair[1].probe(self._clock.now()):
                none = False
                yield pair
        if none:
            yield self._servers[0]

    def _saw(self, lane: Lane, answer: Answer) -> None:
        now = self._clock.now()
        self._count += 1
        lane.saw(
            judge(answer),
            key=Key(f"server-{self._count}"),
            now=now,
            chance=self._chance(),
            hint_ms=retry_after(answer, now=now),
            detail=cause_of(answer)[1],
        )

    async def aclose(self) -> None:
        # All of them now: what one gives up must not go to the next.
        await asyncio.gather(*(server.aclose() for server, _lane in self._servers))


def _drop(answer: Answer | None) -> None:
    """An answer nobody will read: its connection is given up."""
    if isinstance(answer, Response) and answer.rest is not None:
        answer.rest.close()
