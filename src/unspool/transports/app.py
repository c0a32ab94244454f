"""An ASGI application in this process as a transport: one attempt, and what came of it.

    transport = AppTransport(app, attempt_ms=60_000)
    with transport.live(scope): …            an attempt from within here sees this scope
    answer = await transport.attempt(request, repeat=…)

An attempt for a caller who waits sees the ASGI scope that the server made: client, state,
extensions. One that comes from the spool, perhaps in another process, sees a scope like it, built
from the message: `remember(scope)` makes a field of what a request alone does not tell (the scheme,
the client, where the application is mounted), which is kept with the message and not shown to the
application; `template` has what belongs to the process (the `app` of Starlette, the state of its
lifespan).

An application that raises is one that answers 500, as servers have it, with its traceback in the
log. One that is told by `Idempotency` that another runs under the key was not tried. One that takes
longer than `attempt_ms` until its answer streams is cancelled: that may have had its effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from ..core.fields import values
from ..core.message import Answer, Cause, Failure, Field, Request, Response, Sent
from .call import KEEP_MAX_BYTES, ASGIApp, Call, Scope

log: Final = logging.getLogger("unspool.app")

REMEMBERED: Final = b"unspool-scope"
PRINCIPAL: Final = b"unspool-principal"
"""Our own fields in a kept request. From outside they are not let in."""
ATTEMPT: Final = b"unspool-attempt"


class _Remembered(msgspec.Struct, array_like=True):
    scheme: str = "http"
    http_version: str = "1.1"
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None
    root_path: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Remembered).decode


def remember(scope: Scope) -> Field:
    """What a request alone does not tell of its scope, as a field."""
    client, server = scope.get("client"), scope.get("server")
    told = _Remembered(
        scope.get("scheme", "http"),
        scope.get("http_version", "1.1"),
        (str(client[0]), int(client[1])) if client else None,
        (str(server[0]), server[1]) if server else None,
        scope.get("root_path", ""),
    )
    return REMEMBERED, _encode(told)


class AppTransport:
    def __init__(
        self, app: ASGIApp, *, attempt_ms: int, keep_max_bytes: int = KEEP_MAX_BYTES
    ) -> None:
        self._app = app
        self._attempt_ms = attempt_ms
        self._keep_max_bytes = keep_max_bytes
        self._scope: ContextVar[Scope | None] = ContextVar("unspool live scope", default=None)
        self.template: Mapping[str, Any] = {}
        self.running: Final[set[asyncio.Task[Any]]] = set()
        """Calls of the application that have not ended."""

    @contextlib.contextmanager
    def live(self, scope: Scope) -> Iterator[None]:
        token = self._scope.set(scope)
        try:
            yield
        finally:
            self._scope.reset(token)

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        live = self._scope.get()
        scope = seen(live, request) if live is not None else made(request, self.template)
        call = Call(
            self._app,
            scope,
            body=request.body,
            rest=request.rest,
            keep_max_bytes=self._keep_max_bytes,
        )
        limit = asyncio.timeout(self._attempt_ms / 1000)
        try:
            async with limit:
                response = await call.response(running=self.running)
        except Exception as error:
            if limit.expired():
                detail = f"no answer within {self._attempt_ms} ms"
                return Failure(Cause.HTTP_RESPONSE_TIMEOUT, detail, Sent.MAYBE)
            log.exception("The application raised at %s", scope["path"])
            fields = [(b"Content-Type", b"text/plain; charset=utf-8")]
            # In the log it has its traceback; on a receipt, its kind and no more.
            reason = type(error).__name__.encode("ascii", "replace")
            return Response(500, reason, fields, b"Internal Server Error")
        call.forsake()  # what it raises after its answer is logged
        if is_running(response):
            detail = "another runs under its key"
            return Failure(Cause.CONNECTION_LIMIT_REACHED, detail, Sent.NEVER)
        return response

    async def aclose(self) -> None:
        """Nothing is held open."""


def is_running(response: Response) -> bool:
    """Did `Idempotency` say that another runs under this key just now?"""
    return response.status == 409 and any(
        name.lower() == b"proxy-status" and value.startswith(b"unspool")
        for name, value in response.fields
    ) and bool(values(response.fields, b"retry-after"))  # fmt: skip


def seen(live: Scope, request: Request) -> dict[str, Any]:
    """The server's scope, with the number of the attempt."""
    number = request.fields[-1][1] if request.fields else b"1"
    headers = [field for field in live["headers"] if field[0].lower() != ATTEMPT]
    return {**live, "headers": [*headers, (ATTEMPT, number)]}


def made(request: Request, template: Mapping[str, Any]) -> dict[str, Any]:
    """A scope like the one that the request once came with."""
    told = _told(request.fields)
    path, _, query = request.target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": told.http_version,
        "method": request.method.decode("ascii"),
        "scheme": told.scheme,
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": told.root_path,
        "headers": _headers(request),
        "client": told.client,
        "server": told.server,
        **template,
    }
    if "state" in scope:
        scope["state"] = dict(scope["state"])
    return scope


def _told(fields: Sequence[Field]) -> _Remembered:
    for value in values(fields, REMEMBERED):
        with contextlib.suppress(msgspec.MsgspecError):
            return _decode(value)
    return _Remembered()


def _headers(request: Request) -> list[Field]:
    """As they came, less what was added on the way."""
    vias = [i for i, field in enumerate(request.fields) if field[0].lower() == b"via"]
    headers = [
        (lower, value)
        for i, (name, value) in enumerate(request.fields)
        if (lower := name.lower()) not in (REMEMBERED, PRINCIPAL) and i not in vias[-1:]
    ]
    headers.append((b"content-length", b"%d" % len(request.body)))
    return headers
