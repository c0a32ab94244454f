"""Two processes, one spool: what one relay promises, several that share its file promise too.

The service honours no keys here: every request that reaches it is an effect, so it is the relay
alone that keeps a key from having two.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servers import process

from .checker import check
from .history import Call, History, now_ns
from .load import ASYNC, KEYED, Load, at_stake, note, settle
from .processes import (
    ROUNDS,
    Relay,
    all_ready,
    both,
    connections,
    eventually,
    heard,
    listens,
    running,
    workers_of,
)
from .service import Service
from .wire import Wire

pytestmark = pytest.mark.slow

REPEATS = 50
KEYS = 30 * ROUNDS
WORKERS = (
    "--workers", "2", "--backoff-most-ms", "2s",
    # What a dead worker had under way is free again after this.
    "--total-ms", "5s", "--connect-ms", "1s", "--lease-ms", "21s",
)  # fmt: skip
UNHURRIED = ("--workers", "2", "--backoff-most-ms", "2s")
"""Where an attempt lasts until the test lets it end."""


TOLD_IN_A_FORK = """
import asyncio, os, signal, sys
from unspool.admin.ears import STOPS, ears
from unspool.admin.workers import supervise

forks, died = [], sys.argv[1]

def told() -> None:
    forks.append(1)
    if len(forks) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

async def wait() -> None:
    await ears(parent=True).wait()

def work(number: int) -> int:
    if not os.path.exists(died):
        open(died, "w").close()
        return 1
    asyncio.run(wait())
    return 0

os.register_at_fork(after_in_parent=told)
signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
sys.exit(supervise(1, work, drain_ms=1000))
"""
"""A worker dies at once, and just as another is forked the parent is told to stop."""


def connections_of(pid: int, port: int) -> int:
    """How many of this port's connections a process holds."""
    mine = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = os.readlink(descriptor)
        except OSError:
            continue
        if link.startswith("socket:["):
            mine.add(link[8:-1])
    return sum(who in mine for who, _ in connections(port))


@pytest.mark.timeout(240 + 30 * ROUNDS)
@pytest.mark.parametrize("workers", [1, 2])
async def test_one_effect_however_many_ask_and_whomever(tmp_path: Path, workers: int) -> None:
    """50 senders say the same at once, on connections to all workers: one effect, one answer."""
    history = History()
    shares = [0, 0]
    refusals = 0
    with Service(honours_keys=False) as service:
        # A third is saved at first, and delivered from the spool by whichever worker comes first.
        seen: set[str] = set()

        def weather(key: str, _body: bytes) -> str:
            first = key not in seen
            seen.add(key)
            return "425" if first and key.endswith(("0", "3", "6")) else "ok"

        service.weather = weather
        arguments = WORKERS if workers == 2 else ()
        relay = Relay(tmp_path, to=service.url, arguments=arguments)
        try:
            await relay.start()
            if workers == 2:
                await both(relay)
            for number in range(KEYS):
                wires = await asyncio.gather(*(Wire.open(relay.port) for _ in range(REPEATS)))
                if workers == 2 and (number % 10 == 0 or not min(shares)):
                    await heard(relay.port, REPEATS)
                    for place, pid in enumerate(workers_of(relay)):
                        shares[place] += connections_of(pid, relay.port)
                job = KEYED if number % 2 else ASYNC
                key = f"key-{number}"
                body = f"<{key}>".encode()
                fields = {**job.fields, "Idempotency-Key": key}

                async def repeat(
                    wire: Wire, key: str = key, body: bytes = body, fields: dict[str, str] = fields
                ) -> int:
                    refused = 0
                    while True:
                        call = Call(key, body, asked_at=now_ns())
                        history.calls.append(call)
                        note(call, await wire.ask("POST", "/pay", fields=fields, body=body))
                        if call.accepted or call.answered:
                            return refused
                        assert call.refused == "running", call
                        refused += 1
                        await asyncio.sleep(0.01)

                refusals += sum(await asyncio.gather(*map(repeat, wires)))
                for wire in wires:
                    wire.close()
            await settle(relay.port, history)
        finally:
            relay.end()
    history.handled = list(service.handled)
    print(
        f"\n{workers} worker(s): {KEYS} keys x {REPEATS} repeats, connections {shares};"
        f" {refusals} x 409 running; {history.summary()}"
    )
    assert workers == 1 or min(shares) > 0, "one worker had nothing to do: this proved nothing"
    assert check(history) == []
    assert len(history.effects()) == KEYS


