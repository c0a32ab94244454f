"""Handover: a request as it is written for somebody else's queue, for whoever writes or reads it.

    pack(handover) -> bytes      JSON in UTF-8, the same bytes for the same request
    unpack(payload) -> Handover  strict; raises `Unfit` with a sentence that says which member

A shell script can write one by hand:

    {"unspool": 1, "method": "POST", "target": "/orders", "key": "order-7", "body": "{}"}

| member        | | |
|---------------|---|---|
| `unspool`     | must  | the version of this form: 1 |
| `method`      | must  | in capitals |
| `target`      | one of| path and query |
| `url`         | them  | the whole address: its host becomes the field Host, the rest the target |
| `key`         | must  | the Idempotency-Key: whoever gives it twice means one request |
| `fields`      | may   | pairs of name and value, in order, in Latin-1 |
| `body`        | may   | text, sent as UTF-8 |
| `body_base64` | may   | bytes instead |
| `order`       | may   | as the field Unspool-Order |
| `expires_at`  | may   | milliseconds since 1970: later than this nobody need deliver it |

Where it goes is not written: whoever collects it knows his service. A member that is not in the
table is refused, for it may mean something to its writer; of one that is written twice the last
counts. Fields of one connection (Connection, Content-Length, Transfer-Encoding …) may be written
and end at the collector. docs/reference/handover.md is the page, vectors/handover.json the cases.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Final

import msgspec

from .idempotency import KEY_CHARS_MAX, read_key
from .message import NEVER, Field, Instant, Request, Value

VERSION: Final = 1
HEAD_MAX_BYTES: Final = 64 * 1024
"""Method, target and fields together."""
FIELDS_MAX: Final = 200
EARLIEST_MS: Final = 100_000_000_000
"""An instant before this (1973) was written in seconds."""


class Unfit(ValueError):
    """These bytes are no handed-over message, or this request cannot be one."""


class Handover(Value, frozen=True):
    """What a queue carries: a request, and what its sender says of it."""

    request: Request
    """As it was asked; the field Idempotency-Key is among its fields."""
    key: str
    """The sender's Idempotency-Key."""
    order_key: str = ""
    expires_at: Instant = NEVER
    """The sender's own deadline."""


class _Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    unspool: int
    method: str
    key: str
    target: str | None = None
    url: str | None = None
    fields: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    body_base64: str | None = None
    order: str = ""
    expires_at: int | None = None


_decode: Final = msgspec.json.Decoder(_Form).decode
_encode: Final = msgspec.json.Encoder().encode

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_is_method: Final = re.compile(_TOKEN + "{1,32}").fullmatch
_is_name: Final = re.compile(_TOKEN + "{1,256}").fullmatch
_is_value: Final = re.compile(r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch
_is_target: Final = re.compile(r"/[!-\"$-~]*").fullmatch
_HOST: Final = r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~%-]{1,255})(?::[0-9]{1,5})?"
_is_host: Final = re.compile(_HOST).fullmatch
_is_url: Final = re.compile(
    rf"[Hh][Tt][Tt][Pp][Ss]?://({_HOST})"
    r"(/[!-\"$->@-~]*)?(\?[!-\"$-~]*)?"
).fullmatch
_is_order: Final = re.compile(r"[ -~]{0,255}").fullmatch

_ELSEWHERE: Final = {
    "unspool-order": "the member `order`",
    "unspool-lifetime": "the member `expires_at`",
    "unspool-attempt": "nobody's to write but the relay's",
}
"""Fields that are members here, so that each thing has one place."""


def unpack(payload: bytes) -> Handover:
    """The request that was handed over. Raises `Unfit`."""
    try:
        form = _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unfit(f"{error}") from None
    if form.unspool != VERSION:
        raise Unfit(
            f"`unspool` is {form.unspool}: a form of another version; this one reads {VERSION}"
        )
    _check_method(form.method)
    fields = _fields(form)
    target = _target(form, fields)
    key = _key(form, fields)
    if not _is_order(form.order):
        raise Unfit("`order` takes at most 255 printable ASCII characters")
    expires_at = NEVER if form.expires_at is None else form.expires_at
    if not EARLIEST_MS <= expires_at <= NEVER:
        raise Unfit("`expires_at` is in milliseconds since 1970; this is not, or is no such time")
    body = _body(form)
    size = len(target) + sum(len(name) + len(value) for name, value in fields)
    if size > HEAD_MAX_BYTES or len(fields) > FIELDS_MAX:
        raise Unfit(
            f"method, target and fields take at most {HEAD_MAX_BYTES} bytes and {FIELDS_MAX} fields"
        )
    request = Request(form.method.encode(), target.encode(), tuple(fields), body)
    return Handover(request, key, form.order.strip(), Instant(expires_at))


