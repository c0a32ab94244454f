"""Retry for an ASGI application: what fails is saved, and run again later, in this process.

    app = Retry(app, spool="sqlite:///shop.db")           outside of everything else
    app.add_middleware(Retry, spool="sqlite:///shop.db")  the last one added: that is the outermost

It is the relay with the application as its transport. A request with an `Idempotency-Key`, and a
PUT or DELETE, whose handler raises or answers 5xx is saved, answered 202 with a receipt (served
under /_unspool/), and run again later with the same key, until it succeeds or expires. What may not
be repeated goes to the application untouched: reads, a POST without a key, WebSockets. A body too
large to keep streams. A sender may ask to have a request saved first (`Prefer: respond-async`).

It belongs outside of authentication: a saved request meets it again when it is run again. Callers
are told apart by their credentials (`scope_fields`), or by `scope`, a function of the ASGI scope as
`Idempotency` takes it. `Idempotency` within it works on the same key, so that a handler that has
had its effect is not run twice; what it says of a run that is under way is waited for.

The first attempt sees the scope that the server made. Later ones, perhaps in another process, see
one like it; their context variables are those of the start.

The dispatcher starts when the application has started, or without a lifespan at the first request,
and stops with it: what is under way has `drain_ms`. Several processes share a spool by leases, and
what a process that died was trying comes due again when its lease ends.

Promises: what `relay` promises. Exceptions of what could be saved are logged, with their traceback,
and answered as 500 where they are not saved; others reach the server as they would without us.

Bugs: a handler that outlasts its attempt is waited for by the next one in its process; another
process may run it beside the first, unless `Idempotency` is within. Two applications without a
`name` and without a scope are not told apart. Receipts are at the root of the host: behind a proxy
that cuts a prefix off, their addresses lack the prefix. Background tasks of what went through here
are not waited for by the server, only by the end of the lifespan. A handler that is killed in a
later attempt is run again when the lease ends, `attempt_ms` and half a minute later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextvars import Context
from hashlib import blake2b
from typing import Any, Final, TypedDict, Unpack

from msgspec.structs import replace

from ..answers import WHY_UNKEYED
from ..clock import SystemClock
from ..core.fields import values
from ..core.idempotency import KEY_CHARS_MAX
from ..core.lifecycle import Keeping, Policy
from ..core.message import (
    IDEMPOTENT_METHODS,
    SAFE_METHODS,
    Destination,
    Field,
    Request,
    Response,
    Value,
)
from ..core.prefer import read_prefer
from ..core.schedule import Pace
from ..errors import UnspoolError
from ..ingress.asgi import asgi, send_answer, target_of
from ..ingress.protocol import Caller
from ..node import Node, Plan
from ..passage import Options as RelayOptions
from ..problems import PREFIX, problem, proxy_status
from ..spools.protocol import Spool, Survives
from ..transports.app import ATTEMPT, PRINCIPAL, REMEMBERED, AppTransport, remember
from ..transports.call import ASGIApp, Event, Receive, Scope, Send
from .gate import as_bytes, is_validation_error
from .lifespan import lifespan
from .options import Grade, checked
from .place import Place
from .principal import Asker, ScopeOf, owner_of

log: Final = logging.getLogger("unspool.middleware")

LEASE_SPARE_MS: Final = 30_000
"""How much longer than an attempt its lease is: for writing down what came of it."""

OURS: Final = PREFIX.encode()
START_AGAIN_S: Final = 1.0
"""How long after a spool that could not be opened it is tried again."""


class RetryOptions(TypedDict, total=False):
    name: str
    scope_fields: Collection[str]
    key_max_chars: int
    body_max_bytes: int
    wait_max_ms: int
    repeat_always: bool
    lifetime_ms: int
    attempt_ms: int
    backoff_least_ms: int
    backoff_most_ms: int
    backlog_max: int
    drain_ms: int
    unstored: Callable[[Response], bool]
    alone: bool
    answer_ms: int
    key_ms: int
    answer_max_bytes: int
    survives: Grade


class Habits(Value, frozen=True):
    """How an application retries."""

    name: str = "app"
    """The application's name in the spool: its messages are its own."""
    scope_fields: tuple[bytes, ...] = (
        b"authorization", b"cookie", b"x-api-key", b"proxy-authorization",
    )  # fmt: skip
    """The request fields that tell one caller from another, unless `scope` does."""
    key_max_chars: int = KEY_CHARS_MAX
    """A longer key is refused."""
    body_max_bytes: int = 1024 * 1024
    """A larger body streams, and is not saved."""
    wait_max_ms: int = 60_000
    """The longest that `Prefer: wait=` and `?wait=` may wait."""
    repeat_always: bool = False
    """Save a POST without a key, too: its handler may be run twice."""
    lifetime_ms: int = 5 * 24 * 3600 * 1000
    """How long a saved request is tried before it is given up."""
    attempt_ms: int = 60_000
    """How long an attempt may take. A handler that takes longer under a key goes on, and is the
    next attempt's."""
    backoff_least_ms: int = 1_000
    """The pause before a saved request is tried again is as long as it has waited; at least
    this,"""
    backoff_most_ms: int = 3_600_000
    """and at most this."""
    backlog_max: int = 0
    """So many may wait; more are not saved. 0: as many as the disk holds."""
    drain_ms: int = 10_000
    """How long, when the application stops, what is under way may go on."""
    unstored: Callable[[Response], bool] = is_validation_error
    """Which answers are not remembered."""
    alone: bool = False
    """Nobody else uses the spool under this name: no claims are written, and a key costs one
    commit less."""


