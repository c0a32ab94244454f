"""The outbox: found after a crash, one sender at a time, and what an operator does with it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest
from click.testing import CliRunner, Result

from unspool import Bounced, Delivered, FellBack, Queued, Undelivered, Unknown
from unspool.admin.cli import cli
from unspool.client import AsyncClient, Settled
from unspool.client.client import BEYOND_S, OPENS_S
from unspool.client.outbox import LEASE_MS, Outbox, Telling
from unspool.client.parts import Parts
from unspool.client.request import Request
from unspool.client.turn import Turn
from unspool.client.watch import LOOK_S, Watch
from unspool.core.admission import Terms
from unspool.core.lifecycle import Policy, Verdict
from unspool.core.message import Destination, Instant, Key
from unspool.core.scheduler import LaneDue, Scheduler
from unspool.custody import Custody
from unspool.dispatcher import Dispatcher
from unspool.errors import Misconfigured, Unavailable
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Entry, Lease, Survives
from unspool.testing.clock import VirtualClock, virtually
from unspool.testing.conformance import values
from unspool.testing.conformance.values import HERE, NOW, key, settled

from .kit import DOWN, OK, Server, World, never

ENGINES = ["sqlite", "leveldb", "log"]


def url_of(engine: str, folder: Path) -> str:
    if engine == "leveldb":
        pytest.importorskip("plyvel")
    return f"{engine}:///{folder / 'outbox'}"


async def forever(*_: object) -> Sequence[Any]:
    await asyncio.sleep(3600)
    return []


async def never_open() -> Parts:
    await asyncio.sleep(3600)
    raise AssertionError("it is not waited for")


async def cut_short(world: World, outbox: str, **asked: Any) -> None:
    """A client that dies in the middle of an attempt: nothing of it is wound up."""
    client = world.client(outbox=outbox, durability="before")
    sending = asyncio.create_task(client.post("/orders", json=1, **asked))
    while not world.asked("a"):
        await asyncio.sleep(0.001)
    parts = await client.ready()
    assert parts.outbox is not None
    await parts.outbox.spool.aclose()  # its file and locks are gone, as after kill -9
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    client._parts = None
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    parts.outbox._turn.give_up()


@pytest.mark.parametrize("engine", ENGINES)
async def test_before_a_crash_in_mid_attempt_it_is_sent_again_by_the_next(
    engine: str, tmp_path: Path
) -> None:
    """Under the same key, by itself; and whoever was there first is told that it was not ours."""
    world, told = World(a=never), list[Settled]()
    await cut_short(world, url_of(engine, tmp_path), key="order-7")
    world.servers["a"].then(OK)
    client = world.client(outbox=url_of(engine, tmp_path), on_settled=told.append)
    async with client:
        assert isinstance(await client.wait("order-7", timeout=60), Delivered)
        await client.drain(timeout=60)
    assert len(world.servers["a"].asked) == 2
    assert [(one.key, one.ours) for one in told] == [("order-7", False)]


@pytest.mark.parametrize("engine", ENGINES)
async def test_before_a_crash_in_mid_attempt_without_a_key_it_is_unknown(
    engine: str, tmp_path: Path
) -> None:
    """It may have been applied: it is not sent again, and that is said."""
    world, told = World(a=never), list[Settled]()
    await cut_short(world, url_of(engine, tmp_path), key=False)
    client = world.client(outbox=url_of(engine, tmp_path), on_settled=told.append)
    async with client:
        await client.drain(timeout=60)
        assert len(world.servers["a"].asked) == 1
    assert [type(one.result) for one in told] == [Unknown]


async def test_one_of_two_sends_and_both_hear_of_theirs(tmp_path: Path) -> None:
    """Two on one file; the second takes over when the first lets go."""
    world = World(a=DOWN)
    news: dict[str, list[str]] = {"first": [], "second": []}
    clients: dict[str, AsyncClient] = {
        name: world.client(
            outbox=str(tmp_path / "o.db"),
            on_settled=lambda one, told=told: told.append(one.key),
        )
        for name, told in news.items()
    }
    first, second = clients["first"], clients["second"]
    for name, client in clients.items():
        result = await client.post("/orders", json=1, key=name, deadline=0.3)
        assert isinstance(result, Queued)
    assert first.statistics()["sends"]
    assert not second.statistics()["sends"]
    world.servers["a"].then(OK)
    assert isinstance(await second.wait("second", timeout=60), Delivered)
    assert isinstance(await first.wait("first", timeout=60), Delivered)
    await second.drain(timeout=60)
    for _ in range(3_000):
        if news["second"] and len(news["first"]) == 2:
            break
        await asyncio.sleep(0.02)
    assert news["second"] == ["second"]
    assert sorted(news["first"]) == ["first", "second"], "it sent both"
    await first.aclose()
    for _ in range(3_000):
        if second.statistics()["sends"]:
            break
        await asyncio.sleep(0.02)
    assert second.statistics()["sends"]
    await second.aclose()


def test_a_turn_is_one_processes_and_goes_with_it(tmp_path: Path) -> None:
    url, shop = f"sqlite:///{tmp_path / 'o.db'}", Destination("shop")
    first, second, other = (Turn.at(url, name) for name in (shop, shop, Destination("else")))
    assert first.take()
    assert first.take()
    assert not second.take()
    assert other.take(), "another service's requests are another's to send"
    first.give_up()
    assert second.take()
    second.give_up()
    other.give_up()
    assert Turn.at("memory:", shop).take()


async def test_with_every_task_cancelled_the_client_still_lets_go(tmp_path: Path) -> None:
    """As a signal handler does that goes through all tasks: file and turn are another's to have."""
    url = f"sqlite:///{tmp_path / 'o.db'}"
    client = World(a=OK).client(outbox=url)
    parts = await client.ready()
    assert parts.outbox is not None
    while not parts.outbox.sends:
        await asyncio.sleep(0.001)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await client.aclose()
    turn = Turn.at(url, parts.outbox.destination)
    assert turn.take()
    turn.give_up()


