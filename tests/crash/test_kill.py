"""M1, kill -9: nothing that was accepted is lost, and nothing is done twice under a key (I1, I9).

First at random: a relay under load is killed at a random moment and started again on the same
spool, over and over, while the service behind it flaps, resets, swallows its answers and hangs.
Senders whose connection breaks send the same again under the same key. At the end the weather
clears, every receipt is asked until it settles, and the checker reads the whole history.

Then on purpose, at the moments that matter: at each of the first system calls by which a request
becomes durable and its answer is sent (strace kills the relay as it enters the call), between the
service's answer and its record, and while a message without a key is at the service.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from ports import free_port
from servers import process
from servers.table import durable
from unspool.core.message import Instant

from .checker import check
from .engines import ENGINES, SERVED, SHARE, need, open_store
from .history import Call, History, now_ns
from .launch import Forked, Quick
from .load import ASYNC, KEYED, PLAIN, Load, note, receipt_of, settle
from .processes import ROUNDS, Relay, eventually
from .service import Service
from .wire import Severed, ask

# The test's own service drops sockets of callers that were killed; its loop says so when it ends.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KILLS = 25 * ROUNDS
SENDERS = 8
QUICKER = ("--backoff-most-ms", "2s")
"""So that what waits is tried again before the test's patience ends."""


class Flapping:
    """Weather that changes every few dozen requests, and is worst for none in particular."""

    KINDS = ("ok", "ok", "ok", "503", "425", "reset", "lost", "lost", "500")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, _key: str, _body: bytes) -> str:
        return self._random.choice(self.KINDS)


@contextmanager
def place(engine: str) -> Iterator[tuple[Path | str | None, tuple[str, ...]]]:
    """Where its spool is, and what a relay over it is told besides. On a shared one nobody knows
    that the killed relay is dead: what it held comes due at its lease's end, 21 s here."""
    if engine not in SERVED:
        yield None, ()
        return
    with durable(engine) as server:
        yield server.spool("crash"), ("--total-ms", "5s", "--connect-ms", "1s", "--lease-ms", "21s")


@pytest.mark.timeout(240 + 4 * KILLS)
@pytest.mark.parametrize("engine", [*ENGINES, *(SERVED if ROUNDS > 1 else ())])
async def test_killed_at_random(tmp_path: Path, engine: str) -> None:
    need(engine)
    with place(engine) as (spool, told):
        await killed_at_random(tmp_path, engine, spool=spool, told=told)


async def killed_at_random(
    tmp_path: Path, engine: str, *, spool: Path | str | None, told: tuple[str, ...]
) -> None:
    kills = int(KILLS * SHARE[engine])
    least = kills if engine in SERVED else 10 * kills  # each waits for a server's sync, too
    history = History()
    moments = random.Random(0)
    recovery: list[float] = []
    with Service() as service:
        service.weather = Flapping(1)
        relay = Relay(
            tmp_path, to=service.url, spool=spool, engine=engine, arguments=(*QUICKER, *told)
        )
        try:
            await relay.start()
            load = Load(
                relay.port, history, name="k", senders=SENDERS, jobs=(KEYED, ASYNC, PLAIN)
            )  # fmt: skip
            running = asyncio.create_task(load.run())
            until = time.monotonic() + 120 * ROUNDS
            for number in count():
                # A slow machine gets as far as that, too, and later.
                few = len(history.accepted()) <= least and time.monotonic() < until
                if number >= kills and not few:
                    break
                await asyncio.sleep(moments.uniform(0.05, 0.4))
                if number % 5 == 4:
                    service.down()
                history.crashes.append(now_ns())
                relay.kill()
                await asyncio.to_thread(service.all_read)
                history.crashes.append(now_ns())
                if number % 5 == 0:
                    service.up()
                began = time.monotonic()
                await relay.start()
                recovery.append(time.monotonic() - began)
            service.up()
            service.weather = lambda _key, _body: "ok"
            load.stop()
            await running
            await settle(relay.port, history)
            for _ in range(120):  # what was counted beside the work is counted again within 10 s
                health = await relay.health()
                if health["backlog"] == 0:
                    break
                await asyncio.sleep(0.5)
        finally:
            relay.end()
    history.handled = list(service.handled)
    recovery.sort()
    print(
        f"\nkill -9: {engine}, {len(recovery)} kills; {history.summary()};"
        f" start to first answer p50 {recovery[len(recovery) // 2]:.2f} s, max {recovery[-1]:.2f} s"
    )
    assert check(history) == []
    assert waiting_in(engine, relay.spool) == 0
    assert len(history.accepted()) > least, "too little was at stake"
    assert any(not call.told_at for call in history.calls), "no kill hit anybody"


