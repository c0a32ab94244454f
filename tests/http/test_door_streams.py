"""Bodies that stream, both ways: bounded memory, half-closed connections, broken answers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tracemalloc

import pytest
from callers import Broken, Parts, Recorder, ask, call, eventually, on_both_loops, opened

from unspool.core.message import Request, Response, Severed
from unspool.ingress.protocol import Caller

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n" + body


class Digest:
    """A handler that reads what it is sent, and says what it was."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.reads: list[int] = []

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        self.requests.append(request)
        digest = hashlib.sha256(request.body)
        size = len(request.body)
        if request.rest is not None:
            while data := await request.rest.read():
                digest.update(data)
                size += len(data)
                self.reads.append(len(data))
            assert await request.rest.read() == b""
        return Response(200, b"", [], f"{size} {digest.hexdigest()}".encode())


def said_of(data: bytes) -> bytes:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


# requests


@on_both_loops
async def test_a_body_is_whole_up_to_the_limit_and_streams_above_it() -> None:
    handler = Digest()
    async with opened(handler, body_max_bytes=50_000) as door, call(door) as caller:
        for size in (49_999, 50_000, 50_001, 200_000):
            data = bytes(range(256)) * (size // 256 + 1)
            data = data[:size]
            counted = post(b"Content-Length: %d" % size, data)
            half = size // 2
            chunked = post(
                b"Transfer-Encoding: chunked",
                b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
                % (half, data[:half], size - half, data[half:]),
            )
            for sent, length in ((counted, size), (chunked, -1)):
                await caller.send(sent)
                assert (await caller.answer()).body == said_of(data)
                request = handler.requests[-1]
                if size <= 50_000:
                    assert request.rest is None
                    assert request.body == data
                else:
                    assert request.rest is not None
                    assert request.length == length
                    assert data.startswith(request.body)


@on_both_loops
async def test_a_large_body_comes_through_whole() -> None:
    handler = Digest()
    data = bytes(range(256)) * 4096 * 16  # 16 MiB
    async with opened(handler) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: %d" % len(data), data) + GET)
        assert (await caller.answer()).body == said_of(data)
        assert (await caller.answer()).body == said_of(b"")
    assert max(handler.reads) <= 600_000


@on_both_loops
async def test_a_slow_reader_holds_its_sender_back() -> None:
    gate = asyncio.Event()
    total = 0

    async def handler(request: Request, caller: Caller, /) -> Response:
        nonlocal total
        await gate.wait()
        assert request.rest is not None
        while data := await request.rest.read():
            total += len(data)
            await asyncio.sleep(0)
        return Response(200, b"", [])

    data = b"x" * (64 * MIB)
    head = post(b"Content-Length: %d" % len(data))
    async with opened(handler, body_ms=200) as door, call(door) as caller:
        sending = asyncio.create_task(caller.send(head + data))
        (connection,) = await _connections(door)
        await eventually(lambda: connection._paused)
        await asyncio.sleep(0.5)  # longer than body_ms: the clock stands still while we do not read
        assert connection._reading._stream._waiting_bytes < 600_000
        assert not sending.done()
        gate.set()
        assert (await caller.answer()).status == 200
        await sending
    assert total == len(data)


async def _connections(door: object) -> list[object]:
    await eventually(lambda: door._connections)
    return list(door._connections)


@on_both_loops
async def test_an_unread_body_closes_the_connection_unless_it_is_all_here() -> None:
    handler = Recorder()
    async with opened(handler, body_max_bytes=1000) as door:
        async with call(door) as caller:
            await caller.send(post(b"Content-Length: 2000", b"x" * 2000) + GET)
            first = await caller.answer()
            if "Connection" not in first:  # all of it was here
                assert (await caller.answer()).status == 200
        async with call(door) as caller:
            await caller.send(post(b"Content-Length: 2000", b"x" * 1500))
            assert (await caller.answer())["Connection"] == "close"
            assert await caller.rest() == b""


@on_both_loops
async def test_a_reader_that_was_closed_reads_no_more() -> None:
    raised: list[Exception] = []

    async def handler(request: Request, caller: Caller, /) -> Response:
        assert request.rest is not None
        request.rest.close()
        request.rest.close()
        with contextlib.suppress(Severed):
            await request.rest.read()
            raised.append(AssertionError())
        return Response(403, b"", [], b"no")

    async with opened(handler, body_max_bytes=1000) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 2000000", b"x" * 1500))
        answer = await caller.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert answer["Connection"] == "close"
    assert not raised


# 100 (Continue)


@on_both_loops
async def test_who_asks_first_is_told_to_continue() -> None:
    async with opened(Digest()) as door, call(door) as caller:
        for turn in range(2):
            await caller.send(post(b"Content-Length: 3\r\nExpect: 100-Continue"))
            assert (await caller.answer()).status == 100, turn
            await caller.send(b"abc")
            assert (await caller.answer()).body == said_of(b"abc")
        await caller.send(post(b"Expect: 100-continue\r\nTransfer-Encoding: chunked"))
        assert (await caller.answer()).status == 100
        await caller.send(b"3\r\nabc\r\n0\r\n\r\n")
        assert (await caller.answer()).body == said_of(b"abc")


@on_both_loops
async def test_who_does_not_wait_for_it_is_not_told() -> None:
    async with opened(Digest()) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 3\r\nExpect: 100-continue", b"abc"))
        assert (await caller.answer()).status == 200
        await caller.send(post(b"Content-Length: 3\r\nExpect: 100-continue", b"a"))
        await asyncio.sleep(0.03)
        await caller.send(b"bc")
        assert (await caller.answer()).status == 200
        await caller.send(post(b"Content-Length: 0\r\nExpect: 100-continue"))
        assert (await caller.answer()).status == 200
        await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
        assert (await caller.answer()).status == 200
        old = b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        await caller.send(old)
        await asyncio.sleep(0.03)
        await caller.send(b"abc")
        assert (await caller.answer()).body == said_of(b"abc")


@on_both_loops
async def test_100_waits_for_its_turn() -> None:
    gate = asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        await gate.wait()
        return Response(200, b"", [], request.body)

    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET + post(b"Content-Length: 3\r\nExpect: 100-continue"))
        await asyncio.sleep(0.03)
        gate.set()
        assert (await caller.answer()).status == 200
        assert (await caller.answer()).status == 100
        await caller.send(b"abc")
        assert (await caller.answer()).body == b"abc"


