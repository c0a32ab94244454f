"""Deadlines of an attempt: which of its limits has passed, if any. No clock, no socket.

    overdue(limits, now=…, moved_at=…, …) -> (cause, sentence) | None

Waiting for a sender whose request is still coming in is not the destination's fault, and has no
limit here: the door that reads the sender has one.
"""

from __future__ import annotations

from ..core.message import Cause
from .limits import Limits


def overdue(
    limits: Limits,
    *,
    now: float,
    began_at: float,
    moved_at: float,
    unsent: int,
    uploading: bool,
    heard: bool,
) -> tuple[Cause, str] | None:
    """Seconds of one clock. `moved_at`: when a byte last went or came; `heard`: one came."""
    still_ms = (now - moved_at) * 1000
    if unsent:
        if still_ms > limits.idle_ms_between_bytes:
            return Cause.CONNECTION_WRITE_TIMEOUT, "the request is not being read"
    elif uploading:
        return None
    elif heard:
        if still_ms > limits.idle_ms_between_bytes:
            return Cause.CONNECTION_READ_TIMEOUT, "the answer stopped coming"
    elif still_ms > limits.first_byte_ms:
        return Cause.HTTP_RESPONSE_TIMEOUT, "no answer came in time"
    if (now - began_at) * 1000 > limits.total_ms and not uploading:
        cause = Cause.CONNECTION_READ_TIMEOUT if heard else Cause.HTTP_RESPONSE_TIMEOUT
        return cause, "the whole answer did not come in time"
    return None