def waiting_in(engine: str, path: Path | str) -> int:
    """Messages that the spool still has to deliver."""
    store = open_store(engine, path)
    try:
        return sum(sum(row.counts) + row.held for row in store.tally([Instant(0)]))
    finally:
        store.close()


# --- on purpose -----------------------------------------------------------------------------------


@pytest.fixture
async def quick() -> AsyncIterator[Quick]:
    quick = Quick()
    yield quick
    await quick.end()


STEPS = {"pwrite64": 24, "fdatasync": 8, "write": 16, "read": 10}
STEPS = {call: count * ROUNDS for call, count in STEPS.items()}
"""At how many of each the relay is killed; `write` and `read` are those of all its sockets."""


async def kill_at(relay: Forked, call: str, number: int) -> asyncio.subprocess.Process:
    """strace, attached: it kills the relay as one of its threads enters this call for the n-th
    time."""
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}",
        "-o", "/dev/null", "-p", str(relay.pid),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert tracer.stderr is not None
    said = (await tracer.stderr.readline()).decode()
    assert "attached" in said, said
    return tracer


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
@pytest.mark.timeout(240 + 60 * ROUNDS)
async def test_killed_at_each_step(tmp_path: Path, quick: Quick) -> None:
    """One spool lives through all of it; what was promised on the way is asked for at the end."""
    history = History()
    port = free_port()
    died = 0
    plan = {"port": port, "spool": str(tmp_path / "spool.db")}
    plan["settings"] = {"backoff_most_ms": 2000}
    with Service() as service:
        plan["to"] = service.url
        for call, count in STEPS.items():
            for number in range(1, count + 1):
                # 425: it is saved, the lane stays open, and nothing is delivered meanwhile.
                service.weather = lambda key, _body: "425" if key.endswith("1") else "ok"
                relay = await quick.start(**plan)
                tracer = await kill_at(relay, call, number)
                load = Load(
                    port, history, name=f"{call}-{number}", senders=4,
                    jobs=(KEYED, ASYNC, PLAIN), patience=5,
                )  # fmt: skip
                running = asyncio.create_task(load.run(jobs=4 * ROUNDS))
                gone = asyncio.create_task(relay.gone())
                await asyncio.wait([running, gone], return_when="FIRST_COMPLETED")
                died += gone.done()
                load.stop(give_up=True)
                history.crashes.append(now_ns())
                relay.kill()
                await gone
                await running
                await tracer.wait()
                await asyncio.to_thread(service.all_read)
                history.crashes.append(now_ns())
        service.weather = lambda _key, _body: "ok"
        relay = await quick.start(**plan)
        await resend(port, history)
        await settle(port, history)
    history.handled = list(service.handled)
    total = sum(STEPS.values())
    print(f"\nkilled at {died} of {total} chosen system calls; {history.summary()}")
    assert check(history) == []
    assert died > total * 3 // 4


async def resend(port: int, history: History) -> None:
    """The senders come back with whatever they were told nothing about."""
    told = {call.key for call in history.calls if call.accepted or call.answered}
    left = {call.key: call for call in history.calls if call.key and call.key not in told}
    for key, first in left.items():
        call = Call(key=key, body=first.body, asked_at=now_ns(), target=first.target)
        history.calls.append(call)
        fields = {"Idempotency-Key": f'"{key}"'}
        if first.target == ASYNC.target:
            fields |= ASYNC.fields
        note(call, await ask(port, "POST", first.target, fields=fields, body=first.body))
        assert call.accepted or call.answered, call


