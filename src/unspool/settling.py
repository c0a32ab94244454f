"""Settling: a verdict that is being written down, and who is told what became of it.

    custody.settle_for(Settling(deliveries, lease, verdict, then), lease, verdict)

It is whom the committer tells, and says so to `Deliveries`, which writes it once more, or ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from .core.lifecycle import Verdict
from .spools.protocol import Lease

log = logging.getLogger("unspool.dispatcher")


class Writes(Protocol):
    """Who has verdicts written down."""

    def wrote(self, settling: Settling, kept: bool) -> None: ...
    def failed(self, settling: Settling, error: Exception) -> None: ...
    def lost(self, settling: Settling) -> None: ...


class Settling:
    """A verdict that is being written down: whom the committer tells."""

    __slots__ = ("_by", "again", "last", "lease", "then", "told", "verdict")

    def __init__(
        self,
        by: Writes,
        lease: Lease,
        verdict: Verdict,
        then: Callable[[], object] | None,
    ) -> None:
        self._by = by
        self.lease = lease
        self.verdict = verdict
        self.then = then
        self.told = False
        self.last = False
        """It is not written once more."""
        self.again: asyncio.TimerHandle | None = None

    def done(self) -> bool:
        return self.told

    def set_result(self, kept: bool) -> None:
        self.told = True
        try:
            self._by.wrote(self, kept)
        except Exception:
            log.exception("a verdict was written, and telling of it was a mistake; it goes on")

    def set_exception(self, error: Exception) -> None:
        self.told = True
        self._by.failed(self, error)

    def cancel(self) -> None:
        """The loop is going down, and nobody knows what became of it."""
        self.told = True
        self._by.lost(self)
