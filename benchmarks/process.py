"""Processes: what a benchmark starts, on the core it belongs on, and stops again.

    with Process(["nginx", …], core=0, log=path) as nginx: …
    free_port()                      a loopback port that nobody listens on just now
    wait_for(check, what, seconds)   poll until it is true; TimeoutError names `what`
    fetch(port, path, …)             one HTTP exchange: (status, fields, body)

Every process gets a process group of its own and dies with the `with`: SIGTERM, a while, SIGKILL.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_S = 10.0


class Failed(Exception):
    """A row could not be measured, and why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(check: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return
        time.sleep(0.02)
    raise TimeoutError(f"{what} did not happen within {seconds:g} s")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def fetch(
    port: int,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    fields: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One exchange on a connection of its own. Field names come back in lower case."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, dict(fields or {}))
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, answer.read()
    finally:
        connection.close()


class Process:
    def __init__(
        self,
        command: list[str],
        *,
        cores: set[int],
        log: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def said(self) -> str:
        """The end of what it wrote, for an error message."""
        return self.log.read_text(errors="replace").strip()[-500:]

    def wait_listening(self, port: int, seconds: float = 15.0) -> None:
        def check() -> bool:
            if not self.alive:
                raise Failed(f"{self.name} ended at once: {self.said()}")
            return listens(port)

        wait_for(check, f"{self.name} listening", seconds)

    def rss_bytes(self) -> int:
        """Resident memory, of it and of its children."""
        total = 0
        for pid in (self.pid, *_children(self.pid)):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total

    def cpu_s(self) -> float:
        """Processor time that it and its children have used so far."""
        ticks = 0
        for pid in (self.pid, *_children(self.pid)):
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            ticks += sum(int(word) for word in stat.rsplit(") ", 1)[1].split()[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive:
                return
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return
            try:
                self._popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                continue


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    mine = [int(word) for word in text.split()]
    return mine + [deeper for child in mine for deeper in _children(child)]
