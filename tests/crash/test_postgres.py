"""M1 and M4 for PostgreSQL: what a sender was told outlives relay, server and power (I1, I6).

As `test_served`, with the server's data on an ext4 that is cut off under load. `fsync=off` is the
control, which must lose. `synchronous_commit=off`, which many servers have, must not: the spool
overrules it.

And by turns relays and server are killed; two relays share the spool, and another sender asks each.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from ports import free_port
from servers.postgres import open_folder, postgres

from .checker import check
from .disks import Disk, need_disk
from .history import History, now_ns
from .launch import Quick
from .load import ASYNC, KEYED, PLAIN, Load, settle
from .processes import ROUNDS
from .service import Service
from .test_power_cut import Score, Spool, weather
from .test_served import IN_FORCE, cut

# The test's own service drops sockets of callers that were killed; its loop says so when it ends.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CUTS = 2 * ROUNDS
CONTROL_CUTS = ROUNDS
KILLS = 4 * ROUNDS
SMALL = {"max_wal_size": "64MB", "min_wal_size": "32MB", "autovacuum_naptime": "1s"}
SETUPS = {
    "honest": (True, {}),
    "synchronous_commit=off": (True, {"synchronous_commit": "off"}),
    "fsync=off": (False, {"fsync": "off"}),
}
ASKED = [name for name in SETUPS if ROUNDS > 1 or name != "synchronous_commit=off"]


@pytest.fixture
async def quick() -> AsyncIterator[Quick]:
    quick = Quick()
    yield quick
    await quick.end()


@pytest.mark.root
@pytest.mark.timeout(240 + 15 * CUTS)
@pytest.mark.parametrize("name", ASKED)
async def test_what_a_power_cut_costs(quick: Quick, name: str) -> None:
    """Nothing that was told. Where the server does not sync it must cost, or nothing was cut."""
    need_disk()
    keeps, settings = SETUPS[name]
    score = Score()
    for number in range(1 if keeps else CONTROL_CUTS):  # one that has lost may be beyond repair
        with (
            Service() as service,
            open_folder() as folder,
            Disk(folder, size_mib=320) as disk,
            postgres(
                durable=True, settings=SMALL | settings, within=disk.mount, synced=True
            ) as server,
        ):
            service.weather = weather
            spool = Spool("postgres", server.spool("cut"), number)  # type: ignore[arg-type]
            for turn in range(CUTS if keeps else 1):
                (service.down if turn % 2 else service.up)()
                try:
                    await cut(disk, quick, service, server, spool, score, synced=keeps)  # type: ignore[arg-type]
                except AssertionError as error:
                    if keeps:
                        raise
                    score.lost.append(f"the server does not start: {error}")
                    score.cuts_with_loss += 1
    print(f"\npower cuts, postgres, {name}: {score}")
    if keeps:
        assert score.lost[:20] == []
        assert score.evidence_202 > 5 * CUTS, "too little was at stake"
    else:
        assert score.cuts_with_loss > CONTROL_CUTS // 2


@pytest.mark.skipif(ROUNDS == 1, reason="what a killed relay held waits for its lease: 21 s")
@pytest.mark.timeout(240 + 5 * KILLS)
async def test_two_relays_and_their_server_are_killed(quick: Quick) -> None:
    """kill -9 of any, by turns, while senders ask both relays: nothing that was told is lost,
    nothing done twice under a key, and it all goes on by itself."""
    history = History()
    chance = random.Random(5)
    with Service() as service, postgres(durable=True, settings=SMALL) as server:
        service.weather = Weather(chance)
        plan = {"to": service.url, "engine": "postgres", "spool": server.spool("killed")}
        plan["settings"] = IN_FORCE | {"backoff_most_ms": 2_000}
        ports = [free_port(), free_port()]
        relays = [await quick.start(**plan, port=port) for port in ports]
        loads = [
            Load(port, history, name=f"p{number}", senders=4, jobs=(KEYED, ASYNC, PLAIN))
            for number, port in enumerate(ports)
        ]
        running = [asyncio.create_task(load.run()) for load in loads]
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0.2, 0.6))
            history.crashes.append(now_ns())
            if number % 3 == 2:
                server.kill()
                await asyncio.sleep(chance.uniform(0, 0.2))
                await asyncio.to_thread(server.start)
            else:
                which = number % 2
                relays[which].kill()
                await relays[which].gone()
                relays[which] = await quick.start(**plan, port=ports[which])
            history.crashes.append(now_ns() + 80_000_000)
        service.weather = lambda _key, _body: "ok"
        for load in loads:
            load.stop()
        await asyncio.gather(*running)
        await settle(ports[0], history, seconds=60)
        for relay in relays:
            relay.kill()
    history.handled = list(service.handled)
    print(f"\nkill -9 of two relays and their PostgreSQL: {KILLS} kills; {history.summary()}")
    assert check(history) == []
    assert len(history.accepted()) > 10 * KILLS, "too little was at stake"


class Weather:
    """Mostly fair: what is saved is delivered soon, by whichever relay."""

    KINDS = ("ok", "ok", "ok", "ok", "503", "425", "lost", "500")

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def __call__(self, _key: str, _body: bytes) -> str:
        return self._chance.choice(self.KINDS)
