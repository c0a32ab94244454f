"""A shop in a process of its own, as a test speaks to it. It never outlives the test."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import apsw

from servers.process import stop

SHOP = Path(__file__).parent / "shop.py"
PATIENCE_S = 60.0


def stop_between_writes(pid: int, spool: Path) -> None:
    """SIGSTOP, and not in the middle of a write: it would keep SQLite's lock from everybody."""
    while True:
        stop(pid)
        database = apsw.Connection(str(spool))
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
            return
        except apsw.BusyError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)
        finally:
            database.close()


class Shop:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SHOP), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._left = b""

    def heard(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        until = time.monotonic() + PATIENCE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._left:
                assert selector.select(until - time.monotonic()), "it says nothing"
                data = self.process.stdout.read1(4096)  # type: ignore[attr-defined]
                assert data, "it has ended"
                self._left += data
        line, _, self._left = self._left.partition(b"\n")
        return line.decode()

    def tell(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, what: signal.Signals) -> None:
        self.process.send_signal(what)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Shop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
