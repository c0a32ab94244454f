"""Ears: how a process hears that it is to stop.

signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)     first of all: what comes now is heard later
told = ears()                                       in the loop: an Event, set by the first
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
SAME_SIGNAL_S: Final = 0.1
"""systemd and a terminal signal the whole group, and the parent passes it on: that is one word."""


def ears() -> asyncio.Event:
    """Set by SIGTERM or SIGINT. The next one stops at once: the spool has what was accepted.

    The signals were held back until here, so one that came while we started is heard too.
    """
    told = asyncio.Event()
    told_at = 0.0
    loop = asyncio.get_running_loop()

    def hear(number: int) -> None:
        nonlocal told_at
        if not told.is_set():
            told_at = loop.time()
            told.set()
        elif loop.time() - told_at > SAME_SIGNAL_S:
            os._exit(128 + number)

    for number in STOPS:
        loop.add_signal_handler(number, hear, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return told
