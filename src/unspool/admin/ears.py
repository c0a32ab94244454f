"""Ears: how a process hears that it is to stop: SIGTERM, SIGINT, and SIGHUP, which comes when its
terminal closes; not under nohup, which ignores that one.

signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)     first of all: what comes now is heard later
told = ears()                                       in the loop: an Event, set by the first
told = ears(parent=True)                            the same in a worker, whose parent passes it on

What the parent passes on comes as another signal (PASSED_ON): systemd and a terminal tell the whole
group, and the parent's word after it is the same word, however late the parent has the processor.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

STOPS: Final = frozenset(
    number
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
)
PASSED_ON: Final = {
    signal.SIGHUP: signal.SIGUSR1,
    signal.SIGTERM: signal.SIGUSR1,
    signal.SIGINT: signal.SIGUSR2,
}
"""What a parent says to its workers when it was told that."""
SAME_SIGNAL_S: Final = 0.1
"""SIGTERM, SIGINT and SIGHUP of one moment are one word."""


def ears(*, parent: bool = False) -> asyncio.Event:
    """Set by the first of STOPS. The next one stops at once: the spool has what was accepted. So
    does the second word of a parent; but not its first after the one that all were told.

    The signals were held back until here, so one that came while we started is heard too.
    """
    told = asyncio.Event()
    first_at: dict[bool, float] = {}
    loop = asyncio.get_running_loop()

    def hear(number: int, passed_on: bool) -> None:
        told.set()
        now = loop.time()
        if now - first_at.setdefault(passed_on, now) > SAME_SIGNAL_S:
            os._exit(128 + number)

    for number in STOPS:
        loop.add_signal_handler(number, hear, number, False)
    for number, passed_on in PASSED_ON.items() if parent else ():
        loop.add_signal_handler(passed_on, hear, number, True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPS, *PASSED_ON.values()} if parent else STOPS)
    return told
