"""A custody chain in real processes: its first spool is lost under load, again and again.

The recommended pair: a shared engine first, a local log second. Senders do not stop while the
engine is killed with all its processes, hangs, and comes back on its data; now and then the relay
is killed too meanwhile, and starts on the second. Every 202 is delivered, and what has no key at
most once (I1, I9); custody is taken throughout.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import pytest

from servers.table import durable

from .checker import check
from .history import History, now_ns
from .load import ASYNC, KEYED, PLAIN, Load, at_stake, settle
from .processes import ROUNDS, Relay, eventually
from .service import Service
from .shared import engines
from .test_kill import Flapping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LOSSES = 2 * ROUNDS
SENDERS = 2 if ROUNDS == 1 else 8
ARGUMENTS = (
    "--backoff-most-ms", "2s", "--spool-ms", "1s",
    # What was leased while nobody could tell comes due after this.
    "--total-ms", "5s", "--connect-ms", "1s", "--lease-ms", "21s",
)  # fmt: skip


@pytest.mark.timeout(240 + 12 * LOSSES)
@pytest.mark.parametrize("name", engines("postgres"))
async def test_the_engine_is_lost_under_load(tmp_path: Path, name: str) -> None:
    history = History()
    moments = random.Random(7)
    away = 0.0
    slowest = 0.0
    with durable(name) as server, Service() as service:
        service.weather = Flapping(3)
        spools = [server.spool("crash"), f"log:///{tmp_path / 'second.log'}"]
        relay = Relay(tmp_path, to=service.url, spools=spools, arguments=ARGUMENTS)
        try:
            await relay.start()
            load = Load(relay.port, history, name="c", senders=SENDERS, jobs=(KEYED, ASYNC, PLAIN))
            running = asyncio.create_task(load.run())
            for number in range(LOSSES):
                begun, taken = len(history.calls), took_over(relay)
                await asyncio.sleep(moments.uniform(0.5, 1.5))
                await at_stake(history, since=begun, accepted=101)
                hangs = number % 3 == 2
                history.crashes.append(now_ns())
                began = time.monotonic()
                await asyncio.to_thread(server.pause if hangs else server.kill)
                await asyncio.sleep(moments.uniform(0.5, 1.0))
                if number % 2:  # it starts on the second
                    relay.kill()
                    await relay.start()
                await asyncio.sleep(moments.uniform(0.5, 1.0))
                await eventually(lambda n=taken: took_over(relay) > n, "the second takes custody")
                await asyncio.to_thread(server.resume if hangs else server.start)
                history.crashes.append(now_ns())
                away += time.monotonic() - began
                await eventually(lambda: up(relay), "the first is back")
                history.crashes.append(now_ns())
            service.weather = lambda _key, _body: "ok"
            load.stop()
            await running
            await settle(relay.port, history, seconds=75)
            try:
                await eventually(lambda: nothing_waits(spools[1]), "nothing waits away")
            except AssertionError as error:
                raise AssertionError(f"{await queue(spools[1])}\n{relay.tail()}") from error
            health = await relay.health()
        finally:
            relay.end()
    history.handled = list(service.handled)
    taken = took_over(relay)
    for call in history.calls:
        if call.told_at:
            slowest = max(slowest, (call.told_at - call.asked_at) / 1e9)
    refused = sum(1 for call in history.calls if call.refused)
    states = [view["state"] for view in health["spools"]]
    print(
        f"\n{name} lost {LOSSES} times, {away:.0f} s in all: {history.summary()};"
        f" {refused} refused; custody went to the second {taken} times; slowest answer"
        f" {slowest:.1f} s; {states} in the end"
    )
    assert check(history) == []
    assert taken >= LOSSES
    assert len(history.accepted()) > 100 * LOSSES, "too little was at stake"


def took_over(relay: Relay) -> int:
    """How often custody has gone to the second."""
    return relay.log.read_text().count("custody is taken by log:")


async def up(relay: Relay) -> bool:
    return bool((await relay.health())["spools"][0]["state"] == "up")


async def nothing_waits(spool: str) -> bool:
    return await queue(spool) == "The spool is empty.\n"


async def queue(spool: str) -> str:
    """As an operator sees it, while the relay runs."""
    command = [sys.executable, "-m", "unspool", "queue", "--limit", "20", "--spool", spool]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UNSPOOL_")}
    asked = await asyncio.create_subprocess_exec(
        *command, env=ours, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asked.communicate()
    return said.decode()
