"""Records: what goes in comes out, and what was changed on the way is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.core import record
from unspool.core.message import (
    NEVER,
    Attempt,
    Destination,
    Instant,
    Key,
    Message,
    Request,
    Response,
)
from unspool.core.record import Spoilt, Status

fields = st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=30)), max_size=5).map(tuple)
instants = st.integers(0, NEVER).map(Instant)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)

requests = st.builds(
    Request,
    method=st.binary(max_size=9),
    target=st.binary(max_size=40),
    fields=fields,
    body=st.binary(max_size=300),
)
answers = st.builds(
    Response,
    status=st.integers(100, 599),
    reason=st.binary(max_size=20),
    fields=fields,
    body=st.binary(max_size=300),
    rest=st.none(),
    length=st.integers(-1, 2**40),
)
attempts = st.builds(
    Attempt,
    number=st.integers(0, 9),
    at=instants,
    status=st.integers(0, 599),
    cause=text,
    sent=text,
)
statuses = st.builds(
    Status,
    trail=st.lists(attempts, max_size=4).map(tuple),
    reason=text,
    stored=st.booleans(),
    settled_at=instants,
)
messages = st.builds(
    Message,
    key=text.map(Key),
    fingerprint=st.binary(min_size=16, max_size=16),
    destination=text.map(Destination),
    accepted_at=instants,
    expires_at=instants,
    nonce=st.binary(min_size=16, max_size=16),
    name=text,
    order_key=text,
    repeat=st.booleans(),
    request=st.none(),
)

SAMPLES = {
    "request": (
        record.pack_request(Request(b"POST", b"/a?b", ((b"A", b"1"), (b"a", b"2")), b"body\x00")),
        record.unpack_request,
    ),
    "answer": (
        record.pack_answer(Response(201, b"Created", ((b"A", b"1"),), b"yes", None, 3)),
        record.unpack_answer,
    ),
    "status": (
        record.pack_status(Status((Attempt(1, Instant(7), 503, "", "maybe applied"),), "x")),
        record.unpack_status,
    ),
    "message": (
        record.pack_message(
            Message(
                key=Key("k"),
                fingerprint=b"f",
                destination=Destination("http://a"),
                accepted_at=Instant(1),
                expires_at=Instant(2),
                nonce=b"n",
            )
        ),
        record.unpack_message,
    ),
}


@given(requests)
def test_a_request_comes_back(request: Request) -> None:
    assert record.unpack_request(record.pack_request(request)) == request


@given(answers)
def test_an_answer_comes_back(answer: Response) -> None:
    assert record.unpack_answer(record.pack_answer(answer)) == answer


@given(statuses)
def test_a_status_comes_back(status: Status) -> None:
    assert record.unpack_status(record.pack_status(status)) == status


@given(messages, st.none() | requests)
def test_a_message_comes_back(message: Message, request: Request | None) -> None:
    again = record.unpack_message(record.pack_message(message), request)
    assert again.request == request
    assert record.unpack_message(record.pack_message(again)) == message


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_change_of_one_byte_is_noticed(kind: str) -> None:
    packed, unpack = SAMPLES[kind]
    unpack(packed)
    for place in range(len(packed)):
        for flip in (1, 0x80, 0xFF):
            spoilt = bytearray(packed)
            spoilt[place] ^= flip
            with pytest.raises(Spoilt):
                unpack(bytes(spoilt))


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_cut_and_every_addition_is_noticed(kind: str) -> None:
    packed, unpack = SAMPLES[kind]
    for length in range(len(packed)):
        with pytest.raises(Spoilt):
            unpack(packed[:length])
    with pytest.raises(Spoilt):
        unpack(packed + b"\x00")


@pytest.mark.parametrize("kind", SAMPLES)
def test_another_version_says_which(kind: str) -> None:
    packed, unpack = SAMPLES[kind]
    with pytest.raises(Spoilt, match="version 2"):
        unpack(b"\x02" + packed[1:])


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("other", SAMPLES)
def test_a_record_of_another_kind_is_no_record_of_this(kind: str, other: str) -> None:
    if kind == other:
        return
    with pytest.raises(Spoilt):
        SAMPLES[kind][1](SAMPLES[other][0])


@given(st.binary(max_size=80))
def test_noise_is_no_record(noise: bytes) -> None:
    for _, unpack in SAMPLES.values():
        with pytest.raises(Spoilt):
            unpack(noise)