@on_both_loops
async def test_who_waits_for_our_100_is_not_late() -> None:
    """The time of a body does not run while we owe the word that it may come."""
    gate, begun = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        return Response(200, b"", [], b"")

    async with opened(handler, body_ms=100) as door, call(door) as caller:
        await caller.send(GET + post(b"Content-Length: 3\r\nExpect: 100-continue"))
        await begun.wait()
        await asyncio.sleep(0.6)
        assert door.statistics().refused == {}
        gate.set()
        assert (await caller.answer()).status == 200
        assert (await caller.answer()).status == 100


@on_both_loops
async def test_a_large_body_is_asked_for_only_when_it_is_read() -> None:
    async with opened(Digest(), body_max_bytes=2) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 3\r\nExpect: 100-continue"))
        assert (await caller.answer()).status == 100
        await caller.send(b"abc")
        assert (await caller.answer()).body == said_of(b"abc")
    handler = Recorder(Response(403, b"", [], b"no"))
    async with opened(handler, body_max_bytes=2, body_ms=100) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 3\r\nExpect: 100-continue"))
        answer = await caller.answer()
        assert answer.status == 403
        assert answer["Connection"] == "close"  # the body may come or not: nobody can know


# answers


@on_both_loops
async def test_an_answer_of_known_length_streams_counted() -> None:
    parts = Parts(b"abc", b"", b"never reached")
    handler = Recorder(Response(200, b"", [], b"12", parts, 5))
    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        answer = await caller.answer()
        assert answer["Content-Length"] == "5"
        assert answer.body == b"12abc"
        assert parts.closed == 0
        handler.response = Response(200, b"", [], b"still here")
        await caller.send(GET)
        assert (await caller.answer()).body == b"still here"


@on_both_loops
async def test_an_answer_of_unknown_length_streams_in_chunks() -> None:
    handler = Recorder(Response(200, b"", [], b"12", Parts(b"abc", b"d" * 100_000)))
    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        answer = await caller.answer()
        assert answer["Transfer-Encoding"] == "chunked"
        assert answer.body == b"12abc" + b"d" * 100_000
        handler.response = Response(200, b"", [], b"", Parts())
        await caller.send(GET)
        assert (await caller.answer()).body == b""


