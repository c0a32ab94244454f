"""A real gearmand for the tests that need one, on a free port, with nothing kept anywhere.

    with gearmand() as server:                  skips, or fails where CI is set, without gearmand
        server.url("orders")                    gearman://127.0.0.1:PORT/orders
        server.status() -> {"orders": (waiting and running, running, workers)}
        server.kill(); server.start()           on the same port
    gearmand(database=path)                     with jobs kept in that SQLite file

It listens on loopback alone and ends with the tests, whatever becomes of them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ports import free_port

from .process import end, missing, started, stop, until

START_S: Final = 60


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        missing(name, "apt-get install gearman-job-server gearman-tools")
    return found


class Gearmand:
    """A server that runs, until it is killed."""

    def __init__(self, port: int, arguments: list[str]) -> None:
        self.port: Final = port
        self._arguments: Final = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, function: str) -> str:
        return f"gearman://127.0.0.1:{self.port}/{function}"

    def start(self) -> None:
        command = [
            program("gearmand"), "--listen", "127.0.0.1", "--port", str(self.port),
            "--log-file", "none", "--pid-file", "", "--threads", "1", *self._arguments,
        ]  # fmt: skip
        if os.getuid() == 0:
            command += ["--user", pwd.getpwuid(0).pw_name]
        self._process = started(command)
        until(lambda: self.say("status"), self._process, within_s=START_S)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            end(self._process, number)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        stop(self._process.pid)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def say(self, line: str) -> str:
        """A word of the text protocol, and the answer to it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            sock.sendall(line.encode() + b"\n")
            answer = b""
            whole = (b"\n.\n", b".\n") if line in ("status", "workers") else (b"\n",)
            while not (answer.endswith(whole[0]) or answer in whole):
                data = sock.recv(65536)
                if not data:
                    raise OSError("gearmand hung up")
                answer += data
        return answer.decode()

    def status(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for line in self.say("status").splitlines():
            if line != ".":
                name, total, running, workers = line.split("\t")
                found[name] = (int(total), int(running), int(workers))
        return found


@contextmanager
def gearmand(*, database: Path | None = None) -> Iterator[Gearmand]:
    arguments = []
    if database is not None:
        arguments = ["--queue-type", "libsqlite3", "--libsqlite3-db", str(database)]
    server = Gearmand(free_port(), arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()
