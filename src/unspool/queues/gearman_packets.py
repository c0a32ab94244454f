"""Packets of the Gearman protocol: as bytes and back. Pure; no connection, no clock.

    pack(Kind.CAN_DO, b"orders") -> bytes
    decoder = Decoder(largest=…); decoder.feed(data); decoder.next() -> Packet | None

A packet is `\\0REQ` or `\\0RES`, its kind and the size of its data (four bytes each, big-endian),
and the data: arguments with a NUL between them. The last argument may have NULs of its own, which
is why payloads can be any bytes, and why the others are checked here.

Of a packet larger than `largest` the data is dropped as it comes, but for its beginning, and the
packet says so: somebody else's giant costs no memory. Its connection goes on.

Raises `Garbage` where it is not the protocol, once and for all: such a connection is given up.

Source: PROTOCOL in gearmand 1.1.20. There, each kind that has to do with a job has JOB in its
name (SUBMIT_JOB_BG); here it is left out.
"""

from __future__ import annotations

import enum
from typing import Final

from ..core.message import Value

HEAD_BYTES: Final = 12
REQUEST: Final = b"\0REQ"
RESPONSE: Final = b"\0RES"
BEGINNING_BYTES: Final = 1024
"""Of a packet that is too large: so much of its data is kept."""
ARGUMENT_MAX_BYTES: Final = 512
"""Every argument but the last: names and handles."""
SIZE_MAX: Final = 2**31
"""A size beyond this is no size."""


class Kind(enum.IntEnum):
    """Those that we send or understand; by their numbers in the protocol."""

    CAN_DO = 1
    PRE_SLEEP = 4
    NOOP = 6
    CREATED = 8
    NONE = 10
    """NO_JOB"""
    COMPLETE = 13
    FAIL = 14
    ECHO = 16
    ECHOED = 17
    SUBMIT_BG = 18
    ERROR = 19
    SET_CLIENT_ID = 22
    GRAB_UNIQ = 30
    ASSIGN_UNIQ = 31


ARGUMENTS: Final = {
    Kind.NOOP: 0,
    Kind.CREATED: 1,
    Kind.NONE: 0,
    Kind.ECHOED: 1,
    Kind.ERROR: 2,
    Kind.ASSIGN_UNIQ: 4,
}
"""What a server sends to us: handle; what was echoed; code and text; handle, function, unique and
payload. Anything else is `Garbage`: we asked for nothing that it would answer."""


class Garbage(ValueError):
    """This is not the Gearman protocol."""


class Packet(Value, frozen=True):
    kind: Kind
    arguments: tuple[bytes, ...]
    whole: bool = True
    """False: it was too large, and the last argument is only its beginning."""


def pack(kind: Kind, *arguments: bytes) -> bytes:
    """A request. Only the last argument may have NULs in it."""
    assert all(b"\0" not in one for one in arguments[:-1]), "a NUL would cut it in two"
    data = b"\0".join(arguments)
    return REQUEST + kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


class Decoder:
    """What a server sends, however it is cut."""

    def __init__(self, *, largest: int) -> None:
        self._largest = largest
        self._buffer = bytearray()
        self._dropping = 0
        """So much of a packet that is too large is still to come."""
        self._giant: Packet | None = None

    def feed(self, data: bytes) -> None:
        if self._dropping:
            dropped = min(self._dropping, len(data))
            self._dropping -= dropped
            data = data[dropped:]
        self._buffer += data

    def next(self) -> Packet | None:
        """The next packet; None: more has to come first. Raises `Garbage`."""
        if self._giant is not None:
            if self._dropping:
                return None
            giant, self._giant = self._giant, None
            return giant
        buffer = self._buffer
        if not RESPONSE.startswith(bytes(buffer[:4])):
            raise Garbage(f"it begins with {bytes(buffer[:16])!r}")
        if len(buffer) < HEAD_BYTES:
            return None
        kind = _kind(int.from_bytes(buffer[4:8], "big"))
        size = int.from_bytes(buffer[8:12], "big")
        if size > self._largest:
            return self._begin_giant(kind, size)
        if len(buffer) < HEAD_BYTES + size:
            return None
        data = bytes(buffer[HEAD_BYTES : HEAD_BYTES + size])
        del buffer[: HEAD_BYTES + size]
        return Packet(kind, _arguments(kind, data))

    def _begin_giant(self, kind: Kind, size: int) -> Packet | None:
        if size > SIZE_MAX or kind is not Kind.ASSIGN_UNIQ:
            raise Garbage(f"a packet of kind {kind} with {size} bytes")
        if len(self._buffer) < HEAD_BYTES + BEGINNING_BYTES:
            return None
        data = bytes(self._buffer[HEAD_BYTES : HEAD_BYTES + BEGINNING_BYTES])
        self._giant = Packet(kind, _arguments(kind, data), whole=False)
        held = self._buffer[HEAD_BYTES + BEGINNING_BYTES :]
        self._buffer.clear()
        self._dropping = size - BEGINNING_BYTES
        self.feed(bytes(held))
        return self.next()


def _kind(number: int) -> Kind:
    if number not in ARGUMENTS:
        raise Garbage(f"a packet of kind {number}, for which nobody asked")
    return Kind(number)


def _arguments(kind: Kind, data: bytes) -> tuple[bytes, ...]:
    count = ARGUMENTS[kind]
    if count == 0:
        if data:
            raise Garbage(f"a packet of kind {kind} with {len(data)} bytes")
        return ()
    found = data.split(b"\0", count - 1)
    if len(found) != count or any(len(one) > ARGUMENT_MAX_BYTES for one in found[:-1]):
        raise Garbage(f"a packet of kind {kind} with {len(found)} arguments")
    return tuple(found)