@pytest.mark.timeout(300)
async def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    history = History()
    with Service() as service:
        service.weather = lambda key, _body: "425" if key.endswith("1") else "ok"
        relay = Relay(tmp_path, to=service.url, arguments=WORKERS)
        try:
            await relay.start()
            await both(relay)
            load = Load(relay.port, history, name="w", senders=8, jobs=(KEYED, ASYNC))
            running = asyncio.create_task(load.run())
            for _ in range(3):
                begun = len(history.calls)
                await asyncio.sleep(0.7)
                await at_stake(history, since=begun, accepted=11)
                victim, other = workers_of(relay)
                history.crashes.append(now_ns())
                os.kill(victim, signal.SIGKILL)

                def replaced(victim: int = victim, other: int = other) -> bool:
                    now = workers_of(relay)
                    return len(now) == 2 and victim not in now and other in now and all_ready(now)

                await eventually(replaced, "another worker")
                history.crashes.append(now_ns())
            load.stop()
            service.weather = lambda _key, _body: "ok"
            await running
            # What the dead held comes due when its lease ends, and not before: 21 s here.
            history.crashes.append(now_ns())
            await settle(relay.port, history, seconds=60)
            code = await relay.stop()
        finally:
            relay.end()
    history.handled = list(service.handled)
    print(f"\nworkers killed: 3; {history.summary()}")
    assert check(history) == []
    assert len(history.accepted()) > 30
    assert code == 0


def test_who_is_forked_as_the_parent_is_told_is_told_too(tmp_path: Path) -> None:
    """Else the parent would wait for him for ever."""
    command = [sys.executable, "-c", TOLD_IN_A_FORK, str(tmp_path / "died")]
    assert subprocess.run(command, timeout=60, capture_output=True).returncode == 0


async def test_a_killed_parent_leaves_no_orphan_at_the_port(tmp_path: Path) -> None:
    with Service() as service:
        relay = Relay(tmp_path, to=service.url, arguments=WORKERS)
        try:
            await relay.start()
            await both(relay)
            children = workers_of(relay)
            began = time.monotonic()
            relay.kill()
            await eventually(lambda: not listens(relay.port), "the port was let go", seconds=15)
            await eventually(lambda: not any(map(running, children)), "the workers ended")
            took = time.monotonic() - began
            # And another can take the place at once.
            await relay.start()
        finally:
            relay.end()
    assert took < 20


async def test_a_busy_orphan_drains_and_goes(tmp_path: Path) -> None:
    """Its parent is killed while a request is at the service: it is answered, then it goes."""
    with Service() as service:
        service.weather = lambda _key, _body: "hold"
        relay = Relay(tmp_path, to=service.url, arguments=UNHURRIED)
        try:
            await relay.start()
            await both(relay)
            children = workers_of(relay)
            wire = await Wire.open(relay.port)
            asking = asyncio.create_task(
                wire.ask("POST", "/", fields={"Idempotency-Key": "k"}, body=b"x")
            )
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            relay.kill()
            await eventually(lambda: not listens(relay.port), "the port was let go", seconds=15)
            service.release()
            told = await asking
            wire.close()
            await eventually(lambda: not any(map(running, children)), "the workers ended")
        finally:
            relay.end()
    assert told.status == 200


async def wire_to(relay: Relay, worker: int, other: int) -> Wire:
    """A connection that this worker has taken: the other is held still meanwhile."""
    process.stop(other)
    try:
        wire = await Wire.open(relay.port)
        assert (await wire.ask("GET", "/_unspool/health")).status == 200
    finally:
        os.kill(other, signal.SIGCONT)
    assert connections_of(worker, relay.port) == 1
    return wire


async def test_a_repeat_at_another_worker_waits_as_it_asked_to(tmp_path: Path) -> None:
    """`Prefer: wait` while the key is being tried: up to so long, at any worker (wire.md)."""
    with Service(honours_keys=False) as service:
        service.weather = lambda _key, _body: "hold"
        relay = Relay(tmp_path, to=service.url, arguments=UNHURRIED)
        try:
            await relay.start()
            await both(relay)
            one, two = workers_of(relay)
            first, second = await wire_to(relay, one, two), await wire_to(relay, two, one)
            fields = {"Idempotency-Key": "k", "Prefer": "wait=50"}
            asking = asyncio.create_task(
                first.ask("POST", "/", fields=fields, body=b"x", timeout=60)
            )
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            repeating = asyncio.create_task(
                second.ask("POST", "/", fields=fields, body=b"x", timeout=60)
            )
            await asyncio.sleep(0.5)
            early = repeating.done()
            service.release()
            told, again = await asking, await repeating
            first.close()
            second.close()
        finally:
            relay.end()
    assert len(service.handled) == 1
    assert (told.status, again.status, early) == (200, 200, False), again.body
    assert again.body == told.body
