"""Claims: the sole right to run under a key, and how it ends.

    claim.attempt                      the fencing token
    claim.held()                       is it still ours, as far as we can know?
    await claim.done(answer)           remember this answer; False: it was not stored
    await claim.release()              nothing came of it: the key is free again
    await claim.unknown()              it may have had an effect, and nobody knows

A claim ends once, in one of three ways. `ledger` gives claims out, `endings` writes their ends
down, `upkeep` renews them meanwhile.
"""

from __future__ import annotations

from typing import Final, Protocol

from msgspec.structs import replace

from .core.idempotency import minted_at
from .core.lifecycle import (
    Bounced,
    Delivered,
    Forgotten,
    Keeping,
    Reason,
    attempted,
    bounced,
    delivered,
)
from .core.message import NEVER, Destination, Instant, Key, Response, Value
from .core.tenure import Tenure
from .spools.protocol import Lease
from .tries import Turn

End = Delivered | Bounced | Forgotten


class Ask(Value, frozen=True):
    """A wish to run under a key."""

    key: Key
    name: str
    """As its sender calls it, for people."""
    fingerprint: bytes
    destination: Destination
    """The application's name."""


class Ends(Protocol):
    """Where a claim's end is written down."""

    @property
    def tenure(self) -> Tenure: ...

    def now(self) -> Instant: ...

    async def end(self, claim: Claim, verdict: End, /) -> bool: ...


class Claim:
    """The sole right to run under a key, until it ends."""

    __slots__ = (
        "_ends",
        "ask",
        "attempt",
        "began_at",
        "ended",
        "held_until",
        "lease",
        "lost",
        "turn",
    )

    def __init__(
        self,
        ends: Ends,
        ask: Ask,
        turn: Turn,
        *,
        lease: Lease | None,
        attempt: int,
        began_at: Instant,
    ) -> None:
        self._ends = ends
        self.ended = False
        self.ask: Final = ask
        self.turn: Final = turn
        self.lease: Final = lease
        """None: it is written nowhere, since we are alone."""
        self.began_at: Final = began_at
        self.attempt: Final = attempt
        """The fencing token: higher than that of everybody who had this key before (6)."""
        self.lost = False
        """A renewal was refused: somebody else has the key by now."""
        self.held_until = NEVER if lease is None else lease.until
        """By our own clock, since it was renewed last."""

    def held(self) -> bool:
        """False: we slept longer than our lease, and somebody may have the key by now. For whoever
        can still take back what it did. May be asked in any thread."""
        return not self.lost and self._ends.now() < self.held_until

    async def done(self, answer: Response) -> bool:
        """Remember this answer: whole, or only the fact where it streams or is too large.

        False: the caller should be told that it is not stored.
        """
        now = self._ends.now()
        trail = (attempted(self.attempt, answer, at=self.began_at),)
        return await self._end(delivered(answer, now=now, keeping=self._keeping(now), trail=trail))

    async def release(self) -> None:
        """Nothing came of it."""
        await self._end(Forgotten())

    async def unknown(self) -> bool:
        """It may have had an effect. A repeat is told so, and does not run."""
        now = self._ends.now()
        return await self._end(
            bounced(Reason.UNKNOWN, now=now, keeping=self._keeping(now), trail=())
        )

    def _keeping(self, now: Instant) -> Keeping:
        """A key from a clock that is ahead of ours is kept until it is too old by ours: between
        being forgotten and being refused (J3) it would run again."""
        keeping = self._ends.tenure.keeping
        ahead_ms = (minted_at(self.ask.name) or now) - now
        return keeping if ahead_ms <= 0 else replace(keeping, key_ms=keeping.key_ms + ahead_ms)

    async def _end(self, verdict: End) -> bool:
        assert not self.ended, "I3: a claim ends once"
        self.ended = True
        return await self._ends.end(self, verdict)
