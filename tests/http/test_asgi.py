"""The same handler as an ASGI application, behind real servers with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from callers import PATIENCE_S, Broken, Calling, Parts, Recorder, eventually

from unspool.core.message import Request, Response, Severed
from unspool.ingress.asgi import asgi
from unspool.ingress.protocol import Caller, Handler

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024

servers = pytest.mark.parametrize("http", ["httptools", "h11"])


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, http: str, *, lifespan: str = "off", **settings: int
) -> AsyncIterator[int]:
    """uvicorn on a free port, in this loop."""
    config = uvicorn.Config(
        asgi(handler, **settings), http=http, lifespan=lifespan, log_config=None,
        date_header=False, server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.setblocking(False)
        port = listening.getsockname()[1]
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup([listening])
        ticking = asyncio.create_task(server.main_loop())
        try:
            yield port
        finally:
            server.should_exit = True
            await ticking
            await server.shutdown([listening])


@contextlib.asynccontextmanager
async def calling(port: int) -> AsyncIterator[Calling]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Calling(reader, writer)
    finally:
        writer.transport.abort()


@servers
async def test_a_request_arrives(http: str) -> None:
    handler = Recorder(Response(201, b"", [(b"X-Two", b"1"), (b"X-Two", b"2")], b"made"))
    async with serving(handler, http) as port, calling(port) as caller:
        await caller.send(
            b"POST /a%2Fb%20c/%7e?q=%20&q HTTP/1.1\r\nHost: shop\r\nX-A: 1\r\nX-a: 2\r\n"
            b"Content-Length: 3\r\n\r\nabc"
        )
        answer = await caller.answer()
    assert (answer.status, answer.body) == (201, b"made")
    assert answer["Content-Length"] == "4"
    assert [value for name, value in answer.fields if name.lower() == "x-two"] == ["1", "2"]
    (request,) = handler.requests
    assert request.method == b"POST"
    assert request.target == b"/a%2Fb%20c/%7e?q=%20&q"
    assert request.fields == [
        (b"host", b"shop"), (b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"3"),
    ]  # fmt: skip
    assert request.body == b"abc"
    assert request.rest is None
    assert handler.peers == [Caller(peer="127.0.0.1", scheme="http")]


class Digest:
    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        self.requests.append(request)
        data = request.body
        if request.rest is not None:
            while more := await request.rest.read():
                data += more
        return Response(200, b"", [], said_of(data))


def said_of(data: bytes) -> bytes:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


@servers
@pytest.mark.parametrize("size", [0, 1000, 1001, 300_000])
async def test_bodies_arrive_whole(http: str, size: int) -> None:
    data = (bytes(range(256)) * 2000)[:size]
    handler = Digest()
    async with serving(handler, http, body_max_bytes=1000) as port, calling(port) as caller:
        await caller.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + data)
        assert (await caller.answer()).body == said_of(data)
        await caller.send(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        if data:
            await caller.send(b"%x\r\n%b\r\n" % (size, data))
        await caller.send(b"0\r\n\r\n")
        assert (await caller.answer()).body == said_of(data)
    counted, chunked = handler.requests
    assert (counted.rest is None) == (size <= 1000)
    assert (chunked.rest is None) == (size <= 1000) or size == 1001
    assert counted.length == size
    assert chunked.length == -1


@servers
async def test_answers_stream(http: str) -> None:
    handler = Recorder()
    async with serving(handler, http) as port, calling(port) as caller:
        handler.response = Response(200, b"", [], b"12", Parts(b"abc", b"d" * 200_000))
        await caller.send(GET)
        assert (await caller.answer()).body == b"12abc" + b"d" * 200_000
        handler.response = Response(200, b"", [], b"12", Parts(b"abc"), 5)
        await caller.send(GET)
        answer = await caller.answer()
        assert answer["Content-Length"] == "5"
        assert answer.body == b"12abc"
        handler.response = Response(200, b"", [], b"still here")
        await caller.send(GET)
        assert (await caller.answer()).body == b"still here"


@servers
async def test_a_stream_goes_through_no_faster_than_it_is_taken(http: str) -> None:
    class Endless:
        given = 0

        async def read(self) -> bytes:
            if self.given >= 32 * MIB:
                return b""
            self.given += 65_536
            return bytes(65_536)

        def close(self) -> None:
            raise AssertionError

    rest = Endless()
    handler = Recorder(Response(200, b"", [], b"", rest, 32 * MIB))
    async with serving(handler, http) as port, calling(port) as caller:
        caller.writer.transport.pause_reading()
        await caller.send(GET)
        await eventually(lambda: rest.given)
        await asyncio.sleep(0.2)
        assert rest.given < 16 * MIB
        caller.writer.transport.resume_reading()
        await caller.head()
        size = 0
        while size < 32 * MIB:
            size += len(await caller.reader.read(MIB))


@servers
@pytest.mark.parametrize("length", [-1, 9])
async def test_a_broken_answer_looks_broken(
    http: str, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    rest = Parts(b"abc", end=Severed("gone"))
    handler = Recorder(Response(200, b"", [], b"1", rest, length))
    async with serving(handler, http) as port, calling(port) as caller:
        await caller.send(GET)
        with pytest.raises(Broken):
            await caller.answer()
        assert rest.closed == 1


@servers
async def test_an_answer_for_a_caller_who_has_gone_is_closed(http: str) -> None:
    class Waiting(Parts):
        def __init__(self) -> None:
            super().__init__(b"abc")
            self.gate = asyncio.Event()

        async def read(self) -> bytes:
            if self.parts:
                return self.parts.pop()
            await self.gate.wait()
            raise Severed("closed")

        def close(self) -> None:
            super().close()
            self.gate.set()

    rest = Waiting()
    async with serving(Recorder(Response(200, b"", [], b"", rest)), http) as port:
        async with calling(port) as caller:
            await caller.send(GET)
            await caller.head()
            caller.vanish()
            await eventually(lambda: rest.closed)
        await asyncio.sleep(0.01)
        assert rest.closed == 1


@servers
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_what_has_no_body_gets_none(http: str, method: bytes, status: int) -> None:
    rest = Parts(b"body")
    handler = Recorder(Response(status, b"", [], b"", rest, 4))
    bodiless = method == b"HEAD" or status != 200
    async with serving(handler, http) as port, calling(port) as caller:
        await caller.send(method + GET[3:])
        answer = await caller.answer(bodiless=bodiless)
        assert ("Content-Length" in answer) == (status == 200)
        assert answer.body == (b"" if bodiless else b"body")
        assert rest.closed == int(bodiless)
        handler.response = Response(200, b"", [], b"next")
        await caller.send(GET)
        assert (await caller.answer()).body == b"next"


@servers
async def test_framing_is_the_servers(http: str) -> None:
    fields = [(b"Connection", b"x"), (b"Transfer-Encoding", b"gzip"), (b"content-length", b"99")]
    async with (
        serving(Recorder(Response(200, b"", fields, b"four")), http) as port,
        calling(port) as caller,
    ):
        await caller.send(GET)
        answer = await caller.answer()
        assert answer.body == b"four"
        assert "Connection" not in answer


@servers
@pytest.mark.parametrize(
    "field",
    [
        (b"A", b"b\r\nSet-Cookie: c"), (b"A", b"b\nc"), (b"A", b"b\0"), (b"Set-Cookie ", b"c"),
        (b"Content-Length: 1\tX", b"c"), (b"", b"c"),
    ],
)  # fmt: skip
async def test_an_answer_cannot_be_split(http: str, field: tuple[bytes, bytes]) -> None:
    rest = Parts(b"x")
    async with (
        serving(Recorder(Response(200, b"", [field], b"", rest)), http) as port,
        calling(port) as caller,
    ):
        await caller.send(GET)
        answer = await caller.answer()
        assert answer.status == 500
        assert "Set-Cookie" not in answer
        assert rest.closed == 1


@servers
async def test_a_handler_that_raises_is_a_500(http: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request, caller: Caller, /) -> Response:
        raise LookupError("a mistake")

    async with serving(handler, http) as port, calling(port) as caller:
        await caller.send(GET)
        answer = await caller.answer()
        assert answer.status == 500
        assert answer["Content-Type"] == "application/problem+json"
        assert "LookupError: a mistake" in caplog.text


@servers
async def test_a_handler_finishes_for_a_caller_who_has_gone(http: str) -> None:
    begun, gate, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        finished.set()
        return Response(200, b"", [])

    async with serving(handler, http) as port:
        async with calling(port) as caller:
            await caller.send(GET)
            await begun.wait()
            caller.vanish()
        await asyncio.sleep(0.02)
        gate.set()
        await asyncio.wait_for(finished.wait(), PATIENCE_S)


@servers
async def test_a_body_that_breaks_off_never_reaches_the_handler(http: str) -> None:
    handler = Recorder()
    begun = asyncio.Event()
    heard: list[object] = []

    async def reading(request: Request, caller: Caller, /) -> Response:
        assert request.rest is not None
        begun.set()
        try:
            while await request.rest.read():
                pass
        except Severed as severed:
            heard.append(severed)
        return Response(200, b"", [])

    part = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n" + b"x" * 2000
    async with serving(handler, http) as port, calling(port) as caller:
        await caller.send(part)
        await asyncio.sleep(0.02)
        caller.vanish()
        await asyncio.sleep(0.05)
        assert handler.requests == []
    async with serving(reading, http, body_max_bytes=1000) as port, calling(port) as caller:
        await caller.send(part)
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        caller.vanish()
        await eventually(lambda: heard)


@pytest.mark.parametrize("lifespan", ["on", "off", "auto"])
async def test_with_and_without_lifespan(lifespan: str) -> None:
    async with serving(Recorder(), "h11", lifespan=lifespan) as port, calling(port) as caller:
        await caller.send(GET)
        assert (await caller.answer()).body == b"ok"


# what no server here does, and some do


async def exchange(handler: Handler, scope: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    await asgi(handler)({"type": "http", "method": "GET", "headers": [], **scope}, receive, send)
    return sent


@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ({"path": "/ä b/%", "query_string": b"x=%20"}, b"/%C3%A4%20b/%25?x=%20"),
        ({"path": "/a:b@c;d=e", "raw_path": None}, b"/a:b@c;d=e"),
        ({"path": "/x", "raw_path": b"/%78?q", "query_string": b"q"}, b"/%78?q"),
    ],
)
async def test_targets_of_other_servers(scope: dict[str, Any], target: bytes) -> None:
    handler = Recorder()
    sent = await exchange(handler, scope)
    assert sent[0]["status"] == 200
    assert handler.requests[0].target == target
    assert handler.peers[0] == Caller(peer="unix", scheme="http")


async def test_heads_that_a_server_let_through() -> None:
    """They would be passed on to a service that reads them otherwise, or saved and never sent."""
    two = [(b"host", b"a"), (b"host", b"b")]
    both = [(b"host", b"a"), (b"transfer-encoding", b"chunked"), (b"content-length", b"3")]
    for scope, status in (
        ({"method": "POST", "path": "/", "headers": two}, 400),
        ({"method": "POST", "path": "/", "headers": both}, 400),
        ({"method": "CONNECT", "path": "", "raw_path": b"a:80"}, 501),
        ({"method": "CONNECT", "path": "/"}, 501),
        ({"method": "POST", "path": "*"}, 400),
        ({"method": "GET", "path": "/a", "raw_path": b"/a#b"}, 400),
        ({"method": "GET", "path": "a", "raw_path": b"a"}, 400),
    ):
        handler = Recorder()
        sent = await exchange(handler, scope)
        assert sent[0]["status"] == status, scope
        assert (b"content-type", b"application/problem+json") in sent[0]["headers"]
        assert not handler.requests
    handler = Recorder()
    await exchange(handler, {"path": "/", "raw_path": b"http://b/c", "headers": [(b"host", b"a")]})
    assert (handler.requests[0].target, handler.requests[0].fields) == (b"/c", [(b"host", b"b")])


async def test_a_server_that_cancels_cancels_only_its_own() -> None:
    """Hypercorn ends the application's task when the caller goes."""
    begun, gate, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()
    rest = Parts(b"x")

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        finished.set()
        return Response(200, b"", [], b"", rest)

    task = asyncio.create_task(exchange(handler, {"path": "/"}))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await asyncio.wait_for(finished.wait(), PATIENCE_S)
    await eventually(lambda: rest.closed == 1)


async def test_websockets_are_refused() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        sent.append(event)

    await asgi(Recorder())({"type": "websocket", "path": "/"}, receive, send)
    assert [event["type"] for event in sent] == ["websocket.close"]
