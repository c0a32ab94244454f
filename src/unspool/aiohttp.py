"""unspool for aiohttp: a connector that does not lose requests.

    import aiohttp, unspool.aiohttp

    connector = unspool.aiohttp.Connector(["https://a.example"], outbox="o.db")
    async with aiohttp.ClientSession("https://a.example", connector=connector) as session:
        try:
            async with session.post("/orders", json=order, headers=keyed) as response:
                ...
        except unspool.aiohttp.Saved as saved:
            ...                                    # it will be delivered: saved.key, saved.receipt

A request to one of the servers goes to the one that does best; one to any other origin goes there.
Without servers each origin is on its own. All options of `unspool.Client` may be given.

A connector and not a client middleware: those exist from aiohttp 3.12 on and would have to make
answers out of aiohttp's insides. Here aiohttp writes each request into a connection that is no
socket, and reads the answer from it as it reads any. So cookies, redirects, encodings, tracing and
middlewares stay aiohttp's work. `response.connection` is closed by then.

The deadline of the call, retries included, is a fifth (two seconds at most) less than the timeout
(`sock_read`, else `total`): what nobody took must be on the disk before aiohttp gives up. aiohttp's
own default, five minutes, is nobody's wish: our `deadline` is instead. `ssl=` and proxies are
refused: here it is `tls=`, and there are no proxies. A body is read whole before it is sent, and an
answer before it is given; one that is too large raises `ClientPayloadError` when it is read.

Belongs to one event loop.

Bugs: where the disk takes longer than that fifth, aiohttp gives up while the request is being
saved, and its caller is told of a timeout: it may be in the outbox all the same. Send it under its
key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, Unpack

import httptools

from .client.adapter import (
    TOO_LARGE,
    Asked,
    Hops,
    Origins,
    Trouble,
    shown_fields,
    stands,
    too_large,
    trouble,
    trouble_of,
    unknown_text,
)
from .client.client import AsyncClient
from .client.options import ClientOptions
from .client.results import Response, Unknown
from .core.message import Field
from .errors import Misconfigured, Missing, Saved, Undelivered

try:
    import aiohttp
    from aiohttp.client_proto import ResponseHandler
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    raise Missing(
        "unspool.aiohttp is for aiohttp, which is not installed. Install it: pip install aiohttp"
    ) from error

__all__ = ["Connector", "Saved"]

DEFAULT_TOTAL_S: Final = 300
"""aiohttp's own."""
RESERVE_PART: Final = 0.2
RESERVE_MAX_S: Final = 2.0
FED_BYTES: Final = 64 * 1024

ERRORS: Final[Mapping[Trouble, type[Exception]]] = {
    # Not ServerDisconnectedError and not ClientOSError: at those aiohttp sends once more.
    Trouble.CONNECT: aiohttp.ClientConnectionError,
    Trouble.CONNECT_TIMEOUT: aiohttp.ConnectionTimeoutError,
    Trouble.READ: aiohttp.ClientConnectionError,
    Trouble.READ_TIMEOUT: aiohttp.ServerTimeoutError,
}


class Connector(aiohttp.BaseConnector):
    """For `ClientSession(connector=…)`."""

    def __init__(self, servers: str | Sequence[str] = (), **options: Unpack[ClientOptions]) -> None:
        """Raises `Misconfigured`. Nothing is opened before the first request."""
        super().__init__(force_close=True, limit=0)
        self._origins: Final = Origins(AsyncClient, servers, options)
        self._hops: Final = Hops()
        self._carrying: Final[set[asyncio.Task[None]]] = set()

    @property
    def client(self) -> AsyncClient:
        """The client of the named servers: its outbox, its statistics."""
        return self._origins.named

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: Any, timeout: Any
    ) -> ResponseHandler:
        """aiohttp's to call."""
        if req.proxy:
            raise Misconfigured(
                f"{req.url} is to go through a proxy, and unspool uses none. Nothing was sent. Give"
                " this session no proxy: trust_env=False"
            )
        if req.url.scheme == "https" and req.ssl not in (True, None):
            raise Misconfigured(
                "ssl= is not for this connector. Nothing was sent. Give it an SSLContext:"
                " Connector(…, tls=ssl.create_default_context(cafile=…))"
            )
        loop = asyncio.get_running_loop()
        handler = ResponseHandler(loop)
        handler.connection_made(Wire(self, handler, req, deadline_of(timeout)))
        return handler

    async def carry(self, asked: Asked, request: aiohttp.ClientRequest) -> Response:
        """Raises `Saved`, aiohttp's errors, and `Unacceptable` with nothing sent."""
        client = self._origins.borrow(asked.origin)
        try:
            built = asked.build(client, self._hops)
            try:
                result = await client.send(built)
            except Undelivered as error:
                if isinstance(error.response, Response):
                    return error.response
                raise ERRORS[trouble_of(error)](str(error)) from error
            found = stands(result, request=request)
            if found is None:
                assert isinstance(result, Unknown)
                raise ERRORS[trouble(result.tries, maybe=True)](unknown_text(result))
            if asked.key:
                self._hops.saw(asked, asked.key, found)
            return found
        finally:
            for one in self._origins.give_back(asked.origin):
                await one.aclose()

    def max_bytes(self, origin: str) -> int:
        client = self._origins.borrow(origin)
        self._origins.give_back(origin)
        return client.options.body_max_bytes

    def start(self, wire: Wire) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(wire.run(), name="unspool aiohttp")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        return task

    def close(self, *args: Any, **kwargs: Any) -> Awaitable[None]:
        """What waits in the outbox stays there."""
        theirs = super().close(*args, **kwargs)

        async def closed() -> None:
            await theirs
            for task in self._carrying:
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)
            for one in self._origins.close():
                await one.aclose()

        return self._loop.create_task(closed())


