"""Workers: several processes over the same listeners and the same spool.

    supervise(count, work, drain_ms=…) -> exit code

The parent forks before any loop or spool exists, waits, and forks again for a worker that dies: its
leases and claims come due by themselves. What tells it to stop goes to all; the second at once.
Workers die with their parent (prctl, where there is one), so none is left holding the port.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from ..errors import UnspoolError
from .ears import PASSED_ON, STOPS

log = logging.getLogger("unspool.workers")

RESTART_MS: Final = 500
HOPELESS: Final = frozenset({os.EX_USAGE, os.EX_CANTCREAT, os.EX_NOPERM, os.EX_CONFIG})
"""Exit codes of a worker that a person must help: it is not started again."""
PR_SET_PDEATHSIG: Final = 1


def supervise(count: int, work: Callable[[int], int], *, drain_ms: int) -> int:
    """Keep `count` workers running until told to stop. 0 if all that were told drained."""
    workers: dict[int, int] = {}
    stopping = False

    def hear(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        for pid in workers:
            try:
                os.kill(pid, PASSED_ON[signal.Signals(number)])
            except ProcessLookupError:
                continue

    # The caller holds the signals back: nobody is told to stop before there is an ear for it.
    for number in range(count):
        workers[_fork(number, work)] = number
    for stop in STOPS:
        signal.signal(stop, hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    worst = 0
    while workers:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        number = workers.pop(pid, -1)
        code = os.waitstatus_to_exitcode(status)
        if stopping:
            worst = max(worst, code if code > 0 else 128 - code if code < 0 else 0)
            continue
        if code in HOPELESS:
            worst = code  # it would say the same again
            hear(signal.SIGTERM, None)
            continue
        log.warning("worker %d (pid %d) ended with %d; starting it again", number, pid, code)
        time.sleep(RESTART_MS / 1000)
        # Whoever is forked is told: a word that comes meanwhile is heard when he is on the list.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        if not stopping:
            workers[_fork(number, work)] = number
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return worst


def _fork(number: int, work: Callable[[int], int]) -> int:
    parent = os.getpid()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, *PASSED_ON.values()})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return pid
    for stop in STOPS:
        signal.signal(stop, signal.SIG_DFL)  # blocked until the worker has its own ears
    _die_with(parent)
    code = 70
    try:
        code = work(number)
    except UnspoolError as error:
        print(f"unspool: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        log.exception("worker %d failed", number)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (OSError, AttributeError):
        return  # no Linux: whoever kills the parent kills the group
    if os.getppid() != parent:
        os._exit(0)
