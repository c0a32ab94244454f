"""Idempotency for a WSGI application: Flask, Pyramid, Bottle, Falcon, or one by hand.

    app.wsgi_app = Idempotency(app.wsgi_app, spool="sqlite:///idem.db", scope=principal)   Flask
    app = Idempotency(app, spool="sqlite:///idem.db", scope=principal)

A POST or PATCH with an `Idempotency-Key` runs once; a repeat gets the same answer again. `scope` is
a function of the WSGI environ to who is asking: a str, bytes or int that is the same whenever the
same caller asks, whatever its token is today. It has no default, for with a wrong one callers get
each other's answers. It must not read the body. `options` has the rest.

It belongs inside authentication, where that is a middleware. Where the application itself finds out
who is asking (Flask), the scope function does that, too, and gives None for nobody: 403.

The handler runs in the server's own thread and finds a `Running` in `environ["unspool"]`. Its body
comes whole in `wsgi.input`, with its `CONTENT_LENGTH`.

Promises: what `gate` promises. Everything without a key, and every other method, passes untouched:
nothing is read of it, and no other thread is asked. What the application returned is closed, always
and once. What it raises goes on to the server, and nothing is remembered of it.

Nothing is opened before the first request that has a key, in whichever process that is.

Bugs: an answer that streams is on its way before its handler has ended, so of such answers only the
fact is kept, from its head on: a handler that fails within its answer is not run again.
"""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, Unpack
from urllib.parse import quote

from ..core.fields import values
from ..core.message import Field, Request, Response
from ..core.prefer import read_prefer
from ..errors import UnspoolError
from ..ingress.asgi import PATH_SAFE
from ..problems import problem
from ..spools.protocol import Spool
from .gate import RETRY_S, Gate, Principal, key_of
from .opening import Opening
from .options import Options, read
from .portal import Portal
from .principal import Nobody, Steady, Unsteady, check, checked_scope, owner_of
from .running import Running
from .visit import Hand
from .wsgi_call import Environ, StartResponse, WSGIApp, WSGICall

log: Final = logging.getLogger("unspool.middleware")

ScopeOf = Callable[[Environ], Principal | None]

HERE: Final = frozenset({"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"})
"""Some servers have these twice."""


class Idempotency:
    """See the head of this file."""

    def __init__(
        self, app: WSGIApp, *, spool: str | Spool, scope: ScopeOf, **options: Unpack[Options]
    ) -> None:
        self.app: Final = app
        self._scope_of: Final = checked_scope(scope)
        self._rules, tenure, survives = read(options)
        self._opening: Final = Opening(
            spool,
            name=self._rules.name,
            owner="" if "name" in options else owner_of(scope),
            tenure=tenure,
            survives=survives,
        )
        self._gate: Final = Gate(rules=self._rules, opening=self._opening)
        self._portal: Final = Portal("unspool-wsgi", on_close=self._opening.aclose)
        self._steady: Final = Steady()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in self._rules.methods:
            return self.app(environ, start_response)
        name = key_of(key_field(environ), rules=self._rules)
        if name is None or isinstance(environ.get("unspool"), Running):
            return self.app(environ, start_response)  # no key; or it runs under it: we are twice
        if isinstance(name, Response):
            return _answered(name, environ, start_response)
        return self._keyed(environ, start_response, name)

    def close(self) -> None:
        """Let go of the spool. A later request opens it again."""
        self._portal.close()

    def _keyed(self, environ: Environ, start_response: StartResponse, name: str) -> Iterable[bytes]:
        principal = principal_of(self._scope_of, environ, self._steady)
        if isinstance(principal, Response):
            return _answered(principal, environ, start_response)
        body = read_body(environ, self._rules.body_max_bytes)
        if isinstance(body, Response):
            return _answered(body, environ, start_response)
        request = Request(
            environ["REQUEST_METHOD"].encode("latin-1"),
            target_of(environ),
            fields_of(environ),
            body,
        )
        give_back(environ, body)
        wishes = read_prefer(values(request.fields, b"prefer"), wait_max_ms=self._rules.wait_max_ms)
        calls: list[WSGICall] = []

        def handler(running: Running) -> Response:
            environ["unspool"] = running
            keep = self._opening.tenure.keeping.answer_max_bytes
            calls.append(WSGICall(self.app, environ, keep_max_bytes=keep))
            return calls[0].response()

        async def work(hand: Hand) -> Response:
            async def run(running: Running) -> Response:
                return await hand(handler, running)

            return await self._gate(
                request, name=name, principal=principal, wait_ms=wishes.wait_ms, run=run
            )

        try:
            response = self._portal.between(work)
            return _answered(response, environ, start_response, *calls)
        except BaseException as error:
            for call in calls:
                call.close()
            if isinstance(error, UnspoolError) and not calls:
                log.error("nothing runs under a key: %s", error)
                refusal = problem("memory-down", retry_after_s=RETRY_S)
                return _answered(refusal, environ, start_response)
            raise


# --- the request ------------------------------------------------------------------------------


