"""The application's own ledger: one line for each thing it did, appended whole (O_APPEND).

    ledger = Ledger(path)
    ledger.note("begin", key, token)          in the application, in whichever process
    ledger.lines() · begun(key) · ended(key)  in the test

A line is one write of less than a page, so the lines of several processes do not mix; and it is in
the kernel when `note` returns, so that kill -9 does not take it back.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    """begin or end"""
    key: str
    token: str
    """Of this one execution; the answer quotes it."""
    pid: int
    at: int
    """Monotonic, ns: comparable between processes of one machine."""


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, what: str, key: str, token: str) -> None:
        line = f"{what} {key} {token} {os.getpid()} {time.monotonic_ns()}\n".encode()
        assert os.write(self._fd, line) == len(line)

    def close(self) -> None:
        os.close(self._fd)

    def lines(self) -> list[Line]:
        found = []
        for text in self._path.read_text().splitlines():
            what, key, token, pid, at = text.split(" ")
            found.append(Line(what, key, token, int(pid), int(at)))
        return found

    def begun(self, key: str) -> int:
        """How often the application was run under this key: the counter."""
        return sum(line.what == "begin" and line.key == key for line in self.lines())

    def ended(self, key: str) -> int:
        return sum(line.what == "end" and line.key == key for line in self.lines())
