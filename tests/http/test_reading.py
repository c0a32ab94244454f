"""Reading, without a socket: however the bytes are cut, the same requests come of them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.core.message import Request
from unspool.ingress.limits import Limits
from unspool.ingress.reading import KEEP, OLD, Ledger, Reading
from unspool.ingress.strict import Refusal


class Sink:
    """Takes requests, and always has room."""

    def __init__(self) -> None:
        self.came: list[tuple[Request, int]] = []
        self.refusal: Refusal | None = None

    def arrived(self, request: Request | None, flags: int, refusal: Refusal | None = None) -> None:
        assert self.refusal is None, "nothing comes after a refusal"
        if request is None:
            assert refusal is not None
            self.refusal = refusal
        else:
            self.came.append((request, flags))

    def regulate(self) -> None: ...

    def proceed(self, its_turn: bool, /) -> None: ...

    def crowded(self) -> bool:
        return False


def read(pieces: list[bytes], **limits: int) -> tuple[Sink, Reading]:
    sink = Sink()
    reading = Reading(sink, Limits(**limits), Ledger())
    for piece in pieces:
        reading.feed(piece)
    return sink, reading


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(at)] if data else []


bodies = st.binary(max_size=60)
targets = st.sampled_from([b"/", b"/a?b", b"/x%20y", b"/" + b"z" * 40])
spices = st.sampled_from(
    [
        b"", b"X: y\r\n", b"Connection: keep-alive\r\n", b"Accept:  */* \r\nEmpty:\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n",
    ]
)  # fmt: skip


@st.composite
def request(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """A good request as (bytes, target, body)."""
    target, body, spice = draw(targets), draw(bodies), draw(spices)
    kind = draw(st.sampled_from(["none", "counted", "chunked", "old", "absolute"]))
    if kind == "none":
        return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, spice), target, b""
    if kind == "old" and b"Upgrade" not in spice:
        head = b"PUT %b HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n%b\r\n"
        return head % (target, len(body), spice) + body, target, body
    if kind == "absolute":
        head = b"PUT http://b%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
        return head % (target, len(body), spice) + body, target, body
    if kind == "chunked":
        half = len(body) // 2
        chunks = b"".join(
            b"%x;e=1\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part
        )
        head = b"PUT %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n%b\r\n"
        return head % (target, spice) + chunks + b"0\r\nT: u\r\n\r\n", target, body
    head = b"PUT %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n"
    return head % (target, spice, len(body)) + body, target, body


@settings(max_examples=400, deadline=None)
@given(st.lists(request(), min_size=1, max_size=6), st.lists(st.integers(0, 4000), max_size=12))
def test_cuts_change_nothing(wanted: list[tuple[bytes, bytes, bytes]], places: list[int]) -> None:
    data = b"".join(raw for raw, _, _ in wanted)
    sink, reading = read(cut(data, places))
    assert sink.refusal is None
    assert [(one.target, one.body) for one, _ in sink.came] == [want[1:] for want in wanted]
    for one, flags in sink.came:
        assert flags & KEEP
        assert flags & OLD == 0 or (b"Connection", b"keep-alive") in one.fields
        assert type(one.body) is bytes
    at_once, _ = read([data])
    assert [one for one, _ in at_once.came] == [one for one, _ in sink.came]
    assert reading.phase == "idle"
    assert reading._ledger.held_bytes == 0


@settings(max_examples=400, deadline=None)
@given(
    st.lists(request(), min_size=1, max_size=4),
    st.lists(st.integers(0, 4000), max_size=6),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=3)), min_size=1, max_size=4),
)
def test_damage_ends_in_requests_or_one_refusal(
    wanted: list[tuple[bytes, bytes, bytes]], places: list[int], damage: list[tuple[int, bytes]]
) -> None:
    """And what came before the damage comes however the rest is spoilt."""
    data = b"".join(raw for raw, _, _ in wanted)
    first = len(data)
    for at, put in damage:
        at %= len(data) + 1
        first = min(first, at)
        data = data[:at] + put + data[at + 1 :]
    sink, reading = read(cut(data, places))
    unharmed, end = 0, 0
    for raw, _, _ in wanted:
        end += len(raw)
        unharmed += end <= first
    assert [one.target for one, _ in sink.came][:unharmed] == [one[1] for one in wanted][:unharmed]
    if sink.refusal is not None:
        assert reading.deaf
    reading.give_up("enough")
    assert reading._ledger.held_bytes == 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_survived(data: bytes, places: list[int]) -> None:
    sink, _ = read(cut(data, places), head_max_bytes=100)
    assert sink.came == []


@settings(max_examples=200, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=4), st.lists(st.integers(0, 4000), max_size=8))
def test_what_is_not_the_request_line_is_not_taken_for_it(
    before: list[bytes], places: list[int]
) -> None:
    """A good twin before it, in the same data, does not lend a bad line its own."""
    twin = b"".join(
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for body in before
    )
    bad = b"PUT  / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    sink, _ = read(cut(twin + bad, places))
    assert len(sink.came) == len(before)
    assert sink.refusal is not None


def test_a_thousand_offers_of_h2c_are_declined_without_deep_recursion() -> None:
    offer = b"GET / HTTP/1.1\r\nHost:a\r\nConnection:upgrade\r\nUpgrade:h2c\r\n\r\n"
    sink, _ = read([offer * 1000])
    assert sink.refusal is None
    assert len(sink.came) == 1000


def test_the_last_piece_of_a_body_is_in_the_ledger_like_the_others() -> None:
    """Many that are half here cannot each be completed beyond what all may hold together."""
    limits, ledger = Limits(bodies_max_bytes=300_000), Ledger()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    for half in (0, 10_000):
        sinks = [Sink() for _ in range(10)]
        readings = [Reading(sink, limits, ledger) for sink in sinks]
        for reading in readings:
            reading.feed(head + b"x" * half)
        assert ledger.held_bytes == 10 * half
        for reading, sink in zip(readings, sinks, strict=True):
            reading.feed(b"x" * (100_000 - half))
            ledger.held_bytes += sum(len(request.body) for request, _ in sink.came)
            assert ledger.held_bytes <= limits.bodies_max_bytes
        assert sum(len(sink.came) for sink in sinks) == 3
        assert {sink.refusal.name for sink in sinks if sink.refusal is not None} == {"busy"}
        for reading in readings:
            reading.give_up("the end")
        ledger.held_bytes = 0
