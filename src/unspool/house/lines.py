"""Lines: a spool's entries as JSON lines, for a file that outlives every engine. Pure.

    line(value) -> bytes          Head, Secret, Tail or an entry, with its end of line
    read(bytes) -> …              the same back; raises `Unfit` with a sentence

The form is versioned (VERSION stands in the head) and documented in docs/reference/export.md, with
golden cases in vectors/export.json. Within a version members are only added, and readers pass over
those they do not know.

What is read is checked: a request is sent again hours later, so a method, a target or a field that
could make two requests out of one is refused here too.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from ..core.lifecycle import Reason, State
from ..core.message import (
    NEVER,
    Attempt,
    Destination,
    Field,
    Instant,
    Key,
    Message,
    Request,
    Response,
)
from ..spools.protocol import Entry
from ..spools.secret import SECRET_BYTES

VERSION: Final = 1
LINE_MAX_BYTES: Final = 256 * 1024 * 1024
"""A longer one is no line of ours."""


class Unfit(ValueError):
    """This is no line of an export."""


class Head(msgspec.Struct, frozen=True, tag_field="line", tag="export"):
    """The first line."""

    version: int
    exported_at: int
    secret_mark: str = ""
    """Tells one secret from another, and nothing else; empty: the spool had none yet."""


class Secret(msgspec.Struct, frozen=True, tag_field="line", tag="secret"):
    """The spool's secret: without it, repeats of what is moved are not known again."""

    secret: bytes


class Tail(msgspec.Struct, frozen=True, tag_field="line", tag="end"):
    """The last line: without it the file is not whole."""

    messages: int


class _Tried(msgspec.Struct, frozen=True, omit_defaults=True):
    number: int
    at: int
    status: int = 0
    cause: str = ""
    sent: str = ""
    location: str = ""


class _Request(msgspec.Struct, frozen=True):
    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes


class _Answer(msgspec.Struct, frozen=True):
    status: int
    reason: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    length: int = -1


class _Line(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="line", tag="message"):
    key: str
    state: str
    destination: str
    fingerprint: bytes
    nonce: bytes
    accepted_at: int
    expires_at: int
    name: str = ""
    order_key: str = ""
    repeat: bool = True
    due_at: int | None = None
    held: bool = False
    attempt: int = 0
    leased: bool = False
    trail: tuple[_Tried, ...] = ()
    request: _Request | None = None
    answer: _Answer | None = None
    stored: bool = True
    reason: str = ""
    settled_at: int = 0
    keep_until: int = 0
    answer_until: int = 0


_decode: Final = msgspec.json.Decoder(Head | Secret | Tail | _Line).decode
_encode: Final = msgspec.json.Encoder().encode

_TOKEN: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_is_token: Final = re.compile(_TOKEN).fullmatch
_is_target: Final = re.compile(r"[!-~\x80-\xff]+").fullmatch
_ends_a_line: Final = re.compile(r"[\r\n\0]").search
_STATES: Final = {
    "waiting": State.WAITING, "delivered": State.DELIVERED, "bounced": State.BOUNCED,
}  # fmt: skip
_KEY_MAX: Final = 1_000


def line(value: Head | Secret | Tail | Entry) -> bytes:
    return _encode(_line(value) if isinstance(value, Entry) else value) + b"\n"


def _line(entry: Entry) -> _Line:
    message, request, answer = entry.message, entry.message.request, entry.answer
    assert entry.state is not State.CLAIMED, "nothing was promised of a claim"
    held = entry.due_at == NEVER
    return _Line(
        key=message.key, state=entry.state.name.lower(), destination=message.destination,
        fingerprint=message.fingerprint, nonce=message.nonce, accepted_at=message.accepted_at,
        expires_at=message.expires_at, name=message.name, order_key=message.order_key,
        repeat=message.repeat, due_at=None if held else entry.due_at, held=held,
        attempt=entry.attempt,
        leased=entry.state is State.WAITING and entry.leased_until != 0,
        trail=tuple(_Tried(*msgspec.structs.astuple(one)) for one in entry.trail),
        request=None if request is None else _Request(
            _latin(request.method), _latin(request.target), _pairs(request.fields), request.body,
        ),
        answer=None if answer is None else _Answer(
            answer.status, _latin(answer.reason), _pairs(answer.fields), answer.body,
            answer.length,
        ),
        stored=entry.stored, reason=entry.reason, settled_at=entry.settled_at,
        keep_until=entry.keep_until, answer_until=entry.answer_until,
    )  # fmt: skip


