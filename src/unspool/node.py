"""A node: a spool, a relay and a dispatcher, wired together. The one place that constructs.

    node = await Node.open(spool=…, transport=…, destination=…, …)
    node.start();  response = await node.relay(request, caller);  await node.stop(drain_ms=…)

The command `serve` makes one per process; tests make theirs over a memory spool and a clock of
their own. Nothing in the package is global.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from hashlib import blake2b
from random import random
from typing import Final

import msgspec

from .chance import Chance
from .clock import Clock, SystemClock
from .core.admission import Terms
from .core.lane import Conduct
from .core.lifecycle import Policy
from .core.message import Destination, Value
from .core.scheduler import ATTEMPTS_MAX, Scheduler
from .custody import Custody
from .dispatcher import Dispatcher
from .errors import UnspoolError
from .passage import Options
from .receipts import Board, Receipts
from .relay import Relay
from .saving import Saving
from .spools.protocol import Spool, Survives
from .transports.protocol import Transport

log = logging.getLogger("unspool.node")

RECOUNT_MS: Final = 10_000
LAST_WRITES_MS: Final = 2_000
"""Beyond the time to drain, for writing down what came at its very end."""


class Plan(Value, frozen=True):
    """Everything a node is told; the settings of the same names, in the core's types."""

    options: Options
    formerly: tuple[Destination, ...] = ()
    """Other names under which messages for this service may wait."""
    required: Survives = Survives.POWER
    backlog_max: int = 0
    disk_free_min_bytes: int = 0
    attempts_max: int = ATTEMPTS_MAX
    conduct: Conduct = Conduct()
    alone: bool = True
    """Nobody else settles messages of this spool while we run."""


def plan_for(destination: str, *, via: str = "unspool", policy: Policy | None = None) -> Plan:
    """A plan with everything at its default, for tests and small uses."""
    options = Options(destination=Destination(destination), via=via, policy=policy or Policy())
    return Plan(options=options)


def marked(options: Options, secret: bytes) -> Options:
    """Relays in a row are all called unspool; the spool's secret tells them apart."""
    mark = blake2b(secret, digest_size=4, person=b"unspool via").hexdigest()
    return msgspec.structs.replace(options, via=f"{options.via}-{mark}")


