"""Limits: what the door suffers from a caller, and how long. One value, read by every part of it.

The defaults are for a hostile network and one process. Durations are measured by one coarse sweep
of all connections (`Limits.sweep_ms`), so each may last that much longer than it says.
"""

from __future__ import annotations

from ..core.message import Value


class Limits(Value, frozen=True, kw_only=True):
    """What one caller may cost."""

    head_max_bytes: int = 32 * 1024
    """Of request line and fields together; more is answered 431."""
    fields_max: int = 100
    """Fields in one head; more is answered 431."""
    body_max_bytes: int = 1024 * 1024
    """A body up to this is handed over whole; a larger one streams."""
    body_buffer_bytes: int = 256 * 1024
    """Of a streaming body: what may wait for its reader before we stop reading from the socket."""
    bodies_max_bytes: int = 256 * 1024 * 1024
    """Bodies of all connections together: half-arrived, waiting for their turn, being handled. Over
    it a growing one is answered 503, and no pipelined request is read behind one that waits."""
    chunk_extras_max_bytes: int = 4 * 1024
    """Chunk extensions, padded chunk sizes and trailers of one message, together."""
    head_ms: int = 10_000
    """From the first byte of a head to its last; also for the first byte on a fresh connection."""
    body_ms: int = 30_000
    """Without a byte of a body that is wanted."""
    body_rate_min_bytes: int = 500
    """Bytes per second, on average, that a body must arrive with once `body_grace_ms` is over, and
    that an answer must be taken with, while we have to wait for its caller."""
    body_grace_ms: int = 10_000
    """How long a body may be slower than that, not counting the time we did not read."""
    keepalive_ms: int = 75_000
    """Idle between two requests."""
    write_ms: int = 30_000
    """For so long a caller may take less than that of what we have for it."""
    linger_ms: int = 2_000
    """After an answer that closes: how long unread bytes are thrown away, so that the answer is not
    destroyed by a reset (RFC 9112 §9.6)."""
    linger_max_bytes: int = 1024 * 1024
    """How many of them."""
    connections_max: int = 10_000
    """Open connections; one more is answered 503 and closed."""
    pipelined_max: int = 16
    """Requests of one connection that wait while an earlier one is answered."""
    requests_per_connection_max: int = 0
    """After so many answers the connection is closed; 0 means never."""
    stress_percent: int = 90
    """Of `connections_max`: from here on the stress profile holds."""
    stress_head_ms: int = 2_000
    """`head_ms` under stress."""
    stress_keepalive_ms: int = 2_000
    """`keepalive_ms` under stress."""

    @property
    def sweep_ms(self) -> int:
        """How often deadlines are looked at: each 250 ms, or more often if they are short."""
        shortest = min(self.head_ms, self.body_ms, self.keepalive_ms, self.write_ms, self.linger_ms)
        return max(10, min(250, shortest // 4))


class Statistics(Value, frozen=True, kw_only=True):
    """What the door has seen since it was made."""

    connections: int
    """Open now."""
    connections_total: int
    requests_total: int
    """Answered by the handler."""
    refused: dict[str, int]
    """Answered by the door, by the name of the problem."""
    mistakes_total: int
    """Times the handler raised, or gave an answer that cannot be written."""
    broken_off_total: int
    """Answers and bodies that ended before they were whole."""
    stressed: bool
    """Is the stress profile in force?"""