@pytest.mark.parametrize("moment", ["before the answer", "after the answer"])
async def test_killed_between_the_answer_and_its_record(tmp_path: Path, moment: str) -> None:
    """The service has done it; the relay dies before it could write that down. The sender asks
    again under its key, and gets the answer of the one effect there was."""
    with Service() as service:
        relay = Relay(tmp_path, to=service.url)
        try:
            await relay.start()
            for number in range(5):
                key, body = f"order-{number}", f"order {number}".encode()
                service.weather = lambda _key, _body: "hold"
                service.hold()
                fields = {"Idempotency-Key": key}
                asking = asyncio.create_task(
                    ask(relay.port, "POST", "/orders", fields=fields, body=body)
                )
                assert await asyncio.to_thread(service.held.acquire, True, 60)
                if moment == "after the answer":
                    # Stopped, so that it cannot read the answer before it dies.
                    process.stop(relay.pid)
                    service.release()
                    [one] = service.of(key)
                    await eventually(lambda one=one: one.answered_at, "the answer")
                relay.kill()
                service.release()
                with pytest.raises(Severed):
                    await asking
                service.weather = lambda _key, _body: "ok"
                await relay.start()
                told = await ask(relay.port, "POST", "/orders", fields=fields, body=body)
                again = await ask(relay.port, "POST", "/orders", fields=fields, body=body)
                effects = [one for one in service.of(key) if one.effect]
                assert len(effects) == 1
                assert told.status == again.status == 200
                assert told.body == again.body == effects[0].answer
                assert again.fields["idempotent-replayed"] == "true"
                assert len(service.of(key)) == 2, "the replay came from the record"
        finally:
            relay.end()


@pytest.mark.timeout(300)
async def test_killed_between_the_record_and_the_answer(tmp_path: Path, quick: Quick) -> None:
    """The answer is durable and the sender's socket is next: the repeat finds the record. On a
    busy machine the chosen call may be another one, before the record: such a round, in which there
    was one effect still, does not count, and five must."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    port = free_port()
    replayed = 0
    with Service() as service:
        for number in range(60):
            if replayed == 5:
                break
            key = f"order-{number}"
            fields = {"Idempotency-Key": key}
            plan = {"to": service.url, "port": port, "spool": str(tmp_path / "spool.db")}
            relay = await quick.start(**plan)
            # The loop's thread writes to the service, then to itself, then to the sender.
            tracer = await kill_at(relay, "write", 2)
            with pytest.raises(Severed):
                await ask(port, "POST", "/orders", fields=fields, body=b"order")
            await relay.gone()
            await tracer.wait()
            relay = await quick.start(**plan)
            told = await ask(port, "POST", "/orders", fields=fields, body=b"order")
            relay.kill()
            await relay.gone()
            assert told.status == 200
            assert len([one for one in service.of(key) if one.effect]) == 1
            assert told.body == service.of(key)[0].answer
            if told.fields.get("idempotent-replayed") == "true":
                replayed += 1
                assert len(service.of(key)) == 1, "nothing went to the service again"
    assert replayed == 5


async def test_without_a_key_it_ends_as_unknown_and_never_silently_twice(tmp_path: Path) -> None:
    """It was at the service when the relay died: nobody knows, and so it says."""
    with Service() as service:
        relay = Relay(tmp_path, to=service.url)
        try:
            await relay.start()
            service.weather = lambda _key, _body: "hold"
            told = await ask(
                relay.port, "POST", "/orders", fields={"Prefer": "respond-async"}, body=b"once"
            )
            assert told.status == 202
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            relay.kill()
            service.release()
            service.weather = lambda _key, _body: "ok"
            await relay.start()
            final = await receipt_of(relay.port, told.fields["location"], wait_s=40)
        finally:
            relay.end()
    assert (final.state, final.reason) == ("bounced", "unknown")
    assert [one.body for one in service.handled] == [b"once"]


async def test_a_message_at_the_service_is_tried_again_at_once(tmp_path: Path) -> None:
    """Nobody else has the spool: a restart need not wait for the dead relay's lease to run out."""
    with Service() as service:
        relay = Relay(tmp_path, to=service.url)
        try:
            await relay.start()
            service.weather = lambda _key, _body: "hang"
            fields = {"Prefer": "respond-async", "Idempotency-Key": "k"}
            told = await ask(relay.port, "POST", "/orders", fields=fields, body=b"once")
            await eventually(lambda: service.handled, "the first attempt")
            relay.kill()
            service.weather = lambda _key, _body: "ok"
            await relay.start()
            began = time.monotonic()
            final = await receipt_of(relay.port, told.fields["location"], wait_s=40)
            took = time.monotonic() - began
        finally:
            relay.end()
    assert final.state == "delivered"
    assert took < 30, "a lease is 90 s"
    assert len(service.handled) == 2
