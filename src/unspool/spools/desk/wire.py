"""The desk's wire: what an operator's command and the relay that holds the spool say to each other.

    frame(value) -> bytes                    a length of 4 bytes, big-endian, and MessagePack
    hello(promises) / greeted(data)          the relay speaks first: form, promises, or why not
    a call   one of Accept, Settle, …        encode_call(call) / decode_call(data)
    answered(call, result) -> bytes          what came of it; failed(error) -> bytes
    result(call, data)                       on the other side; raises what went wrong there

An entry goes over as the records that spools keep (`core.record`): versioned, checked, and never
pickled. Pure: no socket here. The two ends are mostly one release of one package; FORM tells where
they are not, and then nothing is said but that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ... import errors
from ...core import record
from ...core.lifecycle import Bounced, Deferred, Delivered, Forgotten, Reason, State, Verdict
from ...core.message import Attempt, Destination, Instant, Key, Response
from ...errors import Newer, Unavailable, UnspoolError
from ..protocol import (
    Acceptance,
    Damaged,
    Duplicate,
    Entry,
    LaneDue,
    Lease,
    Mismatch,
    New,
    Promises,
    Query,
    Tally,
)

FORM: Final = 1
FRAME_MAX_BYTES: Final = 64 * 1024 * 1024
"""Larger than any message that is kept by default; one that does not fit is refused, and said."""
LENGTH_BYTES: Final = 4
WORDS_MAX: Final = 4_000
"""Of an error, as it is told on."""


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    """A row of values."""


class _Entry(_Wire, frozen=True):
    message: bytes
    request: bytes | None
    answer: bytes | None
    state: State
    due_at: Instant
    attempt: int
    leased_until: Instant
    trail: tuple[Attempt, ...]
    stored: bool
    reason: str
    settled_at: Instant
    keep_until: Instant
    answer_until: Instant


class _Lease(_Wire, frozen=True):
    entry: _Entry
    until: Instant
    abandoned: bool


class _Ends(_Wire, frozen=True):
    """A verdict."""

    kind: str
    at: Instant = Instant(0)
    trail: tuple[Attempt, ...] = ()
    answer: bytes = b""
    answer_until: Instant = Instant(0)
    stored: bool = True
    reason: str = ""
    settled_at: Instant = Instant(0)


def _packed(entry: Entry) -> _Entry:
    request, answer = entry.message.request, entry.answer
    return _Entry(
        record.pack_message(entry.message),
        None if request is None else record.pack_request(request),
        None if answer is None else record.pack_answer(answer),
        entry.state, entry.due_at, entry.attempt, entry.leased_until, entry.trail, entry.stored,
        entry.reason, entry.settled_at, entry.keep_until, entry.answer_until,
    )  # fmt: skip


def _unpacked(row: _Entry) -> Entry:
    request = None if row.request is None else record.unpack_request(row.request)
    answer: Response | None = None if row.answer is None else record.unpack_answer(row.answer)
    return Entry(
        record.unpack_message(row.message, request), row.state, row.due_at, row.attempt,
        row.leased_until, row.trail, answer, row.stored, row.reason, row.settled_at,
        row.keep_until, row.answer_until,
    )  # fmt: skip


def _packed_lease(lease: Lease) -> _Lease:
    return _Lease(_packed(lease.entry), lease.until, lease.abandoned)


def _unpacked_lease(row: _Lease) -> Lease:
    return Lease(_unpacked(row.entry), row.until, row.abandoned)


def _token(lease: Lease) -> _Lease:
    """A lease as it goes back: what was leased stays where it is."""
    message = replace(lease.entry.message, request=None)
    return _packed_lease(replace(lease, entry=replace(lease.entry, message=message, answer=None)))


def _packed_verdict(verdict: Verdict) -> _Ends:
    match verdict:
        case Deferred():
            return _Ends("deferred", verdict.due_at, verdict.trail)
        case Delivered():
            return _Ends(
                "delivered", verdict.keep_until, verdict.trail, record.pack_answer(verdict.answer),
                verdict.answer_until, verdict.stored, "", verdict.settled_at,
            )  # fmt: skip
        case Bounced():
            return _Ends(
                "bounced", verdict.keep_until, verdict.trail, reason=verdict.reason.value,
                settled_at=verdict.settled_at,
            )  # fmt: skip
    return _Ends("forgotten")


def _unpacked_verdict(row: _Ends) -> Verdict:
    match row.kind:
        case "deferred":
            return Deferred(row.at, row.trail)
        case "delivered":
            answer = record.unpack_answer(row.answer)
            return Delivered(
                answer, row.at, row.answer_until, row.trail, row.stored, row.settled_at
            )
        case "bounced":
            return Bounced(Reason(row.reason), row.at, row.trail, row.settled_at)
        case "forgotten":
            return Forgotten()
    raise ValueError(f"{row.kind!r} is no verdict")


# -- calls -----------------------------------------------------------------------------------------


class Accept(_Wire, frozen=True, tag="accept"):
    rows: tuple[_Entry, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Accept:
        return cls(tuple(map(_packed, entries)))

    @property
    def entries(self) -> list[Entry]:
        return list(map(_unpacked, self.rows))


class Survey(_Wire, frozen=True, tag="survey"):
    after: Destination | None
    limit: int


class Take(_Wire, frozen=True, tag="lease"):
    wants: dict[Destination, int]
    now: Instant
    until: Instant


class Settle(_Wire, frozen=True, tag="settle"):
    rows: tuple[tuple[_Lease, _Ends], ...]

    @classmethod
    def of(cls, settlements: Sequence[tuple[Lease, Verdict]]) -> Settle:
        return cls(
            tuple((_token(lease), _packed_verdict(verdict)) for lease, verdict in settlements)
        )

    @property
    def settlements(self) -> list[tuple[Lease, Verdict]]:
        return [(_unpacked_lease(lease), _unpacked_verdict(ends)) for lease, ends in self.rows]


class Renew(_Wire, frozen=True, tag="renew"):
    rows: tuple[_Lease, ...]
    until: Instant

    @classmethod
    def of(cls, leases: Sequence[Lease], until: Instant) -> Renew:
        return cls(tuple(map(_token, leases)), until)

    @property
    def leases(self) -> list[Lease]:
        return list(map(_unpacked_lease, self.rows))


class Find(_Wire, frozen=True, tag="find"):
    keys: tuple[Key, ...]


class Browse(_Wire, frozen=True, tag="browse"):
    query: Query
    after: Key | None
    limit: int
    requests: bool


class Count(_Wire, frozen=True, tag="tally"):
    edges: tuple[Instant, ...]


class Seize(_Wire, frozen=True, tag="seize"):
    keys: tuple[Key, ...]
    now: Instant
    until: Instant


class Expire(_Wire, frozen=True, tag="expire"):
    now: Instant
    until: Instant
    limit: int


class Sweep(_Wire, frozen=True, tag="sweep"):
    now: Instant
    limit: int


class ListDamaged(_Wire, frozen=True, tag="damaged"):
    after: str | None
    limit: int


class Discard(_Wire, frozen=True, tag="discard"):
    marks: tuple[str, ...]


Call = (
    Accept | Survey | Take | Settle | Renew | Find | Browse | Count | Seize | Expire | Sweep
    | ListDamaged | Discard
)  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_call: Final = msgspec.msgpack.Decoder(Call)
encode_call = _encode


def decode_call(data: bytes) -> Call:
    """Raises ValueError: these bytes are no call."""
    found: Call = _call.decode(data)
    return found


# -- answers ---------------------------------------------------------------------------------------

_KINDS: Final[tuple[type[Acceptance], ...]] = (New, Duplicate, Mismatch)
_RESULTS: Final[dict[type[Any], Any]] = {
    Accept: tuple[tuple[int, _Entry], ...],
    Survey: tuple[LaneDue, ...],
    Take: tuple[_Lease, ...],
    Settle: tuple[bool, ...],
    Renew: tuple[bool, ...],
    Find: tuple[_Entry | None, ...],
    Browse: tuple[_Entry, ...],
    Count: tuple[Tally, ...],
    Seize: tuple[_Lease | None, ...],
    Expire: tuple[_Lease, ...],
    Sweep: int,
    ListDamaged: tuple[Damaged, ...],
    Discard: tuple[bool, ...],
}
_HEAD: Final = msgspec.msgpack.Decoder(tuple[bool, msgspec.Raw])


def _row(call: Call, result: Any) -> Any:
    match call:
        case Accept():
            return [(_KINDS.index(type(one)), _packed(one.entry)) for one in result]
        case Take() | Expire():
            return [_packed_lease(one) for one in result]
        case Seize():
            return [None if one is None else _packed_lease(one) for one in result]
        case Find():
            return [None if one is None else _packed(one) for one in result]
        case Browse():
            return [_packed(one) for one in result]
    return result


def answered(call: Call, result: Any) -> bytes:
    return _encode((True, _row(call, result)))


def failed(error: UnspoolError) -> bytes:
    """By the name of its class: the other side has the same, or knows whose child it is."""
    return _encode((False, (type(error).__name__, str(error)[:WORDS_MAX])))


def result(call: Call, data: bytes) -> Any:
    """Raises what the verb raised there; ValueError where the bytes are no answer."""
    good, rest = _HEAD.decode(data)
    if not good:
        name, words = msgspec.msgpack.decode(rest, type=tuple[str, str])
        raise _error(name)(words)
    found = msgspec.msgpack.decode(rest, type=_RESULTS[type(call)])
    match call:
        case Accept():
            return [_KINDS[kind](_unpacked(row)) for kind, row in found]
        case Take() | Expire():
            return [_unpacked_lease(row) for row in found]
        case Seize():
            return [None if row is None else _unpacked_lease(row) for row in found]
        case Find():
            return [None if row is None else _unpacked(row) for row in found]
        case Browse():
            return [_unpacked(row) for row in found]
    return found


def _error(name: str) -> type[UnspoolError]:
    found = getattr(errors, name, None)
    known = isinstance(found, type) and issubclass(found, UnspoolError)
    return found if known and found is not None else Unavailable


# -- the first word --------------------------------------------------------------------------------


def hello(promises: Promises | None, why_not: str = "") -> bytes:
    return _encode(("unspool desk", FORM, promises, why_not))


def greeted(data: bytes, *, where: str) -> Promises:
    """Raises `Newer`, `Unavailable`; ValueError where that is nobody of ours."""
    word, form, promises, why_not = msgspec.msgpack.decode(data, type=tuple[str, int, Any, str])
    if word != "unspool desk":
        raise ValueError("this is no desk of unspool")
    if form != FORM:
        raise Newer(
            f"The relay that has the spool {where} is of another version of unspool (its desk"
            f" speaks form {form}, this command {FORM}). Nothing was done. Use the command that was"
            " installed with it, or start the relay again: unspool serve"
        )
    if promises is None:
        raise Unavailable(why_not[:WORDS_MAX])
    return msgspec.convert(promises, Promises)


def frame(payload: bytes) -> bytes:
    assert len(payload) <= FRAME_MAX_BYTES, "whoever encodes looks first"
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload
