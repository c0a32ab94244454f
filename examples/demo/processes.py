"""Real processes: started, killed, started again, and never left behind.

    with Family(folder) as family:
        child = family.child("relay", argv, port=8700)
        await child.start()                  until its port answers
        child.kill()                         kill -9, now
        await child.stop()                   SIGTERM, as a deploy does

Each child has a process group of its own and a log in the folder. They die with the `with` block,
with the interpreter, and on Linux also when the parent itself is killed with kill -9.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

START_S = 60.0
STOP_S = 5.0
PR_SET_PDEATHSIG = 1
PORTS = (20_000, 32_000)
"""Below the range from which systems take the ports of outgoing connections: while a service is
down, nobody's connection may be given its port."""


class CannotGoOn(Exception):
    """The demonstration cannot go on, and why."""


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    found: list[int] = []
    for port in random.sample(range(*PORTS), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise CannotGoOn(f"no {count} ports from {PORTS[0]} on are free; `ss -ltnp` names who has them")


class Child:
    """One program, started as often as it takes."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        port: int,
        log: Path,
        cwd: Path,
        environ: Mapping[str, str],
    ) -> None:
        self.name = name
        self.port = port
        self.log = log
        self._argv = list(argv)
        self._cwd = cwd
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def fallen(self) -> bool:
        """It ended, and nobody here has ended it."""
        return self._process is not None and self._process.poll() is not None

    async def start(self) -> None:
        """Start it; return when its port answers."""
        self._spawn()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + START_S
        while not await self._answers():
            if self.fallen:
                raise CannotGoOn(f"the {self.name} ended as it was started{self.last_words()}")
            if loop.time() > give_up_at:
                raise CannotGoOn(f"the {self.name} does not listen after {START_S:g} s")
            await asyncio.sleep(0.02)

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._cwd,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    async def _answers(self) -> bool:
        try:
            _reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    def last_words(self) -> str:
        """The last line of its log, to put behind a sentence."""
        lines = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
        return f"; its log ends with: {lines[-1][:300]}" if lines else ""

    def kill(self) -> None:
        """kill -9 it, and whatever it has started."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    async def stop(self) -> None:
        """Ask it to end, and wait for that."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + STOP_S
        while process.poll() is None:
            if loop.time() > give_up_at:
                self._process = process
                self.kill()
                return
            await asyncio.sleep(0.02)


class Family:
    """All the children, so that none is forgotten."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []

    def child(
        self, name: str, argv: Sequence[str], *, port: int, cwd: Path, environ: Mapping[str, str]
    ) -> Child:
        log = self.folder / f"{name.replace(' ', '-')}.log"
        child = Child(name, argv, port=port, log=log, cwd=cwd, environ=environ)
        self.children.append(child)
        return child

    def fallen(self) -> Child | None:
        """A child that ended by itself. There should be none."""
        return next((child for child in self.children if child.fallen), None)

    def kill(self) -> None:
        for child in self.children:
            child.kill()

    def __enter__(self) -> Self:
        atexit.register(self.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        atexit.unregister(self.kill)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the child, before it becomes its program: the kernel kills it when the parent dies."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
