"""A request as it is asked for, made whole and checked before anything is sent.

    request = compose("POST", "/orders", json=order, key="order-7", …) -> Request

Everything that makes a request unsendable is said here, with nothing sent: a body that can be read
only once, a key that cannot be written, a path that is a URL, a field that may not be.

A request that changes something has a key, and with it one identity for everybody who may get it:
servers, relays, queues, the outbox. Who gives none gets a UUIDv7. `key=False` sends it without the
field; it is then never sent twice where it may have been applied.

A key is its caller's (I10): the values of CREDENTIALS are its `scope`, here as at a relay. The same
word under other credentials is another request, which is sent, and is never told what became of the
first. So is a repeat with credentials that have changed meanwhile: whether it is the same caller's
is for the servers to say, who know him.
"""

from __future__ import annotations

import base64
import json as json_
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from ..core.fields import values
from ..core.idempotency import Unreadable, read_key
from ..core.message import IDEMPOTENT_METHODS, SAFE_METHODS, Field, Value
from ..core.message import Request as Wire
from ..errors import Unacceptable
from ..transports.head import Unsendable, render
from .plan import Kind

OURS: Final = frozenset(
    {
        b"idempotency-key", b"unspool-attempt", b"unspool-deadline", b"unspool-contended",
        b"unspool-key", b"unspool-order", b"unspool-expires-at", b"unspool-taken-by",
    }
)  # fmt: skip
"""What the client writes: on the wire, and beside what it keeps (`record`)."""
CREDENTIALS: Final = (b"authorization", b"cookie", b"x-api-key", b"proxy-authorization")
"""Fields that tell callers apart: a relay's, as it is set up by default (`scope_fields`)."""
_SAFE_IN_TARGET: Final = "/%:@!$&'()*+,;=~-._?"

Params = Mapping[str, Any] | Sequence[tuple[str, Any]]
Fields = Mapping[str, str] | Sequence[tuple[str, str]]
Auth = str | tuple[str, str]
Content = bytes | bytearray | memoryview | str


class Request(Value, frozen=True):
    """A request on its way. What an exception or `Unknown` carries, to be sent again or told of."""

    method: str
    target: str
    """Path and query, as they go on the wire."""
    fields: tuple[Field, ...]
    """Without the Idempotency-Key, which is `key`."""
    body: bytes
    key: str
    """What it is called by everybody. Empty for what changes nothing."""
    keyed: bool
    """The key is sent along."""
    minted: bool
    """The key is ours, not the caller's."""
    kind: Kind
    deadline_ms: int
    lifetime_ms: int
    order: str = ""
    attempts_max: int = 0
    """0: as the client says."""

    @property
    def scope(self) -> tuple[bytes, ...]:
        """Within which the key is known; empty where it came without credentials."""
        found = tuple([b"\0".join(values(self.fields, name)) for name in CREDENTIALS])
        return found if any(found) else ()

    @property
    def wire(self) -> Wire:
        """As a server gets it, less what belongs to the one attempt."""
        fields = list(self.fields)
        if self.keyed:
            fields.append((b"Idempotency-Key", f'"{self.key}"'.encode()))
        return Wire(self.method.encode(), self.target.encode(), tuple(fields), self.body)


class Defaults(Value, frozen=True):
    """What a client says for all its requests."""

    fields: tuple[Field, ...] = ()
    deadline_ms: int = 10_000
    lifetime_ms: int = 5 * 24 * 3600 * 1000
    body_max_bytes: int = 1024 * 1024
    servers_know_keys: bool = True


def compose(
    method: str,
    target: str,
    *,
    defaults: Defaults,
    mint: Callable[[], str],
    params: Params | None = None,
    headers: Fields | None = None,
    json: Any = None,
    data: Any = None,
    content: Content | None = None,
    auth: Auth | None = None,
    key: str | bool | None = None,
    deadline: float | None = None,
    lifetime: float | None = None,
    order: str = "",
    contended: bool = False,
    attempts: int | None = None,
) -> Request:
    """Make it whole. Raises `Unacceptable`: nothing was sent, and this says what to mend."""
    verb = method.upper()
    body, kind = _body(json, data, content, max_bytes=defaults.body_max_bytes)
    fields = _fields(headers, kind=kind, auth=auth, defaults=defaults)
    wire = verb.encode("ascii", "replace")
    safe = wire in SAFE_METHODS
    name, minted = _key(key, safe=safe, mint=mint)
    keyed = bool(name) and key is not False
    repeat = wire in IDEMPOTENT_METHODS or (keyed and defaults.servers_know_keys)
    request = Request(
        method=verb,
        target=_target(target, params),
        fields=fields,
        body=body,
        key=name,
        keyed=keyed,
        minted=minted,
        kind=Kind(repeat=repeat, safe=safe, contended=contended),
        deadline_ms=defaults.deadline_ms if deadline is None else _ms(deadline, "deadline"),
        lifetime_ms=defaults.lifetime_ms if lifetime is None else _lifetime_ms(lifetime),
        order=order,
        attempts_max=_attempts(attempts),
    )
    if not _is_order(order):
        raise _wrong("an order key takes at most 255 printable ASCII characters")
    try:
        render(request.wire, b"a.example")
    except Unsendable as error:
        raise _wrong(f"{error}") from error
    return request


def _wrong(why: str) -> Unacceptable:
    return Unacceptable(f"This request cannot be sent: {why}. Nothing was sent; mend it.")


def _ms(seconds: Any, name: str) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
        raise _wrong(f"{name} is a number of seconds, not {seconds!r}")
    return round(min(seconds, 10 * 365 * 24 * 3600) * 1000)


def _lifetime_ms(seconds: Any) -> int:
    lifetime_ms = _ms(seconds, "lifetime")
    if lifetime_ms <= 0:
        raise _wrong(f"lifetime is more than 0 seconds, not {seconds}")
    return lifetime_ms


