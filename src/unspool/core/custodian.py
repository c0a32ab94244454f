"""A custodian: one of several spools in a custody chain. Its health, and what two of them decide.

    Pulse                       up or down, since when and why, when to ask again; full for a while
    follows(message, …)         may the next custodian take what this one did not?
    stands(home, away)          two know a key: whose entry is it that senders are told of?
    meet(away, home, …)         the first is back: what becomes of what was taken elsewhere
    MEETINGS                    the same as a table, walked by the tests

The first custodian is called home, every other one away. Instants in a `Pulse` are of a clock that
never goes back, so that one that was set back cannot keep a custodian shut.

Knows nothing of spools: only what is known of a key at each of two places.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from .lifecycle import State
from .message import Message

PROBE_FIRST_MS: Final = 500
PROBE_MAX_MS: Final = 15_000
FULL_MS: Final = 5_000
"""How long one that was full is not asked to take anything."""


class Pulse(msgspec.Struct):
    """What is known of one custodian's health.

    One that failed is asked by nobody until a probe has succeeded: 0.5 s after it failed, then
    twice as long each time, up to 15 s. A probe only reads. Until something was written too, the
    next failure goes on where the pauses had got to.
    """

    up: bool = False
    cause: str = "not opened yet"
    """Why it is down, or was the last time that it took nothing; empty while all is well."""
    _next_at: int = 0
    _pause_ms: int = PROBE_FIRST_MS
    _full_until: int = 0

    def failed(self, cause: str, *, at: int) -> bool:
        """It did not do what it was asked. True: it counted as up until now."""
        was_up, self.up, self.cause = self.up, False, cause
        self._next_at = at + self._pause_ms
        self._pause_ms = min(2 * self._pause_ms, PROBE_MAX_MS)
        return was_up

    def filled(self, cause: str, *, at: int) -> None:
        """It has no room: it goes on with what it has, and takes nothing for a while."""
        self.cause = cause
        self._full_until = at + FULL_MS

    def answered(self) -> None:
        """A probe came back."""
        self.up, self.cause = True, ""

    def wrote(self) -> None:
        """All is well, or else it could not have written."""
        self._pause_ms, self.cause, self._full_until = PROBE_FIRST_MS, "", 0

    def takes(self, at: int) -> bool:
        """May it be asked to take something?"""
        return self.up and at >= self._full_until

    def is_full(self, at: int) -> bool:
        return self.up and at < self._full_until

    def probe_in(self, at: int) -> int:
        """How long until it may be asked whether it is back, in milliseconds; 0: now."""
        return max(0, self._next_at - at)


def follows(message: Message, *, doubt: bool) -> bool:
    """May the next custodian take this one? `doubt`: one before may have written it all the same.

    Not where it could be delivered from two places and may not be repeated; and not where it has
    its place behind others: those may wait at one that cannot be asked (5).
    """
    return not message.order_key and (message.repeat or not doubt)


def stands(home: State | None, away: State) -> bool:
    """Is the entry away the one that speaks for the key? A claim is no word yet; any other entry at
    home is, for home is what the others who share it see."""
    if home is None:
        return True
    return home is State.CLAIMED and away in (State.WAITING, State.DELIVERED)


class Meeting(enum.Enum):
    """What becomes of an entry that lies away."""

    DONE = "home knows the key, and how it ended: there is nothing to do"
    MOVE = "home does not know it: home takes it, then it ends away as moved"
    DROP = "home has it, waiting or at its end: it ends away as moved"
    TEACH = "it ended away, and home still has it open: home is told how it ended"
    STAY = "it stays where it lies, is delivered from there, and is looked at again"


_S = State
MEETINGS: Final[Mapping[tuple[State, State | None, bool], Meeting]] = {
    # away        home         same message?
    (_S.WAITING, None, False): Meeting.MOVE,
    (_S.WAITING, _S.WAITING, True): Meeting.DROP,
    (_S.WAITING, _S.WAITING, False): Meeting.DROP,
    (_S.WAITING, _S.DELIVERED, True): Meeting.DROP,
    (_S.WAITING, _S.DELIVERED, False): Meeting.DROP,
    (_S.WAITING, _S.BOUNCED, True): Meeting.DROP,
    (_S.WAITING, _S.BOUNCED, False): Meeting.STAY,  # it was promised again since
    (_S.WAITING, _S.CLAIMED, True): Meeting.TEACH,
    (_S.WAITING, _S.CLAIMED, False): Meeting.STAY,  # somebody is trying it
    (_S.DELIVERED, None, False): Meeting.MOVE,
    (_S.DELIVERED, _S.WAITING, True): Meeting.TEACH,
    (_S.DELIVERED, _S.WAITING, False): Meeting.TEACH,
    (_S.DELIVERED, _S.DELIVERED, True): Meeting.DONE,
    (_S.DELIVERED, _S.DELIVERED, False): Meeting.DONE,
    (_S.DELIVERED, _S.BOUNCED, True): Meeting.DONE,
    (_S.DELIVERED, _S.BOUNCED, False): Meeting.DONE,
    (_S.DELIVERED, _S.CLAIMED, True): Meeting.TEACH,
    (_S.DELIVERED, _S.CLAIMED, False): Meeting.STAY,
    (_S.BOUNCED, None, False): Meeting.MOVE,
    (_S.BOUNCED, _S.WAITING, True): Meeting.TEACH,  # or what was cancelled would go out
    (_S.BOUNCED, _S.WAITING, False): Meeting.DONE,
    (_S.BOUNCED, _S.DELIVERED, True): Meeting.DONE,
    (_S.BOUNCED, _S.DELIVERED, False): Meeting.DONE,
    (_S.BOUNCED, _S.BOUNCED, True): Meeting.DONE,
    (_S.BOUNCED, _S.BOUNCED, False): Meeting.DONE,
    (_S.BOUNCED, _S.CLAIMED, True): Meeting.TEACH,
    (_S.BOUNCED, _S.CLAIMED, False): Meeting.DONE,
}
"""What lies away, what home has under its key, and whether that is the same message."""


def meet(
    away: State, home: State | None, *, own: bool, alike: bool, repeat: bool, lapsed: bool = False
) -> Meeting:
    """What becomes of what lies away. Total.

    `own`: home's is the very same message (its nonce), written when nobody could tell; a claim that
    has `lapsed` is as good: it was for the same request, and nobody has it. `alike`: the
    same request (its fingerprint); another one under the key stays where it is, and visible.
    `repeat`: may it be sent again? One that may not is never in two places, not even for a moment.
    """
    if away is State.CLAIMED or (home is not None and not alike):
        return Meeting.STAY
    if home is None and away is State.WAITING and not repeat:
        return Meeting.STAY
    ours = own or (lapsed and home is State.CLAIMED)
    return MEETINGS[away, home, ours and home is not None]
