"""Parsing: one message at a time, as llhttp reports it, becomes a `Request`.

`Parsing` is the half of `Reading` that llhttp calls. It holds the message under way, judges its
head by the rules of `strict`, gathers its body, and hands it to the sink. It raises `Refusal` out
of a callback for what can never become a request.

The ordinary request, which is nearly every one, passes through the first lines of each callback;
whatever is unusual makes the message odd, and it takes the longer way.
"""

from __future__ import annotations

from typing import Final, Protocol

from httptools import HttpRequestParser

from ..core.kinds import Kinds
from ..core.message import Field, Request
from .body import StreamedBody
from .limits import Limits
from .strict import (
    Refusal,
    check_host,
    check_transfer_encoding,
    known_hosts,
    length_of,
    ordinary_target,
    words,
)

KEEP: Final = 1
"""The sender lets the connection live on."""
OLD: Final = 2
"""It speaks HTTP/1.0."""
_CLOSE: Final = 4
_KEEP_ALIVE: Final = 8
_UPGRADE: Final = 16
_EXPECT: Final = 32
_HOST: Final = 64
_HOSTS: Final = 128
_TRANSFER: Final = 256
_ORDINARY: Final = _HOST | _KEEP_ALIVE

CHUNK_FRAME_BYTES: Final = 20
"""Free of charge per chunk: sixteen hex digits and two line ends."""

_IS_LENGTH: Final = 1
_IS_HOST: Final = 2
_IS_CONNECTION: Final = 3
_IS_TRANSFER: Final = 4
_IS_UPGRADE: Final = 5
_IS_EXPECT: Final = 6
_IS_PROXY: Final = 7
_CLOSING: Final = (_IS_CONNECTION, _IS_PROXY)
_SPECIAL: Final = {
    b"content-length": _IS_LENGTH,
    b"host": _IS_HOST,
    b"connection": _IS_CONNECTION,
    b"transfer-encoding": _IS_TRANSFER,
    b"upgrade": _IS_UPGRADE,
    b"expect": _IS_EXPECT,
    b"proxy-connection": _IS_PROXY,
}
_KINDS: Final = Kinds(lambda name: _SPECIAL.get(name, 0))


SMALL_BYTES: Final = 16 * 1024
"""A body that can come in one read with its head. While it is being handled it is not in the
ledger: there is one for each connection, and `connections_max` bounds those."""


TOO_MANY_BODIES: Final = "Too many bodies are being held."


class Ledger:
    """What the bodies of all connections hold, together: those that are half here, those that wait
    for their turn, and the larger ones that are being handled."""

    __slots__ = ("held_bytes",)

    def __init__(self) -> None:
        self.held_bytes = 0


class Sink(Protocol):
    """To whom requests go, and who holds the socket."""

    def arrived(self, request: Request | None, flags: int, refusal: Refusal | None = None) -> None:
        """A request, or why there will be none."""

    def regulate(self) -> None:
        """Read on, or stop reading, as `wants_more` says."""

    def proceed(self, its_turn: bool, /) -> None:
        """The sender waits for 100 (Continue), and its body is wanted: now, or in its turn."""

    def crowded(self) -> bool:
        """Do as many requests wait as may?"""


