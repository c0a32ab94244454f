"""The middleware: below authentication, around everything else.

    MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware",
                  "unspool.middleware.django.middleware.IdempotencyMiddleware", ...]

A POST or PATCH with an `Idempotency-Key` runs once; a repeat gets the same answer again. The view
finds a `Running` in `request.unspool`, or None where the request has no key. What is below it runs
for the first request only: views, other middlewares, Django's own pages for errors. What is above
runs for each: sessions, authentication, CSRF cookies.

Promises: what `gate` promises. An exception in a view is a 500 by the time it comes here, and is
not remembered; a 404 that was raised is. A form with files is read as ever. Synchronous and
asynchronous, as Django's own: under ASGI a caller that goes away does not stop a view that runs
under a key. Without a key nothing is read, and no other thread is asked.

Bugs: a body is held in memory, up to `body_max_bytes`. Of an answer that streams the fact is kept,
and not the body. Whoever reads the body above it (a middleware that looks into request.POST) makes
it unreadable here, and such a request is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import UnreadablePostError
from django.urls import Resolver404, resolve

from ...core.fields import values
from ...core.message import Request, Response, Value
from ...core.prefer import read_prefer
from ...errors import UnspoolError
from ...ingress.asgi import run_to_its_end
from ...ingress.asgi import target_of as asgi_target_of
from ...problems import problem
from ..gate import RETRY_S, Principal, key_of
from ..running import Running
from ..visit import AsyncHand, Hand
from ..wsgi import fields_of, key_field, target_of
from .answer import http_of, mark, response_of
from .keeper import Keeper
from .passing import PASSING, Passing
from .route import Route, route_of

log: Final = logging.getLogger("unspool.middleware")


Answered = tuple[Any, Response]
"""What Django answered, and what of it is remembered."""


class Keyed(Value, frozen=True):
    """A request under a key, ready for the gate."""

    request: Request
    name: str
    principal: Principal
    wait_ms: int


class IdempotencyMiddleware:
    """See the head of this file."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response: Final = get_response
        self._awaits: Final = iscoroutinefunction(get_response)
        self._running: Final[set[asyncio.Task[Response]]] = set()
        if self._awaits:
            markcoroutinefunction(self)
        _keeper()  # wrong settings are found when the server starts

    def __call__(self, request: Any) -> Any:
        if self._awaits:
            return self._later(request)
        keeper = _keeper()
        name = self._look(request, keeper)
        if name is None:
            return self.get_response(request)
        keyed = name if isinstance(name, Response) else self._keyed(request, keeper, name)
        if isinstance(keyed, Response):
            return http_of(keyed)
        passing: Passing = getattr(request, PASSING)
        answers: list[Answered] = []

        def handler(running: Running) -> Response:
            passing.running = request.unspool = running
            return noted(answers, self.get_response(request))

        async def work(hand: Hand) -> Response:
            async def run(running: Running) -> Response:
                return await hand(handler, running)

            return await passing.gate(
                keyed.request, name=keyed.name, principal=keyed.principal, wait_ms=keyed.wait_ms,
                run=run,
            )  # fmt: skip

        try:
            return finished(keeper.portal.between(work), answers)
        except BaseException as error:
            return broken(error, answers)

    async def _later(self, request: Any) -> Any:
        keeper = _keeper()
        name = self._look(request, keeper)
        if name is None:
            return await self.get_response(request)
        keyed: Keyed | Response
        if isinstance(name, Response):
            keyed = name
        else:  # who is asking is in the database, mostly
            keyed = await sync_to_async(self._keyed)(request, keeper, name)
        if isinstance(keyed, Response):
            return http_of(keyed)
        passing: Passing = getattr(request, PASSING)
        answers: list[Answered] = []

        async def handler(running: Running) -> Response:
            passing.running = request.unspool = running
            return noted(answers, await self.get_response(request))

        async def work(hand: AsyncHand) -> Response:
            async def run(running: Running) -> Response:
                return await hand(handler, running)

            return await passing.gate(
                keyed.request, name=keyed.name, principal=keyed.principal, wait_ms=keyed.wait_ms,
                run=run,
            )  # fmt: skip

        gone = asyncio.Event()

        async def to_its_end() -> Response:
            try:
                return await keeper.portal.reach(work)
            finally:
                if gone.is_set():  # Django has tidied up already, and nobody else will
                    await sync_to_async(connections.close_all)()

        try:
            gated = await run_to_its_end(to_its_end(), self._running)
            return finished(gated, answers)
        except asyncio.CancelledError:
            gone.set()  # the caller has gone, and the view goes on
            raise
        except BaseException as error:
            return broken(error, answers)

    def _look(self, request: Any, keeper: Keeper) -> str | Response | None:
        """The key's name; why it is refused; or None: it passes untouched."""
        given = request.META.get("HTTP_IDEMPOTENCY_KEY")
        request.unspool = None
        route = None
        if given is not None or keeper.rules.required:
            route = _route_of(request)
        rules, gate = keeper.gate(route)
        setattr(request, PASSING, Passing(rules=rules, gate=gate, using=keeper.using))
        if (given is None and not rules.required) or request.method not in rules.methods:
            return None
        return key_of(key_field(request.META), rules=rules)

    def _keyed(self, request: Any, keeper: Keeper, name: str) -> Keyed | Response:
        passing: Passing = getattr(request, PASSING)
        principal = keeper.principal(request)
        if isinstance(principal, Response):
            return principal
        body = read_body(request, passing.rules.body_max_bytes)
        if isinstance(body, Response):
            return body
        fields = fields_of(request.META)
        wishes = read_prefer(values(fields, b"prefer"), wait_max_ms=passing.rules.wait_max_ms)
        return Keyed(
            request=Request(
                request.method.encode("latin-1"),
                target(request),
                fields,
                body,
            ),
            name=name,
            principal=principal,
            wait_ms=wishes.wait_ms,
        )