def deadline_of(timeout: aiohttp.ClientTimeout) -> float | None:
    """Seconds; None: as the client says."""
    given = timeout.sock_read or timeout.total
    if not given or (not timeout.sock_read and timeout.total == DEFAULT_TOTAL_S):
        return None
    return given - min(RESERVE_MAX_S, RESERVE_PART * given)


class Wire(asyncio.Transport):
    """A connection that is no socket: one request in, one answer out."""

    def __init__(
        self,
        connector: Connector,
        handler: ResponseHandler,
        request: aiohttp.ClientRequest,
        deadline: float | None,
    ) -> None:
        super().__init__()
        self._connector = connector
        self._handler = handler
        self._request = request
        self._origin = str(request.url.origin())
        self._deadline = deadline
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._fields: list[Field] = []
        self._body = bytearray()
        self._max_bytes = connector.max_bytes(self._origin)
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._reading = asyncio.Event()
        self._reading.set()

    # --- what aiohttp writes -----------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._task is None and not self._closing:
            with contextlib.suppress(httptools.HttpParserUpgrade):  # refused when it is whole
                self._parser.feed_data(bytes(data))

    def on_url(self, part: bytes) -> None:
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_body(self, part: bytes) -> None:
        if len(self._body) <= self._max_bytes:
            self._body += part

    def on_message_complete(self) -> None:
        self._task = self._connector.start(self)

    # --- what aiohttp reads ------------------------------------------------------------------

    async def run(self) -> None:
        method = self._parser.get_method().decode()
        try:
            if len(self._body) > self._max_bytes:
                raise too_large(self._max_bytes)
            asked = Asked(
                method, self._origin + self._url.decode("latin-1"), tuple(self._fields),
                bytes(self._body), self._deadline,
            )  # fmt: skip
            answer = await self._connector.carry(asked, self._request)
        except Exception as error:
            self._handler.set_exception(error)
            return
        await self._answer(answer, method)

    async def _answer(self, answer: Response, method: str) -> None:
        self._feed(head_of(answer, method))
        if not answer.whole and method != "HEAD":
            self._lose(aiohttp.ClientPayloadError(TOO_LARGE))
            return
        for at in range(0, len(answer.body), FED_BYTES):
            await self._reading.wait()
            self._feed(answer.body[at : at + FED_BYTES])

    def _feed(self, data: bytes) -> None:
        if not self._closing:
            self._handler.data_received(data)

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def is_reading(self) -> bool:
        return self._reading.is_set()

    # --- its end -----------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._lose(None)

    abort = close

    def _lose(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        asyncio.get_running_loop().call_soon(self._handler.connection_lost, error)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0


def head_of(answer: Response, method: str) -> bytes:
    """Its head, framed anew: the body is here whole, or is not here."""
    fields = shown_fields(answer)
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lines += [f"{n}: {v}" for n, v in fields if n.lower() != "content-length"]
    length = answer.headers.get("content-length") or "0"
    if answer.whole and method != "HEAD":
        length = str(len(answer.body))
    elif not answer.whole:
        length = str(max(1, int(length) if length.isdigit() else 1))
    if answer.status not in (204, 304):
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