@on_both_loops
async def test_a_large_answer_is_read_no_faster_than_it_is_taken() -> None:
    class Endless:
        given = 0
        closed = 0

        async def read(self) -> bytes:
            if self.given >= 64 * MIB:
                return b""
            self.given += 65_536
            return bytes(65_536)

        def close(self) -> None:
            self.closed += 1

    rest = Endless()
    handler = Recorder(Response(200, b"", [], b"", rest, 64 * MIB))
    async with opened(handler) as door, call(door) as caller:
        caller.writer.transport.pause_reading()
        await caller.send(GET)
        await eventually(lambda: rest.given)
        await asyncio.sleep(0.3)
        assert rest.given < 16 * MIB  # what the kernel's buffers take
        caller.writer.transport.resume_reading()
        await caller.head()
        size = 0
        while size < 64 * MIB:
            size += len(await caller.reader.read(MIB))
        assert rest.given == size == 64 * MIB


async def test_streams_in_both_directions_take_little_memory() -> None:
    """64 MiB in, echoed out as they come."""

    async def handler(request: Request, caller: Caller, /) -> Response:
        return Response(200, b"", [], request.body, request.rest, request.length)

    size = 64 * MIB
    piece = bytes(MIB)
    async with opened(handler) as door, call(door) as caller:

        async def send() -> None:
            await caller.send(post(b"Content-Length: %d" % size))
            for _ in range(64):
                await caller.send(piece)

        tracemalloc.start()
        try:
            sending = asyncio.create_task(send())
            await caller.head()
            came = 0
            while came < size:
                came += len(await caller.reader.read(MIB))
            await sending
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert came == size
    assert most < 8 * MIB