class _Station:
    """The node of one loop."""

    __slots__ = ("delivers", "node")

    def __init__(self, node: Node) -> None:
        self.node: Final = node
        self.delivers = False


class Retry:
    """See the head of this file."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        spool: str | Spool,
        scope: ScopeOf | None = None,
        **options: Unpack[RetryOptions],
    ) -> None:
        self.app: Final = app
        self._asker: Final = Asker(scope) if scope is not None else None
        self._habits, self._keeping, self._survives = read(options, scoped=scope is not None)
        habits = self._habits
        self._transport: Final = AppTransport(
            app, attempt_ms=habits.attempt_ms, keep_max_bytes=self._keeping.answer_max_bytes
        )
        self._starting: asyncio.Task[None] | None = None
        self._starts_at = 0.0
        self._place: Final[Place[_Station]] = Place(
            spool,
            name=f"{habits.name} (retry)",
            owner="" if "name" in options or scope is None else owner_of(scope),
            alone=habits.alone,
            survives=self._survives,
            clock=SystemClock(),
            make=self._make,
            close=self._close,
        )
        self._door: Final = asgi(self._handle, body_max_bytes=habits.body_max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind != "http":
            await self.app(scope, receive, send)
        else:
            station = self._place.here()
            if station is None or not station.delivers:
                self._start_late(scope)
            await self._http(scope, receive, send)

    # --- one request ------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if target_of(scope).startswith(OURS):
            await self._door(scope, receive, send)
            return
        method = scope["method"].encode()
        asks = self._asks(scope["headers"], safe=method in SAFE_METHODS)
        if not asks and (method in SAFE_METHODS or not self._may_repeat(method)):
            out = send if method in SAFE_METHODS else _passed_back(send)
            await self.app(scope, receive, out)
            return
        try:
            await self._place.get()
        except UnspoolError as error:
            log.error("nothing is saved: %s", error)
            if asks:  # it may have run (I5)
                down = problem("refused", "the spool cannot be opened", retry_after_s=1)
                await send_answer(down, False, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        ours: list[Field] = [remember(scope)]
        if self._asker is not None and asks:
            principal = await self._asker.principal(scope)
            if isinstance(principal, Response):
                await send_answer(principal, False, receive, send)
                return
            # Kept with the request: what it tells is no more than that it is the same caller.
            digest = blake2b(as_bytes(principal), digest_size=16, person=b"unspool caller")
            ours.append((PRINCIPAL, digest.hexdigest().encode()))
        headers = [f for f in scope["headers"] if f[0].lower() not in _NOT_LET_IN]
        with self._transport.live({**scope, "headers": headers}):
            await self._door({**scope, "headers": [*headers, *ours]}, receive, send)

    def _asks(self, headers: Any, *, safe: bool) -> bool:
        """Does the request speak to us: by a key, an order, or a wish to be saved first?"""
        if not safe and (values(headers, b"idempotency-key") or values(headers, b"unspool-order")):
            return True
        prefers = [bytes(value) for value in values(headers, b"prefer")]
        return bool(prefers) and read_prefer(prefers, wait_max_ms=0).respond_async

    def _may_repeat(self, method: bytes) -> bool:
        return method in IDEMPOTENT_METHODS or self._habits.repeat_always

    async def _handle(self, request: Request, caller: Caller, /) -> Response:
        try:
            station = await self._place.get()
        except UnspoolError as error:
            log.error("nothing can be looked up: %s", error)
            return problem("refused", "the spool cannot be opened", retry_after_s=1)
        return await station.node.relay(request, caller)

    # --- the node ---------------------------------------------------------------------------

    async def _make(self, spool: Spool, secret: bytes) -> _Station:
        habits = self._habits
        claims = spool.promises.shared and not habits.alone
        policy = Policy(
            pace=Pace(least_ms=habits.backoff_least_ms, most_ms=habits.backoff_most_ms),
            keeping=self._keeping,
        )
        options = RelayOptions(
            destination=Destination(habits.name),
            via="unspool",
            policy=policy,
            scope_fields=habits.scope_fields,
            key_max_chars=habits.key_max_chars,
            lifetime_ms=habits.lifetime_ms,
            wait_max_ms=habits.wait_max_ms,
            lease_ms=habits.attempt_ms + LEASE_SPARE_MS,
            total_ms=habits.attempt_ms,
            repeat_always=habits.repeat_always,
            forwarded=False,
            claims=claims,
            always_try=True,
            unstored=habits.unstored,
        )
        plan = Plan(
            options=options,
            required=self._survives,
            backlog_max=habits.backlog_max,
            alone=not claims,
        )
        return _Station(await Node.open(plan=plan, spool=spool, transport=self._transport))

    async def _begin(self) -> None:
        """Deliver, from here on, in this loop."""
        station = await self._place.get()
        if not station.delivers:
            station.delivers = True
            # Not in whatever context the first request came with.
            Context().run(station.node.start)

    def _start_late(self, scope: Scope) -> None:
        """No lifespan has started us: the first request does, and does not wait for it."""
        loop = asyncio.get_running_loop()
        starting = self._starting
        mine = starting is not None and starting.get_loop() is loop
        if mine and starting is not None and (not starting.done() or loop.time() < self._starts_at):
            return
        self._starts_at = loop.time() + START_AGAIN_S
        self._transport.template = process_wide(scope)
        self._starting = loop.create_task(self._begin_or_say(), context=Context())

    async def _begin_or_say(self) -> None:
        try:
            await self._begin()
        except UnspoolError as error:
            log.error("nothing is saved, and what is saved waits: %s", error)

    async def _close(self, station: _Station) -> None:
        node = station.node
        node.draining = True
        node.hurry()
        if station.delivers:
            await node.stop(drain_ms=self._habits.drain_ms)
        running = [task for task in self._transport.running if not task.done()]
        if running:
            await asyncio.wait(running, timeout=self._habits.drain_ms / 1000)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def open_it() -> None:
            await self._place.get()

        async def ready() -> None:
            self._transport.template = process_wide(scope)
            await self._begin()

        await lifespan(
            self.app, scope, receive, send, begin=open_it, ready=ready, end=self._place.aclose
        )


_NOT_LET_IN: Final = frozenset({REMEMBERED, PRINCIPAL, ATTEMPT})


def process_wide(scope: Scope) -> dict[str, Any]:
    """What of a scope belongs to the process, and so to each attempt."""
    found = {name: scope[name] for name in ("asgi", "app") if name in scope}
    if "state" in scope:
        found["state"] = dict(scope["state"])  # as it is now: a request writes into its own
    return found


def _passed_back(send: Send) -> Send:
    """The application's own answer; of a 5xx it says why it was not saved."""

    async def sent(event: Event) -> None:
        if event["type"] == "http.response.start" and event["status"] >= 500:
            status = proxy_status("", f"not saved: {WHY_UNKEYED}", received=event["status"])
            told = (status[0].lower(), status[1])
            event = {**event, "headers": [*event.get("headers", ()), told]}
        await send(event)

    return sent


def read(options: RetryOptions, *, scoped: bool) -> tuple[Habits, Keeping, Survives]:
    """Raises `Misconfigured` for what makes no sense."""
    given, keeping, survives = checked(dict(options), RetryOptions)
    if "scope_fields" in given:
        given["scope_fields"] = tuple(name.lower().encode() for name in given["scope_fields"])
    habits = Habits(**{name: given[name] for name in given if name in Habits.__struct_fields__})
    if scoped:
        habits = replace(habits, scope_fields=(PRINCIPAL,))
    return habits, keeping, survives
