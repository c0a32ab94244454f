"""Both roads of a head: what the short one gives, the long one gives, too (core.heads).

Heads are made of ordinary and of odd parts, and damaged at a few places, so that most of them are
nearly ordinary: that is where the roads could part. Each test counts how many took the short one,
for a comparison of the long road with itself would show nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reading import Sink

from unspool.core import heads
from unspool.core.fields import HEADS, ordinary
from unspool.core.kinds import Kinds
from unspool.core.message import Answer, Field, Request, Response
from unspool.ingress.head import Unwritable, head, short_head
from unspool.ingress.limits import Limits as DoorLimits
from unspool.ingress.reading import Ledger, Reading
from unspool.outgoing import Outgoing
from unspool.transports.connection import Connection
from unspool.transports.head import Unsendable, at_length, render
from unspool.transports.limits import Limits

ROUNDS = int(os.environ.get("UNSPOOL_EXAMPLES", "0")) or 6_000
SHARE_MIN = 0.1
"""Of so many at least the short road must have had something to say."""

compiled = pytest.mark.skipif(
    not heads.COMPILED and not os.environ.get("CI"), reason="there was no compiler"
)


def test_where_we_promise_it_there_is_a_short_road() -> None:
    """Without it all the others here would pass."""
    if not os.environ.get("CI"):
        pytest.skip("only CI promises a compiler")
    assert heads.COMPILED


# --- heads, nearly ordinary --------------------------------------------------------------------

NAMES = [
    b"Host", b"host", b"Content-Length", b"content-length", b"Content-Type", b"Accept", b"X-A",
    b"x", b"Idempotency-Key", b"Connection", b"Transfer-Encoding", b"Expect", b"Upgrade", b"Via",
    b"Date", b"Proxy-Connection",
    b"Prefer", b"Trailer", b"Keep-Alive", b"TE", b"Set-Cookie", b"Bad Name", b"", b"X:Y", b"\xff",
]  # fmt: skip
VALUES = [
    b"", b"a", b"keep-alive", b"close", b"0", b"2", b"02", b"+2", b"-1", b"99999999999999999999",
    b"chunked", b"a, b", b" a", b"a ", b"\ta\t", b"a\tb", b"\xe4\xff", b"a\x00b", b"a\x7fb",
    b"a\rb", b"a\nb", b'"k-1"', b"100-continue", b"h2c", b"127.0.0.1:80", b"x" * 300,
]  # fmt: skip
TARGETS = [
    b"/",
    b"/orders?a=b",
    b"/\x7f",
    b"/a b",
    b"*",
    b"http://x/",
    b"/#f",
    b'/"<>`{}|\\^',
    b"",
    b"/\xe4",
]
METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"OPTIONS",
    b"HEAD",
    b"post",
    b"BREW",
    b"CONNECT",
]
VERSIONS = [b"HTTP/1.1"] * 12 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.10"]


def fields(dice: random.Random, most: int = 5) -> list[Field]:
    """Ordinary ones for the most part."""
    found = [
        (dice.choice(NAMES[4:8]), dice.choice(VALUES[:4])) for _ in range(dice.randrange(most))
    ]
    if dice.random() < 0.3:
        found.append((dice.choice(NAMES), dice.choice(VALUES)))
    return found


def lines(those: list[Field], dice: random.Random) -> bytes:
    gaps = (b": ",) * 8 + (b":", b":  ", b" : ", b":\t")
    return b"".join(b"%b%b%b\r\n" % (name, dice.choice(gaps), value) for name, value in those)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The same with up to three bytes changed, lost or more."""
    if dice.random() < 0.6:
        return data
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(data) + 1)
        more = bytes([dice.choice(b"\r\n\0 \t:,;a1\x80\x7f/")])
        data = data[:at] + dice.choice((b"", more)) + data[at + dice.randrange(2) :]
    return data


def body(dice: random.Random) -> bytes:
    return dice.choice((b"", b"", b"hi", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))


def asked(dice: random.Random) -> bytes:
    """A request."""
    content = body(dice)
    those = [(b"Host", dice.choice((b"x", b"127.0.0.1:80")))] if dice.random() < 0.95 else []
    if content or dice.random() < 0.1:
        those.append((b"Content-Length", b"%d" % (len(content) + (dice.random() < 0.05))))
    those += fields(dice)
    dice.shuffle(those)
    method, target = dice.choice(METHODS[:3]), dice.choice(TARGETS[:2])
    if dice.random() < 0.2:
        method, target = dice.choice(METHODS), dice.choice(TARGETS)
    line = b"%b %b %b\r\n" % (method, target, dice.choice(VERSIONS))
    return damaged(line + lines(those, dice) + b"\r\n" + content, dice)


