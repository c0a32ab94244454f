"""The head of a request on its way out: always built from the parsed form, never copied raw.

    render(request, host) -> bytes      request line, fields as given, framing; raises Unsendable

A saved request is sent hours later by another program than the one that read it. Whatever could
make the next parser cut it differently is refused here: CR, LF and NUL anywhere, white space in
the request line (§3 lets a server split at a tab, too), a field name that is no token, two Host
fields, a body of which more is here than it declares, and framing fields, which are ours to write
(RFC 9112 §2.2, §3, §3.2, §5.1, §6; CWE-93, CWE-444).

Does not touch order, case, duplicates or values.
"""

from __future__ import annotations

from typing import Final

from ..core import heads
from ..core.fields import HOP_BY_HOP, is_token
from ..core.kinds import HOST, PLAIN, Kinds, name_of
from ..core.message import Request

_ENDS_A_LINE: Final = b"\r\n\0"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"

_BAD: Final = 1_000_000

_KNOWN: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"})
_WITH_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
"""RFC 9110 §8.6: these say `Content-Length: 0` where they have no body."""


class Unsendable(ValueError):
    """This request cannot be written so that everybody reads it the same way."""


def _classify(name: bytes) -> int:
    if name == b"host":
        return HOST
    if name in HOP_BY_HOP or name == b"content-length" or not is_token(name):
        return _BAD
    return PLAIN


_KINDS: Final = Kinds(_classify)

# In C from end to end: half the time of a comprehension, at every field of every request.
_kind: Final = _KINDS.__getitem__
_line: Final = b": ".join


def render(request: Request, host: bytes) -> bytes:
    """The head, with its empty line. `host` is the origin's, for a request that names none."""
    method = request.method
    if request.rest is None:
        size = len(request.body)
        length = size if size or method in _WITH_BODY else -1
        short = heads.request_head(method, request.target, request.fields, length, _KINDS)
        if short is not None:
            return short
    return at_length(request, host)


def at_length(request: Request, host: bytes) -> bytes:
    """The same on the long road: see core.heads."""
    method = request.method
    target = request.target
    fields = request.fields
    if method not in _KNOWN:
        _check_method(method)
    if target.split() != [target]:
        raise Unsendable("a target is not empty and has no white space")
    if request.rest is not None:
        length = request.length
        if 0 <= length < len(request.body):
            raise Unsendable("more of its body is here than it declares")
        framing = b"Content-Length: %d\r\n\r\n" % length if length >= 0 else _CHUNKED
    elif request.body or method in _WITH_BODY:
        framing = b"Content-Length: %d\r\n\r\n" % len(request.body)
    else:
        framing = b"\r\n"
    lines = [b"%b %b HTTP/1.1" % (method, target), *map(_line, fields), framing]
    # One sum tells the number of Host fields and whether there is one that must not be.
    hosts = sum(map(_kind, map(name_of, fields)))
    if hosts != 1:
        if hosts:
            raise Unsendable(_complaint(request))
        lines.insert(1, b"Host: " + host)
    head = b"\r\n".join(lines)
    # Every CR and every LF is one we wrote, or somebody writes lines of his own (RFC 9110 §5.5).
    ends = len(lines) + (len(framing) > 2)
    if len(head.translate(None, _ENDS_A_LINE)) != len(head) - 2 * ends:
        raise Unsendable("CR, LF or NUL in the method, the target or a field")
    return head


def _check_method(method: bytes) -> None:
    if not is_token(method):
        raise Unsendable("the method is no token")
    if method == b"CONNECT":
        raise Unsendable("CONNECT asks for a tunnel, and this carries requests")


def _complaint(request: Request) -> str:
    for name, _ in request.fields:
        if _KINDS[name] == _BAD:
            return f"the field name {name!r} may not be sent on"
    return "more than one Host field"