async def test_what_has_an_order_does_not_overtake_what_waits(tmp_path: Path) -> None:
    """While anything waits, it goes through the outbox, and out in its order."""
    world = World(a=DOWN)
    async with world.client(outbox=str(tmp_path / "o.db")) as client:
        await client.post("/orders", json=1, order="c-7", deadline=0.2)
        world.servers["a"].then(OK)
        asked = world.asked("a")
        second = await client.post("/orders", json=2, order="c-7")
        assert isinstance(second, Queued)
        third = await client.post("/orders", json=3)
        assert isinstance(third, Delivered), "what has none goes at once"
        assert (await client.drain(timeout=60)).waiting == 0
        fourth = await client.post("/orders", json=4, order="c-7")
        assert isinstance(fourth, Delivered)
    # The first may have gone while the second was written down: only what has an order has one.
    bodies = [one.body for one in world.servers["a"].asked[asked:]]
    assert [body for body in bodies if body != b"3"] == [b"1", b"2", b"4"]
    assert bodies.count(b"3") == 1


async def test_a_server_that_is_well_again_is_sent_what_waits_for_it(tmp_path: Path) -> None:
    """Exim's rule: a success is evidence, and nobody waits for the next probe."""
    world = World(a=DOWN)
    async with world.client(outbox=str(tmp_path / "o.db")) as client:
        for number in range(8):  # until it is known to be down, here and in the background
            await client.post("/orders", json=1, key=f"k{number}", deadline=0.2)
        parts = await client.ready()
        assert parts.outbox is not None
        lane = parts.outbox.dispatcher.scheduler.lane(parts.outbox.destination)
        for _ in range(3_000):
            if not lane.is_open(parts.route.now()):
                break
            await asyncio.sleep(0.01)
        assert not lane.is_open(parts.route.now())
        world.servers["a"].then(OK)
        assert isinstance(await client.post("/orders", json=1), Delivered)
        assert lane.is_open(parts.route.now())
        assert (await client.drain(timeout=60)).waiting == 0


# --- commands ---------------------------------------------------------------------------------


@pytest.fixture
async def waiting(tmp_path: Path) -> Path:
    """An outbox with two requests that nobody took."""
    world = World(a=DOWN)
    client = world.client(outbox=str(tmp_path / "o.db"), sends=False)
    async with client:
        await client.post("/orders", json={"item": "tea"}, key="order-7", deadline=0.2)
        await client.post("/orders", json={"item": "cups"}, key="order-8", deadline=0.2)
    return tmp_path / "o.db"


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)


