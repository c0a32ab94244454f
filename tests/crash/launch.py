"""Launch: a relay that starts in milliseconds, and one that lies about its syncs.

As a program (of `Quick` and of the order witness), in the folder of the tests:

    python -m crash.launch once '{"to": …, "port": …, "spool": …, "engine": "log", "synced": false}'
    python -m crash.launch zygote    one such JSON object a line on stdin, one answer a line

The zygote has everything imported and forks for each line: the child opens the spool, listens,
prints `ready` and serves until it is killed; the parent prints `pid N` when it has forked and
`gone N` when the child has ended. With `synced` false the spool is opened by its test hook, without
syncs, and what the operator asks of it is lowered so that it is trusted all the same: the positive
control, which must lose what it has accepted.

The relay is the one of `unspool serve`: same node, door, transport and limits; only the command
line, the settings file and the log are left out.

    quick = Quick(); relay = await quick.start(to=…, port=…, spool=…); relay.kill(); quick.end()
    quick = Quick(program)                   another program that is a `zygote`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zygote import alone, say, zygote

from .engines import open_spool

PROGRAM = (sys.executable, "-m", "crash.launch")
TESTS = Path(__file__).parent.parent
"""Where it is run."""


async def serve(plan: dict[str, Any]) -> None:
    """In the child: a relay, until somebody ends it."""
    from unspool.admin.plan import plan_of
    from unspool.ingress.http import Door
    from unspool.ingress.listen import listener
    from unspool.node import Node
    from unspool.settings import Settings
    from unspool.transports.http import HttpTransport

    synced = plan.get("synced", True)
    url = str(plan["spool"])
    settings = Settings(
        to=(plan["to"],),
        spool=(url,) if "://" in url else Settings().spool,
        survives="power" if synced else "process",
        disk_free_min_bytes=0,
        **plan.get("settings", {}),
    )
    spool = await open_spool(plan.get("engine", "sqlite"), plan["spool"], synced=synced)
    node = await Node.open(
        plan=plan_of(settings), spool=spool, transport=HttpTransport(settings.to[0])
    )
    door = Door(node.relay)
    await door.listen([listener(f"127.0.0.1:{plan['port']}")])
    node.start()
    say(f"ready {os.getpid()}")
    await asyncio.Event().wait()


def child(plan: dict[str, Any]) -> None:
    import uvloop

    uvloop.run(serve(plan))


class Forked:
    """A relay that a zygote forked."""

    def __init__(self, quick: Quick, pid: int) -> None:
        self._quick = quick
        self.pid = pid

    async def ready(self) -> None:
        await self._quick.heard(f"ready {self.pid}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Return when the process has ended: its files are closed."""
        await self._quick.heard(f"gone {self.pid}")


class Quick:
    """Starts relays fast, one after the other."""

    def __init__(self, program: Sequence[str] = (*PROGRAM, "zygote")) -> None:
        self._program = program
        self._process: asyncio.subprocess.Process | None = None
        self._said: set[str] = set()
        self._news = asyncio.Condition()
        self._forking = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None
        self._pids: list[str] = []

    async def fork(self, **plan: Any) -> Forked:
        """The child is on its way; `await forked.ready()` for more."""
        async with self._forking:
            return await self._fork(plan)

    async def _fork(self, plan: dict[str, Any]) -> Forked:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._program,
                cwd=TESTS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a relay that loses its disk has much to say
                start_new_session=True,
            )
            self._listening = asyncio.create_task(self._listen())
        assert self._process.stdin is not None
        count = len(self._pids)
        self._process.stdin.write(json.dumps(plan).encode() + b"\n")
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: len(self._pids) > count), 60)
        return Forked(self, int(self._pids[-1]))

    async def start(self, **plan: Any) -> Forked:
        forked = await self.fork(**plan)
        await forked.ready()
        return forked

    async def heard(self, line: str) -> None:
        word, pid = line.split()

        def told() -> bool:
            failed = [said for said in self._said if said.startswith(f"failed {pid} ")]
            if failed and word == "ready":
                raise AssertionError(f"the relay could not start: {failed}")
            return line in self._said

        async with self._news:
            await asyncio.wait_for(self._news.wait_for(told), 60)

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode().rstrip("\n"):
            async with self._news:
                if line.startswith("pid "):
                    self._pids.append(line.removeprefix("pid "))
                self._said.add(line)
                self._news.notify_all()

    async def end(self) -> None:
        if self._process is None or self._listening is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._listening


if __name__ == "__main__":
    if sys.argv[1] == "zygote":
        import uvloop  # noqa: F401 - before it forks

        zygote(child)
    else:
        alone(child, json.loads(sys.argv[2]))
