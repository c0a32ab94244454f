"""Processes: the relay as a real process, on a real port, for killing.

    relay = Relay(folder, to=service.url)
    await relay.start()             returns when it answers
    relay.kill()                    SIGKILL, and gone when this returns
    code = await relay.stop()       SIGTERM, and what it exited with
    await relay.health()            what it says of itself

The same Relay can be started again: same port, same spool. Its log is `folder/relay.log`, all runs
one after the other. Every process has a session of its own; `end()` leaves none of them behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ports import free_port

from .wire import Severed, ask

START_S = 60.0
"""A Python with all its imports, on a machine that has something else to do."""
ROUNDS = max(1, int(os.environ.get("UNSPOOL_CRASH_ROUNDS", "1")))


def listens(port: int) -> bool:
    """Does anybody take connections there?"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Relay:
    def __init__(
        self,
        folder: Path,
        *,
        to: str,
        spool: Path | str | None = None,
        engine: str = "sqlite",
        spools: Sequence[str] = (),
        name: str = "relay",
        arguments: Sequence[str] = (),
        under: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`spools`: their URLs, instead of `engine` and `spool`. `name`: of its log."""
        self.port = free_port()
        self.spool = spool or folder / "spool.db"
        self.engine = engine
        self.log = folder / f"{name}.log"
        at = self.spool
        urls = spools or [at if isinstance(at, str) else f"{engine}:///{at}"]
        self.under = tuple(under)
        """A command to run it under, such as strace."""
        self.command = [
            sys.executable, "-m", "unspool", "serve", "--to", to,
            "--listen", f"127.0.0.1:{self.port}", "--log-format", "text",
            *(word for url in urls for word in ("--spool", url)), *arguments,
        ]  # fmt: skip
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("UNSPOOL_")}
        self._environment = {**inherited, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        self._spawn()
        await self.answers()

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.under, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    async def answers(self, *, seconds: float = START_S) -> None:
        """Return when somebody answers at the port."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process is not None
            if (code := self.process.poll()) is not None:
                raise AssertionError(f"the relay ended with {code}:\n{self.tail()}")
            with contextlib.suppress(Severed):
                await ask(self.port, "GET", "/_unspool/health", timeout=2)
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"the relay did not answer within {seconds:g} s:\n{self.tail()}")

    def kill(self) -> None:
        """SIGKILL to the process itself. Gone, with its sockets and locks, when this returns."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self, *, seconds: float = 60) -> int:
        self.signal(signal.SIGTERM)
        return await self.ended(seconds=seconds)

    async def ended(self, *, seconds: float = 60) -> int:
        """Its exit code, once it has one."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while (code := self.process.poll()) is None:
            if time.monotonic() > until:
                raise AssertionError(f"the relay runs on after {seconds:g} s:\n{self.tail()}")
            await asyncio.sleep(0.01)
        return code

    def end(self) -> None:
        """Leave nothing behind, whatever happened before."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    async def health(self) -> dict[str, Any]:
        told = await ask(self.port, "GET", "/_unspool/health")
        found: dict[str, Any] = json.loads(told.body)
        return found

    def ended_with(self) -> int | None:
        """Its exit code if it has ended, whoever ended it; None while it runs."""
        return None if self.process is None else self.process.poll()

    def tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


async def eventually(check: Any, what: str, *, seconds: float = 60) -> None:
    """Poll until `check()` is true; `check` may be a coroutine function. One that got no answer is
    asked again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = None
        with contextlib.suppress(Severed):
            found = check()
            if asyncio.iscoroutine(found):
                found = await found
        if found:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


# --- several workers ------------------------------------------------------------------------------


def workers_of(relay: Relay) -> list[int]:
    """The parent's children."""
    found = Path(f"/proc/{relay.pid}/task/{relay.pid}/children").read_text().split()
    return [int(pid) for pid in found]


def all_ready(pids: Sequence[int]) -> bool:
    """Each of these has opened its spool (its lock), has a loop, and hears signals."""
    return all(map(_ready, pids))


def _ready(pid: int) -> bool:
    links = []
    with contextlib.suppress(OSError):  # it may be ending
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(descriptor))
        if "anon_inode:[eventpoll]" in links and any(x.endswith("-lock") for x in links):
            return hears(pid)
    return False


async def both(relay: Relay) -> None:
    """Return when two workers are at work."""

    def at_work() -> bool:
        pids = workers_of(relay)
        return len(pids) == 2 and all_ready(pids)

    await eventually(at_work, "two workers at work")


def hears(pid: int) -> bool:
    """It no longer holds SIGTERM back, and has something of its own to do with it."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "Sig" in line}
    term = 1 << (signal.SIGTERM - 1)
    return not int(masks["SigBlk"], 16) & term and bool(int(masks["SigCgt"], 16) & term)


def connections(port: int) -> list[tuple[str, int]]:
    """Of those that are made to this port: who holds each (an inode; "0" while nobody has taken it)
    and how many bytes wait there to be read."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "01" and columns[1].endswith(f":{port:04X}"):
            found.append((columns[9], int(columns[4].partition(":")[2], 16)))
    return found


def unread(port: int) -> int:
    """How many connections have something to say that nobody has read."""
    return sum(waiting > 0 for _, waiting in connections(port))


async def heard(port: int, count: int) -> None:
    """Return when so many connections are open to somebody who has read all they have said."""
    calm = 0

    def all_read() -> bool:
        nonlocal calm
        found = connections(port)
        read = len(found) == count and all(who != "0" and not waiting for who, waiting in found)
        calm = calm + 1 if read else 0
        return calm > 4  # whoever has just connected, in this loop, has spoken meanwhile

    await eventually(all_read, f"{count} are heard")


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
