"""A server's process: found, started, waited for, stopped where it is, and ended.

missing("redis-server", "apt-get install redis-server")     skips; fails where CI promises it
process = started([…], log=folder / "log")                  ends with the tests, whatever becomes
until(answers, process, log=folder / "log", within_s=15)    or says what it wrote instead
stop(pid, …)            SIGSTOP; returns when the kernel has done it: until then it may still answer
end(process, SIGTERM)   and by force where it does not
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import pytest

PAUSE_S: Final = 0.02
END_S: Final = 60
PR_SET_PDEATHSIG: Final = 1


def missing(what: str, mend: str) -> NoReturn:
    assert not os.environ.get("CI"), f"{what} is missing, and CI promises it"
    pytest.skip(f"{what} is not installed: {mend}")


def started(
    command: Sequence[str],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    dies_by: int | None = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """`log`: what it writes goes there, behind what is there. `dies_by`: how it ends where we do;
    None: it sees to that itself."""

    def with_us() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, dies_by)

    with Path(os.devnull if log is None else log).open("ab") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env=env,
            start_new_session=True, preexec_fn=None if dies_by is None else with_us,
        )  # fmt: skip


def until(
    answers: Callable[[], object],
    process: subprocess.Popen[bytes],
    *,
    within_s: float,
    log: Path | None = None,
    trouble: tuple[type[Exception], ...] = (OSError,),
) -> None:
    """Until `answers` says something true, and raises no `trouble`."""
    last = time.monotonic() + within_s
    while True:
        try:
            if answers():
                return
        except trouble:
            pass
        said = "" if log is None else log.read_text(errors="replace")[-2000:]
        assert process.poll() is None, f"it ended: {process.args!r} {said}"
        assert time.monotonic() < last, f"it did not start: {process.args!r} {said}"
        time.sleep(PAUSE_S)


def stop(*pids: int) -> None:
    """All that are there, with all their threads."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    last = time.monotonic() + 60
    while not all(map(_stands, pids)):
        assert time.monotonic() < last, "it does not stop"
        time.sleep(0.001)


def _stands(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # that has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "TtZX":
                return False
    return True


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """It has ended when this returns, also where it was stopped."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
