"""Idempotency: what to do with a request that says its name.

    read_key(values) -> str | Unreadable | None      the Idempotency-Key field
    recall(entry, …) -> Recall                       run | replay | attach | wait | refuse
    minted(name, …) -> Recall | Unreadable | None    is a key that nobody knows too old, or too new?
    worth_remembering(status)                        is this answer the answer for ever?
    child_key(secret, …) -> str                      a key for a step of the work under a key
    uuid7(now, chance) -> str                        a key for a sender who named none

Quoted and bare keys are one key: the IETF draft says `"k"` (a structured-field string, RFC 9651),
the world says `k`. A repeat is told by key and fingerprint together, inside one caller's scope;
the refusals never tell what the first request was (conformance C7: a mismatch is no oracle).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

import http_sf

from .lifecycle import Reason, State
from .message import Instant, Message, Response, Value
from .outcome import is_busy

KEY_CHARS_MAX: Final = 255


class Unreadable(Value, frozen=True):
    """A field that cannot be read, and why, in words that do not repeat it."""

    why: str


_QUOTED: Final = re.compile(rb'"([ !#-\[\]-~]+)"')
_BARE: Final = re.compile(rb"[!#-+\--~](?:[ !#-+\--~]*[!#-+\--~])?")


def read_key(values: Sequence[bytes], *, chars_max: int = KEY_CHARS_MAX) -> str | Unreadable | None:
    """The key as its sender means it; None where there is none. Conformance A1 to A7."""
    if not values:
        return None
    if len(values) > 1:
        return Unreadable("there are two Idempotency-Key fields")
    value = values[0].strip(b" \t")
    if not value:
        return Unreadable("the Idempotency-Key is empty")
    if not value.isascii():
        return Unreadable("the Idempotency-Key has characters outside ASCII")
    if quoted := _QUOTED.fullmatch(value):
        name = quoted[1].decode()
    elif value.startswith(b'"'):
        read = _structured(value)
        if isinstance(read, Unreadable):
            return read
        name = read
    elif _BARE.fullmatch(value):
        name = value.decode()
    else:
        return Unreadable("a bare Idempotency-Key may hold no comma, quote or control character")
    if not name.strip():
        return Unreadable("the Idempotency-Key is empty")
    if len(name) > chars_max:
        return Unreadable(f"the Idempotency-Key has {len(name)} characters; {chars_max} may be")
    return name


def _structured(value: bytes) -> str | Unreadable:
    try:
        parsed: Any = http_sf.parse(value, tltype="item")
        item, _parameters = parsed
    except (http_sf.StructuredFieldError, ValueError, IndexError):
        return Unreadable("the Idempotency-Key is not one quoted string (RFC 9651, 3.3.3)")
    if not isinstance(item, str):
        return Unreadable("the Idempotency-Key is not a string")
    return item


class Do(enum.Enum):
    RUN = "run"
    """Nobody knows it: try it."""
    REPLAY = "replay"
    """It was answered: the same answer again."""
    ATTACH = "attach"
    """It is saved: the same receipt again."""
    WAIT = "wait"
    """It is being tried just now."""
    REFUSE = "refuse"


class Recall(Value, frozen=True):
    do: Do
    problem: str = ""
    """For REFUSE: the name of the problem."""
    detail: str = ""


RUN: Final = Recall(Do.RUN)
REPLAY: Final = Recall(Do.REPLAY)
ATTACH: Final = Recall(Do.ATTACH)
WAIT: Final = Recall(Do.WAIT)
REUSED: Final = Recall(Do.REFUSE, "key-reused")
TOO_OLD: Final = Recall(Do.REFUSE, "expired")
MOVED: Final = Recall(Do.REFUSE, "moved", "the first request under this key was moved")
UNKNOWN: Final = Recall(
    Do.REFUSE, "outcome-unknown", "the first may have had its effect; no whole answer came of it"
)


class Known(Protocol):
    """What of a spool's entry `recall` judges."""

    @property
    def message(self) -> Message: ...
    @property
    def state(self) -> State: ...
    @property
    def leased_until(self) -> Instant: ...
    @property
    def reason(self) -> str: ...
    @property
    def answer(self) -> Response | None: ...
    @property
    def keep_until(self) -> Instant: ...
    @property
    def answer_until(self) -> Instant: ...


def recall(known: Known | None, *, fingerprint: bytes, now: Instant) -> Recall:
    """What to do with a request under a key of which this is known. Total.

    Age is judged by instants, not by what the sweep has got to (conformance J6).
    """
    if known is None:
        return RUN
    settled = known.state in (State.DELIVERED, State.BOUNCED)
    if settled and now >= known.keep_until:
        return RUN
    if known.message.fingerprint != fingerprint:
        return REUSED
    if known.state is State.WAITING:
        return ATTACH
    if known.state is State.CLAIMED:
        return WAIT if now < known.leased_until else RUN
    if known.state is State.DELIVERED:
        return REPLAY if known.answer is not None and now < known.answer_until else TOO_OLD
    if known.reason == Reason.UNKNOWN:
        return UNKNOWN
    if known.reason == Reason.MOVED:
        return MOVED
    return Recall(Do.REFUSE, "bounced", f"the request under this key ended as {known.reason}")


_UUID7: Final = re.compile(
    r"([0-9a-f]{8})-?([0-9a-f]{4})-?7[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}", re.IGNORECASE
)
FUTURE_MAX_MS: Final = 5 * 60_000
"""How far ahead of ours a sender's clock may be."""


def minted_at(name: str) -> Instant | None:
    """When a key was made, where it says so: a UUIDv7 does (RFC 9562 §5.7)."""
    found = _UUID7.fullmatch(name)
    return Instant(int(found[1] + found[2], 16)) if found else None


def minted(name: str, *, now: Instant, key_ms: int) -> Recall | Unreadable | None:
    """Why a key that nobody knows may not run, by the time it was made; None: it may.

    We remember a key for `key_ms`. One that is older may have run and been forgotten, so it is
    refused and not run again (conformance J3; OASIS Repeatable Requests has a second field for
    this). One from the future is a mistake (J4). A key that does not tell its age may run.
    """
    at = minted_at(name)
    if at is None:
        return None
    if at < now - key_ms:
        return TOO_OLD
    if at > now + FUTURE_MAX_MS:
        return Unreadable("the Idempotency-Key says that it was made in the future")
    return None


def child_key(secret: bytes, *, key: str, step: str) -> str:
    """The key for one step of the work under a key: the same at each attempt, another for each
    step, and no help in guessing anything else (conformance L4)."""
    digest = blake2b(digest_size=16, key=secret[:64], person=b"unspool child")
    for part in (key, step):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part.encode())
    return digest.hexdigest()


PASSING: Final = frozenset({401, 403, 407, 511})
"""Answers about the moment, not about the request: a repeat runs again (conformance G2)."""


def worth_remembering(answer: Response) -> bool:
    """Is this final answer the one that repeats shall get? (2xx, 3xx and the lasting 4xx.)"""
    return answer.status not in PASSING and not is_busy(answer)


def uuid7(*, now: Instant, chance: bytes) -> str:
    """A key that tells when it was made (RFC 9562 §5.7). `chance` is 10 random bytes.

    So a server may refuse one that is older than it remembers, instead of running it again.
    """
    high = int.from_bytes(chance[:2], "big") & 0x0FFF
    low = int.from_bytes(chance[2:10], "big") & 0x3FFF_FFFF_FFFF_FFFF
    value = (now & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | high << 64 | 0x2 << 62 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
