"""Limits: what a transport may take, in bytes, connections and milliseconds.

Every number of the HTTP transport that a person could want to change, once, with its unit in its
name. The values are checked where they are made: a limit that cannot work is the operator's to
mend (`errors.Misconfigured`).
"""

from __future__ import annotations

from typing import Final

from ..core.message import Value
from ..errors import Misconfigured

STALE_AFTER_S: Final = 0.02
"""A connection unused for less was seen alive by the event loop just now; and nobody closes for
idleness so soon."""
JOIN_MAX_BYTES: Final = 16 * 1024
"""A body up to this is copied behind its head, to go out in one piece."""
LONG_ANSWER_S: Final = 1.0
"""A body of unknown length that still comes so long after its head is a stream."""


class Limits(Value, frozen=True, kw_only=True):
    """Limits of one transport, that is: of one origin."""

    connections_max: int = 256
    """Connections open or being opened at once."""
    waiting_max: int = 1024
    """Attempts that wait for a connection. One more is refused: never sent."""
    idle_ms: int = 4_000
    """An unused connection is closed after this. Below the 5 s after which uvicorn and Node.js
    close theirs: who closes first does not meet a connection that dies under a request."""
    requests_max: int = 0
    """Requests on one connection; 0 is without limit."""
    keep_max_bytes: int = 1024 * 1024
    """A body up to this is given whole, a larger one streams."""
    hold_ms: int = 50
    """A body of unknown length that pauses for so long after its head is handed over as a stream.
    Checked in steps of 50 ms. A body whose declared length may be kept is waited for."""
    stream_buffer_max_bytes: int = 64 * 1024
    """A streamed answer stops reading at this; one more read (up to 256 KiB) may be under way."""
    head_max_bytes: int = 64 * 1024
    """The head of an answer, interim answers included; trailers and chunk extensions likewise."""
    interim_max: int = 16
    """Answers 1xx before the final one."""
    connect_ms: int = 5_000
    """Until a connection is there: waiting for a free one, and then the name, TCP and TLS."""
    first_byte_ms: int = 30_000
    """From the last byte of the request to the first byte of the answer."""
    idle_ms_between_bytes: int = 30_000
    """Without progress in the middle: of an answer that comes or of a request that goes."""
    total_ms: int = 60_000
    """From start to whole answer. A streamed request counts from its last byte; a streamed answer
    counts no longer once it was handed over."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            least = 0 if name in ("waiting_max", "requests_max", "keep_max_bytes", "hold_ms") else 1
            if value < least:
                raise Misconfigured(f"{name} must be at least {least}, not {value}.")
