"""An ASGI application in this process: one call, and what came of it.

    call = Call(app, scope, body=b"…")
    response = await call.response()       whole; or its beginning, and a `rest` that streams
    await call.ended()                     until the application has returned; raises what it raised

The application gets its body whole (or as a Reader), and is not told that the caller went away:
what it does under a key it does to its end. A body up to `keep_max_bytes` that ends within
`hold_ms` comes whole; a larger or slower one, and `text/event-stream`, streams, and the application
is held back while more would only pile up.

Of an answer that streams to nobody the rest is swallowed for LINGER_MS, for there may be work in
it; then the application is told as a server would (a disconnect, and OSError from `send`), for some
answers never end. Events are of no use to nobody: there it is told at once.

`response` raises what the application raises before it has answered. It may raise after its answer
(Starlette sends a 500 and raises, so that the server can log it), or go on with work of its own
(background tasks): neither holds the answer up, and `ended` is for whoever wants to know.

Does not: WebSockets, trailers, pushes, early hints, sending files by path. The extensions are taken
out of the scope, and applications do without.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from ..core.message import Reader, Response, Severed

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log: Final = logging.getLogger("unspool.app")

KEEP_MAX_BYTES: Final = 1024 * 1024
HOLD_MS: Final = 1_000
"""How long after its head an answer may take to become whole, before it streams."""
BUFFER_MAX_BYTES: Final = 256 * 1024
LINGER_MS: Final = 30_000
"""How long an answer that streams goes on for nobody."""
EXTENSIONS: Final = frozenset({"tls"})
"""Of a scope: those that do not change how an answer is sent."""


class Silent(RuntimeError):
    """The application returned without having answered."""

    def __init__(self) -> None:
        super().__init__("the application returned and had not answered")


class Call:
    """One call of an application."""

    __slots__ = (
        "_answered", "_app", "_body", "_complete", "_events", "_gone", "_heard", "_hold_ms",
        "_keep_max_bytes", "_over", "_parts", "_rest", "_size", "_start", "_stream", "_task",
        "_timer", "scope",
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
        """`scope` becomes the call's own: give it a copy."""
        self._app = app
        if extensions := scope.get("extensions"):
            scope["extensions"] = {
                name: extensions[name] for name in extensions if name in EXTENSIONS
            }
        self.scope: Final = scope
        self._body: bytes | None = body
        self._rest = rest
        self._keep_max_bytes = keep_max_bytes
        self._hold_ms = hold_ms
        self._answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._start: Event | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._complete = self._gone = self._heard = self._events = False
        self._stream: Stream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def response(self, *, running: set[asyncio.Task[Any]] | None = None) -> Response:
        """The answer. Cancelling this cancels the application, and waits for it.

        `running` holds the application's task until it has ended.
        """
        task = self._task = asyncio.get_running_loop().create_task(self._run())
        if running is not None:
            running.add(task)
            task.add_done_callback(running.discard)
        task.add_done_callback(_look)
        try:
            return await self._answered
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])  # whoever runs next under the key must not meet it
            raise

    async def ended(self) -> None:
        """Until the application has returned; to be asked once. Raises what it raised. Cancelling
        this does not disturb it."""
        task = self._task
        assert task is not None
        if not task.done():
            await asyncio.wait([task])
        self._task = None
        try:
            if not task.cancelled():
                task.result()
        finally:
            del task  # see `forsake`

    def forsake(self) -> None:
        """Nobody will ask what becomes of it: what it raises is logged.

        A call that kept its task would be a circle: the task has the exception, that the frames,
        and those this call. What they hold (a generator within its `try`, say) would be let go of
        by the next full collection, and not when the application has ended.
        """
        if self._task is not None:
            self._task.add_done_callback(_log)
            self._task = None

    async def _run(self) -> None:
        try:
            await self._app(self.scope, self._receive, self._send)
        except asyncio.CancelledError:
            self._answered.cancel()
            raise
        except BaseException as error:
            # Not kept in this frame: the circle would keep what the application left half done
            # (a generator within its `try`) until the next full collection.
            if not self._answered.done():
                self._answered.set_exception(error)
            raise
        finally:
            self._over.set()
            self._stop_timer()
            if not self._answered.done():
                self._answered.set_exception(Silent())
            if self._stream is not None and not self._complete:
                self._stream.sever("The application stopped within its answer.")

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
            if self._start is not None:
                raise RuntimeError("the application began its answer twice")
            self._start = event
            self._timer = asyncio.get_running_loop().call_later(
                self._hold_ms / 1000, self._hand_over
            )
            return
        if event["type"] != "http.response.body" or self._complete:
            return
        if self._start is None:
            raise RuntimeError("the application sent a body before its head")
        if self._gone:
            if self._heard:
                raise OSError("the caller has gone")  # as ASGI 2.4 has it
            self._heard = True  # one that listens hears of it now, in a wait of its own
            return
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
            self._stop_timer()
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
        self._events = self._is_event_stream()
        self._stream = Stream(self._closed)
        self._answered.set_result(self._made(self._stream))

    def _closed(self) -> None:
        """Nobody reads the answer any longer."""
        if self._complete or self._over.is_set():
            return
        if self._events:
            self._tell()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER_MS / 1000, self._tell)

    def _tell(self) -> None:
        self._gone = True
        self._over.set()

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


def _look(task: asyncio.Task[None]) -> None:
    """What it raised is asked for elsewhere, or not at all."""
    if not task.cancelled():
        task.exception()


def _log(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("The application raised, and its caller has gone", exc_info=error)


class Stream:
    """A `Reader` of an answer that is on its way. Its writer waits while its reader does not read.

    Closed by its reader, it swallows what still comes, and says so to whoever made it.
    """

    __slots__ = ("_chunks", "_closed", "_ended", "_news", "_on_close", "_room", "_severed", "_size")

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._closed = self._ended = False
        self._severed = ""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def feed(self, data: bytes) -> None:
        await self._room.wait()
        if self._closed:
            # An application that waits for nothing else would have the loop to itself, for ever.
            await asyncio.sleep(0)
            return
        if not data:
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
        if self._closed:
            return
        self._closed = True
        self._on_close()
        self._chunks.clear()
        self._size = 0
        self._room.set()
        self._news.set()
