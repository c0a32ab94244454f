"""M1 and M4 for servers: what a sender was told outlives relay, server and power (I1, I6).

The server's data directory is on an ext4 of its own. Relays work on it while senders load them;
then the power fails: the file system is shut down, relay and server are killed, the disk is mounted
again, the server started, and the spool asked for everything that was told before the cut began, as
in `test_power_cut`. The controls are the same servers with settings that promise less than a power
cut; the relay is told to take custody all the same, and must lose.

And without the disk: the relay is killed, and the server, by turns, and what was told is there.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ports import free_port
from servers.nats import nats
from servers.redis import redis

from .disks import Disk, need_disk
from .history import now_ns
from .launch import Quick
from .load import ASYNC, KEYED, PLAIN, Load, at_stake
from .processes import ROUNDS
from .service import Service
from .test_power_cut import CUTS_A_SPOOL, SENDERS, Score, Spool, weather

pytestmark = [pytest.mark.slow]

CUTS = 3 * ROUNDS
CONTROL_CUTS = 2 * ROUNDS
KILLS = 4 * ROUNDS
IN_FORCE = {"total_ms": 5_000, "connect_ms": 1_000, "lease_ms": 21_000}


@dataclass(frozen=True)
class Setup:
    """A server, and whether its settings keep what was told through a power cut."""

    keeps: bool
    settings: dict[str, str] = field(default_factory=dict)
    valkey: bool = False
    engine: str = "redis"
    share: float = 1.0
    """How much of a test it gets."""
    query: str = ""
    """What the operator says in the URL."""

    def server(self, folder: Path) -> AbstractContextManager[Any]:
        if self.engine == "nats":
            lines = "\n".join(f"{name}: {value}" for name, value in self.settings.items())
            return nats(jetstream=lines, folder=folder, query=self.query)
        return redis(valkey=self.valkey, settings=self.settings, folder=folder)


NATS = {"engine": "nats", "share": 0.5}
ALWAYS = {"settings": {"sync_interval": "always"}, "query": "sync_interval=always"}
SETUPS = {
    "redis, always": Setup(keeps=True),
    "valkey, always": Setup(keeps=True, valkey=True),
    "redis, everysec": Setup(keeps=False, settings={"appendfsync": "everysec"}),
    "valkey, everysec": Setup(keeps=False, settings={"appendfsync": "everysec"}, valkey=True),
    "redis, no": Setup(keeps=False, settings={"appendfsync": "no"}),
    "nats, always": Setup(keeps=True, **NATS, **ALWAYS),
    "nats, default": Setup(keeps=False, **NATS),
}


ASKED = [name for name in SETUPS if ROUNDS > 1 or name in ("redis, always", "redis, everysec")]
"""The others take their time, and prove the same of others."""


@pytest.fixture
async def quick() -> AsyncIterator[Quick]:
    quick = Quick()
    yield quick
    await quick.end()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_disk()
    with Disk(tmp_path, size_mib=192) as disk:
        yield disk


async def under_load(
    quick: Quick, service: Service, server: Any, spool: Spool, number: int, *, synced: bool
) -> tuple[Any, Load, asyncio.Task[None]]:
    port = free_port()
    plan = {"to": service.url, "port": port, "spool": spool.path, "engine": spool.engine}
    relay = await quick.start(**plan, synced=synced, settings=IN_FORCE)
    load = Load(
        port, spool.history, name=f"{spool.number}-{number}", senders=SENDERS,
        jobs=(KEYED, ASYNC, PLAIN), patience=5,
    )  # fmt: skip
    return relay, load, asyncio.create_task(load.run())


async def cut(
    disk: Disk, quick: Quick, service: Service, server: Any, spool: Spool, score: Score, *,
    synced: bool,
) -> None:  # fmt: skip
    """One power cut, and what it cost."""
    score.cuts += 1
    relay, load, running = await under_load(
        quick, service, server, spool, score.cuts, synced=synced
    )
    # Until somebody was told something; where each waits for the next second's sync, that is long.
    begun = len(spool.history.calls)
    await asyncio.sleep(random.uniform(0.05, 0.3))
    await at_stake(spool.history, since=begun, accepted=10)
    cut_at = now_ns()
    disk.cut()
    relay.kill()
    server.kill()
    load.stop(give_up=True)
    await relay.gone()
    await running
    disk.remount()
    server.start()
    count(spool, score, cut_at)


def count(spool: Spool, score: Score, until: int) -> None:
    for call in spool.history.calls[spool.checked :]:
        if call.told_at >= until:
            score.raced += 1
            call.told_at = 0
        elif call.told_at:
            score.evidence_202 += call.accepted
            score.evidence_answers += call.answered
    spool.checked = len(spool.history.calls)
    lost = spool.lost()
    score.lost += lost
    score.cuts_with_loss += bool(lost)


@pytest.mark.root
@pytest.mark.timeout(240 + 10 * CUTS)
@pytest.mark.parametrize("name", ASKED)
async def test_what_a_power_cut_costs(disk: Disk, quick: Quick, name: str) -> None:
    """Nothing that was told, where the settings say so. The others lose, or nothing was cut."""
    setup = SETUPS[name]
    score = Score()
    data = disk.mount / "data"
    with Service() as service, setup.server(data) as server:
        service.weather = weather
        spool = Spool(setup.engine, server.spool("s0"), 0)
        for number in range(int(CUTS * setup.share) if setup.keeps else CONTROL_CUTS):
            # A spool that has lost something is not asked about it twice.
            if number % CUTS_A_SPOOL == 0 or not setup.keeps:
                server.kill()
                shutil.rmtree(data, ignore_errors=True)
                server.start()
                spool = Spool(setup.engine, server.spool(f"s{number}"), number)
                service.handled.clear()
            if number % 2:
                service.down()
            else:
                service.up()
            await cut(disk, quick, service, server, spool, score, synced=setup.keeps)
    print(f"\npower cuts, {name}: {score}")
    if setup.keeps:
        assert score.lost[:20] == []
        assert score.evidence_202 > 5 * score.cuts, "too little was at stake"
    else:
        assert score.cuts_with_loss >= CONTROL_CUTS // 2


@pytest.mark.timeout(240 + 5 * KILLS)
@pytest.mark.parametrize("name", ["redis, always", "nats, always"])
async def test_relay_and_server_are_killed(tmp_path: Path, quick: Quick, name: str) -> None:
    """kill -9 of either: what was told is there, and the relay goes on when the server does."""
    score = Score()
    setup = SETUPS[name]
    with Service() as service, setup.server(tmp_path / "data") as server:
        service.weather = weather
        spool = Spool(setup.engine, server.spool("s"), 0)
        for number in range(int(KILLS * setup.share)):
            relay, load, running = await under_load(
                quick, service, server, spool, number, synced=True
            )
            begun = len(spool.history.calls)
            await asyncio.sleep(random.uniform(0.05, 0.3))
            await at_stake(spool.history, since=begun, accepted=5)
            score.cuts += 1
            if number % 2:
                server.kill()
                until = now_ns()
                await asyncio.sleep(random.uniform(0, 0.1))
                server.start()
                refused = len(spool.history.calls)
                for _ in range(6_000):
                    if any(call.accepted for call in spool.history.calls[refused:]):
                        break
                    await asyncio.sleep(0.01)
                else:
                    raise AssertionError("it did not go on when the server was back")
            relay.kill()
            until = now_ns()
            load.stop(give_up=True)
            await relay.gone()
            await running
            count(spool, score, until)
    print(f"\nkill -9 of relay and server, {name}: {score}")
    assert score.lost[:20] == []
    assert score.evidence_202 > 3 * score.cuts, "too little was at stake"
