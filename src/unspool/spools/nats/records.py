"""What the NATS spool writes down: subjects, headers and payloads, on paper. Pure.

    $KV.<bucket>.m.<key>         a message: its facts in a header, the rest in the payload
    $KV.<bucket>.p.<key>.r.<n>   parts of a request of more than INLINE_MAX_BYTES; of an answer: a
    $KV.<bucket>.l.<digest>      the register of a line: written with every change in it

Each is one subject, of which the server keeps the last message. `Unspool-Facts` is the base64 of
`version · crc32 · MessagePack`: what an index needs, so that a watch is fed by headers alone. The
payload is MessagePack of three of `core.record`'s records: envelope, status, and the request of
what waits or the answer of what was delivered. Each record carries its crc.

What is damaged is marked `Unspool-Aside`, and stays. A tombstone has `KV-Operation: DEL` and goes
by itself after TOMBSTONE_S. Keys go into subjects as they are, but for what is not a letter, a
digit, - or _: that is =XX for each of its bytes.
"""

from __future__ import annotations

import re
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final
from zlib import crc32

import msgspec

from ...core import record
from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key, Message, Value
from ...core.record import Spoilt, Status
from ..keyed.rows import with_request
from ..protocol import Entry

INLINE_MAX_BYTES: Final = 32 * 1024
"""What is larger is not written again with every lease: it lies apart."""
PART_BYTES: Final = 256 * 1024
TOMBSTONE_S: Final = 3_600
"""So long whoever was away still hears that something went."""
LINE_S: Final = 24 * 3_600
FACTS: Final = "Unspool-Facts"
OPERATION: Final = "KV-Operation"
ASIDE: Final = "Unspool-Aside"
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
TTL: Final = "Nats-TTL"
VERSION: Final = 1
_HEAD_BYTES: Final = 5

_plain: Final = re.compile(r"[A-Za-z0-9_-]+").fullmatch


class Facts(Value, frozen=True, array_like=True, gc=False):
    """Of an entry: all that decides who may do what with it, and when."""

    key: Key
    place: int
    """In the order of acceptance: the sequence of its accept; 0: of this very message."""
    destination: Destination
    order_key: str
    fingerprint: bytes
    nonce: bytes
    accepted_at: Instant
    expires_at: Instant
    state: int
    due_at: Instant
    attempt: int
    leased_until: Instant
    keep_until: Instant
    answer_until: Instant
    answered: bool = False
    seized: bool = False
    parts: int = 0


class _Body(Value, frozen=True, array_like=True):
    envelope: bytes
    status: bytes
    large: bytes
    """The request or answer; empty: there is none, or it lies in parts."""


_encode = msgspec.msgpack.Encoder().encode
_facts = msgspec.msgpack.Decoder(Facts).decode
_body = msgspec.msgpack.Decoder(_Body).decode


class Known(Value, frozen=True):
    """An entry as the server has it."""

    revision: int
    facts: Facts
    body: bytes
    apart: bytes = b""
    """Its parts, joined."""


class Change(Value, frozen=True):
    """One subject's new message, if its last is still `expected` (0: it has none)."""

    key: Key
    expected: int
    facts: Facts | None
    """None: it goes."""
    body: bytes = b""
    parts: Sequence[bytes] = ()
    """New ones."""
    gone: Sequence[str] = ()
    """Names of parts that go."""
    aside: bool = False
    """It is damaged: all its bytes are kept, and nothing is done with them."""
    line: str = ""
    """Its line's register is written with it."""
    line_expected: int | None = None