def _keeper() -> Keeper:
    try:
        config: Any = apps.get_app_config("unspool")
    except LookupError:
        raise ImproperlyConfigured(
            'The middleware needs its app: INSTALLED_APPS = [..., "unspool.middleware.django"]'
        ) from None
    keeper: Keeper = config.keeper()
    return keeper


def _route_of(request: Any) -> Route | None:
    try:
        match = resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return None
    return route_of(match.func, request.method)


def target(request: Any) -> bytes:
    scope = getattr(request, "scope", None)
    if scope is None:
        return target_of(request.environ)
    query = scope.get("query_string", b"")
    if isinstance(query, str):  # of Django's test client
        scope = {**scope, "query_string": query.encode("latin-1")}
    return asgi_target_of(scope)


def read_body(request: Any, body_max_bytes: int) -> bytes | Response:
    """The whole body, and there to be read again; or why it cannot be had."""
    declared = request.META.get("CONTENT_LENGTH") or ""
    if declared and not (declared.isascii() and declared.isdigit()):
        return problem("malformed", "the Content-Length is not a number")
    length = int(declared) if declared else -1
    if length > body_max_bytes:
        return problem("too-large", f"{body_max_bytes} bytes may be")
    if not hasattr(request, "_body"):
        if request._read_started:
            raise ImproperlyConfigured(
                "Something above the IdempotencyMiddleware has read the body (request.POST?), so it"
                " cannot be told whether this is a repeat. Nothing was run. Move it below."
            )
        parts, left = [], body_max_bytes + 1
        try:
            while left and (data := request.read(left)):
                parts.append(data)
                left -= len(data)
        except UnreadablePostError:
            return problem("malformed", "the body broke off")
        # As HttpRequest.body does; that one would refuse files over DATA_UPLOAD_MAX_MEMORY_SIZE.
        request._body = b"".join(parts)
        request._stream = BytesIO(request._body)
    body = request._body
    if len(body) > body_max_bytes:
        return problem("too-large", f"{body_max_bytes} bytes may be")
    if len(body) < length:
        return problem("malformed", "the body broke off")
    return bytes(body)


def noted(answers: list[Answered], http: Any) -> Response:
    response = response_of(http)
    answers.append((http, response))
    return response


def finished(gated: Response, answers: list[Answered]) -> Any:
    """Django's own answer with what the gate adds to it; or the gate's."""
    if not answers:
        return http_of(gated)
    [(http, response)] = answers
    mark(http, gated, response)
    return http


def broken(error: BaseException, answers: list[Answered]) -> Any:
    """No answer from the gate. Raises what is not ours to answer."""
    for http, _ in answers:
        http.close()
    if not isinstance(error, UnspoolError) or answers:
        raise error
    log.error("nothing runs under a key: %s", error)
    return http_of(problem("memory-down", retry_after_s=RETRY_S))
