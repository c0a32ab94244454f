"""A passage: one request on its way through the relay, with what was decided of it so far.

Options        how a relay behaves: the settings it reads
Passage        filled in from top to bottom of the road; `plain` for what asks for nothing
untried(…)     the answer of a destination that is not even asked
forwarded(…)   the Forwarded field (RFC 7239)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

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

PATIENCE_LESS_MS: Final = 200


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
    contended: bool = False
    """Nobody is to keep it."""
    patience_ms: int = 0
    """For so long its sender waits for the attempt; 0: he did not say."""
    again: bool = False
    """Its sender repeats it already: we do not go from server to server for him again."""
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


def patience_ms(deadline: bytes) -> int:
    """For how long to wait for an attempt, where the sender waits for so many seconds: a little
    less, for our answer is under way for a while. 0: that cannot be read."""
    whole, _, part = deadline.partition(b".")
    if not whole.isdigit() or len(whole) > 6 or (part and not part.isdigit()):
        return 0
    there_ms: int = int(whole) * 1000 + int(part[:3].ljust(3, b"0"))
    return max(1, there_ms - min(PATIENCE_LESS_MS, there_ms // 5))


@lru_cache(maxsize=64)
def untried(trouble: str) -> Failure:
    detail = f"not tried: {trouble or 'it is known to be down'}"
    return Failure(Cause.CONNECTION_REFUSED, detail, Sent.NEVER)


@lru_cache(maxsize=4096)
def forwarded(caller: Caller, host: bytes | None) -> Field:
    """Who asked whom, by which scheme (RFC 7239 §4)."""
    return _forwarded(caller.peer, caller.scheme, host)


@lru_cache(maxsize=1024)
def _forwarded(peer: str, scheme: str, host: bytes | None) -> Field:
    if ":" in peer:
        peer = f'"[{peer}]"'
    elif peer == "unix":
        peer = "unknown"
    value = f"for={peer};proto={scheme}".encode()
    if host and b'"' not in host and b"\\" not in host:
        value += b';host="' + host + b'"'
    return b"Forwarded", value
