"""Fields: which are ours, which go on, which are kept, which are served from our own origin.

    onward(fields) -> Onward        a request's fields, sorted in one pass
    ordinary(fields)                the same, quickly, where little in them concerns us
    kept(fields)                    what of an answer is remembered for a replay
    harmless(fields)                what of a kept answer is served at a receipt's address
    is_token(name)                  can it be the name of a field, or a method?

Hop-by-hop fields end here (RFC 9110 §7.6.1). What Connection names ends here too, except the
fields that protect somebody: a sender may not have Authorization removed on the way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from . import heads
from .kinds import CONNECTION, HOST, KEY, LENGTH, OURS, PLAIN, STRANGE, Kinds
from .message import Field

is_token: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""RFC 9110 §5.6.2."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

PROTECTED: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"cookie",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"idempotency-key",
        b"via",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
    }
)
"""Connection may name these as often as it likes."""

NOT_KEPT: Final = HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"www-authenticate",
    b"authentication-info",
    b"date",
    b"content-length",
    b"age",
    b"server-timing",
}
"""Of an answer: what belongs to the one exchange it came in."""

ORIGIN_WIDE: Final = frozenset(
    {
        b"strict-transport-security",
        b"clear-site-data",
        b"service-worker-allowed",
        b"alt-svc",
        b"nel",
        b"report-to",
        b"reporting-endpoints",
        b"public-key-pins",
        b"content-security-policy",
        b"content-security-policy-report-only",
        b"x-content-type-options",
        b"cache-control",
        b"expires",
        b"pragma",
        b"refresh",
        b"sourcemap",
        b"origin-agent-cluster",
        b"permissions-policy",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
    }
)
"""Of a kept answer: what would speak for our whole origin, or act on its own."""


class Onward(msgspec.Struct):
    """A request's fields after one pass: what goes on, and what speaks to us."""

    fields: list[Field] = []
    host: bytes | None = None
    hosts: int = 0
    keys: list[bytes] = []
    prefers: list[bytes] = []
    vias: list[bytes] = []
    order: bytes = b""
    lifetime: bytes = b""
    contended: bool = False
    """Worth nothing late: nobody is to keep it."""
    deadline: bytes = b""
    """For so many seconds its sender waits."""
    again: bool = False
    """Not the first attempt of whoever sent it: he repeats already."""
    traceparent: bool = False
    upgrade: bool = False
    asks: bool = False
    """Does it speak to us: by key, preference, order, lifetime, or of its sender's attempts?"""
    speaks: bool = False
    """The same, or it has been through a relay before."""


_OURS: Final = frozenset(
    {
        b"host",
        b"idempotency-key",
        b"prefer",
        b"via",
        b"unspool-order",
        b"unspool-lifetime",
        b"unspool-contended",
        b"unspool-deadline",
        b"unspool-attempt",
        b"traceparent",
        b"expect",
        b"content-length",
    }
)
_SPECIAL: Final = HOP_BY_HOP | _OURS
_ASKING: Final = frozenset(
    {
        b"idempotency-key", b"prefer", b"unspool-order", b"unspool-lifetime", b"unspool-contended",
        b"unspool-deadline",
    }
)  # fmt: skip
_GOES_ON: Final = frozenset(
    {
        b"idempotency-key", b"prefer", b"via", b"unspool-order", b"traceparent",
        b"unspool-contended",
    }
)  # fmt: skip


_HEADS: Final = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"idempotency-key": KEY,
    b"connection": CONNECTION,
    b"proxy-connection": CONNECTION,
    b"transfer-encoding": STRANGE,
    b"upgrade": STRANGE,
    b"expect": STRANGE,
}
HEADS: Final = Kinds(lambda name: _HEADS.get(name, OURS if name in _SPECIAL else PLAIN))
"""The fields of a request that comes."""


def ordinary(fields: Sequence[Field]) -> tuple[list[Field], bytes, bytes | None] | None:
    """What of these fields goes on, the host, and the Idempotency-Key as it came, if one did.

    None: there is more in them that concerns us, or less; sort them with `onward`. The same result,
    at a tenth of the cost, for most requests.
    """
    return heads.onward(fields, HEADS)


def onward(fields: Sequence[Field]) -> Onward:
    """Sort a request's fields. Content-Length is framing: whoever sends writes its own."""
    into = Onward()
    named: list[bytes] | None = None
    keep = into.fields.append
    for field in fields:
        name = field[0].lower()
        if name not in _SPECIAL:
            keep(field)
        elif name == b"host":
            into.host = field[1]
            into.hosts += 1
            keep(field)
        elif name == b"connection":
            named = [] if named is None else named
            named.extend(word.strip().lower() for word in field[1].split(b","))
        elif name in _OURS:
            _ours(into, name, field)
    if named is not None:
        into.upgrade = b"upgrade" in named
        gone = frozenset(named) - PROTECTED - {b"close", b"keep-alive", b""}
        if gone:
            into.fields = [field for field in into.fields if field[0].lower() not in gone]
    return into


def _ours(into: Onward, name: bytes, field: Field) -> None:
    value = field[1]
    if name == b"idempotency-key":
        into.keys.append(value)
    elif name == b"prefer":
        into.prefers.append(value)
    elif name == b"via":
        into.vias.append(value)
    elif name == b"unspool-order":
        into.order = value.strip()
    elif name == b"unspool-lifetime":
        into.lifetime = value.strip()
    elif name == b"unspool-contended":
        into.contended = value.strip() == b"?1"
    elif name == b"unspool-deadline":
        into.deadline = value.strip()
    elif name == b"unspool-attempt":
        into.again = value.strip() not in (b"", b"0", b"1")
    elif name == b"traceparent":
        into.traceparent = True
    if name in _ASKING or into.again:
        into.asks = into.speaks = True
    elif name == b"via":
        into.speaks = True
    if name in _GOES_ON:
        into.fields.append(field)


_IS_KEPT: Final = Kinds(lambda name: name not in NOT_KEPT)


def kept(fields: Sequence[Field]) -> tuple[Field, ...]:
    """An answer's fields as a replay gives them again (conformance B3, B4)."""
    return tuple([field for field in fields if _IS_KEPT[field[0]]])


def harmless(fields: Sequence[Field]) -> list[Field]:
    """A kept answer's fields as a receipt serves them: somebody else's bytes on our origin."""
    return [
        field
        for field in fields
        if (name := field[0].lower()) not in ORIGIN_WIDE and name not in NOT_KEPT
    ]


def values(fields: Sequence[Field], wanted: bytes) -> list[bytes]:
    """Every value of the field `wanted` (lower case), in order."""
    return [value for name, value in fields if name.lower() == wanted]
