"""Strict: the rules of a request's head that llhttp does not hold us to (RFC 9112, RFC 9110).

    target_of(method, target, fields, host) -> target        which form it has, and whether it may
    special fields are looked at one by one in `HeadRules`

llhttp without leniencies refuses already: obs-fold, space before a colon, bare CR or LF, NUL and
control characters, names that are no tokens, two Content-Length, Content-Length beside
Transfer-Encoding, numbers that are none, chunks without CRLF. What it lets through and we do not: a
head without Host or with two, several spaces in the request line, `RTSP/1.0`, `ICE/1.0`,
HTTP/0.9 and HTTP/2.0, a fragment, `*` and absolute targets anywhere, codings before `chunked`.
"""

from __future__ import annotations

import re
from typing import Final

from ..core.message import Field


class Refusal(Exception):
    """This can never become a request. `name` is a row of `problems.PROBLEMS`."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail)
        self.name = name
        self.detail = detail


_HOST: Final = rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~%-]{1,255})(?::[0-9]{0,5})?"
_is_host: Final = re.compile(_HOST).fullmatch
_absolute: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*)(/[^?]*)?(\?.*)?", re.S).fullmatch
_method_line: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} ").match

_KNOWN_HOSTS_MAX: Final = 1024
known_hosts: Final[set[bytes]] = set()
"""Hosts that have passed `check_host`; it is emptied when it grows too large."""


def check_host(host: bytes) -> None:
    """RFC 9112 §3.2: a host that is no `uri-host [":" port]` is 400. Good ones are remembered."""
    if host in known_hosts:
        return
    if not _is_host(host):
        raise Refusal("malformed", "The field Host is not a host with an optional port.")
    if len(known_hosts) >= _KNOWN_HOSTS_MAX:
        known_hosts.clear()
    known_hosts.add(host)


def ordinary_target(method: bytes, target: bytes, fields: list[Field]) -> bytes:
    """The target of a request whose target does not begin with a slash (RFC 9112 §3.2).

    An absolute target becomes its path, and its authority becomes the Host, whatever the sender
    wrote there (§3.2.2). Where the request is sent does not depend on either.
    """
    if method == b"CONNECT":
        raise Refusal("not-implemented", "CONNECT is not offered here.")
    if target == b"*":
        if method != b"OPTIONS":
            raise Refusal("malformed", "Only OPTIONS may have the target `*`.")
        return target
    found = _absolute(target)
    if found is None:
        raise Refusal("malformed", "The target is neither a path nor an http or https URI.")
    authority, path, query = found.groups()
    if not _is_host(authority):  # user information ends here too: RFC 9110 §4.2.4
        raise Refusal("malformed", "The authority of the target is not a host and a port.")
    _set_host(fields, authority)
    if path is None and query is None:
        return b"*" if method == b"OPTIONS" else b"/"  # RFC 9112 §3.2.4
    return (path or b"/") + (query or b"")


def _set_host(fields: list[Field], authority: bytes) -> None:
    for index, (name, _) in enumerate(fields):
        if name.lower() == b"host":
            fields[index] = (name, authority)
            return
    fields.append((b"Host", authority))


def length_of(value: bytes) -> int:
    """Of a Content-Length that llhttp took for a number: it minds no zeros before it."""
    if len(value) > 20:
        raise Refusal("malformed", "Content-Length has more than 20 digits.")
    return int(value)


def check_transfer_encoding(value: bytes, *, old: bool) -> None:
    """Exactly one `chunked`, and only in HTTP/1.1 (RFC 9112 §6.1)."""
    if old:
        raise Refusal("malformed", "HTTP/1.0 has no Transfer-Encoding.")
    if value.strip(b" \t").lower() != b"chunked":
        raise Refusal("not-implemented", "No transfer coding but `chunked` is understood.")


def words(value: bytes) -> list[bytes]:
    """The members of a comma-separated list of tokens, in lower case."""
    return [word.strip(b" \t") for word in value.lower().split(b",")]


def grumble(complaint: str, raw: bytes) -> Refusal:
    """What llhttp says it found, as an answer. `raw` is how the message begins, if that is known.

    llhttp has no codes of its own for these in httptools, so its words are looked at; the tests
    notice if they change.
    """
    if raw[:2] == b"\x16\x03":
        return Refusal("malformed", "This is TLS; the door speaks plain HTTP here.")
    if "HTTP version" in complaint or "PRI/Upgrade" in complaint:
        return Refusal("version", complaint)
    if "Invalid method" in complaint and _method_line(raw.lstrip(b"\r\n")):
        return Refusal("not-implemented", "The method is not known here.")  # RFC 9110 §9.1
    return Refusal("malformed", complaint)
