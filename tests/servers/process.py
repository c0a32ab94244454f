"""Stop a process where it is, and be sure that it has stopped.

stop(pid)       SIGSTOP; returns when the kernel has done it: until then it may still answer
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        assert time.monotonic() < until, "it does not stop"
        time.sleep(0.001)
