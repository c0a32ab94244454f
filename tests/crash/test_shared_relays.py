"""Relays on several hosts share one engine: killed, paused and cut off from it at random.

Each relay is a process with a cable of its own to the engine, and has senders of its own. A relay
is killed and started again, stopped (SIGSTOP) for longer than its leases, its cable is cut, or
hangs. Nothing that was accepted is lost, none is settled twice, none goes out twice that may not,
and what the dead had leased comes due by itself (I1, I3, I4).

Then the engine itself goes, and there is no second spool: requests pass through as ever, and what
would have to be saved is refused until it is back.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from servers.table import Server, durable

from .checker import check
from .history import Call, History, now_ns
from .load import ASYNC, KEYED, PLAIN, Load, at_stake, note, settle
from .processes import ROUNDS, Relay, eventually
from .service import Service
from .shared import Cable, engines
from .test_kill import Flapping
from .wire import Severed, ask

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BLOWS = 4 * ROUNDS
LEASE_S = 21
ARGUMENTS = (
    "--backoff-most-ms", "2s",
    "--total-ms", "5s", "--connect-ms", "1s", "--lease-ms", f"{LEASE_S}s",
)  # fmt: skip


class Host:
    """A relay and its cable."""

    def __init__(self, relay: Relay, cable: Cable) -> None:
        self.relay = relay
        self.cable = cable


@asynccontextmanager
async def hosts(
    server: Server,
    service: Service,
    folder: Path,
    *,
    count: int,
    arguments: Sequence[str] = ARGUMENTS,
) -> AsyncIterator[list[Host]]:
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            cable = await stack.enter_async_context(Cable(server.port))
            relay = Relay(
                folder, to=service.url, spools=[server.spool("crash", port=cable.port)],
                arguments=(*arguments, "--destination", "shop"), name=f"relay-{number}",
            )  # fmt: skip
            found.append(Host(relay, cable))
            stack.callback(relay.end)
            await relay.start()
        yield found


async def blow(host: Host, kind: str, history: History, moments: random.Random) -> None:
    relay, cable = host.relay, host.cable
    history.crashes.append(now_ns())
    if kind == "kill":
        relay.kill()
        await relay.start()
    elif kind == "pause":
        relay.signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 1 if ROUNDS > 1 else moments.uniform(1, 3))
        relay.signal(signal.SIGCONT)
    elif kind == "cut":
        cable.cut()
        await asyncio.sleep(moments.uniform(0.5, 2))
        cable.mend()
    else:
        cable.hang()
        await asyncio.sleep(moments.uniform(0.5, 3))
        cable.mend()
    history.crashes.append(now_ns())


@pytest.mark.timeout(240 + 30 * BLOWS)
@pytest.mark.parametrize("name", engines("postgres"))
async def test_relays_that_share_an_engine(tmp_path: Path, name: str) -> None:
    history = History()
    moments = random.Random(11)
    blows: list[str] = []
    with durable(name) as server, Service() as service:
        service.weather = Flapping(5)
        async with hosts(server, service, tmp_path, count=3 if ROUNDS > 1 else 2) as all_:
            loads = [
                Load(host.relay.port, history, name=f"r{number}",
                     senders=2 if ROUNDS == 1 else 3, patience=30, jobs=(KEYED, ASYNC, PLAIN))
                for number, host in enumerate(all_)
            ]  # fmt: skip
            running = [asyncio.create_task(load.run()) for load in loads]
            kinds = ["kill", "cut", "hang", "pause"]
            for number in range(BLOWS):
                begun = len(history.calls)
                await asyncio.sleep(moments.uniform(0.2, 0.6))
                await at_stake(history, since=begun, accepted=21)
                kind = kinds[number % 4]
                blows.append(kind)
                await blow(moments.choice(all_), kind, history, moments)
            service.weather = lambda _key, _body: "ok"
            for load in loads:
                load.stop()
            await asyncio.gather(*running)
            # What the dead and the cut off held comes due when its lease ends, and not before.
            history.crashes.append(now_ns())
            began = time.monotonic()
            await settle(all_[0].relay.port, history, seconds=(3 if ROUNDS == 1 else 7) * LEASE_S)
            history.crashes.append(now_ns())
            took = time.monotonic() - began
    history.handled = list(service.handled)
    print(
        f"\n{name}: {len(blows)} blows ({', '.join(f'{blows.count(k)} {k}' for k in kinds)});"
        f" {history.summary()}; at rest after {took:.0f} s"
    )
    assert check(history) == []
    assert len(history.accepted()) > 20 * BLOWS, "too little was at stake"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", engines("redis"))
async def test_a_repeat_at_another_relay_waits_or_is_told(tmp_path: Path, name: str) -> None:
    """A key that runs at one relay: at another a repeat is told 409, or waits as it asked to, and
    gets the one answer. The service honours no keys: the claim alone keeps it to one effect."""
    with durable(name) as server, Service(honours_keys=False) as service:
        # An attempt lasts until it is let go.
        async with hosts(server, service, tmp_path, count=2, arguments=()) as (one, two):
            service.weather = lambda _key, _body: "hold"
            fields = {"Idempotency-Key": "k"}
            first = asyncio.create_task(
                ask(one.relay.port, "POST", "/", fields=fields, body=b"x", timeout=60)
            )
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            told = await ask(two.relay.port, "POST", "/", fields=fields, body=b"x")
            waits = {**fields, "Prefer": "wait=50"}
            second = asyncio.create_task(
                ask(two.relay.port, "POST", "/", fields=waits, body=b"x", timeout=60)
            )
            await asyncio.sleep(0.3)
            assert not second.done()
            service.release()
            answers = [(await first).body, (await second).body]
    assert told.status == 409
    assert told.fields["retry-after"]
    assert answers[0] == answers[1]
    assert len(service.handled) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", engines("nats"))
async def test_without_its_engine_a_relay_passes_through_and_takes_nothing(
    tmp_path: Path, name: str
) -> None:
    """Killed, and then hanging: who asks for nothing is served as ever, and soon; what would have
    to be saved is refused with 503 and Retry-After, before anybody waits for ever; when the engine
    is back so is custody, by itself."""
    history = History()
    with durable(name) as server, Service() as service:
        async with hosts(server, service, tmp_path, count=1) as [host]:
            port = host.relay.port
            for ends, begins in ((server.kill, server.start), (server.pause, server.resume)):
                for turn in "123":  # all of it once more, where the machine itself was held up
                    took = await while_away(port, history, ends, begins, turn)
                    if max(took) < 3:
                        break
                assert max(took) < 3, "it passes as ever"
            history.crashes.append(now_ns())
            await settle(port, history, seconds=3 * LEASE_S)
    history.handled = [one for one in service.handled if one.body]
    assert check(history) == []


async def while_away(
    port: int, history: History, ends: Callable[[], None], begins: Callable[[], None], turn: str
) -> list[float]:
    """How long those took who ask for nothing; those who do are refused, and then are not."""
    what, took = f"{ends.__name__} {turn}", []
    assert (await saved(port, history, f"before {what}")).accepted
    await asyncio.to_thread(ends)
    for number in range(20):
        began = time.monotonic()
        told = await ask(port, "GET", "/", timeout=60)
        assert told.status == 200
        took.append(time.monotonic() - began)
        if number % 10 == 0:
            call = await saved(port, history, f"{what} {number}")
            assert call.refused in ("refused", "in-doubt"), call
    await asyncio.to_thread(begins)

    async def again() -> bool:
        try:
            call = await saved(port, history, f"after {what}")
            return call.accepted or call.answered
        except Severed:
            return False

    await eventually(again, "custody again", seconds=40)
    return took


async def saved(port: int, history: History, body: str) -> Call:
    call = Call(key=body, body=body.encode(), asked_at=now_ns(), target="/async")
    history.calls.append(call)
    fields = {**ASYNC.fields, "Idempotency-Key": f'"{body}"'}
    note(call, await ask(port, "POST", "/async", fields=fields, body=body.encode(), timeout=30))
    return call
