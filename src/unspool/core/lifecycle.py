"""The life of a message: states, verdicts, and the table of what leads where.

    LIFE                                   state × verdict → state; docs draw it, tests walk it
    decide(entry, answer, …) -> Verdict    what becomes of a message after an attempt
    overdue(lease, …) -> Verdict | None    what becomes of one that may not be attempted at all

Leased, held and expired are deliberately not states. A lease is a fact beside the entry; held is
due NEVER; expiry needs no scan, because `next_due` never passes it. CLAIMED is a request that is
being tried for a sender who still waits: nobody has promised anything yet.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from .fields import kept
from .message import Answer, Attempt, Failure, Instant, Message, Response, Sent, Value
from .outcome import (
    Judgement,
    Outcome,
    cause_of,
    is_busy,
    is_unknown,
    judge,
    repeatable,
    retry_after,
)
from .schedule import Pace, next_due

TRAIL_MAX: Final = 24
"""Attempts remembered: the first few, which tell how it began, and the last, how it goes on."""
TRAIL_FIRST: Final = 8
LOCATION_MAX: Final = 1_000
LATE_MS: Final = 10_000
"""A message that comes due at its expiry has one last attempt, as in Postfix; so long after it,
because everything was down, it has none."""


class State(enum.IntEnum):
    WAITING = 0
    CLAIMED = 1
    DELIVERED = 2
    BOUNCED = 3


class Reason(enum.StrEnum):
    """Why a message bounced."""

    EXPIRED = "expired"
    UNKNOWN = "unknown"
    """It may have been applied, and may not be sent again."""
    CANCELLED = "cancelled"
    """By its sender."""
    DROPPED = "dropped"
    """By an operator."""
    MOVED = "moved"
    """By an operator, to another spool, which knows its key and its receipt."""


_ENDED: Final[Mapping[str, str]] = {Reason.UNKNOWN: "unknown", Reason.MOVED: "moved"}


def ended_as(reason: str) -> str:
    """The problem that tells a sender why there is no answer."""
    return _ENDED.get(reason, "bounced")


class Delivered(Value, frozen=True):
    """The destination answered, and the answer stands: 2xx, 3xx or 4xx (I6)."""

    answer: Response
    keep_until: Instant
    """When the key may be forgotten."""
    answer_until: Instant
    """When the answer may be forgotten; the fact stays."""
    trail: tuple[Attempt, ...] = ()
    stored: bool = True
    """False: the answer was too large to keep whole; only the fact and its head are."""
    settled_at: Instant = Instant(0)


class Deferred(Value, frozen=True):
    """Again later."""

    due_at: Instant
    trail: tuple[Attempt, ...] = ()


class Bounced(Value, frozen=True):
    """Responsibility goes back to the sender."""

    reason: Reason
    keep_until: Instant
    trail: tuple[Attempt, ...] = ()
    settled_at: Instant = Instant(0)


class Forgotten(Value, frozen=True):
    """Nothing happened: a claim ends and its key is free again. Never a message we promised."""


Verdict = Delivered | Deferred | Bounced | Forgotten

LIFE: Final[Mapping[State, Mapping[type[Value], State | None]]] = {
    State.CLAIMED: {
        Delivered: State.DELIVERED,
        Deferred: State.WAITING,
        Bounced: State.BOUNCED,
        Forgotten: None,
    },
    State.WAITING: {
        Delivered: State.DELIVERED,
        Deferred: State.WAITING,
        Bounced: State.BOUNCED,
    },
    State.DELIVERED: {},
    State.BOUNCED: {},
}
"""None: the entry is gone. A verdict that is not in its state's row is refused (I3)."""


class Keeping(Value, frozen=True):
    """How long what is settled is remembered, and how much of it."""

    answer_ms: int = 24 * 3600 * 1000
    """How long an answer is given again. After it a repeat is told that it was done."""
    key_ms: int = 30 * 24 * 3600 * 1000
    """How long a key is known. After it, it is new, unless it tells its age (UUIDv7): refused."""
    answer_max_bytes: int = 1024 * 1024
    """Of a larger answer the fact is kept without its body."""


class Policy(Value, frozen=True):
    pace: Pace = Pace()
    keeping: Keeping = Keeping()


