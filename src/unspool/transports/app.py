"""An ASGI application in this process: one call, and what came of it.

    call = Call(app, scope, body=b"…")
    response = await call.response()       whole; or its beginning, and a `rest` that streams
    error = await call.error()             what the application raised after it had answered

The application gets its body whole (or as a Reader), and is never told that the caller went away:
what it does under a key it does to its end. A body up to `keep_max_bytes` that ends within
`hold_ms` comes whole; a larger or slower one, and `text/event-stream`, streams, and the application
is held back while more would only pile up.

`response` raises what the application raises before it has answered. An application may raise after
its answer (Starlette sends a 500 and raises, so that the server can log it), or go on with work of
its own (background tasks): neither holds the answer up.

Does not: WebSockets, trailers, pushes, early hints, sending files by path. The extensions are taken
out of the scope, and applications do without.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from ..core.message import Reader, Response, Severed

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

KEEP_MAX_BYTES: Final = 1024 * 1024
HOLD_MS: Final = 1_000
"""How long after its head an answer may take to become whole, before it streams."""
BUFFER_MAX_BYTES: Final = 256 * 1024
EXTENSIONS: Final = frozenset({"tls", "http.response.debug"})
"""Of a scope: those that do not change how an answer is sent."""


class Silent(RuntimeError):
    """The application returned without having answered."""

    def __init__(self) -> None:
        super().__init__("the application returned and had not answered")


class Call:
    """One call of an application."""

    __slots__ = (
        "_answered", "_app", "_body", "_complete", "_hold_ms", "_keep_max_bytes", "_over",
        "_parts", "_rest", "_scope", "_size", "_start", "_stream", "_task", "_timer",
    )  # fmt: skip

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        *,
        body: bytes = b"",
        rest: Reader | None = None,
        keep_max_bytes: int = KEEP_MAX_BYTES,
        hold_ms: int = HOLD_MS,
    ) -> None:
        self._app = app
        extensions = scope.get("extensions") or {}
        self._scope = {
            **scope,
            "extensions": {name: extensions[name] for name in extensions if name in EXTENSIONS},
        }
        self._body: bytes | None = body
        self._rest = rest
        self._keep_max_bytes = keep_max_bytes
        self._hold_ms = hold_ms
        self._answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._start: Event | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._complete = False
        self._stream: Stream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def response(self) -> Response:
        """The answer. Cancelling this cancels the application."""
        self._task = asyncio.create_task(self._run())
        try:
            return await self._answered
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def error(self, *, wait_s: float = 0.1) -> Exception | None:
        """What the application raised after its answer, if it did so at once."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=wait_s)
        if not self._task.done() or self._task.cancelled():
            return None
        error = self._task.exception()
        return error if isinstance(error, Exception) else None

    async def _run(self) -> None:
        raised: BaseException = Silent()
        try:
            await self._app(self._scope, self._receive, self._send)
        except BaseException as error:
            raised = error
            if self._answered.done():
                raise
        finally:
            self._over.set()
            self._stop_timer()
            if not self._answered.done():
                if isinstance(raised, asyncio.CancelledError):
                    self._answered.cancel()
                else:
                    self._answered.set_exception(raised)
            if self._stream is not None and not self._complete:
                self._stream.sever("the application stopped within its answer")

    # the application's side

    async def _receive(self) -> Event:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": self._rest is not None}
        if self._rest is not None:
            try:
                data = await self._rest.read()
            except Severed:
                self._rest = None
                return {"type": "http.disconnect"}
            if not data:
                self._rest = None
            return {"type": "http.request", "body": data, "more_body": bool(data)}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._start = event
            self._timer = asyncio.get_running_loop().call_later(
                self._hold_ms / 1000, self._hand_over
            )
            return
        if event["type"] != "http.response.body" or self._complete:
            return
        if self._start is None:
            raise RuntimeError("the application sent a body before its head")
        data: bytes = event.get("body", b"")
        ended = not event.get("more_body", False)
        if self._stream is None:
            self._parts.append(bytes(data))
            self._size += len(data)
            if ended:
                self._finish()
            elif self._size > self._keep_max_bytes or self._is_event_stream():
                self._hand_over()
            return
        await self._stream.feed(bytes(data))
        if ended:
            self._complete = True
            self._stream.end()
            self._over.set()

    def _finish(self) -> None:
        self._complete = True
        self._stop_timer()
        self._over.set()
        if not self._answered.done():
            self._answered.set_result(self._made(None))

    def _hand_over(self) -> None:
        """It streams from here on."""
        if self._answered.done() or self._complete:
            return
        self._stop_timer()
        self._stream = Stream()
        self._answered.set_result(self._made(self._stream))

    def _made(self, rest: Reader | None) -> Response:
        assert self._start is not None
        fields = [(bytes(name), bytes(value)) for name, value in self._start.get("headers", ())]
        length = -1
        for name, value in fields:
            if name.lower() == b"content-length" and value.isdigit():
                length = int(value)
        body = b"".join(self._parts)
        self._parts = []
        fields = [field for field in fields if field[0].lower() != b"content-length"]
        return Response(int(self._start["status"]), b"", fields, body, rest, length)

    def _is_event_stream(self) -> bool:
        assert self._start is not None
        return any(
            name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
            for name, value in self._start.get("headers", ())
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Stream:
    """A `Reader` of an answer that is on its way. Its writer waits while its reader does not read.

    Closed by its reader, it swallows what still comes: the application goes on to its end.
    """

    __slots__ = ("_chunks", "_closed", "_ended", "_news", "_room", "_severed", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._closed = self._ended = False
        self._severed = ""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def feed(self, data: bytes) -> None:
        await self._room.wait()
        if self._closed or not data:
            return
        self._chunks.append(data)
        self._size += len(data)
        self._news.set()
        if self._size > BUFFER_MAX_BYTES:
            self._room.clear()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def sever(self, why: str) -> None:
        self._severed = why
        self._news.set()

    async def read(self) -> bytes:
        while not self._chunks:
            if self._severed or self._closed:
                raise Severed(self._severed or "It was closed by its reader.")
            if self._ended:
                return b""
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._room.set()
        return data

    def close(self) -> None:
        self._closed = True
        self._chunks.clear()
        self._size = 0
        self._room.set()
        self._news.set()
