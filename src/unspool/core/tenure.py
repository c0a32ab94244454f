"""Tenure: how long a key is whose, for code that runs in the application itself.

A claim lasts `lease_ms` and is renewed while its owner lives; what is known of a key afterwards is
kept far longer (`lifecycle.Keeping`). With one clock for both a crash would block a key for a day.
"""

from __future__ import annotations

import enum
from typing import Final

from .lifecycle import Keeping
from .message import Value

LEASE_MIN_MS: Final = 100


class Abandoned(enum.StrEnum):
    """What becomes of a key whose owner died without a verdict."""

    RUN = "run"
    """It runs again: right where the work is idempotent itself, or nothing was done yet."""
    UNKNOWN = "unknown"
    """It ends as unknown, for a person or a reconcile hook."""


class Tenure(Value, frozen=True):
    """How long a key is whose."""

    keeping: Keeping = Keeping()
    lease_ms: int = 30_000
    """So long after its owner has died a key is free. A claim is renewed every third of it."""
    abandoned: Abandoned = Abandoned.RUN
    """What becomes of a key whose owner died: run, it runs again; unknown, a repeat is told."""
    alone: bool = False
    """One process has the spool to itself: no claims are written, and a key costs one commit. Of
    no use with abandoned="unknown", for which claims must be written."""
