"""Leaving: the end of a process whose spool has not answered.

    leave(settings, custody, unwritten=…)       says where everything is, and does not return

Threads and tasks that wait for such a spool cannot be ended in order, and the process shall not
wait for them: what was accepted is in the spool either way.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

from ..core.urls import concealed
from ..custody import Custody
from ..settings import Settings
from .wording import flags

log = logging.getLogger("unspool.serve")


def leave(settings: Settings, custody: Custody, *, unwritten: int = 0) -> NoReturn:
    """`unwritten`: verdicts that the spool did not take."""
    log.warning("%s", told(settings, gave_up=custody.gave_up, unwritten=unwritten))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(os.EX_TEMPFAIL)


def told(settings: Settings, *, gave_up: int, unwritten: int) -> str:
    """Where everything is, and what happens next."""
    urls = [concealed(url) for url in settings.spool]
    silent = f"the spool {' '.join(urls)} does not answer, and was not waited for."
    parts = [silent, "What was accepted is in it."]
    if gave_up:
        parts.append(
            f"Of {gave_up} request(s) and verdict(s) nobody knows whether it took them; whoever"
            " waited was told so."
        )
    if unwritten:
        parts.append(
            f"{unwritten} message(s) whose verdict is not written come due when their lease ends"
            f" ({settings.lease_ms // 1000} s), and are tried again, or end as unknown where they"
            " may not be."
        )
    return " ".join([*parts, f"When it is back: unspool queue {flags(settings.spool)}"])
