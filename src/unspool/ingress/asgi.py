"""The ASGI door: the same handler as an ASGI 3 application, behind any server.

    app = asgi(relay)           # uvicorn module:app, hypercorn module:app, or mounted somewhere

For HTTP/2 and HTTP/3, for a process that has a server already, and for middleware. It costs about
three times what the native door costs, and promises less, because some of it is the server's:

* Fields come with names in lower case, as ASGI has them; the target comes byte for byte from
  `raw_path` (quoted anew from `path` where a server has none).
* Strictness about framing, deadlines and caps are the server's. What of a head a server may let
  through and no service should see is refused here as at the native door: CONNECT, two Host fields,
  Content-Length beside Transfer-Encoding, and a target that is none.
* The reason phrase is the server's, and so is Date: servers add their own beside the handler's, so
  run uvicorn with `--no-date-header` if the answers passed on have one.

What it promises all the same: a body that breaks off before it is whole (up to `body_max_bytes`)
never reaches the handler; the handler runs to its end whatever becomes of the caller or of the
server's task; an answer that breaks off ends in an exception, on which servers cut the connection.
Works with and without lifespan; WebSockets are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final
from urllib.parse import quote

from ..core.message import Field, Reader, Request, Response, Severed
from ..problems import problem
from .head import FRAMING, Unwritable, head
from .limits import Limits
from .protocol import Caller, Handler
from .strict import Refusal, ordinary_target

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log: Final = logging.getLogger("unspool.door")

PATH_SAFE: Final = "/!$&'()*+,;=:@-._~"
"""RFC 3986 §3.3: what a path may carry without quoting."""


def asgi(handler: Handler, *, body_max_bytes: int = Limits().body_max_bytes) -> ASGIApp:
    """`handler` as an application. Bodies over `body_max_bytes` stream."""
    running: set[asyncio.Task[Response]] = set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _http(handler, scope, receive, send, body_max_bytes, running)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1002, "reason": "Not offered here."})
        else:
            raise NotImplementedError(f"There is no {scope['type']} here.")

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def _http(
    handler: Handler,
    scope: Scope,
    receive: Receive,
    send: Send,
    body_max_bytes: int,
    running: set[asyncio.Task[Response]],
) -> None:
    fields = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    method: bytes = scope["method"].encode()
    body = ReceivedBody(receive)
    try:
        target = lawful_target(method, target_of(scope), fields)
        first, length = await first_part(body, fields, body_max_bytes)
    except Refusal as refusal:
        await send_answer(problem(refusal.name, refusal.detail), method == b"HEAD", receive, send)
        return
    except Severed:
        return
    rest = None if body.ended else body
    request = Request(method, target, fields, first, rest, length)
    client = scope.get("client")
    caller = Caller(peer=client[0] if client else "unix", scheme=scope.get("scheme", "http"))
    response = await run_to_its_end(_handled(handler, request, caller), running)
    body.close()
    await send_answer(response, method == b"HEAD", receive, send)


async def run_to_its_end(
    work: Coroutine[Any, Any, Response], running: set[asyncio.Task[Response]]
) -> Response:
    """Some servers cancel the application when the caller goes. What is under way ends all the
    same; `running` holds on to it. Raises what `work` raises."""
    task = asyncio.create_task(work)
    running.add(task)
    task.add_done_callback(running.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_drop)
        raise


async def _handled(handler: Handler, request: Request, caller: Caller) -> Response:
    try:
        return await handler(request, caller)
    except Exception:
        log.exception("The handler raised; the caller gets a 500")
        return problem("internal")


def _drop(task: asyncio.Task[Response]) -> None:
    """An answer that nobody waits for."""
    if not task.cancelled() and task.exception() is None:
        rest = task.result().rest
        if rest is not None:
            rest.close()


def target_of(scope: Scope) -> bytes:
    path: bytes = scope.get("raw_path") or quote(scope["path"], safe=PATH_SAFE).encode("ascii")
    path = path.partition(b"?")[0]  # some servers leave the query in
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path


def lawful_target(method: bytes, target: bytes, fields: list[Field]) -> bytes:
    """The target, where a head is one that may go on. Raises Refusal."""
    names = [name.lower() for name, _ in fields]
    if names.count(b"host") > 1:
        raise Refusal("malformed", "There is more than one field Host.")
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refusal("malformed", "Content-Length can't be present with Transfer-Encoding")
    if b"#" in target:
        raise Refusal("malformed", "A target has no fragment.")
    if target.startswith(b"/") and method != b"CONNECT":
        return target
    return ordinary_target(method, target, fields)


# the request's body


class ReceivedBody:
    """A `Reader` of what the server receives. ASGI servers hold the caller back by themselves."""

    __slots__ = ("_closed", "_receive", "ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._closed = False
        self.ended = False

    async def read(self) -> bytes:
        while not self.ended:
            if self._closed:
                raise Severed("It was closed by its reader.")
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._closed = True
                raise Severed("The sender went away before the body was whole.")
            self.ended = not event.get("more_body", False)
            data: bytes = event.get("body", b"")
            if data:
                return data
        return b""

    def close(self) -> None:
        self._closed = True


async def first_part(
    body: ReceivedBody, fields: list[Field], body_max_bytes: int
) -> tuple[bytes, int]:
    """The whole body if it is small enough, else as much as shows that it is not."""
    length = -1
    for name, value in fields:
        if name == b"content-length" and value.isdigit():
            length = int(value)
    if length > body_max_bytes:
        return b"", length
    parts: list[bytes] = []
    size = 0
    while size <= body_max_bytes:
        data = await body.read()
        if not data:
            break
        parts.append(data)
        size += len(data)
    return b"".join(parts), length


# the answer


async def send_answer(response: Response, head_only: bool, receive: Receive, send: Send) -> None:
    rest = response.rest
    try:
        head(response, b"", b"")  # servers differ in whether they look for CR and LF
    except Unwritable as fault:
        log.error("An answer cannot be written: %s; the caller gets a 500", fault)
        if rest is not None:
            rest.close()
        response, rest = problem("internal"), None
    fields = [
        (lower, value) for name, value in response.fields if (lower := name.lower()) not in FRAMING
    ]
    bodiless = head_only or response.status in (204, 304)
    length = response.length if rest is not None or bodiless else len(response.body)
    if head_only and rest is None and length < 0:
        length = len(response.body)
    if length >= 0 and response.status not in (204, 304):  # of a 304, uvicorn would miss the body
        fields.append((b"content-length", b"%d" % length))
    start = {"type": "http.response.start", "status": response.status, "headers": fields}
    if bodiless or rest is None:
        if rest is not None:
            rest.close()
        await send(start)
        body = b"" if bodiless else response.body
        await send({"type": "http.response.body", "body": body})
        return
    await _pour(response, rest, start, receive, send)


async def _pour(
    response: Response, rest: Reader, start: Event, receive: Receive, send: Send
) -> None:
    """Send what streams, for as long as there is somebody to send it to."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        rest.close()

    watching = asyncio.create_task(watch())
    left = response.length - len(response.body)
    ended = False
    try:
        await send(start)
        data = response.body
        while True:
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await rest.read()
            if not data or gone.is_set():
                break
            left -= len(data)
            if response.length >= 0 and left < 0:
                raise Severed("There were more bytes than were declared.")
        ended = not gone.is_set()
        if ended and response.length >= 0 and left:
            raise Severed("There were fewer bytes than were declared.")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (Severed, OSError):
        if not gone.is_set():  # else nobody is there to be told; OSError: so says the server
            raise
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await watching
        if not ended and not gone.is_set():
            rest.close()
