"""Scene: three servers of one application, a relay in front of them, senders; and chaos among them.

scene = Scene(folder);  await scene.begin()
sender = await scene.send(name, durability=…, blocking=…);  sender.kill()
chaos = asyncio.create_task(scene.chaos(seed))     kills, pauses, slows and revives at random
await scene.calm()                                 everybody is well again
await scene.drain()                                what waits, at the sender's and the relay's
scene.rows()                                       the effects: one row of the shop for each
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from crash.launch import Forked, Quick
from crash.processes import ROUNDS, Relay, eventually
from idempotency_crash.fleet import quick as servers_launcher
from ports import free_port
from unspool.middleware.once import once

PROGRAM = (sys.executable, "-m", "client_crash.sender")
SERVERS = 3
PATIENCE_S = 120 * ROUNDS


class Machine:
    """A server or the relay: something that can be killed, paused and started again."""

    def __init__(
        self, name: str, *, start: Callable[[], Awaitable[int]], gone: Callable[[], Awaitable[None]]
    ) -> None:
        self.name = name
        self._start = start
        self._gone = gone
        self.pid = 0

    async def start(self) -> None:
        self.pid = await self._start()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self._gone()

    def pause(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = folder / "told"
        self.outbox = folder / "outbox.db"
        self.shop = folder / "shop.db"
        self.done: Counter[str] = Counter()
        """What chaos did, and to whom."""
        self.storm: set[str] = set()
        """These are down, all at once."""
        self.over = False
        """Chaos ends once it is; who was about to be started is started first."""
        self._servers = servers_launcher()
        self._senders = Quick(PROGRAM)
        self._ports = [free_port() for _ in range(SERVERS)]
        urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        more = [word for url in urls[1:] for word in ("--to", url)]
        # Slow enough to be worth asking for, quick enough for the test's patience.
        quick = ["--backoff-most-ms", "2s", "--first-byte-ms", "1s", "--destination", "shop"]
        port = free_port()
        listen = ("--listen", f"127.0.0.1:{port}")
        self.relay = Relay(folder, to=urls[0], arguments=[*more, *quick, *listen])
        self.relay.port = port
        self.urls = urls
        self.machines: list[Machine] = []
        self._forked: dict[int, Forked] = {}

    async def begin(self) -> None:
        with contextlib.closing(sqlite3.connect(self.shop)) as db:
            db.execute("PRAGMA journal_mode=WAL").fetchall()
            db.execute("CREATE TABLE orders (key TEXT, token TEXT)")
            once.create(db)
        self.machines = [self._server(number) for number in range(SERVERS)]

        async def start() -> int:
            await self.relay.start()
            return self.relay.pid

        async def gone() -> None:
            self.relay.kill()

        self.machines.append(Machine("relay", start=start, gone=gone))
        for machine in self.machines:
            await machine.start()

    def _server(self, number: int) -> Machine:
        async def start() -> int:
            forked = await self._servers.start(
                port=self._ports[number], folder=str(self.folder),
                spool=f"sqlite:///{self.folder / 'idem.db'}", log=str(self.folder / "servers.log"),
                options={"lease_ms": 1_500},
            )  # fmt: skip
            self._forked[number] = forked
            return forked.pid

        async def gone() -> None:
            await self._forked[number].gone()

        return Machine(f"server {number}", start=start, gone=gone)

    async def send(
        self, name: str, *, durability: str, blocking: bool = False, drain: bool = False
    ) -> Forked:
        return await self._senders.start(
            servers=self.urls, queues=[f"http://127.0.0.1:{self.relay.port}"],
            outbox=str(self.outbox), told=str(self.told), log=str(self.folder / "senders.log"),
            name=name, durability=durability, blocking=blocking, drain=drain,
        )  # fmt: skip

    async def chaos(self, seed: int) -> None:
        """Something happens to each of them, over and over; and now and then to all at once."""
        luck = random.Random(seed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._storms(luck))
            for machine in self.machines:
                group.create_task(self._blows(machine, luck))

    async def _storms(self, luck: random.Random) -> None:
        while not self.over:
            await asyncio.sleep(luck.uniform(1.5, 3))
            spared = "" if self.done["storm"] % 2 else "relay"
            self.done["storm"] += 1
            self.storm = {one.name for one in self.machines} - {spared}
            await asyncio.sleep(luck.uniform(0.5, 1.5))
            self.storm = set()

    async def _blows(self, machine: Machine, luck: random.Random) -> None:
        while not self.over:
            await self._quiet(machine, luck.uniform(0.3, 1.5))
            what = "kill" if machine.name in self.storm else luck.choice(["kill", "pause", "slow"])
            self.done[f"{what} {machine.name}"] += 1
            if what == "kill":
                await machine.kill()
                await asyncio.sleep(luck.uniform(0.05, 0.5))
                while machine.name in self.storm:
                    await asyncio.sleep(0.02)
                await machine.start()
            elif what == "pause":
                machine.pause()
                await self._quiet(machine, luck.uniform(0.2, 2.0))
                machine.go_on()
            else:
                for _ in range(10):
                    machine.pause()
                    await asyncio.sleep(0.04)
                    machine.go_on()
                    await asyncio.sleep(0.01)

    async def _quiet(self, machine: Machine, seconds: float) -> None:
        """So long, or until a storm comes over it."""
        until = asyncio.get_running_loop().time() + seconds
        while machine.name not in self.storm and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)

    async def calm(self) -> None:
        """Everybody is well."""
        for machine in self.machines:
            machine.go_on()
            await machine.kill()
            await machine.start()

    async def drain(self) -> None:
        sender = await self.send("drain", durability="on-error", drain=True)
        until = asyncio.get_running_loop().time() + PATIENCE_S
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(TimeoutError):
                await sender.gone()
                break

        async def empty() -> bool:
            return bool((await self.relay.health())["backlog"] == 0)

        await eventually(empty, "the relay delivered what it had", seconds=PATIENCE_S)

    def rows(self) -> Counter[str]:
        """How many effects each key has had."""
        with contextlib.closing(sqlite3.connect(self.shop)) as db:
            return Counter(key for (key,) in db.execute("SELECT key FROM orders"))

    async def end(self) -> None:
        for machine in self.machines:
            machine.go_on()
        await self._senders.end()
        await self._servers.end()
        self.relay.end()