def _attempts(attempts: Any) -> int:
    if attempts is None:
        return 0
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise _wrong(f"attempts is at least 1, and a whole number: not {attempts!r}")
    return attempts


def _key(key: str | bool | None, *, safe: bool, mint: Callable[[], str]) -> tuple[str, bool]:
    if safe:
        if isinstance(key, str):
            raise _wrong("a key is for what changes something, and this only asks")
        return "", False
    if key is None or isinstance(key, bool):
        return mint(), True
    if not isinstance(key, str):
        raise _wrong(f"a key is text, not {type(key).__name__}: write key=str(…)")
    if not key.isascii() or '"' in key or "\\" in key:
        raise _wrong("a key is printable ASCII without quote and backslash")
    read = read_key([f'"{key}"'.encode()])
    if isinstance(read, Unreadable):
        raise _wrong(read.why)
    return key, False


def _body(json: Any, data: Any, content: Content | None, *, max_bytes: int) -> tuple[bytes, str]:
    """The body whole, and its media type."""
    given = [
        name
        for name, it in (("json", json), ("data", data), ("content", content))
        if it is not None
    ]
    if len(given) > 1:
        raise _wrong(f"it has {' and '.join(given)}; one of them is its body")
    kind = ""
    if json is not None:
        body, kind = _json(json), "application/json"
    elif isinstance(data, Mapping):
        body, kind = urlencode(data, doseq=True).encode(), "application/x-www-form-urlencoded"
    elif data is not None or content is not None:
        body = _bytes(content if data is None else data)
    else:
        body = b""
    if len(body) > max_bytes:
        raise _wrong(
            f"its body has {len(body)} bytes, and what may have to be kept has at most {max_bytes}"
            " (`body_max_bytes`)"
        )
    return body, kind


def _json(value: Any) -> bytes:
    try:
        body = msgspec.json.encode(value)
        if b"null" in body and not _is_finite(msgspec.to_builtins(value)):
            raise _wrong("its body is no JSON: NaN and Infinity are no numbers there")
        return body
    except (TypeError, ValueError, msgspec.MsgspecError):
        try:
            return json_.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise _wrong(f"its body is no JSON: {error}") from error


def _is_finite(value: Any) -> bool:
    """Is every number one? The encoder writes null for what is none."""
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    name = type(value).__name__
    if hasattr(value, "read"):
        raise _wrong(
            f"its body is an open file ({name}), which can be read only once: read it first"
        )
    if hasattr(value, "__next__") or hasattr(value, "__anext__") or hasattr(value, "__aiter__"):
        raise _wrong(
            f"its body is an iterator ({name}), which can be read only once, and it may have to be"
            ' sent again: give the bytes, such as b"".join(…)'
        )
    raise _wrong(f"a body is bytes or text, not {name}; `json=` takes other values")


def _fields(
    given: Fields | None, *, kind: str, auth: Auth | None, defaults: Defaults
) -> tuple[Field, ...]:
    pairs = _pairs(given, "headers")
    fields: list[Field] = []
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise _wrong(f"a field's name and value are text: {name!r}")
        try:
            field = name.encode("ascii"), value.strip(" \t").encode("latin-1")
        except UnicodeEncodeError as error:
            raise _wrong(f"the field {name!r} has characters outside Latin-1") from error
        if field[0].lower() in OURS:
            raise _wrong(
                f"the field {name} is the client's to write; a key is `key=`, an order `order=`"
            )
        fields.append(field)
    if auth is not None:
        fields.append((b"Authorization", _authorization(auth)))
    if kind:
        fields.append((b"Content-Type", kind.encode()))
    seen: set[bytes] = set()
    out: list[Field] = []
    own = len(pairs)
    names = {name.lower() for name, _ in fields[:own]}
    for at, field in enumerate(fields):
        low = field[0].lower()
        if at >= own and (low in names or low in seen):
            continue  # the caller's own word goes before ours
        seen.add(low)
        out.append(field)
    return (*[one for one in defaults.fields if one[0].lower() not in seen], *out)


def _pairs(given: Any, name: str) -> list[tuple[Any, Any]]:
    try:
        found = list(given.items() if isinstance(given, Mapping) else given or ())
        return [(one, other) for one, other in found]
    except (TypeError, ValueError) as error:
        raise _wrong(f"{name} is a mapping, or pairs of a name and a value") from error


def _authorization(auth: Auth) -> bytes:
    """`Bearer …` as it is; a name and a password as Basic (RFC 7617)."""
    if isinstance(auth, str):
        try:
            return auth.encode("latin-1")
        except UnicodeEncodeError as error:
            raise _wrong("the Authorization has characters outside Latin-1") from error
    try:
        name, password = auth
        written = base64.b64encode(f"{name}:{password}".encode())
    except (TypeError, ValueError) as error:
        why = "auth is (name, password), or the whole value of Authorization as text"
        raise _wrong(why) from error
    return b"Basic " + written


def _is_order(order: Any) -> bool:
    return isinstance(order, str) and order.isascii() and order.isprintable() and len(order) <= 255


def _target(target: str, params: Params | None) -> str:
    if not target.startswith("/"):
        if "://" in target.split("?")[0]:
            raise _wrong(
                f"{target!r} is a whole address: the servers are the client's; give the path"
            )
        raise _wrong(f"{target!r} is no path: it begins with a slash")
    if "#" in target:
        raise _wrong(f"{target!r} has a fragment, which servers never see")
    written = quote(target, safe=_SAFE_IN_TARGET)
    if params:
        query = urlencode(_pairs(params, "params"), doseq=True)
        written += ("&" if "?" in written else "?") + query
    return written
