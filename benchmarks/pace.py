"""Pace: requests at a given rate, whatever the answers do, and how long each took.

    pace(bench, port, rate, seconds) -> Pace         in a process of its own, on the load core
    python -m benchmarks.pace PORT RATE SECONDS      the same, as that process: prints JSON

Open loop: request number i is due at start + i/rate, and its latency counts from there, not from
when it could be sent. A server that stands still for 100 ms is charged for every request that was
due meanwhile (no coordinated omission).

select(2) and bare sockets, not an event loop: its timers have microseconds, libuv's and epoll's
milliseconds, and a millisecond is more than what is to be measured. What this process itself costs
is in the direct measurement too, which is what the others are compared with.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .bench import Bench
from .process import Failed

CONNECTIONS: Final = 16
WARM_S: Final = 1.0
LATE_S: Final = 5.0
PR_SET_TIMERSLACK: Final = 29

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)


@dataclass(frozen=True, slots=True)
class Pace:
    """Latencies of one run, in ms, from when each request was due."""

    requests: int
    bad: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def pace(bench: Bench, port: int, *, rate: int, seconds: float) -> Pace:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pace", str(port), str(rate), str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent,
        preexec_fn=lambda: os.sched_setaffinity(0, {bench.load_core}),
    )
    if done.returncode:
        raise Failed(f"the generator ended with {done.stderr.strip()[-300:]}")
    found = Pace(**json.loads(done.stdout))
    if found.bad:
        raise Failed(f"{found.bad} of {found.requests} answers at a steady rate were errors")
    return found


class Caller:
    """One connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LATE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._came = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def ask(self, request: bytes, due: float) -> None:
        self.due = due
        self.socket.sendall(request)

    def answered(self) -> bool | None:
        """Was it a 200? None: not all of it is here."""
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError("the connection was closed before its answer")
        self._came += part
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self._came, 0, end)
        if length is None or len(self._came) < end + 4 + int(length[1]):
            return None
        good = self._came.startswith(b"HTTP/1.1 200")
        self._came = b""
        return good


def run(port: int, rate: int, seconds: float) -> tuple[list[float], int]:
    """Every latency in seconds, in order of arrival, and the number of answers that were no 200."""
    body = b"x" * 1024
    request = (
        b"POST /orders HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%b"
        % (port, len(body), body)
    )
    idle = [Caller(port) for _ in range(CONNECTIONS)]
    busy: set[Caller] = set()
    late: deque[float] = deque()
    took: list[float] = []
    bad = 0
    step, count, sent = 1 / rate, int(rate * seconds), 0
    clock = time.perf_counter
    start = clock() + 0.01
    while sent < count or busy or late:
        now = clock()
        while sent < count and start + sent * step <= now:
            late.append(start + sent * step)
            sent += 1
        while late and idle:
            caller = idle.pop()
            caller.ask(request, late.popleft())
            busy.add(caller)
        left = start + sent * step - clock() if sent < count else LATE_S
        ready: Sequence[Caller] = select.select(list(busy), [], [], max(0.0, left))[0]
        if not ready and sent >= count and busy:
            raise TimeoutError(f"{len(busy)} answers did not come within {LATE_S:g} s")
        for caller in ready:
            good = caller.answered()
            if good is None:
                continue
            took.append(clock() - caller.due)
            bad += not good
            busy.discard(caller)
            idle.append(caller)
    for caller in idle:
        caller.socket.close()
    return took, bad


def main(port: int, rate: int, seconds: float) -> None:
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    run(port, rate, WARM_S)
    gc.disable()
    took, bad = run(port, rate, seconds)
    took.sort()
    found = Pace(
        requests=len(took),
        bad=bad,
        p50_ms=took[len(took) // 2] * 1000,
        p99_ms=took[int(len(took) * 0.99)] * 1000,
        max_ms=took[-1] * 1000,
    )
    print(json.dumps({name: getattr(found, name) for name in found.__slots__}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
