"""Prefer: what the sender would like, if it is the same to us (RFC 7240).

    read_prefer(values) -> Wishes        respond-async, wait=N

What cannot be read is no error there: a preference that is not understood is ignored (§2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .message import Value


class Wishes(Value, frozen=True):
    respond_async: bool = False
    """Save it first, and answer 202 without trying."""
    wait_ms: int = 0
    """Rather wait so long for the real answer than take a 202."""


NONE: Final = Wishes()


def read_prefer(values: Sequence[bytes], *, wait_max_ms: int) -> Wishes:
    """The first of each preference counts. `wait` is cut to `wait_max_ms`."""
    if not values:
        return NONE
    seen: dict[bytes, bytes] = {}
    for value in values:
        for part in value.split(b","):
            name, _, worth = part.split(b";", 1)[0].partition(b"=")
            seen.setdefault(name.strip().lower(), worth.strip().strip(b'"'))
    wait = seen.get(b"wait", b"")
    seconds = int(wait) if wait.isdigit() and len(wait) <= 9 else 0
    return Wishes(respond_async=b"respond-async" in seen, wait_ms=min(seconds * 1000, wait_max_ms))