def _check_method(method: str) -> None:
    if not _is_method(method) or method == "CONNECT":
        raise Unfit("`method` is not the method of a request that can be carried")
    if method != method.upper():
        raise Unfit("`method` is written in capitals")


def _fields(form: _Form) -> list[Field]:
    fields = []
    for name, value in form.fields:
        if not _is_name(name):
            raise Unfit("`fields` has a name that is no token (RFC 9110 §5.1)")
        if place := _ELSEWHERE.get(name.lower()):
            raise Unfit(f"the field {name} is {place}")
        if not _is_value(value):
            raise Unfit(
                f"the value of the field {name} has a control character, a space at an end, or a "
                "character outside Latin-1"
            )
        fields.append((name.encode(), value.encode("latin-1")))
    return fields


def _target(form: _Form, fields: list[Field]) -> str:
    """The target; the host of a `url` goes to the fields (RFC 9112 §3.2.2)."""
    hosts = [at for at, (name, _) in enumerate(fields) if name.lower() == b"host"]
    if len(hosts) > 1:
        raise Unfit("`fields` has two Host")
    if hosts and not _is_host(fields[hosts[0]][1].decode("latin-1")):
        raise Unfit("the field Host is not a host with an optional port")
    if (form.target is None) == (form.url is None):
        raise Unfit("one of `target` and `url` says where to, and the other is left out")
    if form.target is not None:
        if not _is_target(form.target) and (form.method, form.target) != ("OPTIONS", "*"):
            raise Unfit(
                "`target` is a path with its query: it begins with a slash, and what is not ASCII "
                "is percent-encoded"
            )
        return form.target
    assert form.url is not None
    found = _is_url(form.url)
    if found is None:
        raise Unfit(
            "`url` is an address that begins with http:// or https://, without a user and without "
            "a fragment; what is not ASCII is percent-encoded"
        )
    host = (b"Host", found[1].encode())
    if hosts:
        fields[hosts[0]] = host
    else:
        fields.append(host)
    return (found[2] or "/") + (found[3] or "")


def _key(form: _Form, fields: list[Field]) -> str:
    """The key; where no field says it, one does now."""
    quoted = form.key.replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "replace")
    written: Field = (b"Idempotency-Key", b'"' + quoted + b'"')
    if read_key([written[1]]) != form.key:
        raise Unfit(f"`key` takes 1 to {KEY_CHARS_MAX} printable ASCII characters")
    values = [value for name, value in fields if name.lower() == b"idempotency-key"]
    if not values:
        fields.append(written)
    elif read_key(values) != form.key:
        raise Unfit("`key` and the field Idempotency-Key do not agree")
    return form.key


def _body(form: _Form) -> bytes:
    if form.body_base64 is None:
        try:
            return (form.body or "").encode()
        except UnicodeEncodeError:  # "\ud800"
            raise Unfit("`body` is no text: write `body_base64`") from None
    if form.body is not None:
        raise Unfit("a body is written as `body` or as `body_base64`, not both")
    try:
        return a2b_base64(form.body_base64, strict_mode=True)
    except (Base64Error, ValueError):
        raise Unfit("`body_base64` is not base64 (RFC 4648 §4, with its padding)") from None


def pack(handover: Handover) -> bytes:
    """The request as bytes for a queue. Raises `Unfit` for one that `unpack` would refuse."""
    request = handover.request
    assert request.rest is None, "I1: what is not here cannot be promised"
    text = _text(request.body)
    try:
        form = _Form(
            unspool=VERSION,
            method=request.method.decode("ascii"),
            target=request.target.decode("ascii"),
            key=handover.key,
            fields=tuple((name.decode("ascii"), _latin(value)) for name, value in request.fields),
            body=text or None,
            body_base64=None if text is not None else _base64(request.body),
            order=handover.order_key,
            expires_at=None if handover.expires_at == NEVER else handover.expires_at,
        )
        payload = _encode(form)
    except UnicodeError:
        raise Unfit("method, target, names of fields or key have bytes outside ASCII") from None
    unpack(payload)
    return payload


def _latin(value: bytes) -> str:
    return value.decode("latin-1")


def _base64(body: bytes) -> str:
    return b2a_base64(body, newline=False).decode()


def _text(body: bytes) -> str | None:
    """The body as text that JSON carries as it is; None: it needs base64."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
