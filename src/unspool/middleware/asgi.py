"""Idempotency for an ASGI application: FastAPI, Starlette, Litestar, Quart, or one by hand.

    app.add_middleware(Idempotency, spool="sqlite:///idem.db", scope=lambda scope: scope["user"].id)
    app = Idempotency(app, spool="sqlite:///idem.db", scope=principal)

A POST or PATCH with an `Idempotency-Key` runs once; a repeat gets the same answer again. `scope` is
a function of the ASGI scope, async or not, to who is asking: a str, bytes or int that is the same
whenever the same caller asks, whatever its token is today. It has no default, for with a wrong one
callers get each other's answers. `options` has the rest.

It belongs inside authentication, so that the scope function knows the caller and a caller whose
rights were taken away gets a 401 and not a kept answer. The handler finds a `Running` in
`scope["unspool"]`. `Retry` (see `retry`) belongs outside of both.

Promises: what `gate` promises. A caller that goes away does not stop a handler that runs under a
key. Everything without a key, and every other method, passes untouched: nothing is read of it. What
the application raises reaches the server as it would without us, also from background tasks; what
it writes into its scope is seen outside.

Needs no lifespan. With one the spool is opened at the start, so that a wrong setting is found then
and stops the start; a spool that merely does not answer does not. At the end handlers that still
run have DRAIN_S. Without a lifespan it is opened by the first request that has a key.

Bugs: an answer that streams is on its way before its handler has ended, so of such answers only the
fact is kept, from its head on: a handler that fails within its answer is not run again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Unpack

from ..core.fields import values
from ..core.message import Field, Request, Response, Severed
from ..core.prefer import read_prefer
from ..ingress.asgi import ReceivedBody, first_part, run_to_its_end, send_answer, target_of
from ..problems import problem
from ..spools.protocol import Spool
from ..transports.call import ASGIApp, Call, Receive, Scope, Send
from .gate import Gate, key_of
from .lifespan import lifespan
from .opening import Opening
from .options import Options, read
from .principal import Asker, ScopeOf, owner_of
from .retry import Retry
from .running import Running

__all__ = ["Idempotency", "Retry", "Running"]

DRAIN_S: Final = 10.0
"""How long, at the end of a lifespan, handlers may go on whose callers have gone."""


class Idempotency:
    """See the head of this file."""

    def __init__(
        self, app: ASGIApp, *, spool: str | Spool, scope: ScopeOf, **options: Unpack[Options]
    ) -> None:
        self.app: Final = app
        self._asker: Final = Asker(scope)
        self._rules, tenure, survives = read(options)
        self._answer_max_bytes: Final = tenure.keeping.answer_max_bytes
        self._opening: Final = Opening(
            spool,
            name=self._rules.name,
            owner="" if "name" in options else owner_of(scope),
            tenure=tenure,
            survives=survives,
        )
        self._gate: Final = Gate(rules=self._rules, opening=self._opening)
        self._running: Final[set[asyncio.Task[Any]]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(self.app, scope, receive, send, begin=self._begin, end=self._end)
            return
        if scope["type"] != "http" or scope["method"] not in self._rules.methods:
            await self.app(scope, receive, send)
            return
        keys = values(scope["headers"], b"idempotency-key")
        if not keys and not self._rules.required:
            await self.app(scope, receive, send)
            return
        name = key_of([bytes(key) for key in keys], rules=self._rules)
        if isinstance(scope.get("unspool"), Running):
            await self.app(scope, receive, send)  # it runs under a key already: we are there twice
        elif isinstance(name, str):
            await self._keyed(scope, receive, send, name)
        elif name is not None:
            await send_answer(name, False, receive, send)

    async def _keyed(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        fields = [(bytes(key), bytes(value)) for key, value in scope["headers"]]
        principal = await self._asker.principal(scope)
        if isinstance(principal, Response):
            await send_answer(principal, False, receive, send)
            return
        limit = self._rules.body_max_bytes
        try:
            body, length = await first_part(ReceivedBody(receive), fields, limit)
        except Severed:
            return  # it went away before its request was whole
        if length > limit or len(body) > limit:
            await send_answer(problem("too-large", f"{limit} bytes may be"), False, receive, send)
            return
        request = Request(scope["method"].encode(), target_of(scope), fields, body)
        call: Call | None = None

        async def run(running: Running) -> Response:
            nonlocal call
            inner = {**scope, "unspool": running}
            call = Call(self.app, inner, body=body, keep_max_bytes=self._answer_max_bytes)
            return await call.response(running=self._running)

        wait_ms = self._wait_ms(fields)
        gated = self._gate(request, name=name, principal=principal, wait_ms=wait_ms, run=run)
        try:
            response = await run_to_its_end(gated, self._running)
            await answer(response, call, scope, receive, send)
        except asyncio.CancelledError:  # the server does not wait; the handler goes on
            if call is not None:
                call.forsake()
            raise

    def _wait_ms(self, fields: list[Field]) -> int:
        prefers = values(fields, b"prefer")
        if not prefers:
            return 0
        return read_prefer(prefers, wait_max_ms=self._rules.wait_max_ms).wait_ms

    async def _begin(self) -> None:
        await self._opening.ledger()

    async def _end(self) -> None:
        if self._running:
            await asyncio.wait(list(self._running), timeout=DRAIN_S)
        await self._opening.aclose()


async def answer(
    response: Response, call: Call | None, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send it; and if it is `call`'s, be what the application would be to the server: show what
    it wrote into its scope, last as long as it does, and raise what it raises."""
    if call is None:
        await send_answer(response, False, receive, send)
        return
    for name in call.scope.keys() - scope.keys():
        if name != "unspool":
            scope[name] = call.scope[name]
    try:
        await send_answer(response, False, receive, send)
    except Severed:
        await call.ended()  # its own exception says more
        raise
    except OSError:  # so says a server whose caller has gone
        call.forsake()
        raise
    await call.ended()