def key_field(environ: Environ) -> list[bytes]:
    """Of two fields servers make one, with a comma between; what is not ASCII stays so."""
    given = environ.get("HTTP_IDEMPOTENCY_KEY")
    return [] if given is None else [given.encode("utf-8", "surrogatepass")]


def principal_of(
    scope_of: Callable[[Any], object], asker: object, steady: Steady
) -> Principal | Response:
    """Who is asking; or why nothing is run under this key (D4)."""
    try:
        principal = check(_now(scope_of(asker)))
        if steady.asks_again:
            Steady.compare(principal, _now(scope_of(asker)))
    except Nobody:
        return problem("nobody")
    except Unsteady as fault:
        log.error("nothing runs under a key: %s", fault)
        return problem("scope-broken", str(fault))
    except Exception:
        log.exception("the scope function raised; nothing runs under a key")
        return problem("scope-broken", "the scope function raised")
    return principal


def _now(found: object) -> object:
    if inspect.iscoroutine(found):
        found.close()
        raise Unsteady("the scope function is a coroutine function, and nobody awaits it here")
    return found


def read_body(environ: Environ, body_max_bytes: int) -> bytes | Response:
    """The whole body, or why it cannot be had: it broke off, or is too large to be told apart."""
    declared = environ.get("CONTENT_LENGTH") or ""
    if declared and not (declared.isascii() and declared.isdigit()):
        return problem("malformed", "the Content-Length is not a number")
    chunked = not declared and environ.get("HTTP_TRANSFER_ENCODING")
    if chunked and not environ.get("wsgi.input_terminated"):
        return problem(
            "malformed", "this server does not say where a chunked body ends: send a Content-Length"
        )
    if not declared and not environ.get("wsgi.input_terminated"):
        return b""
    want = int(declared) if declared else body_max_bytes + 1
    if want > body_max_bytes and declared:
        return problem("too-large", f"{body_max_bytes} bytes may be")
    stream, parts, size = environ["wsgi.input"], [], 0
    try:
        while size < want and (data := stream.read(want - size)):
            parts.append(data)
            size += len(data)
    except OSError as error:
        log.info("a body broke off: %s", error)
        return problem("malformed", "the body broke off")
    if declared and size < want:
        return problem("malformed", "the body broke off")
    if size > body_max_bytes:
        return problem("too-large", f"{body_max_bytes} bytes may be")
    return b"".join(parts)


def give_back(environ: Environ, body: bytes) -> None:
    """The body that was read is there to be read."""
    environ["wsgi.input"] = io.BytesIO(body)
    environ["wsgi.input_terminated"] = True
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)


def target_of(environ: Environ) -> bytes:
    """The target as the other doors have it: byte for byte where the server says, else quoted."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw:
        target: bytes = raw.encode("latin-1").partition(b"#")[0]
        if not target.startswith(b"/"):  # in absolute form: http://shop/orders
            _, slashes, rest = target.partition(b"://")
            target = b"/" + rest.partition(b"/")[2] if slashes else target
        path, _, query = target.partition(b"?")
    else:
        whole = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        path = quote(whole.encode("latin-1"), safe=PATH_SAFE).encode("ascii")
        query = environ.get("QUERY_STRING", "").encode("latin-1")
    return path + b"?" + query if query else path


def fields_of(environ: Environ) -> list[Field]:
    fields = [
        (name[5:].replace("_", "-").lower().encode(), value.encode("latin-1", "replace"))
        for name, value in environ.items()
        if name.startswith("HTTP_") and name not in HERE and isinstance(value, str)
    ]
    if kind := environ.get("CONTENT_TYPE"):
        fields.append((b"content-type", kind.encode("latin-1", "replace")))
    return fields


# --- the answer -------------------------------------------------------------------------------


def _answered(
    response: Response, environ: Environ, start_response: StartResponse, *calls: WSGICall
) -> Iterable[bytes]:
    """Give it to the server. Of our `calls`, the first is where the rest of it comes from."""
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.fields]
    status, whole = response.status, response.rest is None
    bodiless = environ["REQUEST_METHOD"] == "HEAD" or status in (204, 304)
    length = len(response.body) if whole and not bodiless else response.length
    if length >= 0 and status != 204:
        fields.append(("Content-Length", str(length)))
    start_response(f"{status} {_reason(response)}", fields)
    body = b"" if bodiless else response.body
    if not calls:
        return [body]
    untouched = None if whole else calls[0].untouched
    return untouched if untouched is not None else Pouring(body, calls[0], whole=whole)


def _reason(response: Response) -> str:
    if response.reason:
        return response.reason.decode("latin-1")
    try:
        return HTTPStatus(response.status).phrase
    except ValueError:
        return "Unnamed"


class Pouring:
    """A body on its way to the server, with the application's own `close` at its end."""

    __slots__ = ("_body", "_call", "_whole")

    def __init__(self, body: bytes, call: WSGICall, *, whole: bool) -> None:
        self._body = body
        self._call = call
        self._whole = whole

    def __iter__(self) -> Iterator[bytes]:
        if self._body or self._whole:
            yield self._body
        if not self._whole:
            yield from self._call.pour()

    def close(self) -> None:
        self._call.close()