def _latin(text: bytes) -> str:
    return text.decode("latin-1")


def _pairs(fields: object) -> tuple[tuple[str, str], ...]:
    return tuple((_latin(name), _latin(value)) for name, value in fields)  # type: ignore[attr-defined]


class Brought(msgspec.Struct, frozen=True):
    """An entry as a line tells it."""

    entry: Entry
    leased: bool
    """Somebody was trying it, or had died over it."""


def read(text: bytes) -> Head | Secret | Tail | Brought:
    """Raises `Unfit`."""
    if len(text) > LINE_MAX_BYTES:
        raise Unfit(f"a line of {len(text)} bytes")
    try:
        found = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unfit(f"{error}") from None
    if isinstance(found, Head) and found.version != VERSION:
        raise Unfit(
            f"the export is of version {found.version}, and this unspool reads version {VERSION}"
        )
    if isinstance(found, Secret) and len(found.secret) != SECRET_BYTES:
        raise Unfit(f"the secret has {len(found.secret)} bytes, and {SECRET_BYTES} is what it has")
    return _entry(found) if isinstance(found, _Line) else found


def _entry(row: _Line) -> Brought:
    state = _STATES.get(row.state)
    if state is None:
        raise Unfit(f"`state` is {row.state!r}, and is one of {', '.join(_STATES)}")
    _check(row, state)
    message = Message(
        Key(row.key), row.fingerprint, Destination(row.destination), Instant(row.accepted_at),
        Instant(row.expires_at), row.nonce, row.name, row.order_key, row.repeat,
        None if row.request is None else _request(row.request),
    )  # fmt: skip
    entry = Entry(
        message, state, NEVER if row.held else Instant(row.due_at or 0), row.attempt, Instant(0),
        tuple(_tried(one) for one in row.trail),
        None if row.answer is None else _answer(row.answer), row.stored, row.reason,
        Instant(row.settled_at), Instant(row.keep_until), Instant(row.answer_until),
    )  # fmt: skip
    return Brought(entry, row.leased)


def _check(row: _Line, state: State) -> None:
    instants = (
        row.accepted_at, row.expires_at, row.due_at or 0, row.settled_at, row.keep_until,
        row.answer_until, *(one.at for one in row.trail),
    )  # fmt: skip
    if not all(0 <= at <= NEVER for at in instants):
        raise Unfit("an instant is before 1970, or after the last that there is")
    if not 0 < len(row.key) <= _KEY_MAX:
        raise Unfit(f"`key` has {len(row.key)} characters, and takes 1 to {_KEY_MAX}")
    if row.attempt < 0:
        raise Unfit("`attempt` is less than none")
    if state is State.WAITING and row.request is None:
        raise Unfit("a message that waits has its `request`")
    if state is State.WAITING and not row.held and row.due_at is None:
        raise Unfit("a message that waits has `due_at`, or is `held`")
    if state is not State.WAITING and not row.keep_until:
        raise Unfit("a message that has settled has `keep_until`")
    if state is State.BOUNCED and row.reason not in tuple(Reason):
        raise Unfit(f"`reason` is one of {', '.join(Reason)}")


def _request(row: _Request) -> Request:
    if not _is_token(row.method):
        raise Unfit("`method` is no token (RFC 9110 §9.1)")
    if not _is_target(row.target):
        raise Unfit("`target` is empty, or has a space or a control character")
    fields = _fields(row.fields)
    return Request(row.method.encode(), _bytes(row.target), fields, row.body)


def _answer(row: _Answer) -> Response:
    if not 100 <= row.status <= 999:
        raise Unfit("`status` is no status")
    if _ends_a_line(row.reason):
        raise Unfit("`reason` of the answer has CR, LF or NUL")
    return Response(row.status, _bytes(row.reason), _fields(row.fields), row.body, None, row.length)


def _fields(pairs: tuple[tuple[str, str], ...]) -> tuple[Field, ...]:
    for name, value in pairs:
        if not _is_token(name):
            raise Unfit("`fields` has a name that is no token (RFC 9110 §5.1)")
        if _ends_a_line(value):
            raise Unfit(f"the value of the field {name} has CR, LF or NUL")
    return tuple((name.encode(), _bytes(value)) for name, value in pairs)


def _bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Unfit("a text that stands for bytes has a character outside Latin-1") from None


def _tried(row: _Tried) -> Attempt:
    return Attempt(row.number, Instant(row.at), row.status, row.cause, row.sent, row.location)
