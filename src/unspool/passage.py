"""A passage: one request on its way through the relay, with what was decided of it so far.

Options        how a relay behaves: the settings it reads
Passage        filled in from top to bottom of the road; `plain` for what asks for nothing
untried(…)     the answer of a destination that is not even asked
forwarded(…)   the Forwarded field (RFC 7239)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from .core.lifecycle import Policy
from .core.message import (
    IDEMPOTENT_METHODS,
    Cause,
    Destination,
    Failure,
    Field,
    Instant,
    Key,
    Request,
    Response,
    Sent,
    Value,
)
from .core.prefer import NONE, Wishes
from .ingress.protocol import Caller
from .spools.protocol import Lease


class Options(Value, frozen=True):
    """How this relay behaves; see the settings of the same names."""

    destination: Destination
    via: str
    policy: Policy = Policy()
    scope_fields: tuple[bytes, ...] = (b"authorization", b"cookie")
    key_max_chars: int = 255
    lifetime_ms: int = 5 * 24 * 3600 * 1000
    wait_max_ms: int = 60_000
    lease_ms: int = 90_000
    total_ms: int = 60_000
    repeat_always: bool = False
    forwarded: bool = True
    claims: bool = False
    """Others may try the same key at the same time: write claims down."""
    always_try: bool = False
    """A request that came just now is tried though its lane is closed: it costs no timeout."""
    unstored: Callable[[Response], bool] = lambda _response: False
    """Which other answers are not remembered."""

    def repeats(self, method: bytes) -> bool:
        """May a request that says no name be sent again after it may have been applied?"""
        return self.repeat_always or method in IDEMPOTENT_METHODS


class Passage(msgspec.Struct):
    request: Request
    """As it goes on: our own fields added, the attempt's number not yet."""
    wishes: Wishes
    began_at: Instant
    repeat: bool
    """May it be sent again after it may have been applied?"""
    lifetime_ms: int
    order_key: str = ""
    name: str = ""
    """The sender's Idempotency-Key."""
    key: Key = Key("")
    fingerprint: bytes | None = None
    claim: Lease | None = None
    let_go: Callable[[], None] | None = None
    """Others who ask for the key need not wait for us any longer."""
    tried: bool = False
    """An attempt was made: it belongs on the trail, and the next one waits its turn."""


def plain(request: Request, options: Options, *, began_at: Instant) -> Passage:
    """The passage of a request that asks for nothing."""
    repeat = options.repeats(request.method)
    return Passage(request, NONE, began_at, repeat, options.lifetime_ms)


@lru_cache(maxsize=64)
def untried(trouble: str) -> Failure:
    detail = f"not tried: {trouble or 'it is known to be down'}"
    return Failure(Cause.CONNECTION_REFUSED, detail, Sent.NEVER)


@lru_cache(maxsize=4096)
def forwarded(caller: Caller, host: bytes | None) -> Field:
    """Who asked whom, by which scheme (RFC 7239 §4)."""
    peer = caller.peer
    if ":" in peer:
        peer = f'"[{peer}]"'
    elif peer == "unix":
        peer = "unknown"
    value = f"for={peer};proto={caller.scheme}".encode()
    if host and b'"' not in host and b"\\" not in host:
        value += b';host="' + host + b'"'
    return b"Forwarded", value