def test_outbox_list_show_retry_and_drop(waiting: Path) -> None:
    """The operator's commands of the relay, over the sender's outbox."""
    at = ("--outbox", str(waiting))
    listed = command("outbox", "list", *at)
    assert "order-7" in listed.output
    assert "2 messages" in listed.output
    rows = [
        json.loads(line)
        for line in command("outbox", "list", "--json", *at).output.split("\n")
        if line
    ]
    assert [row["name"] for row in rows] == ["order-7", "order-8"]
    shown = command("outbox", "show", "order-7", *at)
    assert "POST /orders" in shown.output
    assert "it refused the connection (https://a)" in shown.output
    assert command("outbox", "show", "order-7", "--body", *at).output == '{"item":"tea"}'
    assert "due now" in command("outbox", "retry", "order-7", *at).output
    assert "dropped" in command("outbox", "drop", "order-8", *at).output
    assert "1 message" in command("outbox", "list", *at).output


async def test_draining_waits_for_no_other_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several in one file each client waits for its own; and `drain` gives each its time: one
    that is down does not take it from the rest."""
    file = str(tmp_path / "o.db")
    world = World(a=DOWN, b=DOWN)
    for name in ("a", "b"):
        async with world.client(name, outbox=file, sends=False) as client:
            assert isinstance(await client.post("/o", json=1, key=name), Queued)
    world.servers["b"].then(OK)
    async with asyncio.timeout(100), world.client("b", outbox=file) as client:
        assert (await client.drain(60)).waiting == 0
        assert isinstance(await client.wait("b"), Delivered)
    assert "unspool serve" not in caplog.text, "advice for a relay's operator"


def test_an_outbox_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    from unspool.admin.spool import NoSuch

    for verb in ("list", "drain"):
        with pytest.raises(NoSuch, match="there is no outbox at"):
            command("outbox", verb, "--outbox", str(tmp_path / "none.db"))
    assert not list(tmp_path.iterdir())


# --- what became of them --------------------------------------------------------------------------


async def test_a_spoilt_record_silences_nobody_else(tmp_path: Path) -> None:
    """What became of the others is told, and of that one, that nobody knows."""
    world, told = World(a=DOWN), list[str]()
    outbox = url_of("sqlite", tmp_path)
    client = world.client(outbox=outbox, sends=False, on_settled=lambda one: told.append(one.key))
    async with client:
        for name in ("spoilt", "whole"):
            assert isinstance(await client.post("/orders", json=1, key=name), Queued)
        # Before anybody sends: a request that is leased has been read. And by the SQLite that it
        # uses itself: closing another's in this process lets go of its locks.
        with closing(apsw.Connection(str(tmp_path / "outbox"))) as file:
            file.set_busy_timeout(5_000)
            file.execute(
                "UPDATE body SET request = x'00' FROM message AS m"
                " WHERE m.id = body.id AND m.name = 'spoilt'"
            )
        world.servers["a"].then(OK)
        async with asyncio.timeout(60), world.client(outbox=outbox):
            while told != ["whole"]:
                await asyncio.sleep(0.05)


class Troubled(MemorySpool):
    """It cannot be asked, for a while."""

    left = 2

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        self.left -= 1
        if self.left >= 0:
            raise Unavailable("simulated")
        return await super().find(keys)


@asynccontextmanager
async def watching(spool: MemorySpool, told: list[str]) -> AsyncIterator[Watch]:
    """A watch that runs, and tells by their keys what has ended."""
    watch = Watch(
        custody=Custody(spool=spool, terms=Terms(survives=Survives.NOTHING, required=0)),
        read=lambda entry: Bounced(entry.message.key, "expired", ()),
        told=lambda one: told.append(one.key),
    )
    running = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@virtually
async def test_what_was_settled_while_the_outbox_cannot_be_asked_is_told_later() -> None:
    """Also of what nobody here waits for: whoever queued it may have died."""
    spool, told = Troubled(), list[str]()
    await spool.accept([settled("1")])
    async with watching(spool, told) as watch:
        watch.posted(key("1"))
        await asyncio.sleep(5 * LOOK_S)
        assert len(told) == 1


class Slow(MemorySpool):
    """It takes a while to find something, or for ever."""

    takes_s = 0.4

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        await asyncio.sleep(self.takes_s)
        return await super().find(keys)


@virtually
async def test_what_has_ended_is_told_before_the_outbox_is_closed() -> None:
    """Once, also where the watch is just looking; and one that hangs is waited for a moment."""
    spool, told = Slow(), list[str]()
    await spool.accept([settled("1"), settled("2"), settled("3")])
    async with watching(spool, told) as watch:
        watch.expect(key("1"), "1")
        await asyncio.sleep(0.1)
        watch.posted(key("1"))  # when it has been found already
        watch.posted(key("2"))
        assert told == []
        await watch.catch_up()
        assert len(told) == 2
        spool.takes_s = 3600
        watch.posted(key("3"))
        began = asyncio.get_running_loop().time()
        assert not await watch.last(5)
        assert asyncio.get_running_loop().time() - began <= 5
        assert len(told) == 2


@virtually
async def test_nobody_looks_after_the_last_look() -> None:
    """The outbox is being closed then."""
    spool, told = MemorySpool(), list[str]()
    await spool.accept([settled("1"), settled("2")])
    async with watching(spool, told) as watch:
        watch.posted(key("1"))
        assert await watch.last(5)
        watch.posted(key("2"))
        await watch.catch_up()
        await asyncio.sleep(5 * LOOK_S)
        assert len(told) == 1


@virtually
async def test_who_gives_up_looking_leaves_it_to_the_next_look() -> None:
    """A `drain` that is cancelled in the middle of its look takes no news with it."""
    spool, told = Slow(), list[str]()
    await spool.accept([settled("1"), settled("2")])
    async with watching(spool, told) as watch:
        watch.posted(key("1"))
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(watch.catch_up())
        await asyncio.sleep(0.1)
        watch.posted(key("2"))
        await asyncio.sleep(spool.takes_s)
        draining.cancel()
        await asyncio.sleep(10 * LOOK_S)
        assert len(told) == 2
        await asyncio.gather(draining, return_exceptions=True)


async def test_draining_has_told_what_became_of_the_last() -> None:
    """When nothing waits any more, everybody has heard: a script may end with it."""
    world, told = World(a=DOWN), list[str]()
    client = world.client(outbox="memory:", on_settled=lambda one: told.append(one.key))
    async with client:
        await client.post("/orders", json=1, key="k", deadline=0.3)
        parts = await client.ready()
        assert parts.watch is not None
        slow = Slow()
        slow.takes_s = 0.2
        assert parts.outbox is not None
        slow.entries = parts.outbox.spool.entries  # type: ignore[attr-defined]
        parts.watch._custody = Custody(spool=slow, terms=parts.outbox.custody.terms)
        world.servers["a"].then(OK)
        progress = await client.drain(timeout=60)
        assert (progress.waiting, progress.settled, told) == (0, 1, ["k"])


@pytest.mark.parametrize("verb", ["tally", "find"])
@virtually
async def test_draining_ends_where_the_outbox_does_not_answer(verb: str) -> None:
    """Whatever it is that hangs: how many wait, or what became of the last."""
    world = World(a=DOWN)
    client = world.client(outbox="memory:", clock=VirtualClock(NOW))
    async with client:
        await client.post("/orders", json=1, key="k", deadline=0.3)
        parts = await client.ready()
        assert parts.outbox is not None

        setattr(parts.outbox.spool, verb, forever)
        parts.outbox.custody._finds._commit = parts.outbox.spool.find
        world.servers["a"].then(OK)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="unspool outbox list"):
            await client.drain(timeout=60)
        assert asyncio.get_running_loop().time() - began <= 60 + BEYOND_S


@virtually
async def test_who_waits_for_one_key_in_an_outbox_that_hangs_is_told() -> None:
    client = World(a=DOWN).client(outbox="memory:", clock=VirtualClock(NOW))
    async with client:
        await client.post("/orders", json=1, key="k", deadline=0.3)
        parts = await client.ready()
        assert parts.outbox is not None
        parts.outbox.custody._finds._commit = forever
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="unspool outbox list"):
            await client.wait("k", timeout=60)
        assert asyncio.get_running_loop().time() - began <= 60 + BEYOND_S


@virtually
async def test_an_outbox_that_does_not_open_keeps_nobody() -> None:
    """A request has its deadline: then it is its sender's again, and the fallback plan's."""

    async def planned(request: Request) -> str:
        return request.key

    client = World(a=OK).client(outbox="memory:", fallback=planned)
    client._loop, client._pid = asyncio.get_running_loop(), os.getpid()
    client._opening = opening = asyncio.create_task(never_open())
    began = asyncio.get_running_loop().time()
    with pytest.raises(Undelivered, match="had not opened") as caught:
        await client.carry(client.build("POST", "/orders", json=1, key="k", deadline=3))
    assert caught.value.request is not None
    assert not caught.value.maybe_applied
    assert asyncio.get_running_loop().time() - began == pytest.approx(3)
    fell = await client.post("/orders", json=1, key="k", deadline=3)
    assert isinstance(fell, FellBack)
    assert fell.value == "k"
    for waits in (client.wait("k", timeout=1), client.drain(timeout=1)):
        with pytest.raises(Unavailable, match="does not answer"):
            await waits
    opening.cancel()


# --- closing --------------------------------------------------------------------------------------


class Hanging(MemorySpool):
    """From some moment on it answers nothing."""

    hangs = False

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.sleep(3600)

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        leases = await super().lease(wants, now=now, until=until)
        self.hangs = True
        return leases

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        await self._answer()
        return await super().survey(after=after, limit=limit)

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        await self._answer()
        return await super().settle(settlements)


@virtually
async def test_closing_waits_for_a_spool_that_hangs_for_its_time_once() -> None:
    """`drain_ms` is for all of it: attempts, verdicts, leases that are given back."""
    spool, clock, luck = Hanging(), VirtualClock(NOW), Random(0)
    custody = Custody(spool=spool, terms=Terms(survives=Survives.NOTHING, required=0))
    dispatcher = Dispatcher(
        custody=custody, transport=Server(OK), scheduler=Scheduler(), board=Telling(lambda _: None),
        policy=Policy(), clock=clock, lease_ms=LEASE_MS, serves=[HERE], among_others=True,
    )  # fmt: skip
    outbox = Outbox(
        spool=spool, custody=custody, secret=b"s", dispatcher=dispatcher, turn=Turn(None),
        destination=HERE, policy=Policy(), clock=clock, chance=luck.randbytes, serves=[HERE],
        room=None,
    )  # fmt: skip
    await spool.accept([values.waiting("1"), values.waiting("2")])
    outbox.start(sends=True)
    await asyncio.sleep(1)
    assert custody._settles.busy
    began = asyncio.get_running_loop().time()

    async def last(within_s: float) -> bool:
        raise AssertionError("it is not asked any more")

    await outbox.aclose(drain_ms=10_000, last=last)
    assert asyncio.get_running_loop().time() - began < 14


@virtually
async def test_closing_waits_only_so_long_for_an_outbox_that_does_not_open() -> None:
    client = World(a=OK).client(outbox="memory:")
    client._opening = opening = asyncio.create_task(never_open())
    began = asyncio.get_running_loop().time()
    await client.aclose()
    assert asyncio.get_running_loop().time() - began <= OPENS_S
    opening.cancel()


async def test_an_outbox_that_opens_when_it_is_not_waited_for_any_more_is_let_go(
    tmp_path: Path,
) -> None:
    """Whoever was waiting for it is told."""
    client = World(a=OK).client(outbox=str(tmp_path / "outbox.db"))
    asking = asyncio.create_task(client.post("/orders", json=1))
    while client._opening is None:
        await asyncio.sleep(0)
    client._left = True
    with pytest.raises(Misconfigured, match="closed"):
        await asking
    assert client._parts is None


class Silent(MemorySpool):
    """From some moment on nothing is found in it, and it does not close."""

    hangs = False

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        if self.hangs:
            await asyncio.sleep(3600)
        return await super().find(keys)

    async def aclose(self) -> None:
        if self.hangs:
            await asyncio.sleep(3600)
        await super().aclose()


@virtually
async def test_an_outbox_that_falls_silent_just_before_it_is_closed_is_waited_for_once() -> None:
    """Between two looks of the watch: the last look finds out, and closing knows it then."""
    spool, clock, luck = Silent(), VirtualClock(NOW), Random(0)
    custody = Custody(spool=spool, terms=Terms(survives=Survives.NOTHING, required=0))
    dispatcher = Dispatcher(
        custody=custody, transport=Server(OK), scheduler=Scheduler(), board=Telling(lambda _: None),
        policy=Policy(), clock=clock, lease_ms=LEASE_MS, serves=[], among_others=True,
    )  # fmt: skip
    outbox = Outbox(
        spool=spool, custody=custody, secret=b"s", dispatcher=dispatcher, turn=Turn(None),
        destination=HERE, policy=Policy(), clock=clock, chance=luck.randbytes, serves=[HERE],
        room=None,
    )  # fmt: skip
    watch = Watch(custody=custody, read=lambda _: Queued("1", "power", ()), told=lambda _: None)
    await spool.accept([values.waiting("1")])
    watch.expect(key("1"), "1")
    outbox.start(sends=True)
    await asyncio.sleep(1)
    spool.hangs = True
    began = asyncio.get_running_loop().time()
    await outbox.aclose(drain_ms=2_000, last=watch.last)
    assert asyncio.get_running_loop().time() - began < 2 + 3.5