def answered(dice: random.Random) -> bytes:
    """An answer."""
    content = body(dice)
    status = dice.choice((b"200 OK", b"201 Created", b"404 Not Found", b"503 ", b"299 \xe4\t!"))
    if dice.random() < 0.2:
        status = dice.choice((b"204 No Content", b"304 ", b"100 Continue", b"101 x", b"099 x",
                              b"600 x", b"200", b"2000 OK", b"20 OK", b"200  OK",
                              b"200 O\x01K"))  # fmt: skip
    those = fields(dice)
    if dice.random() < 0.9:
        those.append((b"Content-Length", b"%d" % (len(content) + (dice.random() < 0.05))))
    dice.shuffle(those)
    line = b"%b %b\r\n" % (dice.choice(VERSIONS), status)
    return damaged(line + lines(those, dice) + b"\r\n" + content, dice)


class Witness:
    """The short road, and how often it was good for something."""

    def __init__(self, road: Callable[..., Any]) -> None:
        self.road = road
        self.asked = self.took = 0

    def __call__(self, *what: Any) -> Any:
        found = self.road(*what)
        self.asked += 1
        self.took += found is not None
        return found

    def check(self) -> None:
        assert self.took > SHARE_MIN * self.asked, f"{self.took} of {self.asked}"
        assert self.took < self.asked


def nothing(*what: object) -> None:
    """The long road alone."""


# --- in -----------------------------------------------------------------------------------------


def read(data: list[bytes], short: Callable[..., Any], **limits: int) -> tuple[Any, ...]:
    sink = Sink()
    reading = Reading(sink, DoorLimits(**limits), Ledger(), short=short)
    for one in data:
        reading.feed(one)
    refusal = sink.refusal and (sink.refusal.name, sink.refusal.detail)
    came = [
        (request.method, request.target, request.fields, request.body, repr(request.rest), flags)
        for request, flags in sink.came
    ]
    return came, refusal, reading.phase, reading.deaf, reading.expecting


@compiled
def test_requests_are_the_same_by_both_roads() -> None:
    """Also two after each other, and in limits that some of them break."""
    dice = random.Random(1)
    witness = Witness(heads.request)
    for _ in range(ROUNDS):
        data = [asked(dice) for _ in range(dice.randrange(1, 4))]
        limits = dice.choice(({}, {}, {"fields_max": 3}, {"body_max_bytes": 4}))
        long = read(data, nothing, **limits)  # first: a host becomes known on it
        assert read(data, witness, **limits) == long, data
    witness.check()


@compiled
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_on_the_long_road(data: bytes) -> None:
    assert read([data], heads.request) == read([data], nothing)


@compiled
def test_a_head_that_is_not_all_there_is_nothing() -> None:
    """At each byte: nothing is read that did not come."""
    whole = b"POST /o HTTP/1.1\r\nHost: x\r\nX:\r\nContent-Length: 2\r\n\r\nhi"
    assert heads.request(whole, HEADS) is not None
    assert heads.request(whole + b"!", HEADS) is None
    for end in range(len(whole)):
        assert heads.request(whole[:end], HEADS) is None, whole[:end]
    whole = b"HTTP/1.1 200 OK\r\nX:\r\nContent-Length: 2\r\n\r\nhi"
    assert heads.answer(whole, HEADS) is not None
    assert heads.answer(whole + b"!", HEADS) is None
    for end in range(len(whole)):
        assert heads.answer(whole[:end], HEADS) is None, whole[:end]


class Wire:
    """A socket that takes everything."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0


class Home:
    """A pool of one."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.where = "x:80"
        self.idle: list[Connection] = []
        self.waiting: deque[Any] = deque()
        self.outgoing = Outgoing()

    def put(self, connection: Connection, /) -> None: ...
    def drop(self, connection: Connection, /) -> None: ...