class Parsing:
    """The message under way on one connection."""

    __slots__ = (
        "_arrived", "_at_rest", "_body", "_chunked", "_data", "_extras", "_fields", "_flags",
        "_held", "_ledger", "_length", "_limits", "_line_from", "_method", "_odd", "_parser",
        "_past_bytes", "_raw", "_reparse", "_sink", "_stream", "_target", "_transfer", "deaf",
        "expecting", "in_body",
    )  # fmt: skip

    def __init__(self, sink: Sink, limits: Limits, ledger: Ledger) -> None:
        self._sink = sink
        self._arrived = sink.arrived
        self._limits = limits
        self._ledger = ledger
        self._held = 0
        self._raw = bytearray()
        self._data = b""
        self._line_from = 0  # where in the data the next request line can be
        self.deaf = False
        self._parser = HttpRequestParser(self)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._at_rest = True
        self._reparse = False
        self._target = b""
        self._fields: list[Field] = []
        self._length = -1
        self._transfer = b""
        self._flags = 0
        self._body: bytes | bytearray = b""
        self._stream: StreamedBody | None = None
        self._chunked = False
        self._extras = 0
        self.expecting = False
        self.in_body = False
        self._past_bytes = 0
        self._method = b""
        self._odd = False

    @property
    def body_bytes(self) -> int:
        """How much of the body has come."""
        return self._past_bytes + len(self._body)

    # llhttp calls these

    def on_message_begin(self) -> None:
        self._at_rest = False

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_body:
            if self._stream is None and _KINDS[name] in _CLOSING and b"close" in words(value):
                self._flags &= ~KEEP  # llhttp obeys this one, and would read no further
            return  # a trailer: dropped (RFC 9110 §6.5.1)
        value = value.strip()
        self._fields.append((name, value))
        kind = _KINDS[name]
        if not kind:
            return
        if kind == _IS_LENGTH:
            self._length = length_of(value)
        elif kind == _IS_HOST:
            self._flags |= _HOSTS if self._flags & _HOST else _HOST
            if value not in known_hosts:
                check_host(value)
        elif kind == _IS_CONNECTION:
            self._connection(value)
        elif kind == _IS_TRANSFER:
            self._flags |= _TRANSFER
            self._transfer = value if not self._transfer else b"repeated"
        elif kind == _IS_UPGRADE:
            self._flags |= _UPGRADE
        elif kind == _IS_PROXY:
            # No standard knows it. But llhttp obeys it, and would read no further.
            if b"close" in words(value):
                self._flags |= _CLOSE
        elif value.lower() == b"100-continue":
            # RFC 9110 §10.1.1: 417 is a MAY. What we do not know, the service may.
            self._flags |= _EXPECT

    def _connection(self, value: bytes) -> None:
        named = words(value)
        if b"close" in named:
            self._flags |= _CLOSE
        if b"keep-alive" in named:
            self._flags |= _KEEP_ALIVE

    def on_headers_complete(self) -> None:
        method = self._method = self._parser.get_method()
        target = self._target
        limits = self._limits
        if (
            self._flags | _KEEP_ALIVE == _ORDINARY
            and not self._line_from
            and self._data.startswith(method + b" " + target + b" HTTP/1.1\r\n")
            and target[0] == 47
            and b"#" not in target
            and method != b"CONNECT"
            and len(self._fields) <= limits.fields_max
            and self._length <= limits.body_max_bytes
        ):
            self._flags = KEEP
        elif not self.deaf:
            self._odd = True
            self._judge(method, target, self._raw + self._data)
        self.in_body = True

    def _judge(self, method: bytes, target: bytes, raw: bytearray) -> None:
        """A head that is not ordinary: is it allowed, and what does it ask for?"""
        version = self._parser.get_http_version()
        flags = self._flags
        fields = self._fields
        limits = self._limits
        if version == "1.1":
            if not flags & _HOST or flags & _HOSTS:
                raise Refusal("malformed", "HTTP/1.1 asks for exactly one field Host.")
            keep = 0 if flags & _CLOSE else KEEP
        elif version == "1.0":
            if flags & _HOSTS:
                raise Refusal("malformed", "There is more than one field Host.")
            keep = OLD | KEEP if flags & (_CLOSE | _KEEP_ALIVE) == _KEEP_ALIVE else OLD
        else:
            raise Refusal("version", f"HTTP/{version} is not spoken here.")
        line = b"%b %b HTTP/%b\r\n" % (method, target, version.encode())
        found = raw.find(line, self._line_from)
        if found < 0:
            raise Refusal("malformed", "The request line is not `method SP target SP version`.")
        self._line_from = found + len(line)
        if target[0] != 47 or method == b"CONNECT":
            self._target = ordinary_target(method, target, fields)
        if b"#" in target:
            raise Refusal("malformed", "A target has no fragment.")
        size = len(line) + sum(len(name) + len(value) + 4 for name, value in fields)
        if len(fields) > limits.fields_max:
            raise Refusal("fields-too-large", f"There are more than {limits.fields_max} fields.")
        if size > limits.head_max_bytes:
            raise Refusal("fields-too-large", head_too_large(limits))
        if self._raw:
            self._line_from = max(1, self._line_from - len(self._raw))
            self._raw = bytearray()
        self._flags = keep
        if flags & _UPGRADE and self._parser.should_upgrade():
            self._upgrade()
        else:
            self._frame(flags)

    def _upgrade(self) -> None:
        offered = [value for name, value in self._fields if name.lower() == b"upgrade"]
        if any(word != b"h2c" for value in offered for word in words(value)):
            raise Refusal("not-implemented", "Upgrade is not offered here.")
        self._reparse = True

    def _frame(self, flags: int) -> None:
        """How the body of an unusual request comes."""
        old = bool(self._flags & OLD)
        if flags & _TRANSFER:
            check_transfer_encoding(self._transfer, old=old)
            self._chunked = True
            self._extras = -len(self._data)  # the head is in there too
        # HTTP/1.0 cannot expect anything (RFC 9110 §10.1.1), and no body needs no permission.
        self.expecting = bool(flags & _EXPECT) and not old and (self._chunked or self._length > 0)
        if self._length > self._limits.body_max_bytes:
            self._start_streaming()

    def _start_streaming(self) -> None:
        first = bytes(self._body)
        self._body = b""
        self._past_bytes = len(first)
        self._stream = StreamedBody(self, self._limits.body_buffer_bytes)
        request = Request(
            self._method, self._target, self._fields, first, self._stream, self._length
        )
        self._arrived(request, self._flags)

    def on_body(self, chunk: bytes) -> None:
        if self._odd:
            self._odd_body(chunk)
        elif not self._body:
            self._body = chunk
        else:
            self._body += chunk

    def _odd_body(self, chunk: bytes) -> None:
        if self.deaf:
            return
        if self._chunked:
            self._extras -= len(chunk)
        if self._stream is not None:
            self._past_bytes += len(chunk)
            self._stream.feed(chunk)
            return
        if self._body.__class__ is bytes:  # tiny pieces would cost a copy of the whole each
            self._body = bytearray(self._body)
        self._body += chunk
        if len(self._body) > self._limits.body_max_bytes:
            self._start_streaming()

    def on_chunk_header(self) -> None:
        self._extras -= CHUNK_FRAME_BYTES

    def on_message_complete(self) -> None:
        if self._odd:
            self._complete_odd()
            return
        request = Request(self._method, self._target, self._fields, self._body)  # type: ignore[arg-type]
        self._at_rest = True
        self._target = b""
        self._fields = []
        self._length = -1
        self._flags = 0
        self._body = b""
        self.in_body = False
        self._line_from = 1
        self._arrived(request, KEEP)

    def _complete_odd(self) -> None:
        if self.deaf or self._reparse:
            return
        flags = self._flags
        stream = self._stream
        if len(self._body) > SMALL_BYTES:
            grown = self._ledger.held_bytes - self._held + len(self._body)
            if grown > self._limits.bodies_max_bytes:  # else a last piece is as large as a read
                raise Refusal("busy", TOO_MANY_BODIES)
        request = Request(self._method, self._target, self._fields, bytes(self._body))
        if self._held:
            self._ledger.held_bytes -= self._held
            self._held = 0
        self._begin_anew()
        self._line_from = self._line_from or 1
        if not flags & KEEP:
            self.deaf = True
        if stream is not None:
            stream.end()
        else:
            self._arrived(request, flags)

    # what a streamed body asks of its source

    def wanted(self) -> None:
        if self.expecting:
            self._sink.proceed(True)

    def regulate(self) -> None:
        self._sink.regulate()


def head_too_large(limits: Limits) -> str:
    return f"Request line and fields are larger than {limits.head_max_bytes} bytes."