class Mail(Value, frozen=True):
    """What is published."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]


class Names(Value, frozen=True):
    """The names a bucket has on the server."""

    bucket: str

    @property
    def stream(self) -> str:
        return f"KV_{self.bucket}"

    @property
    def prefix(self) -> str:
        return f"$KV.{self.bucket}."

    def message(self, key: Key) -> str:
        return f"$KV.{self.bucket}.m.{token_of(key)}"

    def part(self, key: Key, part: str) -> str:
        return f"$KV.{self.bucket}.p.{token_of(key)}.{part}"

    def line(self, line: str) -> str:
        return f"$KV.{self.bucket}.l.{line}"


def token_of(key: str) -> str:
    if _plain(key):
        return key
    return "".join(
        chr(byte) if _plain(chr(byte)) and byte < 128 else f"={byte:02X}"
        for byte in key.encode("utf-8", "surrogatepass")
    )


def key_of(token: str) -> Key:
    """Raises ValueError: it is nobody's."""
    if "=" not in token:
        return Key(token)
    first, *escaped = token.split("=")
    data = first.encode() + b"".join(
        bytes([int(part[:2], 16)]) + part[2:].encode() for part in escaped
    )
    return Key(data.decode("utf-8", "surrogatepass"))


def line_of(destination: str, order_key: str) -> str:
    """The name of a line's register; empty: it is in none."""
    if not order_key:
        return ""
    name = f"{len(destination)}:{destination}{order_key}"
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# -- facts ---------------------------------------------------------------------------------------


def pack_facts(facts: Facts) -> bytes:
    return _encode(facts)


def unpack_facts(data: bytes) -> Facts:
    return _facts(data)


def facts_header(facts: Facts) -> str:
    data = _encode(facts)
    head = bytes([VERSION]) + crc32(data).to_bytes(4, "big")
    return b2a_base64(head + data, newline=False).decode()


def open_header(header: str) -> bytes:
    """Packed facts. Raises `Spoilt`."""
    try:
        sealed = a2b_base64(header)
    except (NotBase64, ValueError) as error:
        raise Spoilt("facts that are no base64") from error
    data = sealed[_HEAD_BYTES:]
    if not data or sealed[0] != VERSION:
        raise Spoilt("facts of another version")
    if crc32(data) != int.from_bytes(sealed[1:_HEAD_BYTES], "big"):
        raise Spoilt("facts that failed their checksum")
    return data


def checked_facts(header: str, key: Key) -> Facts:
    """Of the message under this key. Raises `Spoilt`."""
    try:
        facts = _facts(open_header(header))
    except msgspec.MsgspecError as error:
        raise Spoilt(f"facts of another form: {error}") from error
    if facts.key != key:
        raise Spoilt("facts of another message")
    return facts


def ready_at(facts: Facts) -> Instant:
    """When it may be leased (4)."""
    return max(facts.due_at, facts.leased_until)


def waits(facts: Facts) -> bool:
    return facts.state == State.WAITING


def held(facts: Facts) -> bool:
    return facts.due_at == NEVER


def sweep_at(facts: Facts) -> Instant:
    if facts.answered:
        return min(facts.keep_until, facts.answer_until)
    return facts.keep_until


# -- bodies --------------------------------------------------------------------------------------


def pack_body(message: Message, status: Status, large: bytes) -> bytes:
    return _encode(_Body(record.pack_message(message), record.pack_status(status), large))


def large_of(entry: Entry) -> bytes:
    """What may be large of an entry: its request while it waits, then its answer."""
    if entry.state in (State.WAITING, State.CLAIMED):
        request = entry.message.request
        return b"" if request is None else record.pack_request(request)
    return b"" if entry.answer is None else record.pack_answer(entry.answer)


def cut(large: bytes, part_bytes: int) -> tuple[bytes, tuple[bytes, ...]]:
    """What stays with the message, and the parts that lie apart."""
    if len(large) <= INLINE_MAX_BYTES:
        return large, ()
    return b"", tuple(
        large[start : start + part_bytes] for start in range(0, len(large), part_bytes)
    )


def facts_of(entry: Entry, *, place: int, seized: bool = False, parts: int = 0) -> Facts:
    message = entry.message
    return Facts(
        message.key, place, message.destination, message.order_key, message.fingerprint,
        message.nonce, message.accepted_at, message.expires_at, int(entry.state), entry.due_at,
        entry.attempt, entry.leased_until, entry.keep_until, entry.answer_until,
        entry.answer is not None, seized, parts,
    )  # fmt: skip


def parts_of(facts: Facts | None) -> list[str]:
    """The names of what lies apart: a request's and an answer's never meet."""
    if facts is None:
        return []
    kind = "r" if facts.state in (State.WAITING, State.CLAIMED) else "a"
    return [f"{kind}.{number}" for number in range(facts.parts)]


