"""Head: of an answer, as bytes (RFC 9112 §4, §6). Pure, and on the way of every answer.

The fields go out as given, in their order and spelling. Framing is the door's: Content-Length,
Transfer-Encoding, Connection and Keep-Alive of the handler are left out and written anew. A head
that would have one line more or less than it should is `Unwritable`: that is how a CR, LF or NUL in
a value would split one answer into two.
"""

from __future__ import annotations

import http
from typing import Final

from ..core.message import Response

_LINES: Final[dict[int, tuple[bytes, bytes]]] = {
    status.value: (
        status.phrase.encode(),
        b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()),
    )
    for status in http.HTTPStatus
}

_LENGTHS: Final = frozenset({4, 10, 14, 17})
"""Of the names that need a look: date, connection, keep-alive, content-length, transfer-…"""
FRAMING: Final = frozenset({b"connection", b"keep-alive", b"content-length", b"transfer-encoding"})

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


_ENDS_A_LINE: Final = b"\r\n\0"


class Unwritable(Exception):
    """The handler's answer cannot be written."""


def status_line(status: int, reason: bytes) -> bytes:
    known = _LINES.get(status)
    if known is not None and (not reason or reason == known[0]):
        return known[1]
    if not 200 <= status <= 999:
        raise Unwritable(f"{status} is not the status of a final answer")
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def head(response: Response, *, framing: bytes, date: bytes) -> bytes:
    """The head, with its empty line. `framing` and `date` are whole lines of ours, or empty."""
    status = response.status
    if status < 200:
        raise Unwritable(f"{status} is not the status of a final answer")
    lines = [status_line(status, response.reason)]
    count = 2
    for name, value in response.fields:
        if len(name) in _LENGTHS:
            lower = name.lower()
            if lower in FRAMING:
                continue
            if lower == b"date":
                date = b""
        lines += (name, b": ", value, b"\r\n")
        count += 1
    lines += (date, framing, b"\r\n")
    written = b"".join(lines)
    count += (date != b"") + framing.count(b"\n")
    # One pass over the bytes for all three: every CR and every LF is one of ours, and no NUL.
    if len(written) - len(written.translate(None, _ENDS_A_LINE)) != 2 * count:
        raise Unwritable("a field or the reason has CR, LF or NUL in it")
    return written


def last_words(response: Response, *, date: bytes) -> bytes:
    """A whole answer of ours after which the connection ends."""
    framing = b"Content-Length: %d\r\n" % len(response.body) + CLOSE
    return head(response, framing=framing, date=date) + response.body
