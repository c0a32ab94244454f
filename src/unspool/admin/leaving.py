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

log = logging.getLogger("unspool.serve")


def leave(settings: Settings, custody: Custody, *, unwritten: int = 0) -> NoReturn:
    """`unwritten`: verdicts that the spool did not take."""
    urls = [concealed(url) for url in settings.spool]
    log.warning(
        "the spool %s does not answer, and was not waited for. What was accepted is in it. Of %d"
        " request(s) and verdict(s) nobody knows whether it took them: their senders were told so."
        " %d message(s) whose verdict is not written come due when their lease ends (%d s) and are"
        " tried again, or end as unknown where they may not be. When it is back:"
        " unspool queue %s",
        " ".join(urls),
        custody.gave_up,
        unwritten,
        settings.lease_ms // 1000,
        " ".join(f"--spool {url}" for url in urls),
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(os.EX_TEMPFAIL)
