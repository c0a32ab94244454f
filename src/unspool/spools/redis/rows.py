"""Rows: entries as `redis.lua` takes and gives them, packed into single strings.

    accept_item(entry) · settle_item(lease, verdict) · …      what a call brings
    Rows(answer)                                              what it brought back, row by row
    entry_of(row) · with_answer(entry, row)                   raise `Spoilt`

A row is the standing (numbers that change, checked in Lua), the envelope, the trail, the request
and the answer. The last three are as `core.record` packs them, each with a crc of its own, which is
checked here; envelope and standing are laid out so that Lua can read them: big-endian, doubles for
instants, four bytes of length before each string.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ...core import record
from ...core.lifecycle import LIFE, Bounced, Deferred, Delivered, Forgotten, State, Verdict
from ...core.message import Destination, Instant, Key, Message, Request, Response, Value
from ...core.record import Spoilt, Status
from ..protocol import Entry, Lease, Query

FORM: Final = b"1"
"""Of all that is kept; what has another is not read."""
ENVELOPE_VERSION: Final = 1
ANY: Final = 255

_standing = struct.Struct(">BBBIddddd")
_envelope = struct.Struct(">BddB")
_item = struct.Struct(">BIdddd")
_end = struct.Struct(">Iddd4s")
_length = struct.Struct(">I")
double = struct.Struct(">d")


def text(part: str) -> bytes:
    return part.encode("utf-8", "surrogatepass")


def word(part: bytes) -> str:
    return part.decode("utf-8", "surrogatepass")


def strings(*parts: bytes) -> bytes:
    """Each with its length before it."""
    return b"".join([piece for part in parts for piece in (_length.pack(len(part)), part)])


# -- what a call brings ----------------------------------------------------------------------------


def pack_envelope(message: Message) -> bytes:
    numbers = _envelope.pack(
        ENVELOPE_VERSION, message.accepted_at, message.expires_at, message.repeat
    )
    return numbers + strings(
        text(message.destination), text(message.order_key), text(message.name),
        message.fingerprint, message.nonce,
    )  # fmt: skip


def accept_item(entry: Entry) -> bytes:
    waits = entry.state in (State.WAITING, State.CLAIMED)
    request = entry.message.request if waits else None
    status = Status(entry.trail, entry.reason, entry.stored, entry.settled_at)
    numbers = _item.pack(
        entry.state, entry.attempt, entry.due_at, entry.leased_until, entry.keep_until,
        entry.answer_until,
    )  # fmt: skip
    return numbers + strings(
        text(entry.message.key),
        pack_envelope(entry.message),
        b"" if status == _FRESH else record.pack_status(status),
        b"" if request is None else record.pack_request(request),
        b"" if entry.answer is None else record.pack_answer(entry.answer),
    )


_FRESH: Final = Status()


def settle_item(lease: Lease, verdict: Verdict) -> bytes:
    due, keep, till = 0, 0, 0
    status, answer = _FRESH, b""
    match verdict:
        case Deferred():
            due, status = verdict.due_at, Status(verdict.trail)
        case Delivered():
            keep, till = verdict.keep_until, verdict.answer_until
            status = Status(verdict.trail, "", verdict.stored, verdict.settled_at)
            answer = record.pack_answer(verdict.answer)
        case Bounced():
            keep = verdict.keep_until
            status = Status(verdict.trail, verdict.reason.value, True, verdict.settled_at)
        case Forgotten():
            pass
    message = lease.entry.message
    numbers = _end.pack(lease.entry.attempt, due, keep, till, _BECOMES[type(verdict)])
    return numbers + strings(text(message.key), message.nonce, record.pack_status(status), answer)


def _becomes(verdict: type[Value]) -> bytes:
    def mark(after: Mapping[type[Value], State | None]) -> str:
        if verdict not in after:
            return "-"
        state = after[verdict]
        return "x" if state is None else str(state.value)

    return "".join(mark(LIFE[state]) for state in sorted(LIFE)).encode()


_BECOMES: Final = {
    verdict: _becomes(verdict) for verdict in (Delivered, Deferred, Bounced, Forgotten)
}
"""What each state becomes under it: its digit, `x` (it is gone) or `-` (refused)."""


def aside_item(row: Row) -> bytes:
    """Only as it was seen may it be set aside: meanwhile it may have become another."""
    return strings(text(row.key), row.standing)


def renew_item(lease: Lease) -> bytes:
    message = lease.entry.message
    return _length.pack(lease.entry.attempt) + strings(text(message.key), message.nonce)


def lease_item(destination: Destination, limit: int) -> bytes:
    return _length.pack(limit) + strings(text(destination))


def page(limit: int, after: str | None) -> bytes:
    return _length.pack(limit) + strings(b"" if after is None else b"[" + text(after))


def query_args(query: Query, *, after: float, looks: int, limit: int, requests: bool) -> bytes:
    def given(part: str | None) -> bytes:
        return b"" if part is None else b"[" + text(part)

    state = ANY if query.state is None else query.state.value
    held = 2 if query.held is None else int(query.held)
    numbers = struct.pack(">dIIBBB", after, looks, limit, requests, state, held)
    return numbers + strings(given(query.destination), given(query.name))


# -- what it brought back --------------------------------------------------------------------------


class Row(Value, frozen=True):
    flag: int
    key: Key
    standing: bytes
    envelope: bytes
    trail: bytes
    request: bytes
    answer: bytes


class Rows:
    """Reads on from where it stands."""

    def __init__(self, answer: bytes) -> None:
        self._answer: Final = answer
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._answer)

    def mark(self) -> bytes:
        self._at += 1
        return self._answer[self._at - 1 : self._at]

    def integer(self) -> int:
        self._at += 4
        return int.from_bytes(self._answer[self._at - 4 : self._at], "big")

    def number(self) -> int:
        """A double that holds an integer."""
        [found] = double.unpack_from(self._answer, self._at)
        self._at += 8
        return int(found)

    def string(self) -> bytes:
        length = self.integer()
        self._at += length
        return self._answer[self._at - length : self._at]

    def row(self) -> Row:
        flag = self.mark()[0]
        key, *rest = [self.string() for _ in range(6)]
        return Row(flag, Key(word(key)), *rest)


def message_of(key: Key, envelope: bytes) -> Message:
    version, accepted_at, expires_at, repeat = _envelope.unpack_from(envelope)
    if version != ENVELOPE_VERSION:
        raise Spoilt(f"envelope version {version}; this unspool reads {ENVELOPE_VERSION}")
    rest = Rows(envelope[_envelope.size :])
    destination, order_key, name, fingerprint, nonce = [rest.string() for _ in range(5)]
    return Message(
        key, fingerprint, Destination(word(destination)), Instant(int(accepted_at)),
        Instant(int(expires_at)), nonce, word(name), word(order_key), bool(repeat),
    )  # fmt: skip


def entry_of(row: Row, *, whole: bool = False) -> Entry:
    """Without its answer. `whole`: with its request, or it is spoilt. Raises `Spoilt`."""
    state, _, _, attempt, due, leased, keep, till, _ = _standing.unpack(row.standing)
    status = record.unpack_status(row.trail) if row.trail else _FRESH
    message = message_of(row.key, row.envelope)
    if whole and state in (State.WAITING, State.CLAIMED):
        message = replace(message, request=_request(row))
    return Entry(
        message, State(state), Instant(int(due)), attempt, Instant(int(leased)), status.trail,
        None, status.stored, status.reason, status.settled_at, Instant(int(keep)),
        Instant(int(till)),
    )  # fmt: skip


def _request(row: Row) -> Request:
    if not row.request:
        raise Spoilt("a message without its request")
    return record.unpack_request(row.request)


def is_answered(row: Row) -> bool:
    return bool(row.standing[2])


def is_settled(row: Row) -> bool:
    return State(row.standing[0]) in (State.DELIVERED, State.BOUNCED)


def with_answer(entry: Entry, row: Row) -> Entry:
    """Raises `Spoilt`, also where an answer should be and is not."""
    if not is_answered(row):
        return entry
    if not row.answer:
        raise Spoilt("an answer that is not there")
    answer: Response = record.unpack_answer(row.answer)
    return replace(entry, answer=answer)
