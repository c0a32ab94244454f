"""A zygote: a program that has everything imported, and forks for each plan it is told.

    zygote(child)        one JSON object a line on stdin: child(plan) in a fork, which then ends
    say("ready 12")      one line on stdout, whole, from whichever process

The parent says `pid N` when it has forked and `gone N` when that child has ended; a child that
fails says `failed N` and why. `crash.launch.Quick` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def alone(child: Callable[[dict[str, Any]], None], plan: dict[str, Any]) -> None:
    """`child` to its end, which is this process's."""
    try:
        child(plan)
    except BaseException as error:
        say(f"failed {os.getpid()} {type(error).__name__}: {error}".replace("\n", " "))
        os._exit(70)
    os._exit(0)


def zygote(child: Callable[[dict[str, Any]], None]) -> None:
    def reap(_number: int, _frame: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                say(f"gone {pid}")

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            alone(child, json.loads(line))
        say(f"pid {pid}")


def logged(plan: dict[str, Any]) -> None:
    """What goes to stderr goes to the file that the plan names."""
    log = os.open(plan["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 2)
    os.close(log)