def status_of(entry: Entry) -> Status:
    return Status(entry.trail, entry.reason, entry.stored, entry.settled_at)


def written(
    entry: Entry, *, place: int, expected: int, part_bytes: int, seized: bool = False,
    before: Facts | None = None, line: str = "", line_expected: int | None = None,
) -> Change:  # fmt: skip
    """The entry whole: its envelope, its status, and what may be large."""
    inline, parts = cut(large_of(entry), part_bytes)
    facts = facts_of(entry, place=place, seized=seized, parts=len(parts))
    gone = [part for part in parts_of(before) if part not in parts_of(facts)]
    return Change(
        entry.message.key, expected, facts, pack_body(entry.message, status_of(entry), inline),
        parts, gone, False, line, line_expected,
    )  # fmt: skip


_STATES: Final = tuple(State)


def entry_of(known: Known, *, request: bool = False, answer: bool = False) -> Entry:
    """Raises `Spoilt`."""
    facts = known.facts
    try:
        body = _body(known.body)
    except msgspec.MsgspecError as error:
        raise Spoilt(f"a payload of another form: {error}") from error
    message = record.unpack_message(body.envelope)
    if message.key != facts.key or message.nonce != facts.nonce:
        raise Spoilt("a payload of another message")
    status = record.unpack_status(body.status)
    large = known.apart if facts.parts else body.large
    custody = facts.state in (State.WAITING, State.CLAIMED)
    if request and custody:
        if not large:
            raise Spoilt("a message without its request")
        message = with_request(message, record.unpack_request(large))
    kept = None
    if answer and facts.answered:
        kept = record.unpack_answer(large)
    return Entry(
        message, _STATES[facts.state], facts.due_at, facts.attempt, facts.leased_until,
        status.trail, kept, status.stored, status.reason, status.settled_at, facts.keep_until,
        facts.answer_until,
    )  # fmt: skip


# -- what is published ---------------------------------------------------------------------------


def lines_in(changes: Sequence[Change]) -> dict[str, int | None]:
    """The registers that are written with these, each with what was expected of it."""
    lines: dict[str, int | None] = {}
    for change in changes:
        if change.line:
            known = lines.get(change.line)
            lines[change.line] = change.line_expected if known is None else known
    return lines


def mails(names: Names, changes: Sequence[Change]) -> list[Mail]:
    """New parts first, then the messages in their order, then the registers of lines, and what goes
    last: of whatever was cut off in the middle, what is there is whole."""
    parts: list[Mail] = []
    mains: list[Mail] = []
    ends: list[Mail] = []
    gone = {OPERATION: "DEL", TTL: f"{TOMBSTONE_S}s"}
    for change in changes:
        for name, part in zip(parts_of(change.facts), change.parts, strict=False):
            parts.append(Mail(names.part(change.key, name), part, {}))
        expected = {EXPECTED: str(change.expected)}
        if change.facts is None:
            headers = {**gone, **expected}
        else:
            aside = {ASIDE: "1"} if change.aside else {}
            headers = {FACTS: facts_header(change.facts), **aside, **expected}
        mains.append(Mail(names.message(change.key), change.body, headers))
        ends += [Mail(names.part(change.key, name), b"", gone) for name in change.gone]
    lines = [
        Mail(
            names.line(line), b"",
            {TTL: f"{LINE_S}s", **({} if revision is None else {EXPECTED: str(revision)})},
        )
        for line, revision in lines_in(changes).items()
    ]  # fmt: skip
    return [*parts, *mains, *lines, *ends]


def restated(known: Known, status: Status | None, *, large: bytes | None = None) -> bytes:
    """The payload with another status, or without what was large. Raises `Spoilt`."""
    try:
        body = _body(known.body)
    except msgspec.MsgspecError as error:
        raise Spoilt(f"a payload of another form: {error}") from error
    record.unpack_message(body.envelope)  # what is damaged must not be sealed anew
    return _encode(
        _Body(
            body.envelope,
            body.status if status is None else record.pack_status(status),
            body.large if large is None else large,
        )
    )