BROKEN = {
    "counted": Response(200, b"", [], b"1", Parts(b"abc", end=Severed("gone")), 9),
    "chunked": Response(200, b"", [], b"1", Parts(b"abc", end=Severed("gone"))),
    "too few": Response(200, b"", [], b"1", Parts(b"abc"), 9),
    "too many": Response(200, b"", [], b"1", Parts(b"abc", b"defghijkl"), 9),
    "a mistake": Response(200, b"", [], b"1", Parts(b"abc", end=LookupError("oh"))),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("request_", [GET, OLD], ids=["HTTP/1.1", "HTTP/1.0"])
@on_both_loops
async def test_a_broken_answer_looks_broken(name: str, request_: bytes) -> None:
    """Of an HTTP/1.0 answer without length only a reset shows that it is not whole."""
    model = BROKEN[name]
    assert isinstance(model.rest, Parts)
    parts = Parts(*model.rest.parts, end=model.rest.end)
    handler = Recorder(Response(200, b"", [], model.body, parts, model.length))
    async with opened(handler) as door, call(door) as caller:
        await caller.send(request_)
        with pytest.raises(Broken):
            await caller.answer()
        assert parts.closed == 1
        assert door.statistics().broken_off_total == 1
        assert door.statistics().mistakes_total == (1 if name == "a mistake" else 0)


@on_both_loops
async def test_what_begins_with_more_than_it_declares_is_no_answer() -> None:
    """The surplus would be read as the beginning of the next answer."""
    parts = Parts(b"HTTP/1.1 200 OK\r\n")
    handler = Recorder(Response(200, b"", [], b"1234", parts, 3))
    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        assert (await caller.answer()).status == 500
        assert parts.closed == 1
        handler.response = Response(200, b"", [], b"next")
        await caller.send(GET)
        assert (await caller.answer()).body == b"next"


@on_both_loops
async def test_an_answer_that_nobody_takes_is_given_up() -> None:
    class Waiting(Parts):
        """Gives a part, then nothing until it is closed."""

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
    async with opened(Recorder(Response(200, b"", [], b"", rest))) as door, call(door) as caller:
        await caller.send(GET)
        await caller.head()
        caller.vanish()
        await eventually(lambda: rest.closed)
        await eventually(lambda: door.statistics().connections == 0)
        await asyncio.sleep(0.01)
        assert rest.closed == 1


@on_both_loops
async def test_a_streamed_answer_for_a_caller_who_has_gone_is_closed() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    rest = Parts(b"abc")

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        return Response(200, b"", [], b"", rest)

    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        await begun.wait()
        caller.vanish()
        await eventually(lambda: door.statistics().connections == 0)
        gate.set()
        await eventually(lambda: rest.closed == 1)
        assert rest.parts == [b"abc"]


# HEAD and other answers without a body


@on_both_loops
async def test_head_tells_the_length_and_sends_nothing() -> None:
    ask_head = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
    rest = Parts(b"x")
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        for response, length in (
            (Response(200, b"", [], b"four"), "4"),
            (Response(200, b"", [], b"", None, 1234), "1234"),
            (Response(200, b"", [], b"", rest, 77), "77"),
        ):
            handler.response = response
            await caller.send(ask_head)
            answer = await caller.answer(bodiless=True)
            assert answer["Content-Length"] == length
        assert rest.closed == 1
        handler.response = Response(200, b"", [], b"now a body")
        await caller.send(GET)
        assert (await caller.answer()).body == b"now a body"


@pytest.mark.parametrize("status", [204, 304])
@on_both_loops
async def test_some_answers_have_no_body(status: int) -> None:
    handler = Recorder()
    rest = Parts(b"x")
    async with opened(handler) as door, call(door) as caller:
        for response in (
            Response(status, b"", [], b"no"), Response(status, b"", [], b"", rest, 5),
            Response(status, b"", [], b"", None, 5),
        ):  # fmt: skip
            handler.response = response
            await caller.send(GET)
            answer = await caller.answer()
            assert answer.status == status
            assert "Transfer-Encoding" not in answer
            if status == 204:
                assert "Content-Length" not in answer  # RFC 9110 §8.6
            elif response.length == 5:
                assert answer["Content-Length"] == "5"
        handler.response = Response(200, b"", [], b"now a body")
        await caller.send(GET)
        assert (await caller.answer()).body == b"now a body"
    assert rest.closed == 1


# HTTP/1.0 and half-closed connections


@on_both_loops
async def test_http_1_0_closes_unless_asked_not_to() -> None:
    handler = Recorder()
    async with opened(handler) as door:
        async with call(door) as caller:
            await caller.send(OLD)
            answer = await caller.answer()
            assert (answer.body, answer["Connection"]) == (b"ok", "close")
            assert await caller.rest() == b""
        async with call(door) as caller:
            keep = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
            for _ in range(2):
                await caller.send(keep)
                answer = await caller.answer()
                assert (answer.body, answer["Connection"]) == (b"ok", "keep-alive")
            handler.response = Response(200, b"", [], b"1", Parts(b"23"), 3)
            await caller.send(keep)
            assert (await caller.answer()).body == b"123"
            handler.response = Response(200, b"", [], b"1", Parts(b"23"))
            await caller.send(keep)
            answer = await caller.answer()
            assert (answer.body, answer["Connection"]) == (b"123", "close")
            assert "Transfer-Encoding" not in answer


@on_both_loops
async def test_who_stops_sending_still_gets_all_answers() -> None:
    async def handler(request: Request, caller: Caller, /) -> Response:
        await asyncio.sleep(0.02)
        return Response(200, b"", [], request.body, Parts(b"+"))

    async with opened(handler) as door, call(door) as caller:
        await caller.send(b"".join(post(b"Content-Length: 1", b"%d" % n) for n in range(3)))
        caller.writer.write_eof()
        for number in range(3):
            assert (await caller.answer()).body == b"%d+" % number
        assert await caller.rest() == b""


@on_both_loops
async def test_a_half_request_after_whole_ones_costs_them_nothing() -> None:
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET + GET + post(b"Content-Length: 5", b"ab"))
        caller.writer.write_eof()
        assert (await caller.answer()).status == 200
        assert (await caller.answer()).status == 200
        assert await caller.rest() == b""
    assert len(handler.requests) == 2


@on_both_loops
async def test_pipelined_bodies_large_and_small_stay_in_order() -> None:
    handler = Digest()
    bodies = [bytes([n]) * size for n, size in enumerate((10, 300_000, 0, 90_000, 70_000, 5))]
    async with opened(handler, body_max_bytes=80_000) as door, call(door) as caller:
        data = b"".join(post(b"Content-Length: %d" % len(body), body) for body in bodies)
        sending = asyncio.create_task(caller.send(data))
        for body in bodies:
            assert (await caller.answer()).body == said_of(body)
        await sending


@on_both_loops
async def test_a_large_whole_answer_is_written_whole() -> None:
    body = bytes(range(256)) * 20_000
    async with opened(Recorder(Response(200, b"", [], body))) as door:
        assert (await ask(door, GET)).body == body
