"""AsyncClient: the smart client, for asyncio. `blocking.Client` is the same for everybody else.

    async with AsyncClient(["https://a.example"], outbox="outbox.db") as client:
        result = await client.post("/orders", json=order, key=order.id)
        async for settled in client.settled(): …      what became of what was queued
        await client.drain(timeout=60)                until nothing waits
        await client.wait(key, timeout=60)            what became of one

The road of a request: its key, on disk first if asked for; direct attempts, queues (`route`); the
outbox; the fallback plan. What somebody owns is a result; what nobody owns raises `Undelivered`,
with the request attached. What makes no sense raises before anything is sent: `Unacceptable`,
`Reused`, `Misconfigured`, and what the outbox raises when it is opened, at the first use.

One key of one caller is one request. Two calls under one key go one after the other, and the second
raises `Busy` where its deadline is over first; another request under it is refused (`Reused`), as
far as this client remembers, or its outbox does; the servers remember longer.

Belongs to one event loop and one process. Bugs: a caller who is cancelled learns nothing; what had
been sent may be applied, and what was on disk is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Self, TypedDict, Unpack

import msgspec

from .. import __version__
from ..chance import Chance
from ..core.idempotency import uuid7
from ..errors import Undelivered, UnspoolError
from .endings import closed, fall_back, no_outbox, silent, undelivered, unusable
from .events import Ended, teller
from .known import Known
from .options import ClientOptions, Options, checked
from .parts import Parts, open_parts
from .record import result_of
from .request import Auth, Content, Defaults, Fields, Params, Request, compose
from .results import (
    Delivered,
    Fate,
    Progress,
    Queued,
    Rejected,
    Result,
    Settled,
)
from .road import Road

log: Final = logging.getLogger("unspool.client")

LOOK_S: Final = 0.1
OPENS_S: Final = 5.0
"""So long who closes a client waits for an outbox that is just being opened."""
BEYOND_S: Final = 10.0
"""So long after its time a `wait` or `drain` waits for an outbox that does not answer."""


@contextlib.asynccontextmanager
async def patience(until: float) -> AsyncIterator[None]:
    """With an outbox that does not answer. Raises `Unavailable`."""
    try:
        async with asyncio.timeout_at(until + BEYOND_S):
            yield
    except TimeoutError as error:
        raise silent() from error


class Asked(TypedDict, total=False):
    """What may be said of a request."""

    params: Params | None
    """The query: a mapping, or pairs. Behind what the path has of one."""
    headers: Fields | None
    """Fields, before those of the client."""
    json: Any
    """The body, as JSON."""
    data: Any
    """The body: a mapping as a form, or bytes or text."""
    content: Content | None
    """The body: bytes or text."""
    auth: Auth | None
    """`("name", "password")`, or the whole value of Authorization."""
    key: str | bool | None
    """The Idempotency-Key: what this one thing that you want done is called, the same for every
    try. Default: a UUIDv7. `False`: none is sent, and it is never sent twice. A key is its
    caller's: under other credentials (Authorization, Cookie, X-API-Key, Proxy-Authorization) it is
    another request's."""
    deadline: float | None
    """Seconds for this call, instead of the client's."""
    lifetime: float | None
    """Seconds that it may wait in the outbox or with a relay, instead of the client's."""
    order: str
    """In the outbox and with relays it waits behind what was kept earlier under this word."""
    contended: bool
    """It asks for something scarce, and is worth nothing late: nobody is to keep it, and no second
    server is asked once it may have been applied."""
    attempts: int | None
    """Direct attempts at most, instead of the client's. 1 where somebody above repeats already."""


