"""Head: of an answer, as bytes (RFC 9112 §4, §6). Pure, and on the way of every answer.

The fields go out as given, in their order and spelling. Framing is the door's: Content-Length,
Transfer-Encoding, Connection and Keep-Alive of the handler are left out and written anew. A head
that would have one line more or less than it should is `Unwritable`: that is how a CR, LF or NUL in
a value would split one answer into two. So is one with a field name that is no token: a space or a
colon in it is how a line of framing would get in beside ours.
"""

from __future__ import annotations

import http
from typing import Final

from ..core import heads
from ..core.fields import is_token
from ..core.kinds import Kinds, name_of
from ..core.message import Response

_LINES: Final[dict[int, tuple[bytes, bytes]]] = {
    status.value: (
        status.phrase.encode(),
        b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()),
    )
    for status in http.HTTPStatus
}

FRAMING: Final = frozenset({b"connection", b"keep-alive", b"content-length", b"transfer-encoding"})
_DATE: Final = 1
_FRAMES: Final = 1_000_000
_BAD: Final = 1_000_000_000_000


def _classify(name: bytes) -> int:
    if not is_token(name):
        return _BAD
    return _FRAMES if name in FRAMING else _DATE if name == b"date" else 0


_KINDS: Final = Kinds(_classify)

# In C from end to end: half the time of a loop, at every field of every answer.
_kind: Final = _KINDS.__getitem__
_line: Final = b": ".join

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


_ENDS_A_LINE: Final = b"\r\n\0"


class Unwritable(Exception):
    """The handler's answer cannot be written."""


def status_line(status: int, reason: bytes) -> bytes:
    """Of a status that has no name, or not this one."""
    if not 200 <= status <= 999:
        raise Unwritable(f"{status} is not the status of a final answer")
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def short_head(response: Response, length: int, date: bytes) -> bytes | None:
    """The same for what is ordinary, where that was compiled: see core.heads. `length` is of the
    body; -1 where none is declared."""
    known = _LINES.get(response.status)
    if known is None or response.reason not in (b"", known[0]) or response.status < 200:
        return None
    return heads.answer_head(known[1], response.fields, date, length, _KINDS)


def head(response: Response, framing: bytes, date: bytes) -> bytes:
    """The head, with its empty line. `framing` and `date` are whole lines of ours, or empty."""
    status = response.status
    if status < 200:
        raise Unwritable(f"{status} is not the status of a final answer")
    if response.rest is not None and 0 <= response.length < len(response.body):
        raise Unwritable("more of its body is here than it declares")
    fields = response.fields
    # One sum tells whether there is a Date, framing to be left out, or what may not be written.
    kinds = sum(map(_kind, map(name_of, fields)))
    if kinds:
        if kinds >= _BAD:
            raise Unwritable("the name of a field is no token")
        if kinds >= _FRAMES:
            fields = [field for field in fields if _KINDS[field[0]] != _FRAMES]
        if kinds % _FRAMES:
            date = b""
    known = _LINES.get(status)
    reason = response.reason
    if known is not None and (not reason or reason == known[0]):
        line = known[1]
    else:
        line = status_line(status, reason)
    lines = b"\r\n".join(map(_line, fields))
    between = b"\r\n" if lines else b""
    written = b"".join((line, lines, between, date, framing, b"\r\n"))
    count = len(fields) + 2 + (date != b"") + framing.count(b"\n")
    # One pass over the bytes for all three: every CR and every LF is one of ours, and no NUL.
    if len(written) - len(written.translate(None, _ENDS_A_LINE)) != 2 * count:
        raise Unwritable("a field or the reason has CR, LF or NUL in it")
    return written


def last_words(response: Response, *, date: bytes) -> bytes:
    """A whole answer of ours after which the connection ends."""
    framing = b"Content-Length: %d\r\n" % len(response.body) + CLOSE
    return head(response, framing, date) + response.body
