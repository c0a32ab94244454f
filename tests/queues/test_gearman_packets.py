"""The Gearman codec: packets however they are cut, and bytes that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.queues.gearman_packets import (
    ARGUMENTS,
    BEGINNING_BYTES,
    Decoder,
    Garbage,
    Kind,
    Packet,
    pack,
)
from unspool.queues.protocol import unique


def answer(kind: int, data: bytes) -> bytes:
    return b"\0RES" + kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def decoded(data: bytes, *, cuts: list[int] | None = None, largest: int = 10_000) -> list[Packet]:
    decoder = Decoder(largest=largest)
    found = []
    places = sorted(cut % (len(data) + 1) for cut in cuts or [])
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        decoder.feed(data[start:end])
        while (packet := decoder.next()) is not None:
            found.append(packet)
    return found


def test_pack() -> None:
    """As the protocol's text has it, byte for byte."""
    assert pack(Kind.CAN_DO, b"orders") == b"\0REQ\0\0\0\x01\0\0\0\x06orders"
    assert pack(Kind.SUBMIT_BG, b"f", b"u", b"a\0b") == b"\0REQ\0\0\0\x12\0\0\0\x07f\0u\0a\0b"
    assert pack(Kind.PRE_SLEEP) == b"\0REQ\0\0\0\x04\0\0\0\0"
    with pytest.raises(AssertionError):
        pack(Kind.SUBMIT_BG, b"f\0g", b"u", b"")


parts = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"."))
packets = st.sampled_from(sorted(ARGUMENTS)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.lists(parts, min_size=max(0, ARGUMENTS[kind] - 1), max_size=max(0, ARGUMENTS[kind] - 1)),
        st.binary(max_size=60) if ARGUMENTS[kind] else st.just(b""),
    )
)


@given(st.lists(packets, max_size=6), st.lists(st.integers(0, 10_000), max_size=6))
def test_however_it_is_cut(sent: list[tuple[Kind, list[bytes], bytes]], cuts: list[int]) -> None:
    """A stream is read as the packets that were sent, NULs in payloads and all."""
    expected = [
        Packet(kind, (*first, last) if ARGUMENTS[kind] else ()) for kind, first, last in sent
    ]
    data = b"".join(answer(packet.kind, b"\0".join(packet.arguments)) for packet in expected)
    assert decoded(data, cuts=cuts) == expected


@given(st.lists(st.integers(0, 10_000), max_size=6), st.integers(2000, 4000))
def test_a_giant_is_dropped_as_it_comes(cuts: list[int], size: int) -> None:
    """Somebody else's giant costs no memory, and what comes behind it is read."""
    giant = answer(Kind.ASSIGN_UNIQ, b"H:1\0orders\0u\0" + bytes(size))
    found = decoded(
        answer(Kind.NONE, b"") + giant + answer(Kind.NOOP, b""), cuts=cuts, largest=1500
    )
    assert [packet.kind for packet in found] == [Kind.NONE, Kind.ASSIGN_UNIQ, Kind.NOOP]
    assert [packet.whole for packet in found] == [True, False, True]
    assert found[1].arguments[:3] == (b"H:1", b"orders", b"u")
    assert len(found[1].arguments[3]) < BEGINNING_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"x",
        b"\0REQ\0\0\0\x06\0\0\0\0",
        answer(99, b""),
        answer(Kind.SUBMIT_BG, b"a\0b\0c"),
        answer(Kind.NOOP, b"data"),
        answer(Kind.ASSIGN_UNIQ, b"H:1\0orders"),
        answer(Kind.ASSIGN_UNIQ, b"H" * 600 + b"\0orders\0u\0"),
        b"\0RES" + b"\xff" * 8,
        b"\0RES\0\0\0\x1f\xff\xff\xff\xff",
        b"\0RES\0\0\0\x13\x7f\0\0\0",
    ],
)
def test_garbage(data: bytes) -> None:
    """What is not the protocol is known by its first bytes, not waited for."""
    with pytest.raises(Garbage):
        decoded(data)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Packets or Garbage, whatever comes: nothing else, and never for ever."""
    try:
        decoded(data)
    except Garbage:
        return


def test_unique() -> None:
    """At most 63 characters, printable, and another for other bytes."""
    assert len(unique(b"a")) == 32
    assert unique(b"a").isalnum()
    assert unique(b"a") != unique(b"b")
