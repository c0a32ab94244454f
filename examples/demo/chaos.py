"""The weather report: what is done to the service, and when.

    for phase in PHASES:
        await phase.play(stage, pace=1.0)          # 0.5: everything in half the time

Both services get the same at the same instant: the one behind the relay and the one that is used
straight. The relay itself is killed too, in the middle of the list, while orders wait in its spool.

Each phase is trouble first and fine weather for the rest, so that one can watch what the trouble
has left behind being delivered. A relay that has given a service up looks again after 2.5 to 5 s,
and if that is too early after 5 to 10 s: so most trouble is shorter than that, and phases longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..orders.weather import RETRY_AFTER_S, SLOW_S, Weather
from .processes import CannotGoOn, Child
from .wire import Broken, Pool, request


@dataclass
class Stage:
    """All that can be broken, and whom to tell."""

    services: Sequence[Child]
    forecasts: Sequence[Pool]
    """Each service's second door, for the weather."""
    relay: Child
    say: Callable[[str], None]
    waiting: Callable[[], int | None]
    """How many orders are in the relay's spool, as it last said."""

    async def weather(self, weather: Weather) -> None:
        data = request("POST", "/weather", weather.encode())
        try:
            for reply in await asyncio.gather(
                *(door.exchange(data, patience_s=3.0) for door in self.forecasts)
            ):
                if reply.status != 200:
                    raise CannotGoOn(f"the service does not know the weather {weather}")
        except Broken as trouble:
            raise CannotGoOn(f"the service does not hear about the weather: {trouble}") from None

    async def start_services(self) -> None:
        await asyncio.gather(*(service.start() for service in self.services))


@dataclass(frozen=True)
class Phase:
    title: str
    """For the table: at most 13 characters."""
    seconds: float
    trouble_s: float
    act: Callable[[Stage, float], Awaitable[None]]
    """Make trouble for so many seconds, and mend it."""
    words: str

    async def play(self, stage: Stage, *, pace: float) -> None:
        loop = asyncio.get_running_loop()
        over_at = loop.time() + self.seconds * pace
        stage.say(self.words)
        await self.act(stage, self.trouble_s * pace)
        await asyncio.sleep(max(0.0, over_at - loop.time()))


async def fine(stage: Stage, seconds: float) -> None:
    """Nothing is done to anybody."""


async def killed(stage: Stage, seconds: float) -> None:
    for service in stage.services:
        service.kill()
    await asyncio.sleep(seconds)
    await stage.start_services()
    stage.say("the service is started again; what was saved is delivered")


async def deployed(stage: Stage, seconds: float) -> None:
    await asyncio.gather(*(service.stop() for service in stage.services))
    await asyncio.sleep(seconds)
    await stage.start_services()
    stage.say("the deploy is done: the new one runs")


def bad(weather: Weather) -> Callable[[Stage, float], Awaitable[None]]:
    """The service is up and behaves badly."""

    async def act(stage: Stage, seconds: float) -> None:
        await stage.weather(weather)
        await asyncio.sleep(seconds)
        await stage.weather(Weather.FINE)
        stage.say("the service is well again; what was saved is delivered")

    return act


async def relay_killed(stage: Stage, seconds: float) -> None:
    await stage.weather(Weather.UNAVAILABLE)
    await asyncio.sleep(seconds * 0.7)
    waiting = stage.waiting()
    stage.relay.kill()
    held = "orders" if waiting is None else f"about {waiting} orders"
    stage.say(f"the RELAY is killed: kill -9, with {held} in its spool; its sender sends again")
    await asyncio.sleep(seconds * 0.3)
    await stage.weather(Weather.FINE)
    await stage.relay.start()
    stage.say("the relay is started again on the same spool, and the service is well")


PHASES = (
    Phase("fine", 2.5, 0, fine, "all is well: the relay passes on what the service answers"),
    Phase("kill -9", 6, 2.2, killed, "the service is killed: kill -9"),
    Phase("500", 6, 2.2, bad(Weather.ERROR),
          "the service answers 500; every second of these orders it does all the same"),
    Phase("503", 4.5, 1.8, bad(Weather.RETRY_AFTER),
          f"the service answers 503 and Retry-After: {RETRY_AFTER_S}"),
    Phase("relay kill -9", 4.5, 1.8, relay_killed,
          "the service answers 503 and does not say until when"),
    Phase("slow", 6.5, 2.2, bad(Weather.SLOW), f"the service takes {SLOW_S:g} s for everything"),
    Phase("reset", 6, 2.2, bad(Weather.RESET),
          "the service does each order, and resets the connection in place of an answer"),
    Phase("deploy", 6, 3.0, deployed, "a deploy: SIGTERM, 3 s down, start"),
    Phase("fine again", 2, 0, fine, "all is well again"),
)  # fmt: skip
SECONDS = sum(phase.seconds for phase in PHASES)
