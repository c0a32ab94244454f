"""Idempotency for an ASGI application: FastAPI, Starlette, Litestar, Quart, or one by hand.

    app.add_middleware(Idempotency, spool="sqlite:///idem.db", scope=lambda scope: scope["user"].id)
    app = Idempotency(app, spool="sqlite:///idem.db", scope=principal)

A POST or PATCH with an `Idempotency-Key` runs once; a repeat gets the same answer again. `scope` is
a function of the ASGI scope, async or not, to who is asking: a str, bytes or int that is the same
whenever the same caller asks, whatever its token is today. It has no default, for with a wrong one
callers get each other's answers. `options` has the rest.

It belongs inside authentication, so that the scope function knows the caller and a caller whose
rights were taken away gets a 401 and not a kept answer. The handler finds a `Running` in
`scope["unspool"]`.

Promises: what `gate` promises. A caller that goes away does not stop a handler that runs under a
key. Everything without a key, and every other method, passes untouched: nothing is read of it.

Needs no lifespan. With one the spool is opened at the start, so that a wrong setting is found then,
and closed at the end; without, it is opened by the first request that has a key.

Bugs: an answer that streams is on its way before its handler has ended, so of such answers only the
fact is kept, from its head on: a handler that fails within its answer is not run again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Unpack

from ..core.fields import values
from ..core.message import Field, Request, Response, Severed
from ..core.prefer import read_prefer
from ..ingress.asgi import ReceivedBody, first_part, run_to_its_end, send_answer, target_of
from ..problems import problem
from ..spools.protocol import Spool
from ..transports.app import ASGIApp, Call, Receive, Scope, Send
from .gate import Gate, Principal, key_of
from .opening import Opening
from .options import Options, read
from .principal import Nobody, Steady, Unsteady, check, checked_scope, owner_of
from .running import Running

log: Final = logging.getLogger("unspool.middleware")

ScopeOf = Callable[[Scope], Principal | Awaitable[Principal | None] | None]


class Idempotency:
    """See the head of this file."""

    def __init__(
        self, app: ASGIApp, *, spool: str | Spool, scope: ScopeOf, **options: Unpack[Options]
    ) -> None:
        self.app: Final = app
        self._scope_of: Final = checked_scope(scope)
        self._rules, tenure, survives = read(options)
        self._opening: Final = Opening(
            spool, name=self._rules.name, owner=owner_of(scope), tenure=tenure, survives=survives
        )
        self._gate: Final = Gate(rules=self._rules, opening=self._opening)
        self._steady: Final = Steady()
        self._running: Final[set[asyncio.Task[Response]]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] not in self._rules.methods:
            await self.app(scope, receive, send)
            return
        fields = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        name = key_of(values(fields, b"idempotency-key"), rules=self._rules)
        if name is None:
            await self.app(scope, receive, send)
        elif isinstance(name, Response):
            await send_answer(name, False, receive, send)
        else:
            await self._keyed(scope, receive, send, fields, name)

    async def _keyed(
        self, scope: Scope, receive: Receive, send: Send, fields: list[Field], name: str
    ) -> None:
        principal = await self._principal(scope)
        if isinstance(principal, Response):
            await send_answer(principal, False, receive, send)
            return
        body = ReceivedBody(receive)
        try:
            first, length = await first_part(body, fields, self._rules.body_max_bytes)
        except Severed:
            return  # it went away before its request was whole
        if not body.ended and (length > len(first) or len(first) > self._rules.body_max_bytes):
            response = problem("too-large", f"{self._rules.body_max_bytes} bytes may be")
            await send_answer(response, False, receive, send)
            return
        request = Request(scope["method"].encode(), target_of(scope), fields, first)
        calls: list[Call] = []

        async def run(running: Running) -> Response:
            inner = {**scope, "unspool": running}
            call = Call(self.app, inner, body=first, keep_max_bytes=self._answer_max_bytes)
            calls.append(call)
            return await call.response()

        wishes = read_prefer(values(fields, b"prefer"), wait_max_ms=self._rules.wait_max_ms)
        gated = self._gate(request, name=name, principal=principal, wait_ms=wishes.wait_ms, run=run)
        response = await run_to_its_end(gated, self._running)
        await send_answer(response, False, receive, send)
        if calls and response.status >= 500 and (error := await calls[0].error()) is not None:
            raise error  # as it would have without us: servers and their tools log it

    async def _principal(self, scope: Scope) -> Principal | Response:
        """Who is asking; or why nothing is run under this key (D4)."""
        try:
            principal = check(await self._ask(scope))
            if self._steady.asks_again:
                Steady.compare(principal, await self._ask(scope))
        except Nobody:
            return problem("nobody")
        except Unsteady as fault:
            log.error("nothing runs under a key: %s", fault)
            return problem("scope-broken", str(fault))
        except Exception:
            log.exception("the scope function raised; nothing runs under a key")
            return problem("scope-broken", "the scope function raised")
        return principal

    async def _ask(self, scope: Scope) -> Any:
        found = self._scope_of(scope)
        return await found if inspect.isawaitable(found) else found

    @property
    def _answer_max_bytes(self) -> int:
        return self._opening.tenure.keeping.answer_max_bytes

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open before the application starts, close after it has ended."""

        async def received() -> Any:
            event = await receive()
            if event["type"] == "lifespan.startup":
                await self._opening.ledger()
            return event

        async def sent(event: Any) -> None:
            if event["type"].startswith("lifespan.shutdown."):
                await self._opening.aclose()
            await send(event)

        await self.app(scope, received, sent)
