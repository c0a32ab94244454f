"""Collect: from queues into the spool, as a process of its own or beside the relay.

    collect(settings, urls, once=…) -> exit code        `unspool collect`
    async with collecting(urls, queues, node, told): …  `unspool serve --collect`

The process opens the spool that a relay uses, running or not, and delivers nothing itself. It runs
until SIGTERM or SIGINT, finishes what it has taken, gives the rest back and exits 0. A queue that
is down is no reason to end: it is asked again, as a mail server asks. A spool that hangs is given
up after `drain_ms`: what was taken from the queue is given back, and the exit code is 75.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from .. import __version__
from ..chance import Chance
from ..clock import SystemClock
from ..core.admission import Terms
from ..core.urls import concealed
from ..custody import STUCK_S, Custody
from ..errors import InUse, Misconfigured, PromiseBroken
from ..ingress.collector import Collector
from ..node import Node, marked
from ..queues.open import open_queue
from ..queues.protocol import Queue
from ..settings import Settings
from ..spools.closing import closed
from ..spools.protocol import Spool
from . import logs
from .ears import STOPS, ears
from .leaving import leave
from .notify import notify
from .plan import plan_of
from .wording import SURVIVES

log = logging.getLogger("unspool.collect")

GIVE_BACK_S: Final = 2.0
"""For telling the queue what became of what it gave, when all else has ended."""


def collect(settings: Settings, urls: Sequence[str], *, once: bool) -> int:
    """Collect from these queues. Returns the exit code; raises `Broken` where it cannot start."""
    if settings.spool[0].startswith("memory:"):
        raise Misconfigured(
            "a spool in memory would end with this command. Nothing was collected. Let the relay "
            f"itself collect: unspool serve --spool memory: --collect {concealed(urls[0])}"
        )
    logs.start(level=settings.log_level, form=settings.log_format)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    return asyncio.run(_run(settings, urls, once=once))


async def _run(settings: Settings, urls: Sequence[str], *, once: bool) -> int:
    from .opening import open_for

    told = ears()
    queues = [await open_queue(url) for url in urls]  # before the spool: these ask nobody yet
    try:
        spool = await open_for(settings)
    except InUse as error:
        raise InUse(
            f"{error} If it is the relay of this spool, let it collect itself: "
            f"unspool serve --collect {concealed(urls[0])}"
        ) from error
    whole = False
    try:
        custody, collectors = await _opened(settings, spool, urls, queues)
        _announce(settings, urls, spool)
        notify("READY=1")
        work = _drained(collectors, told) if once else _collected(collectors, told)
        code = await _until_told(asyncio.create_task(work), told, custody, settings.drain_ms)
        whole = not custody.gave_up
    finally:
        whole = await closed(spool, hung=not whole) and whole
    if not whole:
        leave(settings, custody)
    return code


async def _collected(collectors: Sequence[Collector], told: asyncio.Event) -> int:
    running = [asyncio.create_task(collector.run(told)) for collector in collectors]
    try:
        await asyncio.gather(*running)
    finally:  # one that cannot begin ends all: the operator looks at it now
        told.set()
        await asyncio.gather(*running, return_exceptions=True)
    return os.EX_OK


async def _until_told(
    work: asyncio.Task[int], told: asyncio.Event, custody: Custody, drain_ms: int
) -> int:
    """The work's exit code. Once told to stop it has `drain_ms`, and is not kept by the spool."""
    ear = asyncio.create_task(told.wait())
    try:
        await asyncio.wait([work, ear], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            notify("STOPPING=1")
            await asyncio.wait([work], timeout=drain_ms / 1000)
            custody.give_up(stuck_s=STUCK_S)
        await _ended([work])
        await custody.drain(within_ms=drain_ms)
        return os.EX_TEMPFAIL if work.cancelled() else work.result()
    finally:
        ear.cancel()
        work.cancel()


async def _opened(
    settings: Settings, spool: Spool, urls: Sequence[str], queues: Sequence[Queue]
) -> tuple[Custody, list[Collector]]:
    """Custody as the relay of this spool has it, and a collector for each queue."""
    from .opening import disk_of

    plan = plan_of(settings)
    if spool.promises.survives < plan.required:
        raise PromiseBroken(
            f"the spool {' '.join(map(concealed, settings.spool))} "
            f"{SURVIVES[spool.promises.survives]}, and `survives` asks for "
            f"{plan.required.name.lower()}. Nothing was collected. Use another spool, or "
            f"say --survives {spool.promises.survives.name.lower()}"
        )
    terms = Terms(
        survives=spool.promises.survives,
        required=plan.required,
        backlog_max=plan.backlog_max,
        disk_free_min_bytes=plan.disk_free_min_bytes,
    )
    custody = Custody(spool=spool, terms=terms, disk_free=disk_of(settings))
    clock, chance = SystemClock(), Chance()
    secret = await custody.open(now=clock.now(), chance=chance)
    collectors = [
        Collector(
            queue=queue,
            called=concealed(url),
            custody=custody,
            options=marked(plan.options, secret),
            secret=secret,
            clock=clock,
            chance=chance,
            exacting=True,
        )
        for url, queue in zip(urls, queues, strict=True)
    ]
    return custody, collectors


async def _drained(collectors: Sequence[Collector], told: asyncio.Event) -> int:
    """Until there is nothing more, or somebody says stop."""
    all_of_it = True
    for collector in collectors:
        all_of_it = await collector.drain(told) and all_of_it
    return os.EX_OK if all_of_it else os.EX_TEMPFAIL


@contextlib.asynccontextmanager
async def collecting(
    urls: Sequence[str], queues: Sequence[Queue], node: Node, told: asyncio.Event
) -> AsyncIterator[None]:
    """Collect beside a relay, until `told`. Then what was taken is in the spool, or given back."""
    running = []
    for url, queue in zip(urls, queues, strict=True):
        collector = Collector(
            queue=queue,
            called=concealed(url),
            custody=node.custody,
            options=node.options,
            secret=node.secret,
            clock=node.clock,
            chance=node.chance,
            tries=node.relay.tries,
        )
        running.append(asyncio.create_task(collector.run(told), name="unspool collector"))
        log.info("collecting from %s", concealed(url))
    for task in running:
        task.add_done_callback(_look)
    try:
        yield
    finally:
        told.set()
        await _ended(running)


async def _ended(running: Sequence[asyncio.Task[Any]]) -> None:
    """They have been told. A queue that is not told in time gives again what it gave."""
    if running:
        _done, late = await asyncio.wait(running, timeout=GIVE_BACK_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _look(task: asyncio.Task[None]) -> None:
    """A mistake of ours must not be silent: the relay goes on, and nothing more is collected."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("collecting has ended; the relay goes on", exc_info=error)


def _announce(settings: Settings, urls: Sequence[str], spool: Spool) -> None:
    """Three lines: from where, into what, for whom."""
    name = (settings.destination or settings.to)[0]
    sys.stderr.write(
        f"unspool {__version__} collects from {' '.join(map(concealed, urls))}\n"
        f"  spool        {' '.join(map(concealed, settings.spool))}: "
        f"{SURVIVES[spool.promises.survives]} ({spool.promises.detail})\n"
        f"  delivery     by the relay of this spool: unspool serve --to {name}"
        f" {' '.join(f'--spool {concealed(url)}' for url in settings.spool)}\n"
    )
    sys.stderr.flush()