class AsyncClient:
    def __init__(self, servers: str | Sequence[str] = (), **given: Unpack[ClientOptions]) -> None:
        """Raises `Misconfigured`. Nothing is opened before the first use."""
        self.options: Final[Options] = checked(servers, given)
        self._defaults = defaults_of(self.options)
        self._tell = teller(self.options.on_event)
        self._chance = Chance()
        self._known = Known()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._parts: Parts | None = None
        self._opening: asyncio.Task[Parts] | None = None
        self._closed = False
        self._left = False  # closed, and what was being opened was not waited for
        self._calls = 0
        self._idle = asyncio.Event()

    # --- one request -------------------------------------------------------------------------

    async def request(self, method: str, path: str, **asked: Unpack[Asked]) -> Result:
        """Send it. Raises `Undelivered` where nobody has it, `Unacceptable` where it is wrong."""
        return await self.send(self.build(method, path, **asked))

    def build(self, method: str, path: str, **asked: Unpack[Asked]) -> Request:
        """The request, whole and with its key, and not sent. Raises `Unacceptable`."""
        return compose(method, path, defaults=self._defaults, mint=self._mint, **asked)

    async def get(self, path: str, **asked: Unpack[Asked]) -> Result:
        return await self.request("GET", path, **asked)

    async def head(self, path: str, **asked: Unpack[Asked]) -> Result:
        return await self.request("HEAD", path, **asked)

    async def post(self, path: str, **asked: Unpack[Asked]) -> Result:
        return await self.request("POST", path, **asked)

    async def put(self, path: str, **asked: Unpack[Asked]) -> Result:
        return await self.request("PUT", path, **asked)

    async def patch(self, path: str, **asked: Unpack[Asked]) -> Result:
        return await self.request("PATCH", path, **asked)

    async def delete(self, path: str, **asked: Unpack[Asked]) -> Result:
        return await self.request("DELETE", path, **asked)

    async def send(self, request: Request) -> Result:
        """Send a request that was built, or that came with an `Undelivered`."""
        try:
            return await self.carry(request)
        except Undelivered as error:
            if self.options.fallback is None:
                raise
            return await fall_back(self.options.fallback, request, error)

    async def carry(self, request: Request) -> Result:
        """As `send`, without the fallback plan."""
        loop = self._loop_here()
        began = loop.time()
        parts = await (self.ready() if self._parts else self._ready_by_its_deadline(request))
        name, tries = "Undelivered", 0
        self._calls += 1
        try:
            if request.deadline_ms <= 0:
                raise undelivered(
                    request,
                    f"its deadline had passed {-request.deadline_ms} ms ago; it was not sent",
                )
            self._known.check(request)
            async with self._known.turn(request):
                waited_ms = round((loop.time() - began) * 1000)
                left_ms = max(1, request.deadline_ms - waited_ms)
                before = self.options.durability == "before"
                result = await Road(parts, self._known, before=before).carry(
                    request, deadline_ms=left_ms
                )
            name, tries = type(result).__name__, len(result.tries)
            if not isinstance(result, Delivered | Rejected):
                log.info("%s under the key %s: %s", request.method, request.key, name)
            return result
        except Undelivered as error:
            tries = len(error.tries)
            log.info("%s under the key %s: nobody has it", request.method, request.key)
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
            took_ms = round((loop.time() - began) * 1000)
            self._tell(Ended(request.key, name, took_ms, tries))

    # --- what was queued ---------------------------------------------------------------------

    async def settled(self) -> AsyncIterator[Settled]:
        """What becomes of queued requests, from now on: ours, and those that we send for others."""
        parts = await self.ready()
        if parts.watch is None:
            raise no_outbox()
        async for one in parts.watch.news():
            self._known.settled(one.key)
            yield one

    async def wait(
        self,
        key: str,
        timeout: float = 30.0,
        *,
        auth: Auth | None = None,
        headers: Fields | None = None,
    ) -> Fate | Queued:
        """What became of the request under this key; `Queued` when `timeout` seconds are over.
        `auth`, `headers`: the credentials that it came with, where they are not the client's.
        Raises `Misconfigured` without an outbox, KeyError for a key that it does not know, and
        `Unavailable` where the outbox cannot be asked, or has not answered ten seconds after that.
        """
        scope = self.build("GET", "/", auth=auth, headers=headers).scope
        until = self._loop_here().time() + timeout
        async with patience(until):
            return await self._fate(key, scope, until)

    async def _fate(self, key: str, scope: tuple[bytes, ...], until: float) -> Fate | Queued:
        loop = asyncio.get_running_loop()
        parts = await self.ready()
        outbox = parts.outbox
        if outbox is None:
            raise no_outbox()
        while True:
            entry = await outbox.find(key, scope)
            if entry is None:
                raise KeyError(f"{key!r} is not in the outbox, under these credentials")
            result = result_of(
                entry, survives=outbox.survives, receipt_from=parts.route.receipt_from
            )
            left = until - loop.time()
            if not isinstance(result, Queued) or left <= 0:
                return result
            await asyncio.sleep(min(LOOK_S, left))

    async def drain(
        self, timeout: float = 60.0, *, progress: Callable[[Progress], Any] | None = None
    ) -> Progress:
        """Wait until nothing waits in the outbox for this client's service, or `timeout` seconds
        are over. `progress` is told whenever that changes. Raises `Unavailable` where the outbox
        cannot be asked, or has not answered ten seconds after that."""
        loop = self._loop_here()
        until = loop.time() + timeout
        async with patience(until):
            parts = await self.ready()
        outbox, watch = parts.outbox, parts.watch
        if outbox is None or watch is None:
            raise no_outbox()
        before, last = watch.settled, None
        while True:
            async with patience(until):
                waiting = await outbox.count()
                ended = not waiting and not outbox.dispatcher.busy
                if ended:  # what became of the last is told before nothing is said to wait
                    with contextlib.suppress(UnspoolError):
                        await watch.catch_up()
            now = Progress(waiting, watch.settled - before)
            if now != last and progress is not None:
                progress(now)
            last = now
            if ended or loop.time() >= until:
                return now
            await asyncio.sleep(LOOK_S)

    def statistics(self) -> dict[str, Any]:
        """How it does, for people and probes: servers, budgets, what waits."""
        if self._parts is None:
            return {}
        route, outbox = self._parts.route, self._parts.outbox
        lanes = [one.lane.view() for one in route.health.servers]
        return {
            "servers": {
                server.where: msgspec.to_builtins(lane)
                for server, lane in zip(route.servers, lanes, strict=True)
            },
            "budget": route.budget.level,
            "drops": route.throttle.drop(self.options.clock.now()),
            "waiting": outbox.waiting if outbox else 0,
            "sends": outbox.sends if outbox else False,
        }

    # --- beginning and end -------------------------------------------------------------------

    async def ready(self) -> Parts:
        """Open what is needed, once. Raises what a person must mend, before anything is sent."""
        loop = self._loop_here()
        if self._closed:
            raise closed()
        if self._parts is not None and self._loop is loop:
            return self._parts
        if self._loop is not None and self._loop is not loop:
            ended = "has closed" if self._loop.is_closed() else "is another one"
            raise unusable(f"the event loop that it belongs to {ended}", "Make one in each loop")
        self._loop, self._pid = loop, os.getpid()
        if self._opening is None:
            self._opening = loop.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _loop_here(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None and self._pid != os.getpid():  # asyncio's words would be others
            raise unusable(
                "it was opened before this process was forked", "Make one in each process"
            )
        return asyncio.get_running_loop()

    async def _ready_by_its_deadline(self, request: Request) -> Parts:
        try:
            async with asyncio.timeout(request.deadline_ms / 1000):
                return await self.ready()
        except TimeoutError as error:
            why = "the outbox had not opened when its deadline came; it was not sent"
            raise undelivered(request, why) from error

    async def _open(self) -> Parts:
        parts = await open_parts(self.options, tell=self._tell)
        if self._left:
            await parts.aclose()
            raise closed()
        parts.start(sends=self.options.sends)
        self._parts = parts
        return parts

    def _opened(self, task: asyncio.Task[Parts]) -> None:
        self._opening = None
        if task.cancelled() or task.exception() is not None:
            self._loop = None  # whoever asks next tries again

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go. Calls under way have `drain_ms` to end. What waits in the outbox stays there, and
        is sent by whoever opens it next."""
        self._closed = True
        if self._pid and self._pid != os.getpid():
            return
        if self._calls:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.drain_ms / 1000):
                    await self._idle.wait()
        if self._opening is not None:
            _, late = await asyncio.wait([self._opening], timeout=OPENS_S)
            if late:
                self._left = True
                log.warning("the outbox does not open, and was not waited for")
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.aclose()

    def _mint(self) -> str:
        return uuid7(now=self.options.clock.now(), chance=self._chance(10))


def defaults_of(options: Options) -> Defaults:
    ours = Defaults(fields=((b"User-Agent", f"unspool/{__version__}".encode()),))
    fields = compose(
        "GET", "/", defaults=ours, mint=str, headers=options.headers, auth=options.auth
    ).fields
    return Defaults(
        fields=fields,
        deadline_ms=round(options.deadline * 1000),
        lifetime_ms=round(options.lifetime * 1000),
        body_max_bytes=options.body_max_bytes,
        servers_know_keys=options.servers_know_keys,
    )
