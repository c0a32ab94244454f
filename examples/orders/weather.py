"""The weather: the ways in which the service can be told to misbehave.

    curl -d slow http://127.0.0.1:8001/weather       make it so
    curl http://127.0.0.1:8001/weather               how is it?

Being killed, being stopped and being away need no word here: do that to the process.
"""

from __future__ import annotations

import enum


class Weather(enum.StrEnum):
    FINE = "fine"
    ERROR = "500"
    """500 for everything. Every second order is done all the same: an error is not a failure."""
    UNAVAILABLE = "503"
    """503, and no word about when to come back. Nothing is done."""
    RETRY_AFTER = "503-retry-after"
    """503 with `Retry-After: 2`. Nothing is done."""
    SLOW = "slow"
    """Everything is done, five seconds late, whether or not the sender is still there."""
    RESET = "reset"
    """The order is done, and the connection is reset in place of an answer."""
    HANG = "hang"
    """No answer ever, and nothing is done."""


SLOW_S = 5.0
RETRY_AFTER_S = 2
