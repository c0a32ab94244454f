"""The door: what reaches the handler, what goes back, and how a connection lives and ends."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import time

import pytest
from callers import PATIENCE_S, Recorder, ask, call, eventually, on_both_loops, opened

from unspool.core.message import Request, Response
from unspool.ingress.protocol import Caller

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


@on_both_loops
async def test_a_request_arrives_as_it_was_sent() -> None:
    handler = Recorder()
    async with opened(handler) as door:
        answer = await ask(
            door,
            b"POST /a%20b?c=d&&e HTTP/1.1\r\nHoSt: shop.example:81\r\nX-Two: 1\r\nx-two: 2\r\n"
            b"Empty:\r\nLatin: \xfcber\r\nPadded: \t both sides \t\r\nContent-Length: 3\r\n"
            b"Accept: */*\r\n\r\nabc",
        )
    assert answer.status == 200
    (request,) = handler.requests
    assert request.method == b"POST"
    assert request.target == b"/a%20b?c=d&&e"
    assert request.fields == [
        (b"HoSt", b"shop.example:81"), (b"X-Two", b"1"), (b"x-two", b"2"), (b"Empty", b""),
        (b"Latin", b"\xfcber"), (b"Padded", b"both sides"), (b"Content-Length", b"3"),
        (b"Accept", b"*/*"),
    ]  # fmt: skip
    assert request.body == b"abc"
    assert type(request.body) is bytes
    assert request.rest is None
    assert handler.peers == [Caller(peer="127.0.0.1", scheme="http")]


@on_both_loops
async def test_an_answer_goes_out_as_it_was_given() -> None:
    fields = [(b"x-LOWER", b"1"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b"), (b"E", b"")]
    handler = Recorder(Response(299, b"Rather Fine", fields, b"body"))
    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        answer = await caller.answer()
    assert (answer.status, answer.reason, answer.body) == (299, "Rather Fine", b"body")
    assert answer.fields[:4] == [
        ("x-LOWER", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b"), ("E", ""),
    ]  # fmt: skip
    assert {name for name, _ in answer.fields[4:]} == {"Date", "Content-Length"}


@on_both_loops
async def test_a_date_is_added_where_there_is_none() -> None:
    handler = Recorder()
    before = int(time.time())
    async with opened(handler) as door:
        added = await ask(door, GET)
        after = time.time()
        handler.response = Response(200, b"", [(b"dAtE", b"Mon, 01 Jan 2001 00:00:00 GMT")], b"")
        given = await ask(door, GET)
    moment = email.utils.parsedate_to_datetime(added["Date"]).timestamp()
    assert before <= moment <= after
    assert given["Date"] == "Mon, 01 Jan 2001 00:00:00 GMT"


@on_both_loops
async def test_the_standard_reason_is_written_where_none_is_given() -> None:
    handler = Recorder(Response(404, b"", []))
    async with opened(handler) as door:
        assert (await ask(door, GET)).reason == "Not Found"
        handler.response = Response(599, b"", [])
        assert (await ask(door, GET)).reason == ""


@on_both_loops
async def test_framing_is_the_doors_own() -> None:
    """What the handler says of the body's length and of the connection is not repeated."""
    fields = [
        (b"content-length", b"99"), (b"Transfer-Encoding", b"gzip"), (b"Connection", b"x"),
        (b"Keep-Alive", b"timeout=5"), (b"Kept", b"yes"),
    ]  # fmt: skip
    handler = Recorder(Response(200, b"", fields, b"four"))
    async with opened(handler) as door, call(door) as caller:
        for _ in range(2):
            await caller.send(GET)
            answer = await caller.answer()
            assert answer.body == b"four"
            assert {name for name, _ in answer.fields} == {"Kept", "Date", "Content-Length"}


