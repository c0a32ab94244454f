"""Admission: may we take responsibility for this one?

    admit(request…, health…) -> None | Reject

"Reject everything you can if there is an error" (the talk): a bounce after acceptance is dear, a
refusal at the door is cheap, for the sender still holds what it sent. None means ACCEPT.
"""

from __future__ import annotations

from typing import Final

from .message import Instant, Value

RETRY_AFTER_S: Final = 5


class Reject(Value, frozen=True):
    """No. The sender keeps it."""

    problem: str
    detail: str
    retry_after_s: int | None


class Terms(Value, frozen=True):
    """On what terms we take custody: settings and what was measured when the spool was opened."""

    survives: int
    """The spool's grade (spools.protocol.Survives)."""
    required: int
    """The least grade the operator accepts."""
    backlog_max: int = 0
    """Waiting messages; 0: as many as the disk holds."""
    disk_free_min_bytes: int = 0


class Health(Value, frozen=True):
    """How the spool does, as last seen."""

    trouble: str = ""
    """The last write failed, and why; empty while all is well."""
    trouble_until: Instant = Instant(0)
    """Not asked again before."""
    backlog: int = 0
    disk_free_bytes: int | None = None


def admit(*, terms: Terms, health: Health, now: Instant) -> Reject | None:
    """None: we take it."""
    if terms.survives < terms.required:
        return Reject(
            "refused", "the spool does not survive what the operator asked of it (`survives`)", None
        )
    if health.trouble and now < health.trouble_until:
        wait_s = max(1, -(-(health.trouble_until - now) // 1000))
        return Reject("refused", f"the spool is in trouble: {health.trouble}", wait_s)
    if terms.backlog_max and health.backlog >= terms.backlog_max:
        return Reject(
            "refused", f"{health.backlog} messages wait, which is as many as may", RETRY_AFTER_S
        )
    free = health.disk_free_bytes
    if free is not None and free < terms.disk_free_min_bytes:
        return Reject("refused", "the disk of the spool is nearly full", 6 * RETRY_AFTER_S)
    return None
