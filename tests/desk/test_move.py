"""Moving: nothing lost, nothing twice, wherever it dies and whoever is at work meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from desk_kit import DAY, HERE, now, run, waiting
from msgspec.structs import replace
from test_house import ENGINES, SECRET, brought, everything, exported, filled, made

from crash.processes import Relay, eventually
from crash.service import Service
from crash.wire import Severed, ask
from servers.nats import nats
from servers.postgres import postgres
from servers.redis import redis
from unspool.clock import SystemClock
from unspool.core.lifecycle import Reason, State
from unspool.core.message import NEVER, Instant, Key
from unspool.custody import secret_entry
from unspool.errors import Full, Misconfigured
from unspool.house.moving import TERM_MS, Move, Sums
from unspool.spools.desk.serving import open_desk
from unspool.spools.desk.visit import DeskSpool
from unspool.spools.memory import MemorySpool
from unspool.spools.open import open_spool
from unspool.spools.protocol import Entry, Spool

ROUNDS = int(os.environ.get("UNSPOOL_CRASH_ROUNDS", "1"))
HERE_PATH = Path(__file__).parent
SHM = Path("/dev/shm")


async def moved(source: Spool, target: Spool, **how: Any) -> Sums:
    return await Move(source, target, clock=SystemClock(), key_ms=30 * DAY).run(
        wait_ms=0, where="there", **how
    )


async def _opened(engine: str, path: Path, stack: AsyncExitStack) -> Spool:
    if engine != "desk":
        spool = await made(engine, path)
        stack.push_async_callback(spool.aclose)
        return spool
    kept = await made("log", path)
    desk = await open_desk(kept, path)
    assert desk is not None
    visit = await DeskSpool.open(path)
    for close in (kept.aclose, desk.close, visit.aclose):
        stack.push_async_callback(close)
    return visit


@pytest.mark.parametrize("source", [*ENGINES, "desk"])
@pytest.mark.parametrize("target", [*ENGINES, "desk"])
async def test_between_any_two_spools(source: str, target: str, tmp_path: Path) -> None:
    """What waits is live at the new place and moved at the old; answers are known at both."""
    async with AsyncExitStack() as stack:
        old = await _opened(source, tmp_path / "a", stack)
        new = await _opened(target, tmp_path / "b", stack)
        await filled(old)
        before = await everything(old)
        sums = await moved(old, new)
        assert (sums.moved, sums.copied, sums.later) == (3, 3, 0)
        there = await everything(new)
        waited = [entry.message.key for entry in before if entry.state is State.WAITING]
        assert [entry.message.key for entry in there if entry.state is State.WAITING] == waited
        for was in before:
            [now_is] = [entry for entry in there if entry.message.key == was.message.key]
            assert now_is.message == was.message
            assert (now_is.state, now_is.due_at, now_is.trail) == (was.state, was.due_at, was.trail)
            assert (now_is.answer, now_is.reason) == (was.answer, was.reason)
            assert now_is.leased_until == 0
        for was, stayed in zip(before, await everything(old), strict=True):
            ended = (State.BOUNCED, Reason.MOVED) if was.state is State.WAITING else (
                was.state, was.reason
            )  # fmt: skip
            assert (stayed.state, stayed.reason) == ended
        again = await moved(old, new)
        assert (again.moved, again.copied, again.known) == (0, 0, 3)
        assert await everything(new) == there


@pytest.mark.parametrize(
    ("source", "target"),
    [("sqlite", "log"), ("leveldb", "sqlite"), ("log", "leveldb"), ("sqlite", "sqlite")],
)
async def test_killed_at_any_step(source: str, target: str, tmp_path: Path) -> None:
    """SIGKILL before and after each verb; the source's relay delivers meanwhile what it still may;
    a second move brings each message to exactly one place. (`deadly` tells how.)"""
    if "leveldb" in (source, target):
        pytest.importorskip("plyvel")
    every = ROUNDS > 1 or (source, target) == ("sqlite", "log")
    await _deadly(source, target, tmp_path, step=1 if every else 3)


async def _deadly(source: str, target: str, tmp_path: Path, *, step: int) -> None:
    folder = (SHM if SHM.is_dir() else tmp_path) / f"deadly-{os.getpid()}"  # noqa: ASYNC240
    words = (sys.executable, str(HERE_PATH / "deadly.py"), source, target, str(folder))
    process = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "DEADLY_STEP": str(step)},
    )  # fmt: skip
    out, _ = await process.communicate()
    shutil.rmtree(folder, ignore_errors=True)
    assert process.returncode == 0, out.decode()
    assert int(out.split()[-1]) >= 20 // step, out


# -- what stays, and why ---------------------------------------------------------------------------


async def _pair(*entries: Entry) -> tuple[MemorySpool, MemorySpool]:
    old, new = MemorySpool(), MemorySpool()
    await old.accept([secret_entry(SECRET, now=now()), *entries])
    return old, new


def _state(spool: MemorySpool, name: str) -> tuple[State, str] | None:
    entry = spool.entries.get(Key(name.ljust(22, ".")))
    return None if entry is None else (entry.state, entry.reason)


WAITS, AWAY = (State.WAITING, ""), (State.BOUNCED, Reason.MOVED.value)


async def test_what_is_being_tried_stays_and_its_line_behind_it() -> None:
    """5. What an attempt has in its hands is left there; under its order key nothing overtakes."""
    a, b = waiting("a", order_key="x", due_at=0), waiting("b", order_key="x", due_at=0)
    old, new = await _pair(a, b, waiting("c", due_at=0))
    [lease] = [
        one
        for one in await old.lease({HERE: 1}, now=now(), until=Instant(now() + 60_000))
        if one.entry.message.name == "a"
    ]
    sums = await moved(old, new)
    assert (sums.moved, sums.later) == (1, 2)
    assert [_state(old, name) for name in "abc"] == [WAITS, WAITS, AWAY]
    await old.settle([(lease, _deferred(lease))])
    assert (await moved(old, new)).moved == 2
    assert [entry.message.name for entry in new.entries.values() if entry.message.name] == [
        "c", "a", "b",
    ]  # fmt: skip


def _deferred(lease: Any) -> Any:
    from unspool.core.lifecycle import Deferred

    return Deferred(Instant(now() + 1), lease.entry.trail)


async def test_the_move_waits_for_what_is_being_tried() -> None:
    """--wait: until the attempt has ended, and then it goes too."""
    old, new = await _pair(waiting("a", due_at=0))
    await old.lease({HERE: 1}, now=now(), until=Instant(now() + 400))
    sums = await Move(old, new, clock=SystemClock(), key_ms=DAY).run(wait_ms=90_000)
    assert (sums.moved, sums.later) == (1, 0)


async def test_a_key_that_means_another_request_there_stays_here() -> None:
    """It cannot go, and is not lost: it waits where it was, due when it was."""
    a = waiting("a")
    old, new = await _pair(a, waiting("b"))
    other = waiting("a", body=b"coffee")
    await new.accept([other])
    sums = await moved(old, new)
    assert (sums.moved, sums.other) == (1, 1)
    assert _state(old, "a") == WAITS
    assert old.entries[a.message.key].due_at == a.due_at
    assert new.entries[a.message.key].message == other.message


async def test_what_is_being_tried_there_for_a_sender_is_not_promised_there() -> None:
    """A claim is no custody: the message stays until it is known what became of the claim."""
    a = waiting("a")
    old, new = await _pair(a)
    claim = replace(
        a, state=State.CLAIMED, leased_until=Instant(now() + 60_000), attempt=1,
        message=replace(a.message, nonce=b"another"),
    )  # fmt: skip
    await new.accept([claim])
    assert (await moved(old, new)).later == 1
    assert _state(old, "a") == WAITS


async def test_what_may_not_be_repeated_and_was_cut_short_is_unknown_at_both() -> None:
    """Its last attempt may have been applied: it is not made again from elsewhere."""
    old, new = await _pair(waiting("a", repeat=False, due_at=0))
    await old.lease({HERE: 1}, now=now(), until=Instant(now() - 1))
    await moved(old, new)
    assert _state(old, "a") == _state(new, "a") == (State.BOUNCED, Reason.UNKNOWN.value)


async def test_it_does_not_come_back_where_it_is_known_as_moved() -> None:
    """A known key never changes (I3): what moved away stays at the new place, and is said."""
    old, new = await _pair(waiting("a"))
    await moved(old, new)
    sums = await moved(new, old)
    assert (sums.moved, sums.back) == (0, 1)
    assert (_state(old, "a"), _state(new, "a")) == (AWAY, WAITS)


async def test_two_names_of_one_spool_are_noticed() -> None:
    """Or every message would be called moved, and be nowhere."""
    old, _ = await _pair(waiting("a"))
    with pytest.raises(Misconfigured, match="one spool"):
        await moved(old, old)
    assert _state(old, "a") == WAITS


async def test_a_full_disk_there_loses_nothing_here() -> None:
    """What was seized is given back at once, due when it was."""

    class FullSpool(MemorySpool):
        async def accept(self, entries: Any, /) -> Any:
            if any(entry.message.name for entry in entries):
                raise Full("no room")
            return await super().accept(entries)

    a = waiting("a")
    old, _ = await _pair(a)
    with pytest.raises(Full):
        await moved(old, FullSpool())
    entry = old.entries[a.message.key]
    assert (entry.state, entry.due_at, entry.leased_until) == (State.WAITING, a.due_at, 0)


async def test_overtaken_it_decides_nothing() -> None:
    """A mover that slept longer than its lease: the source went on, and what is parked stays so
    until a move has asked the source."""
    a = waiting("a", due_at=0)
    old, new = await _pair(a)

    class Sleepy(MemorySpool):
        async def accept(self, entries: Any, /) -> Any:
            answers = await new.accept(entries)
            if any(entry.message.name for entry in entries):  # meanwhile
                soon = Instant(now() + 2 * TERM_MS)
                [lease] = await old.lease({HERE: 1}, now=soon, until=Instant(soon + DAY))
                assert await old.settle([(lease, _answered())]) == [True]
            return answers

    sleepy = Sleepy()
    sleepy.entries = new.entries
    sums = await moved(old, sleepy)
    assert sums.moved == 0
    assert _state(old, "a") == _state(new, "a") == (State.DELIVERED, "")
    assert new.entries[a.message.key].answer == _answered().answer


def _answered() -> Any:
    from test_house import ANSWER

    from unspool.core.lifecycle import Delivered

    return Delivered(ANSWER, Instant(now() + 30 * DAY), Instant(now() + DAY), (), True, now())


async def test_a_parked_message_is_left_alone_by_operators(tmp_path: Path) -> None:
    """Only the source can say that it may go: `release --all` would send it twice. By name it goes:
    the old spool may be gone for good."""
    from unspool.core.parking import park

    spool = await open_spool(f"sqlite:///{tmp_path}/unspool.db")
    a = waiting("a")
    trail = park(a.trail, due_at=a.due_at, number=1, now=now())
    await spool.accept([replace(a, due_at=NEVER, trail=trail)])
    done = await asyncio.to_thread(run, tmp_path, "release", "--all", "--yes")
    assert done.returncode == os.EX_TEMPFAIL
    assert b"run the same `unspool move` again" in done.stdout
    [entry] = await spool.find([a.message.key])
    assert entry is not None
    assert (entry.due_at, entry.trail) == (NEVER, trail)
    named = await asyncio.to_thread(run, tmp_path, "release", "a")
    assert named.returncode == 0, named
    [entry] = await spool.find([a.message.key])
    assert entry is not None
    assert (entry.due_at < NEVER, entry.trail) == (True, a.trail)
    await spool.aclose()


# -- relays at work --------------------------------------------------------------------------------


async def test_with_a_live_relay_on_either_side(tmp_path: Path) -> None:
    """Senders go on at the old relay, both relays deliver, the mover is killed again and again:
    everything that was accepted is done, and done once. The service has no memory of keys."""
    chance = random.Random(7)
    with Service(honours_keys=False) as service:
        weather = {"down": 1.0}
        service.weather = lambda _key, _body: "503" if chance.random() < weather["down"] else "ok"
        named = ("--destination", "shop")
        old = Relay(tmp_path, to=service.url, spool=tmp_path / "old.level", engine="log",
                    arguments=named)  # fmt: skip
        (tmp_path / "b").mkdir()
        new = Relay(tmp_path / "b", to=service.url, spool=tmp_path / "new.db", arguments=named)
        urls = (f"log:///{old.spool}", f"sqlite:///{new.spool}")
        sent: list[str] = []
        stop = asyncio.Event()
        try:
            await old.start()
            sender = asyncio.create_task(_send(old.port, sent, stop))
            await eventually(lambda: len(sent) > 30, "some messages")
            await _mover(*urls, wait_ms=0, kill_s=0)  # it takes the secret along
            await new.start()
            for round_ in range(1 + ROUNDS):
                weather["down"] = (0.9, 0.3, 0.5)[round_ % 3]
                await _mover(*urls, wait_ms=2_000, kill_s=0.5 + chance.random() / 2)
            weather["down"] = 0.0
            stop.set()
            await sender
            await _mover(*urls, wait_ms=15_000, kill_s=0)

            def done() -> bool:
                return {one.key for one in service.handled if one.effect} >= set(sent)

            await eventually(done, "everything that was accepted", seconds=90)
            effects = Counter(one.key for one in service.handled if one.effect)
            assert max(effects.values()) == 1, effects.most_common(3)
            there = [one.key for one in service.handled if one.effect]
            assert len(there) > 60
            told = await ask(
                new.port, "POST", "/orders", fields={"Idempotency-Key": sent[0]}, body=b"tea"
            )
            assert told.status == 200, "the new relay knows the key, for it has the secret"
            assert Counter(one.key for one in service.handled if one.effect) == effects
        finally:
            stop.set()
            old.end()
            new.end()


async def _send(port: int, sent: list[str], stop: asyncio.Event) -> None:
    """What was accepted, or answered: each must have its one effect."""
    number = 0
    while not stop.is_set():
        number += 1
        key = f"k{number}"
        try:
            told = await ask(port, "POST", "/orders", fields={"Idempotency-Key": key}, body=b"tea")
        except Severed:
            continue
        if told.status in (200, 202):
            sent.append(key)
        await asyncio.sleep(0.01)


async def _mover(source: str, target: str, *, wait_ms: int, kill_s: float) -> None:
    words = (str(HERE_PATH / "mover.py"), source, target, str(wait_ms), "1500")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if kill_s:
        try:
            await asyncio.wait_for(process.wait(), kill_s)
        except TimeoutError:
            process.kill()
    _, err = await process.communicate()
    assert process.returncode in ((0, -9) if kill_s else (0,)), err.decode()[-2000:]


# -- servers ---------------------------------------------------------------------------------------


SHARED = ["postgres", "redis", "nats"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[[str, str], str]]:
    """The URL of a fresh place on a server that is started when it is first wanted."""
    with ExitStack() as stack:
        servers: dict[str, Any] = {}

        def url(engine: str, name: str) -> str:
            if engine not in servers:
                start = {"postgres": postgres, "redis": partial(redis, memory=True), "nats": nats}
                servers[engine] = stack.enter_context(start[engine]())
            server = servers[engine]
            found: str = server.url(name) if engine == "nats" else server.spool(name)
            return found

        yield url


@pytest.mark.parametrize(
    ("source", "target"),
    [("log", "postgres"), ("postgres", "redis"), ("redis", "nats"), ("nats", "sqlite")],
)
async def test_to_and_from_servers(
    source: str, target: str, shared: Callable[[str, str], str], tmp_path: Path
) -> None:
    """The same between spools that are shared and spools that are not; by file, too."""

    async def place(engine: str, name: str) -> Spool:
        if engine in SHARED:
            return await open_spool(shared(engine, f"{name}_{source}_{target}"))
        return await made(engine, tmp_path / name)

    old, new, by_file = await place(source, "a"), await place(target, "b"), await place(target, "c")
    try:
        await filled(old)
        before = {entry.message.key: entry for entry in await everything(old)}
        await brought(by_file, await exported(old))
        copied = {entry.message.key: entry for entry in await everything(by_file)}
        assert copied == before
        sums = await moved(old, new)
        assert (sums.moved, sums.copied, sums.later) == (3, 3, 0)
        there = {entry.message.key: entry for entry in await everything(new)}
        assert there.keys() == before.keys()
        for key, was in before.items():
            fresh = replace(there[key], attempt=was.attempt)
            assert fresh == was, key
        for stayed in await everything(old):
            assert stayed.state is not State.WAITING
        assert (await moved(old, new)).known == 3
    finally:
        for spool in (old, new, by_file):
            await spool.aclose()


@pytest.mark.skipif(ROUNDS == 1, reason="long: UNSPOOL_CRASH_ROUNDS=2")
@pytest.mark.parametrize(("source", "target"), [("postgres", "redis"), ("redis", "postgres")])
async def test_killed_at_any_step_between_servers(
    source: str, target: str, shared: Callable[[str, str], str], tmp_path: Path
) -> None:
    """As above; on a server leases are real, and so is what a dead mover left open there."""
    urls = [
        shared(engine, "NAME").replace("NAME", f"{source[0]}{{}}") for engine in (source, target)
    ]
    await _deadly(*urls, tmp_path, step=1)