@pytest.mark.parametrize(
    "field",
    [
        (b"A", b"b\r\nSet-Cookie: stolen=1"), (b"A", b"b\nC: d"), (b"A", b"b\rC: d"),
        (b"A", b"b\0c"), (b"A\r\nB", b"c"), (b"A", b"\r\n\r\n<script>"), (b"A\n", b"b"),
        (b"Set-Cookie ", b"stolen=1"), (b"Content-Length: 1\tX", b"a"),
        (b"Transfer-Encoding ", b"chunked"), (b" folded", b"a"), (b"", b"a"), (b"\xe4", b"a"),
    ],
)  # fmt: skip
@on_both_loops
async def test_an_answer_cannot_be_split(field: tuple[bytes, bytes]) -> None:
    handler = Recorder(Response(200, b"", [field], b"secret"))
    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        answer = await caller.answer()
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert "Set-Cookie" not in answer
        assert door.statistics().mistakes_total == 1
        handler.response = Response(200, b"", [], b"fine")
        await caller.send(GET)
        assert (await caller.answer()).body == b"fine"


@on_both_loops
async def test_a_reason_cannot_split_an_answer_either() -> None:
    handler = Recorder(Response(200, b"OK\r\nSet-Cookie: stolen=1", [], b""))
    async with opened(handler) as door:
        answer = await ask(door, GET)
    assert answer.status == 500
    assert "Set-Cookie" not in answer


@pytest.mark.parametrize("status", [100, 101, 103, 199, 0, -1, 1000])
@on_both_loops
async def test_only_a_final_status_is_an_answer(status: int) -> None:
    async with opened(Recorder(Response(status, b"", []))) as door:
        assert (await ask(door, GET)).status == 500