class Node:
    def __init__(
        self,
        *,
        plan: Plan,
        secret: bytes,
        custody: Custody,
        transport: Transport,
        clock: Clock,
        chance: Callable[[int], bytes],
        luck: Callable[[], float],
    ) -> None:
        options = marked(plan.options, secret)
        self.plan: Final = plan
        self.options: Final = options
        self.secret: Final = secret
        self.custody: Final = custody
        self.clock: Final = clock
        self.chance: Final = chance
        self.scheduler: Final = Scheduler(attempts_max=plan.attempts_max, conduct=plan.conduct)
        self.draining = False
        board = self._board = Board(clock=clock, alone=plan.alone)
        self.dispatcher: Final = Dispatcher(
            custody=custody,
            transport=transport,
            scheduler=self.scheduler,
            board=board,
            policy=options.policy,
            clock=clock,
            lease_ms=options.lease_ms,
            serves=(options.destination, *plan.formerly),
            chance=luck,
            tried=lambda key: self.relay.tries.has(key),
        )
        self.relay: Final = Relay(
            options=options,
            secret=secret,
            custody=custody,
            saving=Saving(
                options=options,
                custody=custody,
                board=board,
                clock=clock,
                chance=chance,
            ),
            receipts=Receipts(
                custody=custody,
                board=board,
                clock=clock,
                keeping=options.policy.keeping,
                wait_max_ms=options.wait_max_ms,
                ready=self.ready,
            ),
            transport=transport,
            lane=self.scheduler.lane(options.destination),
            clock=clock,
            wake=self.dispatcher.wake,
            luck=luck,
        )
        self._running: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        *,
        plan: Plan,
        spool: Spool,
        transport: Transport,
        clock: Clock | None = None,
        chance: Callable[[int], bytes] | None = None,
        luck: Callable[[], float] = random,
        disk_free: Callable[[], int | None] | None = None,
    ) -> Node:
        """A node over this spool, which stays the caller's to close."""
        clock = clock or SystemClock()
        chance = chance or Chance()
        terms = Terms(
            survives=spool.promises.survives,
            required=plan.required,
            backlog_max=plan.backlog_max,
            disk_free_min_bytes=plan.disk_free_min_bytes,
        )
        custody = Custody(spool=spool, terms=terms, disk_free=disk_free)
        secret = await custody.open(now=clock.now(), chance=chance)
        if plan.backlog_max:
            await custody.count()  # a limit that is asked for holds from the first request on
        return cls(
            plan=plan,
            secret=secret,
            custody=custody,
            transport=transport,
            clock=clock,
            chance=chance,
            luck=luck,
        )

    def start(self) -> None:
        """Begin delivering."""
        assert self._running is None
        self._running = asyncio.create_task(self.dispatcher.run(), name="unspool dispatcher")
        self._counting = asyncio.create_task(self._count(), name="unspool count")

    async def _count(self) -> None:
        """How many wait. Others and operators settle too, so it is counted again and again; never
        so often that the counting costs more than a fiftieth of one thread."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.custody.count()
            except UnspoolError as error:
                log.warning("the waiting messages could not be counted: %s", error)
            except Exception:
                log.exception("counting the waiting messages was a mistake; it goes on")
            took_s = loop.time() - began
            await asyncio.sleep(max(RECOUNT_MS / 1000, 50 * took_s))

    @property
    def _delivers(self) -> bool:
        """Is there a dispatcher? Without one, what is accepted would wait for a restart."""
        return self._running is not None and not self._running.done()

    def ready(self) -> dict[str, object]:
        """How it does, for probes and people."""
        now = self.clock.now()
        reject = self.custody.admit(now)
        promises = self.custody.spool.promises
        chain = self.custody.chain
        spools = {} if chain is None else {"spools": msgspec.to_builtins(chain.views())}
        return {
            "ready": not self.draining and reject is None and self._delivers,
            "delivers": self._delivers,
            "draining": self.draining,
            "takes_custody": reject is None,
            "why_not": reject.detail if reject else None,
            "survives": promises.survives.name.lower(),
            # A spool of ten million is counted for seconds, and who waits for none to be left must
            # not be told of none before.
            "backlog": max(0, self.custody.backlog) if self.custody.counted else None,
            "delivered": self.dispatcher.delivered,
            "deferred": self.dispatcher.deferred,
            "bounced": self.dispatcher.bounced,
            **spools,
            "lanes": msgspec.to_builtins(self.scheduler.statistics().lanes),
        }

    def hurry(self) -> None:
        """Whoever waits for an answer gets the receipt now."""
        self._board.hurry()

    async def stop(self, *, drain_ms: int) -> bool:
        """Deliver no more; let what is under way end, for so long. What is left stays in the spool.

        False: the spool has not taken or confirmed all that it was given, however long that took.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + drain_ms / 1000

        def left_ms(beyond_ms: int = 0) -> int:
            return max(0, int((until - loop.time()) * 1000) + beyond_ms)

        self.draining = True
        await self.dispatcher.stop(drain_ms=left_ms())
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
        if self._running is not None:
            running, self._running = self._running, None
            self.dispatcher.wake()
            # What it is just leasing is given back, however short the time: left leased, it would
            # look like an attempt that was cut short, and what may not be repeated would end there.
            await asyncio.wait([running], timeout=left_ms(LAST_WRITES_MS // 2) / 1000)
            running.cancel()  # the spool hangs: what that leases now comes due by itself
            await asyncio.gather(running, return_exceptions=True)
            await self.dispatcher.stop(drain_ms=left_ms())  # what it had just leased when told
        await self.custody.drain(within_ms=left_ms(LAST_WRITES_MS))
        return not self.custody.gave_up and not self.dispatcher.unwritten
