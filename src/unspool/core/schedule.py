"""When to try again: a function of age, as in Postfix and qmail.

    next_due(message, attempt=…, now=…, retry_after_ms=…, pace=…) -> Instant

Wait about as long again as the message has waited already, within [least_ms, most_ms], spread by a
fifth each way. There is no counter to lose in a crash, and no exponent to overflow. The spread
comes from a digest of key and attempt: even over messages, the same in every replay.

Postfix qmgr_active.c has the rule without the spread, and its QSHAPE_README the complaint that a
whole queue then comes due at once.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from .message import Instant, Key, Message, Value

HINT_SPREAD_MAX_MS: Final = 30_000


class Pace(Value, frozen=True):
    """How patient we are. Milliseconds."""

    least_ms: int = 1_000
    most_ms: int = 3_600_000
    spread: float = 0.2


def spread(key: Key, attempt: int) -> float:
    """A number in [0, 1) that belongs to this attempt."""
    return crc32(b"%b/%d" % (key.encode(), attempt)) / 2**32


def next_due(
    message: Message, *, attempt: int, now: Instant, retry_after_ms: int | None, pace: Pace
) -> Instant:
    """The instant of the next attempt. Never before `now + 1`, never after the message's expiry.

    So a message comes due at its expiry at the latest, and needs no second timer to end (I2).
    Retry-After is a floor, and spread only upwards: nobody comes before they were asked to.
    """
    chance = spread(message.key, attempt)
    age = max(0, now - message.accepted_at)
    wait = min(max(age, pace.least_ms), pace.most_ms)
    due = now + round(wait * (1 - pace.spread + 2 * pace.spread * chance))
    if retry_after_ms is not None:
        floor = now + retry_after_ms
        due = max(due, floor + round(chance * min(retry_after_ms / 10, HINT_SPREAD_MAX_MS)))
    return Instant(max(now + 1, min(due, message.expires_at)))