class Heard:
    """Whoever waits for an answer."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def done(self) -> bool:
        return bool(self.answers)

    def set_result(self, answer: Answer, /) -> None:
        self.answers.append(answer)


def told(data: list[bytes], short: Callable[..., Any]) -> Iterator[object]:
    """What came of a request for each of these, as long as the connection is used again."""
    home, wire = Home(), Wire()
    connection = Connection(home, loop=asyncio.get_running_loop(), short=short)
    connection.connection_made(wire)  # type: ignore[arg-type]
    for one in data:
        heard = Heard()
        connection.send_for(heard, b"", b"x")
        connection.flush()
        connection.data_received(one)
        for answer in heard.answers:
            streams = isinstance(answer, Response) and answer.rest is not None
            yield (answer.status, answer.fields, answer.body) if streams else answer
        yield len(home.idle), connection.dead, wire.aborted, connection.requests
        if not home.idle:
            return
        home.idle.clear()


@compiled
async def test_answers_are_the_same_by_both_roads() -> None:
    """And whether the connection is used again; up to three after each other."""
    dice = random.Random(2)
    witness = Witness(heads.answer)
    for _ in range(ROUNDS):
        data = [answered(dice) for _ in range(dice.randrange(1, 4))]
        assert list(told(data, witness)) == list(told(data, nothing)), data
    witness.check()


@compiled
def test_what_goes_on_is_the_same() -> None:
    dice = random.Random(3)
    witness = Witness(ordinary)
    for _ in range(ROUNDS):
        those = [(b"Host", b"x"), *fields(dice, 8)]
        dice.shuffle(those)
        for list_ in (those, tuple(those)):
            assert witness(list_) == heads.sorted_out(list_, HEADS), those
    witness.check()


# --- out ----------------------------------------------------------------------------------------


def tried(write: Callable[[], Any]) -> object:
    try:
        return write()
    except (Unsendable, Unwritable) as error:
        return str(error)


@compiled
def test_requests_are_written_the_same() -> None:
    dice = random.Random(4)
    short = 0
    for _ in range(ROUNDS):
        those: Any = [(b"Host", b"x")] * (dice.random() < 0.95) + fields(dice)
        dice.shuffle(those)
        method, target = dice.choice(METHODS), dice.choice(TARGETS[:5])
        request = Request(method, target, those, dice.choice((b"", b"hi", b"x" * 70_000)))
        long = tried(lambda request=request: at_length(request, b"y"))
        assert tried(lambda request=request: render(request, b"y")) == long
        short += heads.request_head(method, target, those, 2, HEADS) is not None
    assert SHARE_MIN * ROUNDS < short < ROUNDS


@compiled
def test_answers_are_written_the_same() -> None:
    """And what is not ordinary is not written on the short road at all: CR and LF, above all."""
    dice = random.Random(5)
    witness = Witness(short_head)
    date = b"Date: Wed, 25 Nov 2026 20:00:00 GMT\r\n"
    for _ in range(ROUNDS):
        status = dice.choice((200, 201, 404, 599, 999, 100))
        reason = dice.choice((b"", b"OK", b"Created", b"a\r\nb"))
        size = dice.choice((0, 2, 10, 999_999_999_999_999_999))
        response = Response(status, reason, fields(dice))
        written = witness(response, size, date)
        framing = b"Content-Length: %d\r\n" % size
        long = tried(lambda response=response, framing=framing: head(response, framing, date))
        if written is not None:
            assert long == b"".join((written,)), response
    witness.check()


@compiled
def test_what_is_not_bytes_is_not_written() -> None:
    """A field from elsewhere, of another shape, takes the long road."""
    for odd in ([(b"a", bytearray(b"b"))], [(b"a",)], [[b"a", b"b"]], ((b"a", b"b"),)):
        assert heads.answer_head(b"HTTP/1.1 200 OK\r\n", odd, b"", 1, HEADS) is None  # type: ignore[arg-type]
    for odd in ([()], [(b"Host",)], [(b"Host", b"x", b"y")], [[b"Host", b"x"]], [("Host", "x")]):
        assert heads.onward(odd, HEADS) is None, odd  # type: ignore[arg-type]
    for what in (heads.request, heads.answer):
        with pytest.raises(TypeError):
            what(None, HEADS)  # type: ignore[arg-type]


@compiled
@pytest.mark.parametrize("name", [b"", b" a", b"a ", b"a b", b"a:", b"a\tb", b"a\r", b"\xe4"])
def test_what_is_no_token_is_not_written_as_a_name(name: bytes) -> None:
    """Whatever the table of names says of it."""
    fine = Kinds(lambda name: int(name == b"host"))
    those = [(b"Host", b"x"), (name, b"y")]
    assert heads.request_head(b"GET", b"/", those, -1, fine) is None
    assert heads.answer_head(b"HTTP/1.1 200 OK\r\n", those, b"", 1, fine) is None


@compiled
def test_a_list_that_changes_while_it_is_looked_at() -> None:
    """To learn a name runs Python, where anything may happen: it is measured after that."""
    large = (b"X-Large", b"x" * 100_000)

    def swap(name: bytes) -> int:
        those[:] = [large] * 10
        return int(name == b"host")

    those = [(b"Host", b"x")]
    written = heads.request_head(b"GET", b"/", those, -1, Kinds(swap))
    assert written is not None
    assert written.count(b"X-Large") == 10
    those = [(b"Host", b"x")]
    written = heads.answer_head(b"HTTP/1.1 200 OK\r\n", those, b"", 1, Kinds(swap))
    assert written is not None
    assert written.count(b"X-Large") == 10


@compiled
def test_nothing_is_left_behind() -> None:
    """A reference that is not given back would be a few bytes more at every request."""
    import sys

    value = b"a value that is nobody else's"
    those = [(b"Host", b"x"), (b"X-Odd", value)]
    data = b"GET / HTTP/1.1\r\nHost: x\r\nX-Odd: y\r\n\r\n"
    bad = b"GET / HTTP/1.1\r\nHost: x\r\nX-Odd: y\r\n\r"
    before = sys.getrefcount(value), sys.getrefcount(HEADS), sys.getrefcount(None)
    for _ in range(1_000):
        heads.request(data, HEADS)
        heads.request(bad, HEADS)
        heads.answer(bad, HEADS)
        heads.onward(those, HEADS)
        heads.request_head(b"GET", b"/", those, -1, HEADS)
        heads.request_head(b"GET", b" ", those, -1, HEADS)
        heads.answer_head(b"HTTP/1.1 200 OK\r\n", those[1:], b"", 3, HEADS)
    after = sys.getrefcount(value), sys.getrefcount(HEADS), sys.getrefcount(None)
    assert all(new - old < 100 for old, new in zip(before, after, strict=True)), (before, after)