def extended(trail: tuple[Attempt, ...], attempt: Attempt) -> tuple[Attempt, ...]:
    """The trail with one more attempt, within TRAIL_MAX: the middle is what gives way."""
    if len(trail) < TRAIL_MAX:
        return (*trail, attempt)
    return (*trail[:TRAIL_FIRST], *trail[TRAIL_FIRST + 1 :], attempt)


def attempted(
    number: int, answer: Answer, *, at: Instant, judgement: Judgement | None = None
) -> Attempt:
    """An attempt for the trail. `judgement`: of this answer, where it is known already."""
    status, cause = cause_of(answer)
    sent = answer.sent if isinstance(answer, Failure) else (judgement or judge(answer)).sent
    return Attempt(number, at, status, cause[:200], str(sent), _location(answer))


def _location(answer: Answer) -> str:
    """Where an answer leads, if that is short enough to be kept as long as the key is."""
    if isinstance(answer, Failure) or answer.status // 100 not in (2, 3):
        return ""
    for name, value in answer.fields:
        if len(name) == 8 and name.lower() == b"location" and len(value) <= LOCATION_MAX:
            return value.decode("latin-1")
    return ""


def delivered(
    answer: Response, *, now: Instant, keeping: Keeping, trail: tuple[Attempt, ...]
) -> Delivered:
    """Remember this answer: its body if it is here and small enough, else only that it was."""
    whole = answer.rest is None and len(answer.body) <= keeping.answer_max_bytes
    body = answer.body if whole else b""
    fields = kept(answer.fields)
    return Delivered(
        Response(answer.status, answer.reason, fields, body, None, answer.length),
        Instant(now + keeping.key_ms),
        Instant(now + keeping.answer_ms),
        trail,
        whole,
        now,
    )


def bounced(
    reason: Reason, *, now: Instant, keeping: Keeping, trail: tuple[Attempt, ...]
) -> Bounced:
    keep_until = Instant(now + keeping.key_ms)
    return Bounced(reason=reason, keep_until=keep_until, trail=trail, settled_at=now)


def decide(
    message: Message,
    answer: Answer,
    *,
    attempt: int,
    trail: tuple[Attempt, ...],
    began_at: Instant,
    now: Instant,
    policy: Policy,
    judgement: Judgement | None = None,
) -> Verdict:
    """What becomes of a saved message after an attempt. Pure; total over answers. `judgement`: of
    this answer, where it is known already."""
    if judgement is None:
        judgement = judge(answer)
    trail = extended(trail, attempted(attempt, answer, at=began_at, judgement=judgement))
    if message.name and is_unknown(answer):
        return bounced(Reason.UNKNOWN, now=now, keeping=policy.keeping, trail=trail)
    busy = bool(message.name) and is_busy(answer)  # what it waits for will be its answer
    if judgement.outcome is not Outcome.ERROR and not busy:
        assert isinstance(answer, Response), "I6: delivered means the destination answered"
        return delivered(answer, now=now, keeping=policy.keeping, trail=trail)
    if not busy and not repeatable(judgement, repeat=message.repeat):
        return bounced(Reason.UNKNOWN, now=now, keeping=policy.keeping, trail=trail)
    if now >= message.expires_at:
        return bounced(Reason.EXPIRED, now=now, keeping=policy.keeping, trail=trail)
    hint_ms = retry_after(answer, now=now)
    due_at = next_due(message, attempt=attempt, now=now, retry_after_ms=hint_ms, pace=policy.pace)
    return Deferred(due_at=due_at, trail=trail)


def overdue(
    message: Message,
    *,
    attempt: int,
    abandoned: bool,
    trail: tuple[Attempt, ...],
    now: Instant,
    policy: Policy,
) -> Bounced | None:
    """Must a leased message end without another attempt?

    Abandoned: the last lease ran out without a settle, so its attempt may have been applied. A
    message that may not be repeated ends there as unknown, never silently twice; the trail says so.
    """
    if abandoned and not message.repeat:
        reason, cause, sent = Reason.UNKNOWN, "the attempt before was cut short", Sent.MAYBE
    elif now >= message.expires_at and (attempt > 1 or now >= message.expires_at + LATE_MS):
        reason, cause, sent = Reason.EXPIRED, "expired before another attempt", Sent.NEVER
    else:
        return None
    end = Attempt(number=attempt, at=now, status=0, cause=cause, sent=sent.value)
    return bounced(reason, now=now, keeping=policy.keeping, trail=extended(trail, end))
