"""The HTTP transport against a server that behaves: bytes out, answers in, connections kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hostile import (
    GOOD,
    IN_TIME_S,
    Got,
    Hostile,
    Peer,
    answers,
    both_loops,
    eventually,
    once,
    silent,
    undisturbed,
)
from unspool.core.message import Answer, Cause, Failure, Request, Response, Sent, Severed
from unspool.errors import Misconfigured
from unspool.transports.http import HttpTransport, Limits
from unspool.transports.limits import LONG_ANSWER_S

GET = Request(b"GET", b"/x?a=%20b", [(b"Host", b"api.example")])
POST = Request(b"POST", b"/orders", [(b"Host", b"api.example")], b"{}")


class Body:
    """A request body that comes piece by piece; an exception among the pieces is raised."""

    def __init__(self, *parts: bytes | Exception | float) -> None:
        self.parts = list(parts)
        self.reads = 0

    async def read(self) -> bytes:
        while self.parts:
            part = self.parts.pop(0)
            self.reads += 1
            if isinstance(part, Exception):
                raise part
            if isinstance(part, float):
                await asyncio.sleep(part)
                continue
            await asyncio.sleep(0)
            return part
        return b""

    def close(self) -> None:
        raise AssertionError("a transport does not close what it did not open")


def good(answer: Answer) -> Response:
    assert isinstance(answer, Response), answer
    return answer


def bad(answer: Answer, cause: Cause, sent: Sent = Sent.MAYBE) -> Failure:
    assert isinstance(answer, Failure), answer
    assert (answer.cause, answer.sent) == (cause, sent), answer
    assert answer.detail
    return answer


async def whole(response: Response) -> bytes:
    data = response.body
    if response.rest is not None:
        while more := await response.rest.read():
            data += more
    return data


async def ask(
    server: Hostile, request: Request = GET, *, repeat: bool = True, **limits: int
) -> Answer:
    transport = HttpTransport(server.origin, limits=Limits(**limits))
    try:
        return await transport.attempt(request, repeat=repeat)
    finally:
        await transport.aclose()


# -- what goes out ------------------------------------------------------------------------------


async def sent(request: Request) -> Got:
    async with Hostile(answers(GOOD)) as server:
        good(await ask(server, request))
        return server.requests[0]


@both_loops
async def test_head_goes_out_byte_for_byte() -> None:
    fields = [
        (b"hOsT", b"api.example"), (b"X-B", b"2"), (b"x-a", b""), (b"X-B", b"1\t \xff"),
        (b"Expect-Nothing", b"a: b"),
    ]  # fmt: skip
    got = await sent(Request(b"DELETE", b"/a//b/../%2e?q=%00#frag", fields))
    assert got.head == (
        b"DELETE /a//b/../%2e?q=%00#frag HTTP/1.1\r\n"
        b"hOsT: api.example\r\nX-B: 2\r\nx-a: \r\nX-B: 1\t \xff\r\nExpect-Nothing: a: b\r\n\r\n"
    )


@both_loops
async def test_the_origin_is_the_host_where_none_was_given() -> None:
    async with Hostile(answers(GOOD)) as server:
        good(await ask(server, Request(b"GET", b"/", [(b"A", b"b")])))
        assert server.requests[0].fields == [
            b"Host: 127.0.0.1:%d" % server.port,
            b"A: b",
        ]


@pytest.mark.parametrize(
    ("method", "body", "framing"),
    [
        (b"GET", b"", []),
        (b"HEAD", b"", []),
        (b"DELETE", b"", []),
        (b"PURGE", b"", []),
        (b"POST", b"", [b"Content-Length: 0"]),
        (b"PUT", b"", [b"Content-Length: 0"]),
        (b"PATCH", b"", [b"Content-Length: 0"]),
        (b"POST", b"abc", [b"Content-Length: 3"]),
        (b"GET", b"abc", [b"Content-Length: 3"]),
        (b"POST", b"x" * 300_000, [b"Content-Length: 300000"]),
    ],
    ids=lambda value: None if isinstance(value, list) or len(value) > 9 else value.decode(),
)
@both_loops
async def test_framing_is_ours(method: bytes, body: bytes, framing: list[bytes]) -> None:
    got = await sent(Request(method, b"/", [(b"Host", b"h")], body))
    assert got.fields == [b"Host: h", *framing]
    assert got.body == body


@both_loops
async def test_a_body_that_still_comes_goes_out_in_chunks() -> None:
    request = Request(b"POST", b"/", [(b"Host", b"h")], b"one", Body(b"two", 0.02, b"three"), -1)
    got = await sent(request)
    assert got.fields == [b"Host: h", b"Transfer-Encoding: chunked"]
    assert got.chunks == [b"one", b"two", b"three"]


@both_loops
async def test_a_body_of_declared_length_goes_out_as_it_is() -> None:
    request = Request(b"POST", b"/", [(b"Host", b"h")], b"one", Body(b"two", b"three"), 11)
    got = await sent(request)
    assert got.fields == [b"Host: h", b"Content-Length: 11"]
    assert got.body == b"onetwothree"


@pytest.mark.parametrize(
    "request_",
    [
        Request(b"GET", b"/\r\nX: y", []),
        Request(b"GET", b"/ HTTP/1.1\r\n\r\nGET /", []),
        Request(b"GET", b"/a b", []),
        Request(b"GET", b"/a\tb", []),
        Request(b"GET", b"/a\x0bHTTP/1.1", []),
        Request(b"GET", b"", []),
        Request(b"GET", b"/\0", []),
        Request(b"GET\r\n", b"/", []),
        Request(b"GET /evil", b"/", []),
        Request(b"", b"/", []),
        Request(b"CONNECT", b"a:1", []),
        Request(b"GET", b"/", [(b"A", b"b\r\nC: d")]),
        Request(b"GET", b"/", [(b"A", b"b\nC: d")]),
        Request(b"GET", b"/", [(b"A", b"b\rC: d")]),
        Request(b"GET", b"/", [(b"A", b"b\0")]),
        Request(b"GET", b"/", [(b"A\r\nB", b"b")]),
        Request(b"GET", b"/", [(b"A ", b"b")]),
        Request(b"GET", b"/", [(b"A:", b"b")]),
        Request(b"GET", b"/", [(b"", b"b")]),
        Request(b"POST", b"/", [(b"content-LENGTH", b"5")], b"abc"),
        Request(b"POST", b"/", [(b"Transfer-Encoding", b"chunked")], b"abc"),
        Request(b"GET", b"/", [(b"Connection", b"close")]),
        Request(b"GET", b"/", [(b"Host", b"a"), (b"host", b"a")]),
    ],
    ids=repr,
)
@both_loops
async def test_what_could_be_cut_differently_is_never_sent(request_: Request) -> None:
    async with Hostile(answers(GOOD)) as server:
        bad(await ask(server, request_), Cause.PROXY_INTERNAL_ERROR, Sent.NEVER)
        assert server.connections == 0


@both_loops
async def test_a_body_that_begins_with_more_than_it_declares_is_never_sent() -> None:
    surplus = b"abcGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    async with Hostile(answers(GOOD)) as server:
        request = Request(b"POST", b"/", [(b"Host", b"h")], surplus, Body(), 3)
        bad(await ask(server, request), Cause.PROXY_INTERNAL_ERROR, Sent.NEVER)
        assert server.connections == 0


# -- what comes in ------------------------------------------------------------------------------


@both_loops
async def test_fields_come_in_order_less_those_of_the_connection() -> None:
    answer = (
        b"HTTP/1.1 201 Made It\r\nB: 2\r\na: 1\r\nB: \r\nKeep-Alive: timeout=5\r\n"
        b"Connection: x-gone, Content-Type, keep-alive\r\nX-Gone: 1\r\nProxy-Authenticate: x\r\n"
        b"Upgrade: h2c\r\nTE: x\r\nTrailer: y\r\nContent-Type: t/x\r\nSet-Cookie: a\r\n"
        b"Set-Cookie: b\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b"
    )
    async with Hostile(answers(answer)) as server:
        response = good(await ask(server))
    assert (response.status, response.reason) == (201, b"Made It")
    assert list(response.fields) == [
        (b"B", b"2"), (b"a", b"1"), (b"B", b""), (b"Content-Type", b"t/x"),
        (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b"), (b"Content-Encoding", b"gzip"),
    ]  # fmt: skip
    assert (response.body, response.rest, response.length) == (b"\x1f\x8b", None, 2)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nX: y\r\n\r\n"
OK_HEAD = b"HTTP/1.1 200 OK\r\n"
OLD_HEAD = b"HTTP/1.0 200 OK\r\n"

ANSWERS = {
    "length": (GOOD, b"ok", 2, True),
    "empty": (OK_HEAD + b"Content-Length: 0\r\n\r\n", b"", 0, True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x", 1, True),
    "chunked": (CHUNKED + b"2\r\nok\r\n3;x=y\r\nabc\r\n0\r\n\r\n", b"okabc", -1, True),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\n", b"a", -1, True),
    "no chunks": (CHUNKED + b"0\r\n\r\n", b"", -1, True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", -1, True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", b"", 77, True),
    "close": (OK_HEAD + b"Connection: Close\r\nContent-Length: 2\r\n\r\nok", b"ok", 2, False),
    "close to a proxy": (
        OK_HEAD + b"Proxy-Connection: Close\r\nContent-Length: 2\r\n\r\nok", b"ok", 2, False,
    ),
    "kept for a proxy": (
        OK_HEAD + b"Proxy-Connection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", b"ok", 2, True,
    ),
    "a trailer that frames": (
        CHUNKED + b"1\r\na\r\n0\r\nTransfer-Encoding: x\r\n\r\n", b"a", -1, False,
    ),
    "old": (OLD_HEAD + b"Content-Length: 2\r\n\r\nok", b"ok", 2, False),
    "old kept": (
        OLD_HEAD + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok", 2, True,
    ),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, b"ok", 2, True),
    "100 and 103": (
        b"HTTP/1.1 100 Continue\r\nX: no\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + GOOD, b"ok", 2, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("how", ["at once", "byte by byte"])
@both_loops
async def test_every_kind_of_answer(name: str, how: str) -> None:
    data, body, length, kept = ANSWERS[name]

    async def script(peer: Peer) -> None:
        while await peer.request():
            await (peer.send(data) if how == "at once" else peer.slowly(data))

    async def trial() -> None:
        async with Hostile(script) as server:
            transport = HttpTransport(server.origin, limits=Limits(hold_ms=2000))
            for _ in range(3):
                response = good(await transport.attempt(GET))
                assert (response.body, response.rest, response.length) == (body, None, length)
                assert b"no" not in [value for _, value in response.fields]
                assert b"X-T" not in [name for name, _ in response.fields]
            assert server.connections == (1 if kept else 3)
            assert transport.statistics().reused == (2 if kept else 0)
            await transport.aclose()

    await undisturbed(trial, less_than_s=LONG_ANSWER_S / 2)


@both_loops
async def test_an_answer_until_the_connection_closes() -> None:
    async with Hostile(once(OK_HEAD + b"\r\nall of it")) as server:
        response = good(await ask(server))
        assert await whole(response) == b"all of it"
        assert response.length == -1


@both_loops
async def test_head_has_no_body_and_keeps_its_length() -> None:
    head = Request(b"HEAD", b"/", [(b"Host", b"h")])
    answer = OK_HEAD + b"Content-Length: 1000\r\n\r\n"
    chunked = OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    none = OK_HEAD + b"X: y\r\n\r\n"
    async with Hostile(answers(answer, chunked, none, GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        for length in (1000, -1, -1):
            response = good(await transport.attempt(head))
            assert (response.status, response.body, response.length) == (200, b"", length)
            assert response.rest is None
        assert good(await transport.attempt(GET)).body == b"ok"
        assert server.connections == 1
        await transport.aclose()


@both_loops
async def test_a_head_answered_with_a_body_is_not_reused() -> None:
    head = Request(b"HEAD", b"/", [(b"Host", b"h")])
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        assert good(await transport.attempt(head)).length == 2
        assert good(await transport.attempt(GET)).body == b"ok"
        assert server.connections == 2
        await transport.aclose()


# -- streams ------------------------------------------------------------------------------------


@both_loops
async def test_what_is_larger_than_may_be_kept_streams() -> None:
    body = bytes(range(256)) * 4096
    declared = OK_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = CHUNKED + b"%x\r\n" % len(body) + body + b"\r\n0\r\nT: 1\r\n\r\n"
    async with Hostile(answers(declared, chunks, declared)) as server:
        transport = HttpTransport(server.origin, limits=Limits(keep_max_bytes=1000))
        for length in (len(body), -1, len(body)):
            response = good(await transport.attempt(GET))
            assert response.rest is not None
            assert response.length == length
            assert await whole(response) == body
            assert await response.rest.read() == b""
            assert [name for name, _ in response.fields] in ([], [b"X"])
        assert server.connections == 1, "a stream that was read to its end gives its place back"
        await transport.aclose()


@both_loops
async def test_exactly_as_much_as_may_be_kept_is_kept() -> None:
    answer = OK_HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000

    async def in_two(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer[:-1])
        await asyncio.sleep(0.2)
        await peer.send(answer[-1:])

    async with Hostile(in_two) as server:
        response = good(await ask(server, keep_max_bytes=1000, hold_ms=60_000))
        assert (len(response.body), response.rest) == (1000, None)


@both_loops
async def test_a_slow_stream_is_handed_over_after_a_moment() -> None:
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        await more.wait()
        await peer.send(b"1\r\nb\r\n0\r\n\r\n")
        await peer.gone()

    async with Hostile(script) as server:
        transport = HttpTransport(server.origin, limits=Limits(hold_ms=50))
        async with asyncio.timeout(IN_TIME_S):
            response = good(await transport.attempt(GET))
        assert response.body == b"a"
        assert response.rest is not None
        assert transport.statistics().busy == 1
        more.set()
        assert await response.rest.read() == b"b"
        assert await response.rest.read() == b""
        assert transport.statistics().idle == 1
        await transport.aclose()


@both_loops
async def test_server_sent_events_do_not_wait_at_all() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await asked.wait()
        await peer.send(OK_HEAD + b"Content-Type: text/event-stream\r\n\r\n")
        await peer.gone()

    async with Hostile(script) as server:
        transport = HttpTransport(server.origin, limits=Limits(hold_ms=60_000))
        asking = asyncio.create_task(transport.attempt(GET))
        await eventually(lambda: server.requests)
        assert transport._pool._timer is not None
        transport._pool._timer.cancel()  # at once, and not when the clock comes by
        asked.set()
        async with asyncio.timeout(IN_TIME_S):
            response = good(await asking)
        assert response.rest is not None
        response.rest.close()
        await eventually(lambda: server.open == 0)
        await transport.aclose()


async def settled(count: Callable[[], int]) -> int:
    """What it is when it has begun to grow, and grows no more."""
    await eventually(count)
    before = -1
    while before != (before := count()):
        await asyncio.sleep(0.2)
    return before


@both_loops
async def test_a_stream_nobody_reads_stops_the_sender() -> None:
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        await peer.send(OK_HEAD + b"Content-Length: 100000000\r\n\r\n")
        while peer.reader.at_eof() is False and written < 100_000_000:
            await peer.send(b"x" * 100_000)
            written += 100_000

    async with Hostile(script) as server:
        transport = HttpTransport(
            server.origin, limits=Limits(keep_max_bytes=1000, idle_ms_between_bytes=400)
        )
        response = good(await transport.attempt(GET))
        await asyncio.sleep(0.5)
        before = await settled(lambda: written)
        assert before < 30_000_000
        stream = response.rest
        assert stream is not None
        taken = len(await stream.read())
        assert taken <= 64 * 1024 + 256 * 1024
        while taken < before + 1_000_000:
            taken += len(await stream.read())
        stream.close()
        await eventually(lambda: server.open == 0)
        with pytest.raises(Severed):
            await stream.read()
        await transport.aclose()


@both_loops
async def test_a_stream_that_breaks_off_says_so_after_what_came() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_HEAD + b"Content-Length: 5000\r\n\r\n" + b"x" * 3000)

    async with Hostile(script) as server:
        transport = HttpTransport(server.origin, limits=Limits(keep_max_bytes=1000))
        response = good(await transport.attempt(GET))
        assert response.rest is not None
        taken = len(response.body)
        while taken < 3000:
            taken += len(await response.rest.read())
        with pytest.raises(Severed, match=r"^127\.0\.0\.1:"):
            await response.rest.read()
        await transport.aclose()


# -- bodies on their way out --------------------------------------------------------------------


@both_loops
async def test_an_early_answer_ends_the_sending_and_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with Hostile(script, answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        body = Body(b"x", 30.0)
        request = Request(b"POST", b"/", [(b"Host", b"h")], b"", body, 1000)
        async with asyncio.timeout(IN_TIME_S):
            response = good(await transport.attempt(request))
        assert (response.status, response.body) == (413, b"no")
        assert transport.statistics().idle == 0
        reads = body.reads
        await asyncio.sleep(0.05)
        assert body.reads == reads
        assert good(await transport.attempt(GET)).body == b"ok"
        assert server.connections == 2
        await transport.aclose()


@both_loops
async def test_an_early_answer_to_a_large_whole_body_is_not_followed_by_another_request() -> None:
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await heard.wait()  # a reset overtakes what the kernel still holds

    async with Hostile(script, answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        request = Request(b"POST", b"/", [(b"Host", b"h")], b"x" * 20_000_000)
        response = good(await transport.attempt(request))
        assert (response.status, transport.statistics().idle) == (413, 0)
        heard.set()
        assert good(await transport.attempt(GET)).body == b"ok"
        assert server.connections == 2
        await transport.aclose()


@pytest.mark.parametrize(
    ("parts", "length", "why"),
    [
        ((b"a", Severed("gone")), -1, "broke off"),
        ((b"a", Severed("gone")), 10, "broke off"),
        ((b"a",), 10, "less than it declared"),
        ((b"abc", b"GET /smuggled HTTP/1.1\r\n\r\n"), 3, "more than it declared"),
    ],
)
@both_loops
async def test_a_sender_that_breaks_off(
    parts: tuple[bytes | Exception, ...], length: int, why: str
) -> None:
    seen = b""

    async def script(peer: Peer) -> None:
        nonlocal seen
        await peer.head()
        while data := await peer.reader.read(1000):
            seen += data

    async with Hostile(script) as server:
        request = Request(b"POST", b"/", [(b"Host", b"h")], b"", Body(*parts), length)
        failure = bad(await ask(server, request), Cause.CONNECTION_TERMINATED)
        assert why in failure.detail
        await eventually(lambda: server.open == 0)
        assert b"smuggled" not in seen
        assert not seen.endswith(b"0\r\n\r\n")


@both_loops
async def test_a_server_that_reads_slowly_slows_the_sender_down() -> None:
    read_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await read_on.wait()
        await peer.reader.readexactly(40_000_000)
        await peer.send(GOOD)
        await peer.gone()

    async with Hostile(script) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        body = Body(*[b"x" * 100_000] * 400)
        request = Request(b"POST", b"/", [(b"Host", b"h")], b"", body, 40_000_000)
        task = asyncio.create_task(transport.attempt(request))
        assert await settled(lambda: body.reads) < 200
        read_on.set()
        assert good(await task).body == b"ok"
        await transport.aclose()


@both_loops
async def test_a_slow_sender_is_not_the_fault_of_the_server() -> None:
    async def trial() -> None:
        body = Body(b"a", 0.3, b"b")
        request = Request(b"POST", b"/", [(b"Host", b"h")], b"", body, 2)
        async with Hostile(answers(GOOD)) as server:
            limits = {"first_byte_ms": 150, "idle_ms_between_bytes": 150, "total_ms": 200}
            assert good(await ask(server, request, **limits)).body == b"ok"

    await undisturbed(trial, less_than_s=0.05)


# -- the pool -----------------------------------------------------------------------------------


@both_loops
async def test_last_in_first_out() -> None:
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        await asyncio.gather(*[transport.attempt(GET) for _ in range(5)])
        assert (server.connections, transport.statistics().idle) == (5, 5)
        server.requests.clear()
        for _ in range(5):
            good(await transport.attempt(GET))
        assert len({got.connection for got in server.requests}) == 1
        await transport.aclose()


@both_loops
async def test_a_bounded_number_of_connections_and_of_waiters_served_in_order() -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while got := await peer.request():
            await go.wait()
            await peer.send(OK_HEAD + b"Content-Length: 1\r\n\r\n" + got.line[5:6])

    async with Hostile(script) as server:
        limits = Limits(connections_max=2, waiting_max=3)
        transport = HttpTransport(server.origin, limits=limits)
        order: list[int] = []

        async def one(number: int) -> Answer:
            answer = await transport.attempt(Request(b"GET", b"/%d" % number, []))
            order.append(number)
            return answer

        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.02)
            await eventually(lambda n=number: len(server.requests) == min(n + 1, 2))
        assert transport.statistics().waiting == 3
        assert "2 busy, 0 idle, 3 waiting" in repr(transport)
        bad(await one(9), Cause.CONNECTION_LIMIT_REACHED, Sent.NEVER)
        go.set()
        responses = [good(answer) for answer in await asyncio.gather(*tasks)]
        assert [response.body for response in responses] == [b"0", b"1", b"2", b"3", b"4"]
        assert order[1:] == [0, 1, 2, 3, 4]
        assert server.connections == 2
        now = transport.statistics()
        assert (now.idle, now.busy, now.waiting, now.opened, now.reused) == (2, 0, 0, 2, 3)
        await transport.aclose()


@both_loops
async def test_a_waiter_gives_up_after_a_while() -> None:
    async def trial() -> None:
        async with Hostile(silent) as server:
            limits = Limits(connections_max=1, connect_ms=100)
            transport = HttpTransport(server.origin, limits=limits)
            busy = asyncio.create_task(transport.attempt(GET))
            await asyncio.sleep(0)
            failure = bad(await transport.attempt(GET), Cause.CONNECTION_LIMIT_REACHED, Sent.NEVER)
            assert "100 ms" in failure.detail
            assert not busy.done()
            await transport.aclose()
            bad(await busy, Cause.CLOSING)

    await undisturbed(trial, less_than_s=0.05)


@both_loops
async def test_a_place_that_becomes_free_goes_to_a_waiter_even_if_the_connection_died() -> None:
    async with Hostile(once(b"garbage\r\n\r\n"), answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits(connections_max=1))
        first, second = await asyncio.gather(transport.attempt(GET), transport.attempt(GET))
        bad(first, Cause.HTTP_PROTOCOL_ERROR)
        assert good(second).body == b"ok"
        await transport.aclose()


@both_loops
async def test_cancelled_waiters_lose_no_place() -> None:
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits(connections_max=1))
        for turn in range(30):
            tasks = [asyncio.create_task(transport.attempt(GET)) for _ in range(3)]
            for _ in range(turn % 10):
                await asyncio.sleep(0)
            tasks[turn % 3].cancel()
            tasks[(turn + 1) % 3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        now = transport.statistics()
        assert (now.busy, now.waiting) == (0, 0)
        async with asyncio.timeout(IN_TIME_S):
            assert good(await transport.attempt(GET)).body == b"ok"
        await transport.aclose()


@both_loops
async def test_a_waiter_cancelled_with_a_place_in_hand_passes_it_on() -> None:
    async with Hostile(silent, answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits(connections_max=1))
        first, second, third = [asyncio.create_task(transport.attempt(GET)) for _ in range(3)]
        await eventually(lambda: server.open == 1 and transport.statistics().waiting == 2)
        (connection,) = transport._pool._all
        connection.give_up(Cause.CONNECTION_TERMINATED, "for the test")
        second.cancel()  # the place is promised to it, and it has not run since
        async with asyncio.timeout(IN_TIME_S):
            assert good(await third).body == b"ok"
        bad(await first, Cause.CONNECTION_TERMINATED)
        with pytest.raises(asyncio.CancelledError):
            await second
        await transport.aclose()


@both_loops
async def test_a_fresh_connection_takes_the_place_of_an_idle_one() -> None:
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits(connections_max=1))
        good(await transport.attempt(GET))
        async with asyncio.timeout(IN_TIME_S):
            connection = await transport._pool.obtain(fresh=True)
        assert not isinstance(connection, Failure)
        assert connection.requests == 0
        connection.close()
        assert transport.statistics().opened == 2
        assert good(await transport.attempt(GET)).body == b"ok"
        await transport.aclose()


@both_loops
async def test_cancelling_closes_the_connection() -> None:
    async with Hostile(silent) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        task = asyncio.create_task(transport.attempt(GET))
        await eventually(lambda: server.open == 1)
        await asyncio.sleep(0.02)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: server.open == 0)
        assert transport.statistics().busy == 0
        await transport.aclose()


@both_loops
async def test_an_idle_connection_is_closed_in_time() -> None:
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits(idle_ms=150))
        good(await transport.attempt(GET))
        assert transport.statistics().idle == 1
        await eventually(lambda: server.open == 0)
        assert transport.statistics().idle == 0
        good(await transport.attempt(GET))
        await transport.aclose()


@both_loops
async def test_a_number_of_requests_to_a_connection() -> None:
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits(requests_max=2))
        for _ in range(5):
            good(await transport.attempt(GET))
        assert [got.connection for got in server.requests] == [0, 0, 1, 1, 2]
        await transport.aclose()


@both_loops
async def test_closed_is_closed() -> None:
    async with Hostile(answers(GOOD)) as server:
        transport = HttpTransport(server.origin, limits=Limits())
        good(await transport.attempt(GET))
        await transport.aclose()
        await eventually(lambda: server.open == 0)
        bad(await transport.attempt(GET), Cause.CLOSING, Sent.NEVER)
        await transport.aclose()
        assert "closed" in repr(transport)


@both_loops
async def test_closing_answers_whoever_waits() -> None:
    async def hears(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with Hostile(hears) as server:
        transport = HttpTransport(server.origin, limits=Limits(connections_max=1))
        tasks = [asyncio.create_task(transport.attempt(GET)) for _ in range(2)]
        await eventually(lambda: server.requests)
        await transport.aclose()
        first, second = await asyncio.gather(*tasks)
        bad(first, Cause.CLOSING, Sent.MAYBE)
        bad(second, Cause.CLOSING, Sent.NEVER)


# -- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "", "example.com", "ftp://a", "http://", "http://a/path", "http://a?q", "http://a#f",
        "http://user@a", "http://user:pw@a", "http://a:0", "http://a:70000", "http://a:x",
        "http://a b", "http://a\nb", "http://ä.example", "http://[::1",
    ],
)  # fmt: skip
def test_an_origin_is_scheme_host_and_port(origin: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        HttpTransport(origin, limits=Limits())
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("origin", "where", "name"),
    [
        ("http://a", "a:80", b"a"),
        ("http://a/", "a:80", b"a"),
        ("http://A.Example:80", "a.example:80", b"a.example"),
        ("https://a", "a:443", b"a"),
        ("http://a:443", "a:443", b"a:443"),
        ("http://[::1]:8000", "[::1]:8000", b"[::1]:8000"),
    ],
)
def test_good_origins(origin: str, where: str, name: bytes) -> None:
    transport = HttpTransport(origin, limits=Limits())
    assert where in repr(transport)
    assert transport._host == name


@pytest.mark.parametrize("limits", [{"connections_max": 0}, {"idle_ms": 0}, {"total_ms": -1}])
def test_limits_that_cannot_work_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(Misconfigured, match=next(iter(limits))):
        Limits(**limits)
