"""What llhttp reads of an answer: the callbacks, and what they leave behind.

    class Connection(Incoming)      the connection is its own parser target: no object between

An ordinary answer that comes whole and in one piece takes the short road past all this: core.heads.

Strict about framing (RFC 9112 §6): what could be read in two ways is an error and not an answer.
llhttp refuses duplicate and conflicting lengths, bare LF, folded lines and bad chunks. Refused here
are versions other than 1.0 and 1.1, statuses outside 100 to 599, codings other than `chunked`,
control characters in the reason, and 101, which nobody asked for.

Hop-by-hop fields and what Connection names end here (RFC 9110 §7.6.1), except the fields that
protect somebody. Trailers are read and dropped. Does not decide what an answer means, nor when it
is given to whom.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from httptools import HttpResponseParser

from ..core import heads
from ..core.fields import HOP_BY_HOP, PROTECTED
from ..core.kinds import CONNECTION, DROP, LENGTH, PLAIN, STRANGE, Kinds
from ..core.message import Cause, Field, Response
from .limits import Limits
from .stream import Stream

PREFACE: Final = b"HTTP/1.1 "
ENDS: Final = b"\r\n\r\n"
_OLD: Final = b"HTTP/1.0 "
_REASON: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_USUAL_REASONS: Final = frozenset({b"OK", b"Created", b"Accepted", b"No Content", b""})


def _classify(name: bytes) -> int:
    if name == b"content-length":
        return LENGTH
    if name == b"transfer-encoding":
        return STRANGE
    if name == b"connection":
        return CONNECTION
    return DROP if name in HOP_BY_HOP else PLAIN


KINDS: Final = Kinds(_classify)


Short = Callable[[bytes, Kinds], heads.Answered | None]


class Enough(Exception):
    """Nothing more is to be parsed of this. Stops the parser; only sometimes an error."""


class Incoming:
    """An answer as far as it has come."""

    __slots__ = (
        "_body", "_chunked", "_complete", "_count", "_dry", "_fault", "_feed", "_fields",
        "_get_status", "_head_at", "_head_done", "_head_only", "_interim", "_length", "_limits",
        "_more", "_named", "_old", "_plain", "_preface", "_reason", "_reusable", "_seen", "_short",
        "_size", "_status", "_stream", "_until_eof",
    )  # fmt: skip

    def __init__(self, limits: Limits, short: Short) -> None:
        self._limits = limits
        self._short = short
        self._head_only = False
        self._stream: Stream | None = None
        self._plain = False
        self._new_parser()
        self._reset()

    def _new_parser(self) -> None:
        parser = HttpResponseParser(self)
        self._feed = parser.feed_data
        self._get_status = parser.get_status_code

    def _reset(self) -> None:
        """Ready for another answer. What only an unusual one changes is reset only after such."""
        self._preface: bytes | None = b""  # what came of the first nine bytes; None: they are good
        self._fields: list[Field] = []
        self._reason = self._body = b""
        self._length = -1
        self._size = 0
        self._complete = self._head_done = False
        if self._plain:
            return
        self._plain = True  # one read, a declared length, nothing said about the connection
        self._reusable = True
        self._until_eof = self._chunked = self._old = False
        self._named: bytes | None = None
        self._more: list[bytes] = []
        self._fault = ""
        self._status = self._count = self._interim = self._seen = self._dry = 0
        self._head_at = 0.0

    def _stumbled(self, error: Exception, data: bytes) -> str:
        """What is wrong with the answer. Empty: it is whole, and the parser minds what follows."""
        self._plain = False
        if not self._complete:
            return self._fault or f"the answer is malformed: {error}"
        if self._head_only:
            # llhttp cannot be told that no body follows an answer to HEAD: it starts anew.
            self._new_parser()
            self._reusable &= data.find(ENDS) == len(data) - 4
        else:
            self._reusable = False
        return ""

    def on_message_begin(self) -> None:
        if self._complete:
            raise Enough  # a second answer to one request: never to be paired with the next

    def on_status(self, reason: bytes) -> None:
        self._reason = self._reason + reason if self._reason else reason

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = KINDS[name]
        if kind == PLAIN:
            self._fields.append((name, value))
        elif kind == DROP or self._head_done:
            return
        elif kind == LENGTH:
            self._length = int(value)
        elif kind == STRANGE:
            # Any other coding would need a decoder here, or end its message by closing.
            if self._chunked or value.strip().lower() != b"chunked":
                self._fault = f"Transfer-Encoding {value[:40]!r} is not understood"
                raise Enough
            self._plain = False
            self._chunked = True
        elif value != b"keep-alive" or self._old:
            self._plain = False
            self._named = value if self._named is None else b"%b,%b" % (self._named, value)

    def on_headers_complete(self) -> None:
        self._status = status = self._get_status()
        if not 200 <= status < 600:
            self._interim_or_bad(status)
            return
        if self._reason not in _USUAL_REASONS and not _REASON.fullmatch(self._reason):
            self._fault = "control characters in the reason"
            raise Enough
        self._head_done = True
        if not self._plain:
            self._unusual_head()
        if self._length < 0 and not self._chunked and status != 204 and status != 304:
            self._plain = False
            self._reusable = False
            self._until_eof = True

    def _unusual_head(self) -> None:
        if self._named is not None or self._old:
            self._connection_options()
        if self._head_only:
            self._complete = True
            raise Enough
        if self._chunked:
            self._count = len(self._fields)
            if self._old:
                self._fault = "an HTTP/1.0 answer cannot be chunked"  # RFC 9112 §6.1
                raise Enough

    def _connection_options(self) -> None:
        named = {word.strip() for word in (self._named or b"").lower().split(b",")}
        if b"close" in named or (self._old and b"keep-alive" not in named):
            self._reusable = False
        gone = named - PROTECTED
        self._fields = [field for field in self._fields if field[0].lower() not in gone]

    def _interim_or_bad(self, status: int) -> None:
        self._plain = False
        self._interim += 1
        if status == 101 or not 100 <= status < 200:
            self._fault = f"status {status:03d} was not to be expected"
        elif self._interim > self._limits.interim_max:
            self._fault = f"more than {self._limits.interim_max} interim answers"
        if self._fault:
            raise Enough
        self._fields = []
        self._reason = b""
        self._named = None
        self._length = -1
        self._chunked = False

    def on_body(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.feed(data)
        elif self._size:
            self._plain = False
            self._more.append(data)
        else:
            self._body = data
        self._size += len(data)

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True

    def _response(self, rest: Stream | None) -> Response:
        """What came, less trailers; they belong to the bytes and not to the answer."""
        fields = self._fields[: self._count] if self._chunked else self._fields
        body = b"".join((self._body, *self._more)) if self._more else self._body
        self._fields, self._body, self._more = [], b"", []
        return Response(self._status, self._reason, fields, body, rest, self._length)

    def _opens_with(self, start: bytes) -> bool:
        """Its first bytes, nine at most, where there is something unusual. May they be parsed?"""
        if not PREFACE.startswith(start) and not _OLD.startswith(start):
            self._fault = f"no HTTP/1.1 answer begins with {start!r}"
            return False
        self._plain = False
        self._old = start == _OLD
        self._preface = start if len(start) < 9 else None
        return True

    def _excess(self) -> tuple[Cause, str]:
        """What to say of more than a head, or the frame of a body, may have."""
        if self._head_done:
            return Cause.HTTP_PROTOCOL_ERROR, "too much between the bytes of the body"
        return (
            Cause.HTTP_RESPONSE_HEADER_SECTION_SIZE,
            f"the head of the answer has more than {self._limits.head_max_bytes} bytes",
        )

    def _is_event_stream(self) -> bool:
        for name, value in self._fields:
            if len(name) == 12 and name.lower() == b"content-type":
                return value[:17].lower() == b"text/event-stream"
        return False
