"""Records: what a spool keeps, as bytes and back. Versioned and checked.

    pack_request(request) / unpack_request(bytes)
    pack_status(status)   / unpack_status(bytes)      the part that changes with each verdict
    pack_answer(response) / unpack_answer(bytes)
    pack_message(message) / unpack_message(bytes)     the envelope, without the request
    pack_standing(standing) / unpack_standing(bytes)  status and numbers, where there are no columns

A record is `version (1 byte) · crc32 of the rest (4 bytes, big-endian) · MessagePack`. It holds the
parsed form, never raw bytes of the wire: what is parsed again hours later, by another program, is
how smuggling happens. A new form gets a new version byte: one reader for each, one writer.

Raises `Spoilt` where the bytes are not what was written. Nothing is unpickled, ever.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar
from zlib import crc32

import msgspec

from .message import Attempt, Destination, Instant, Key, Message, Request, Response, Value

VERSION: Final = 1
HEAD_BYTES: Final = 5


class Spoilt(ValueError):
    """A record is not what was written."""


class Status(Value, frozen=True, array_like=True):
    """Of an entry: what people ask about and the scheduler does not."""

    trail: tuple[Attempt, ...] = ()
    reason: str = ""
    """Why it bounced; empty otherwise."""
    stored: bool = True
    """False: of the answer only the fact and the head were kept."""
    settled_at: Instant = Instant(0)


class Standing(Value, frozen=True, array_like=True):
    """Of an entry: all that changes, for a spool that keeps records where others have columns."""

    state: int
    due_at: int
    attempt: int
    leased_until: int
    era: int
    """Of whom the lease was: a number that rises whenever the spool is opened."""
    keep_until: int
    answer_until: int
    answered: bool = False
    """Its answer is kept beside it."""
    seized: bool = False
    """The lease is an operator's, and no attempt was begun under it."""
    trail: tuple[Attempt, ...] = ()
    reason: str = ""
    stored: bool = True
    settled_at: int = 0


class _Request(Value, frozen=True, array_like=True):
    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


class _Answer(Value, frozen=True, array_like=True):
    status: int
    reason: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    length: int


class _Envelope(Value, frozen=True, array_like=True):
    key: str
    fingerprint: bytes
    destination: str
    accepted_at: int
    expires_at: int
    nonce: bytes
    name: str
    order_key: str
    repeat: bool


_encode = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(_Request).decode
_answer = msgspec.msgpack.Decoder(_Answer).decode
_status = msgspec.msgpack.Decoder(Status).decode
_standing = msgspec.msgpack.Decoder(Standing).decode
_envelope = msgspec.msgpack.Decoder(_Envelope).decode

T = TypeVar("T")


def _sealed(value: Any) -> bytes:
    payload = _encode(value)
    return b"\x01" + crc32(payload).to_bytes(4, "big") + payload


def _opened(record: bytes, decode: Any) -> Any:
    if len(record) <= HEAD_BYTES:
        raise Spoilt(f"a record of {len(record)} bytes is none")
    if record[0] != VERSION:
        raise Spoilt(f"record version {record[0]}; this unspool reads version {VERSION}")
    payload = memoryview(record)[HEAD_BYTES:]
    if crc32(payload) != int.from_bytes(record[1:HEAD_BYTES], "big"):
        raise Spoilt("a record failed its checksum")
    try:
        return decode(payload)
    except msgspec.MsgspecError as error:
        raise Spoilt(f"a record is not of its form: {error}") from error


def pack_request(request: Request) -> bytes:
    assert request.rest is None, "I1: what is not here cannot be promised"
    return _sealed((request.method, request.target, request.fields, request.body))


def unpack_request(record: bytes) -> Request:
    found: _Request = _opened(record, _request)
    return Request(found.method, found.target, found.fields, found.body)


def pack_answer(answer: Response) -> bytes:
    assert answer.rest is None, "I6: an answer is kept whole or as a fact"
    return _sealed((answer.status, answer.reason, answer.fields, answer.body, answer.length))


def unpack_answer(record: bytes) -> Response:
    found: _Answer = _opened(record, _answer)
    return Response(found.status, found.reason, found.fields, found.body, None, found.length)


def pack_status(status: Status) -> bytes:
    return _sealed(status)


def unpack_status(record: bytes) -> Status:
    found: Status = _opened(record, _status)
    return found


def pack_standing(standing: Standing) -> bytes:
    return _sealed(standing)


def unpack_standing(record: bytes) -> Standing:
    found: Standing = _opened(record, _standing)
    return found


def pack_message(message: Message) -> bytes:
    """The envelope alone; the request is kept beside it."""
    return _sealed(
        (
            message.key,
            message.fingerprint,
            message.destination,
            message.accepted_at,
            message.expires_at,
            message.nonce,
            message.name,
            message.order_key,
            message.repeat,
        )
    )


def unpack_message(record: bytes, request: Request | None = None) -> Message:
    found: _Envelope = _opened(record, _envelope)
    return Message(
        key=Key(found.key),
        fingerprint=found.fingerprint,
        destination=Destination(found.destination),
        accepted_at=Instant(found.accepted_at),
        expires_at=Instant(found.expires_at),
        nonce=found.nonce,
        name=found.name,
        order_key=found.order_key,
        repeat=found.repeat,
        request=request,
    )
