"""History: what senders were told and what the service did. The relay's own word is no evidence.

    Call       one request of a sender and how it ended
    Handled    one request that reached the service whole, and what the service did about it
    Final      what a receipt said after everything had come to rest
    History    all of these; `since(t)` and friends are in `checker`

Instants are CLOCK_MONOTONIC nanoseconds: one clock for all processes of a machine, so the records
of different recorders can be compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

now_ns = time.monotonic_ns


@dataclass(slots=True)
class Call:
    """One request of one sender. `told_at` 0: no whole answer came, nobody knows what happened."""

    key: str
    """The Idempotency-Key; empty for a request without one."""
    body: bytes
    """Unique to what is to be done once: every call for the same effect has the same body."""
    asked_at: int
    target: str = "/"
    told_at: int = 0
    status: int = 0
    receipt: str = ""
    """The receipt's address, of a 202."""
    answer: bytes = b""
    """The body of an answer that is the service's."""
    refused: str = ""
    """The relay's own refusal: the last word of the problem's type."""
    stored: bool = True
    """False: the relay said that it could not remember this answer."""
    error: str = ""

    @property
    def accepted(self) -> bool:
        """202: the relay took responsibility."""
        return self.status == 202 and bool(self.receipt)

    @property
    def answered(self) -> bool:
        """The service's own last word: nothing is left to be done."""
        return 200 <= self.status < 300 and not self.accepted


@dataclass(slots=True)
class Handled:
    """One request at the service, read whole."""

    at: int
    key: str
    body: bytes
    did: str
    """ok · again (known key, same answer) · a status such as 503 · reset · lost · hang"""
    effect: bool = False
    """Something was done in the world: must happen once."""
    answer: bytes = b""
    answered_at: int = 0
    """When the whole answer had been given to the kernel; 0: it never was."""


@dataclass(slots=True)
class Final:
    """What a receipt says in the end."""

    receipt: str
    state: str
    """waiting · delivered · bounced · missing"""
    reason: str = ""
    answer: bytes = b""


@dataclass(slots=True)
class History:
    calls: list[Call] = field(default_factory=list)
    handled: list[Handled] = field(default_factory=list)
    finals: dict[str, Final] = field(default_factory=dict)
    crashes: list[int] = field(default_factory=list)
    """When a relay was killed, and when the next one was started: in between, what the dead one
    had sent may still be read. What was tried before such an instant may be tried again after."""

    def accepted(self) -> list[Call]:
        return [call for call in self.calls if call.accepted]

    def answered(self) -> list[Call]:
        return [call for call in self.calls if call.answered]

    def effects(self) -> list[Handled]:
        return [one for one in self.handled if one.effect]

    def summary(self) -> str:
        broken = sum(1 for call in self.calls if not call.told_at)
        return (
            f"{len(self.calls)} calls: {len(self.accepted())} accepted"
            f" (202), {len(self.answered())} answered, {broken} without a whole answer;"
            f" {len(self.handled)} requests at the service, {len(self.effects())} effects"
        )