@on_both_loops
async def test_a_handler_that_raises_is_a_500_and_the_connection_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(request: Request, caller: Caller, /) -> Response:
        if request.target == b"/bad":
            raise LookupError("a mistake")
        return Response(200, b"", [], b"ok")

    async with opened(handler) as door, call(door) as caller:
        with caplog.at_level(logging.ERROR, "unspool.door"):
            await caller.send(b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await caller.answer()
        assert answer.status == 500
        assert answer["Content-Type"] == "application/problem+json"
        assert "LookupError: a mistake" in caplog.text
        assert b"LookupError" not in answer.body
        await caller.send(GET)
        assert (await caller.answer()).body == b"ok"
        assert door.statistics().mistakes_total == 1


@on_both_loops
async def test_a_refusal_is_a_problem_document_and_the_end() -> None:
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        answer = await caller.answer()
        assert answer.status == 400
        assert answer["Content-Type"] == "application/problem+json"
        assert answer["Connection"] == "close"
        assert "error=http_request_error" in answer["Proxy-Status"]
        document = json.loads(answer.body)
        assert document["status"] == 400
        assert "Host" in document["detail"]
        assert await caller.rest() == b""
        assert door.statistics().refused == {"malformed": 1}
    assert handler.requests == []


# how a connection lives


@on_both_loops
async def test_a_connection_is_kept() -> None:
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        for number in range(5):
            await caller.send(POST)
            answer = await caller.answer()
            assert answer.body == b"ok"
            assert "Connection" not in answer, number
        statistics = door.statistics()
        assert (statistics.connections, statistics.connections_total) == (1, 1)
        assert statistics.requests_total == 5


CLOSING = {
    "close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "Close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n",
    "behind another": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n",
    "before another": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n",
    "to a proxy": b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n",
    "in a trailer": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("how", ["together", "alone"])
@pytest.mark.parametrize("name", CLOSING)
@on_both_loops
async def test_close_means_close(name: str, how: str) -> None:
    """Also where llhttp alone would listen to it: what follows is not read, whoever reads it."""
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        await caller.send(CLOSING[name] + (GET if how == "together" else b""))
        assert (await caller.answer())["Connection"] == "close"
        assert await caller.rest() == b""
    assert len(handler.requests) == 1


@on_both_loops
async def test_pipelined_requests_are_answered_in_order() -> None:
    async def handler(request: Request, caller: Caller, /) -> Response:
        number = int(request.target[1:])
        await asyncio.sleep(0.01 if number % 3 == 0 else 0)
        return Response(200, b"", [], b"%d:%b" % (number, request.body))

    async with opened(handler) as door, call(door) as caller:
        lines = b"".join(
            b"PUT /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n%02d" % (n, n)
            for n in range(50)
        )
        await caller.send(lines)
        for number in range(50):
            assert (await caller.answer()).body == b"%d:%02d" % (number, number)


@on_both_loops
async def test_pipelining_waits_when_too_many_wait() -> None:
    """A flood is parsed no faster than it is answered, and nothing of it is lost."""
    gate = asyncio.Event()
    seen = 0

    async def handler(request: Request, caller: Caller, /) -> Response:
        nonlocal seen
        seen += 1
        await gate.wait()
        return Response(200, b"", [], b"")

    count = 20_000
    async with opened(handler, pipelined_max=4) as door, call(door) as caller:
        (connection,) = await _connections(door)
        sending = asyncio.create_task(caller.send(GET * count))
        await eventually(lambda: connection._paused)
        await asyncio.sleep(0.05)
        assert seen == 1
        assert len(connection._queue) < 1000  # of one slice of 16 KiB, and not of all 540 KB
        gate.set()
        for _ in range(count):
            await caller.until(b"\r\n\r\n")
        await sending
        assert seen == count


async def _connections(door: object) -> list[object]:
    await eventually(lambda: door._connections)
    return list(door._connections)


@on_both_loops
async def test_a_refusal_waits_for_its_turn() -> None:
    gate = asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        await gate.wait()
        return Response(200, b"", [], request.target)

    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\nBROKEN\r\n\r\n" + GET)
        await asyncio.sleep(0.02)
        gate.set()
        assert (await caller.answer()).body == b"/"
        assert (await caller.answer()).body == b"/2"
        assert (await caller.answer()).status == 400
        assert await caller.rest() == b""


@on_both_loops
async def test_a_connection_may_be_given_so_many_requests() -> None:
    async with opened(Recorder(), requests_per_connection_max=2) as door, call(door) as caller:
        await caller.send(GET)
        assert "Connection" not in await caller.answer()
        await caller.send(GET)
        assert (await caller.answer())["Connection"] == "close"
        assert await caller.rest() == b""


@on_both_loops
async def test_line_ends_before_a_request_are_ignored() -> None:
    """RFC 9112 §2.2: some callers send one too many after a body."""
    async with opened(Recorder()) as door, call(door) as caller:
        await caller.send(b"\r\n" + POST + b"\r\n" + POST + b"\r\n")
        assert (await caller.answer()).status == 200
        assert (await caller.answer()).status == 200
        await caller.send(GET)
        assert (await caller.answer()).status == 200


@on_both_loops
async def test_an_offer_of_h2c_is_ignored() -> None:
    """Java's HttpClient makes it with its every first request."""
    handler = Recorder()
    offer = (
        b"%b HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\nHost: a\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n\r\n"
    )
    async with opened(handler) as door, call(door) as caller:
        await caller.send(offer % (b"POST /1", 3) + b"abc" + offer % (b"GET /2", 0) + POST)
        for _ in range(3):
            assert (await caller.answer()).status == 200
    assert [request.target for request in handler.requests] == [b"/1", b"/2", b"/orders"]
    assert [request.body for request in handler.requests] == [b"abc", b"", b"abc"]
    assert (b"Upgrade", b"h2c") in handler.requests[0].fields


@on_both_loops
async def test_an_offer_of_h2c_in_pieces_is_ignored_too() -> None:
    handler = Recorder()
    data = (
        b"POST /1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    async with opened(handler) as door, call(door) as caller:
        for index in range(len(data)):
            await caller.send(data[index : index + 1])
            await asyncio.sleep(0)
        assert (await caller.answer()).status == 200
    assert handler.requests[0].body == b"abc"


# targets and hosts


@pytest.mark.parametrize(
    ("target", "expected", "host"),
    [
        (b"http://shop.example/a?b", b"/a?b", b"shop.example"),
        (b"HTTPS://shop.example:444/a", b"/a", b"shop.example:444"),
        (b"http://shop.example", b"/", b"shop.example"),
        (b"http://shop.example?q", b"/?q", b"shop.example"),
        (b"http://[::1]:80/", b"/", b"[::1]:80"),
    ],
)
@on_both_loops
async def test_an_absolute_target_names_the_host(
    target: bytes, expected: bytes, host: bytes
) -> None:
    """RFC 9112 §3.2.2: what the field Host says does not count then."""
    handler = Recorder()
    async with opened(handler) as door:
        head = b"GET " + target + b" HTTP/1.1\r\nA: b\r\nHost: elsewhere\r\nC: d\r\n\r\n"
        assert (await ask(door, head)).status == 200
    (request,) = handler.requests
    assert request.target == expected
    assert request.fields == [(b"A", b"b"), (b"Host", host), (b"C", b"d")]


@on_both_loops
async def test_options_may_ask_for_everything() -> None:
    handler = Recorder()
    async with opened(handler) as door:
        assert (await ask(door, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
        await ask(door, b"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [request.target for request in handler.requests] == [b"*", b"*"]


# the caller vanishes


@on_both_loops
async def test_a_handler_finishes_for_a_caller_who_has_gone() -> None:
    begun, gate, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        finished.set()
        return Response(200, b"", [], b"for nobody")

    async with opened(handler) as door:
        async with call(door) as caller:
            await caller.send(POST)
            await begun.wait()
            caller.vanish()
            await eventually(lambda: door.statistics().connections == 0)
        assert not finished.is_set()
        gate.set()
        await asyncio.wait_for(finished.wait(), PATIENCE_S)


@on_both_loops
async def test_a_fire_and_forget_request_is_handled() -> None:
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        await caller.send(POST)
        caller.writer.close()
        await eventually(lambda: handler.requests)
    assert len(handler.requests) == 1


# closing


@on_both_loops
async def test_closing_lets_what_is_answered_finish() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        return Response(200, b"", [], b"in time")

    async with opened(handler) as door, call(door) as busy, call(door) as idle:
        port = door.sockets[0].getsockname()[1]
        await busy.send(GET)
        await begun.wait()
        assert door._timer is not None
        door._timer.cancel()  # at once, and not when the clock comes by
        closing = asyncio.create_task(door.close(drain_ms=10_000))
        assert await idle.rest() == b""
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        gate.set()
        answer = await busy.answer()
        assert answer.body == b"in time"
        assert answer["Connection"] == "close"
        assert await busy.rest() == b""
        assert await closing == 0


@on_both_loops
async def test_closing_aborts_what_does_not_finish() -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await never.wait()
        return Response(200, b"", [])

    async with opened(handler) as door, call(door) as caller:
        await caller.send(GET)
        await begun.wait()
        started = time.monotonic()
        assert await door.close(drain_ms=100) == 1
        assert 0.09 < time.monotonic() - started < PATIENCE_S
        assert (await caller.reader.read()) == b""
        never.set()


@on_both_loops
async def test_closing_does_not_lose_a_request_that_has_just_come() -> None:
    """It has come, its turn has not: the connection only looks idle."""
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        (connection,) = await _connections(door)
        connection.data_received(GET)
        assert await door.close(drain_ms=1000) == 0
        assert (await caller.answer()).body == b"ok"


@on_both_loops
async def test_a_door_can_be_looked_at() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, caller: Caller, /) -> Response:
        begun.set()
        await gate.wait()
        return Response(200, b"", [])

    async with opened(handler) as door, call(door) as caller:
        assert repr(door).startswith("<Door open on http://127.0.0.1:")
        (connection,) = await _connections(door)
        assert repr(connection) == "<Connection from 127.0.0.1: idle, 0 answered>"
        await caller.send(GET[:9])
        await eventually(lambda: "reading a head" in repr(connection))
        await caller.send(GET[9:])
        await begun.wait()
        assert "answering" in repr(connection)
        gate.set()
        await caller.answer()
        assert "idle, 1 answered" in repr(connection)
    assert repr(door).startswith("<Door closing")
