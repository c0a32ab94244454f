"""Serve: the relay as a process, or as several that share listeners and spool.

    serve(settings) -> exit code

One process opens the spool, the door and the dispatcher and runs until it is told to stop (`ears`):
then it accepts no more, finishes what is in flight within `drain_ms`, saves or refuses what has had
no answer a second before that, leaves the rest in the spool and exits 0. A second signal stops now:
what was accepted is in the spool either way.

A spool that hangs makes nobody wait: who asked for custody is told so before the door closes, and
the process ends within a few seconds of `drain_ms` with exit code 75, for it cannot say of all that
it wrote last whether that is kept. (A process in the midst of a call to a stuck disk is the
kernel's: it ends when that call does.)

With `--workers N` the parent opens the listeners, forks, and starts again whoever dies. It opens no
spool and no loop: a parent that does nothing has nothing to lose.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import shlex
import signal
import ssl
import time
from collections.abc import Sequence
from typing import IO, Final

import uvloop

from ..clock import SystemClock
from ..core.urls import concealed
from ..custody import STUCK_S
from ..errors import CannotCreate, Misconfigured
from ..ingress.http import Door
from ..ingress.limits import Limits as DoorLimits
from ..ingress.listen import Opened, listener, open_listener
from ..node import Node
from ..queues.open import open_queue
from ..settings import Settings
from ..spools.chain.spool import ChainSpool
from ..spools.closing import closed
from ..spools.desk.serving import Desk, open_desk
from ..spools.open import of_one_process, path_of
from ..spools.protocol import Spool
from ..transports.http import HttpTransport
from ..transports.limits import Limits as OutLimits
from ..transports.protocol import Transport
from ..transports.servers import Servers
from . import logs
from .announce import announce
from .collect import collecting
from .descriptors import fitted
from .ears import STOPS, ears
from .leaving import leave
from .notify import notify
from .opening import disk_of, open_for
from .plan import plan_of
from .workers import supervise

log = logging.getLogger("unspool.serve")

IN_USE_TRIES: Final = 40
IN_USE_PAUSE_S: Final = 0.05
"""Two seconds: a relay that was just killed may take a moment to be gone."""
LAST_WORDS_MS: Final = 1_000
"""Of the time to drain: for saving what has had no answer, and for saying so."""
GC_THRESHOLD: Final = 20_000
"""Requests leave no cycles behind; looking for them 30 times less often is worth a tenth."""


def serve(settings: Settings) -> int:
    """Run the relay. Returns the exit code; raises `Broken` where it cannot start."""
    logs.start(level=settings.log_level, form=settings.log_format)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    settings = fitted(settings)
    tls = _door_tls(settings)
    _may_share(settings)
    sole = [held for url in settings.spool if (held := _serve_alone(url)) is not None]
    listening = [one for text in settings.listen for one in open_listener(listener(text, tls=tls))]
    try:
        if settings.workers == 1:
            return uvloop.run(_run(settings, listening, first=True))
        return supervise(
            settings.workers,
            lambda number: uvloop.run(_run(settings, listening, first=number == 0)),
            drain_ms=settings.drain_ms,
        )
    finally:
        for held in sole:
            held.close()


async def _run(settings: Settings, listening: Sequence[Opened], *, first: bool) -> int:
    told = ears(parent=settings.workers > 1)
    collect = settings.collect if first else ()
    queues = [await open_queue(url) for url in collect]  # what makes no sense starts nothing
    spool = await open_for(settings)
    desks: list[Desk] = []
    transport = _transport(settings)
    whole = False
    try:
        node = await Node.open(
            plan=plan_of(settings),
            spool=spool,
            transport=transport,
            disk_free=disk_of(settings),
        )
        door = Door(node.relay, limits=_door_limits(settings))
        await door.listen(listening)
        node.start()
        desks = await _desks(settings.spool, spool)
        if first:
            await announce(settings, listening, node)
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        notify("READY=1")
        async with collecting(collect, queues, node, told):
            await told.wait()
            notify("STOPPING=1")
            log.info("draining: no new requests; in flight: %d", door.statistics().connections)
            whole = await _drain(door, node, transport, drain_ms=settings.drain_ms)
    finally:
        for desk in desks:
            await desk.close()
        await transport.aclose()
        whole = await closed(spool, hung=not whole) and whole
    if not whole:
        leave(settings, node.custody, unwritten=node.dispatcher.unwritten)
    return os.EX_OK


async def _drain(door: Door, node: Node, transport: Transport, *, drain_ms: int) -> bool:
    """Finish what is in flight. False: the spool did not answer in time."""
    node.draining = True
    node.hurry()
    cutting = asyncio.create_task(_cut(transport, node, drain_ms=drain_ms))
    _left, whole = await asyncio.gather(door.close(drain_ms=drain_ms), node.stop(drain_ms=drain_ms))
    cutting.cancel()
    if whole:
        custody = node.custody
        waiting = f"{max(0, custody.backlog)}" if custody.counted else "uncounted"
        log.info("drained: %s messages wait in the spool", waiting)
    return whole


async def _desks(urls: Sequence[str], spool: Spool) -> list[Desk]:
    """Operators look at a spool of one process through us."""
    spools = [one.spool for one in spool.ranks.all] if isinstance(spool, ChainSpool) else [spool]
    desks: list[Desk] = []
    for url, one in zip(urls, spools, strict=True):
        path = path_of(url)
        if one is not None and path is not None and of_one_process(url):
            desk = await open_desk(one, path.absolute())
            desks += [] if desk is None else [desk]
    return desks


def _may_share(settings: Settings) -> None:
    for url in map(concealed, settings.spool):
        if settings.workers > 1 and of_one_process(url):
            raise Misconfigured(
                f"workers = {settings.workers}, and the spool {url} can be open in one process"
                " only. Nothing was started. Share an SQLite file, or serve with one: "
                f"unspool serve --workers 1 --spool {url}"
            )


async def _cut(transport: Transport, node: Node, *, drain_ms: int) -> None:
    """A service that has not answered by then will not in time. Whoever waits for it gets a 202
    where the request may be sent again, and else a 503 that says so, while there still is time.
    So does whoever waits for a spool that hangs."""
    words_ms = min(LAST_WORDS_MS, drain_ms // 4)
    await asyncio.sleep((drain_ms - words_ms) / 1000)
    await transport.aclose()
    await asyncio.sleep(words_ms * 3 / 4000)
    node.custody.give_up(stuck_s=STUCK_S)


def _serve_alone(url: str) -> IO[bytes] | None:
    """The right to serve from this spool, for as long as the file is open.

    Two relays with one worker each know nothing of each other's keys and would try one twice;
    `--workers` is how several share. The commands do not serve, and need no such right.
    """
    path = path_of(url)
    if path is None or not os.path.isdir(path.parent):
        return None
    beside = f"{os.path.realpath(path)}-serve"  # two names of one file are one spool
    try:
        # Nobody else's: who can open it can hold it.
        held = os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    except OSError as error:
        if not os.path.lexists(beside):
            return None  # opening the spool will say what is wrong, and better
        raise CannotCreate(
            f"{beside} cannot be opened: {error.strerror}. So nobody can tell whether another relay"
            f" serves from the spool {path}. Nothing was started. Perhaps a relay was started here"
            f" once as another user: ls -l {shlex.quote(beside)}"
        ) from error
    for _ in range(IN_USE_TRIES):
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(IN_USE_PAUSE_S)
        else:
            return held
    held.close()
    raise CannotCreate(
        f"Another relay serves from the spool {path}. Nothing was started, and that one goes on. "
        "Stop it first, or keep this one's messages elsewhere: "
        f"unspool serve --spool {url.partition(':')[0]}:///other"
    )


def _transport(settings: Settings) -> Transport:
    limits = OutLimits(
        connections_max=settings.upstream_connections_max,
        keep_max_bytes=settings.answer_max_bytes,
        connect_ms=settings.connect_ms,
        first_byte_ms=settings.first_byte_ms,
        idle_ms_between_bytes=settings.idle_ms,
        total_ms=settings.total_ms,
    )
    servers: list[Transport] = []
    for origin in settings.to:
        tls = None
        if origin.startswith("https://"):
            try:
                tls = ssl.create_default_context(cafile=settings.upstream_ca or None)
            except (OSError, ssl.SSLError) as error:
                raise Misconfigured(
                    f"upstream_ca: {settings.upstream_ca!r} cannot be read as certificates: "
                    f"{error}. Nothing was started. Give a file in PEM form."
                ) from error
        servers.append(HttpTransport(origin, limits=limits, tls=tls))
    if len(servers) == 1:
        return servers[0]
    return Servers(servers, clock=SystemClock(), conduct=plan_of(settings).conduct)


def _door_limits(settings: Settings) -> DoorLimits:
    return DoorLimits(
        head_max_bytes=settings.head_max_bytes,
        fields_max=settings.fields_max,
        body_max_bytes=settings.body_max_bytes,
        head_ms=settings.head_ms,
        body_ms=settings.body_idle_ms,
        keepalive_ms=settings.keepalive_ms,
        connections_max=settings.connections_max,
    )


def _door_tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise CannotCreate(
            f"The certificate {settings.tls_cert!r} cannot be loaded: {error}. Nothing was "
            "started. Give PEM files with --tls-cert and --tls-key that belong together."
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
