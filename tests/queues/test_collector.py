"""The collector: nothing is completed before it is ours, and what it is once it is."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from unspool.core.admission import Terms
from unspool.core.handover import Unfit
from unspool.core.lifecycle import Delivered, State
from unspool.core.message import (
    NEVER,
    Answer,
    Instant,
    Request,
    Response,
    fingerprint,
    identify,
)
from unspool.custody import Custody
from unspool.errors import Corrupt, Full, Misconfigured, TooLarge, Unavailable
from unspool.ingress.collector import PAUSE_MOST_S, Collector, Fate, entered, pause_s
from unspool.ingress.protocol import Caller
from unspool.node import Node, plan_for
from unspool.queues.memory import MemoryQueue, MemoryServer
from unspool.queues.protocol import Taken
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry, Query, Survives

NOW = Instant(1_790_000_000_000)
SECRET = b"s" * 32
PLAN = plan_for("http://service.example")
OPTIONS = PLAN.options


def written(key: str = "order-7", **members: object) -> bytes:
    return json.dumps(
        {"unspool": 1, "method": "POST", "target": "/orders", "key": key} | members
    ).encode()


def entry_of(payload: bytes, **options: Any) -> Entry:
    changed = msgspec.structs.replace(OPTIONS, **options)
    return entered(payload, options=changed, secret=SECRET, now=NOW, nonce=b"n" * 16)


class Still:
    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> Instant:
        return self.at


class Watched(MemoryQueue):
    """A queue that notes what it is told, in order."""

    def __init__(self, server: MemoryServer, told: list[str]) -> None:
        super().__init__(server)
        self.told = told
        self.broken = False

    async def complete(self, taken: Sequence[Taken], /) -> None:
        if self.broken:
            raise Unavailable("gone. It is given again. Try: again")
        self.told += ["complete"] * len(taken)
        await super().complete(taken)

    async def give_back(self, taken: Sequence[Taken], /) -> None:
        self.told += ["give back"] * len(taken)
        await super().give_back(taken)


class Slow(MemorySpool):
    """A spool that syncs when it is let, and may refuse."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told
        self.refusal: Exception | None = None
        self.synced = asyncio.Event()
        self.synced.set()

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        if self.refusal is not None:
            raise self.refusal
        kept = await super().accept(entries)
        await self.synced.wait()
        self.told += ["synced"] * len(entries)
        return kept


class It:
    """A collector over all of these."""

    def __init__(self, *, required: Survives = Survives.NOTHING, tries: Any = None) -> None:
        self.told: list[str] = []
        self.server = MemoryServer()
        self.spool = Slow(self.told)
        self.clock = Still()
        self.terms = Terms(survives=Survives.NOTHING, required=required)
        self.options = OPTIONS
        self.tries = tries
        self.chance: Callable[[int], bytes] = bytes

    def collector(self) -> Collector:
        self.queue = Watched(self.server, self.told)
        return Collector(
            queue=self.queue,
            called="memory:",
            custody=Custody(spool=self.spool, terms=self.terms),
            options=self.options,
            secret=SECRET,
            clock=self.clock,
            chance=self.chance,
            tries=self.tries,
            luck=lambda: 0.0,
        )

    async def drained(self, *payloads: bytes) -> bool:
        self.server.keep("unspool", payloads)
        self.latest = self.collector()
        return await self.latest.drain(asyncio.Event(), wait_ms=10)

    def waiting(self, name: str = "unspool") -> list[bytes]:
        return [*self.server.waiting.get(name, ())]


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.001)


# --- what it becomes --------------------------------------------------------------------------


def test_it_is_what_the_relay_would_have_saved() -> None:
    """Same key, same fingerprint, due at once, and the envelope of its sender."""
    fields = [["Content-Type", "application/json"], ["Authorization", "alice"]]
    entry = entry_of(written(fields=fields, body='{"a": 1}', order="customer-9"))
    message = entry.message
    scope = [b"alice", b""]
    assert message.key == identify(
        SECRET, scope=scope, destination=OPTIONS.destination, name="order-7"
    )
    asked = Request(b"POST", b"/orders", [(b"Content-Type", b"application/json")], b'{"a":1}')
    assert message.fingerprint == fingerprint(asked)
    assert (entry.state, entry.due_at, entry.attempt) == (State.WAITING, NOW, 0)
    assert (message.name, message.order_key, message.repeat) == ("order-7", "customer-9", True)
    assert message.expires_at == NOW + OPTIONS.lifetime_ms
    assert message.request is not None
    assert list(message.request.fields)[-1] == (b"Via", b"1.1 unspool")
    assert (b"Idempotency-Key", b'"order-7"') in message.request.fields


def test_fields_of_one_connection_end_here() -> None:
    """What a script copied from a request that came to it is no framing of ours."""
    fields = [
        ["Content-Length", "3"], ["Connection", "close, X-Hop"], ["X-Hop", "1"],
        ["Transfer-Encoding", "chunked"], ["X-Kept", "1"],
    ]  # fmt: skip
    entry = entry_of(written(fields=fields))
    assert entry.message.request is not None
    names = [name for name, _ in entry.message.request.fields]
    assert names == [b"X-Kept", b"Idempotency-Key", b"Via"]


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (None, NOW + OPTIONS.lifetime_ms),
        (NOW + 60_000, NOW + 60_000),
        (NOW - 60_000, NOW - 60_000),
        (NEVER, NOW + OPTIONS.lifetime_ms),
    ],
)
def test_deadlines(until: int | None, expected: int) -> None:
    """The sender's, if it is sooner than ours. One that has passed bounces where people see it."""
    members = {} if until is None else {"expires_at": until}
    assert entry_of(written(**members)).message.expires_at == expected


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\0\xff", "JSON|UTF-8|utf-8"),
        (written("k" * 11), "at most 10 characters"),
        (written(fields=[["Via", "1.1 unspool"]]), "a loop"),
    ],
)
def test_unfit(payload: bytes, says: str) -> None:
    """What no relay would take is not taken here either."""
    with pytest.raises(Unfit, match=says):
        entry_of(payload, key_max_chars=10)


def test_pauses() -> None:
    """Longer each time, up to a minute, spread so that many collectors do not come together."""
    assert [pause_s(failures, luck=1.0) for failures in (1, 2, 3)] == [1, 2, 4]
    assert pause_s(1, luck=0.0) == 0.5
    assert pause_s(1000, luck=1.0) == PAUSE_MOST_S


# --- the rounds -------------------------------------------------------------------------------


async def test_completed_once_synced() -> None:
    """I1. The queue hears of it after the spool has synced, and not before."""
    it = It()
    it.spool.synced.clear()
    draining = asyncio.create_task(it.drained(written("a"), written("b")))
    await asyncio.sleep(0.05)
    assert it.told == []
    it.spool.synced.set()
    assert await draining
    assert it.told == ["synced", "synced", "complete", "complete"]
    assert it.latest.counts[Fate.KEPT] == 2
    assert [entry.message.name for entry in it.spool.entries.values()] == ["a", "b"]


async def test_given_twice_is_one_message() -> None:
    """I5. A queue that gives a message again, as it is or written otherwise, gives nothing new."""
    it = It()
    assert await it.drained(written(), written(), written() + b" ")
    assert await it.drained(written())
    assert len(it.spool.entries) == 1
    assert it.told.count("complete") == 4
    assert it.latest.counts == {
        Fate.KEPT: 0, Fate.KNOWN: 1, Fate.ASIDE: 0, Fate.BACK: 0,
    }  # fmt: skip


async def test_known_when_it_has_settled() -> None:
    """I3. What was delivered long ago is not delivered again."""
    it = It()
    await it.drained(written())
    [lease] = await it.spool.lease({OPTIONS.destination: 1}, now=NOW, until=Instant(NOW + 60_000))
    answer = Response(201, b"", ())
    await it.spool.settle([(lease, Delivered(answer, NEVER, NEVER))])
    assert await it.drained(written())
    [entry] = it.spool.entries.values()
    assert entry.state is State.DELIVERED
    assert it.latest.counts[Fate.KNOWN] == 1


async def test_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody can read, and another request under a known key, hold nobody up and are kept
    whole; the log says why, and where."""
    it = It()
    with caplog.at_level(logging.ERROR):
        assert await it.drained(b"\0not JSON\xff", written(), written(body="other"), written("b"))
    assert it.waiting() == []
    assert it.waiting("unspool.aside") == [b"\0not JSON\xff", written(body="other")]
    assert {entry.message.name for entry in it.spool.entries.values()} == {"order-7", "b"}
    reasons = [record.getMessage() for record in caplog.records]
    assert len(reasons) == 2
    assert "JSON" in reasons[0]
    assert "another request has its key" in reasons[1]
    assert all("unspool.aside" in reason for reason in reasons)


async def test_a_key_too_old_to_be_known() -> None:
    """J3. It may have been delivered and forgotten: set aside, unless it is known after all."""
    it = It()
    old = "0197742f-3e00-7000-8000-000000000001"  # June 2025
    await it.drained(written(old))
    assert it.waiting("unspool.aside") == [written(old)]
    it.clock.at = Instant(0x0197742F3E00 + 1000)
    await it.drained(written(old))
    it.clock.at = NOW
    await it.drained(written(old))
    assert it.latest.counts[Fate.KNOWN] == 1


@pytest.mark.parametrize("error", [Full("full. x"), Unavailable("gone. x")])
async def test_a_spool_in_trouble(error: Exception) -> None:
    """What was not kept is given back, nothing more is taken, and later it goes on."""
    it = It()
    it.spool.refusal = error
    assert not await it.drained(written("a"), written("b"))
    assert it.told == ["give back", "give back"]
    assert it.waiting() == [written("a"), written("b")]
    it.spool.refusal = None
    assert await it.drained()
    assert len(it.spool.entries) == 2


async def test_too_large_for_the_spool() -> None:
    """It will never fit: set aside, rather than given back for ever."""
    it = It()
    it.spool.refusal = TooLarge("a message of 9 bytes, and it takes 8. x")
    assert await it.drained(written())
    assert it.waiting("unspool.aside") == [written()]


async def test_a_key_that_is_damaged() -> None:
    """What the spool has under one key cannot be read: that is set aside beside what is taken.
    Where nothing is taken it may be all of the spool, and everything stays in its queue."""

    class Damaged(Slow):
        async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
            if any(entry.message.name == "bad" for entry in entries):
                raise Corrupt("1 record failed its checksum. x")
            return await super().accept(entries)

    it = It()
    it.spool = Damaged(it.told)
    assert not await it.drained(written("bad"))
    assert it.waiting() == [written("bad")]
    assert await it.drained(written("a"), written("b"))
    assert it.waiting("unspool.aside") == [written("bad")]
    assert len(it.spool.entries) == 2


async def test_a_mistake_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """One message that we stumble over does not end the collector, which would meet it again."""
    it = It()

    def chance(_size: int) -> bytes:
        raise ZeroDivisionError

    it.chance = chance
    assert await it.drained(written())
    assert it.waiting("unspool.aside") == [written()]
    assert "a mistake of ours" in caplog.text


async def test_no_custody_no_taking() -> None:
    """A spool that does not survive what the operator asked for takes nothing from anybody."""
    it = It(required=Survives.POWER)
    assert not await it.drained(written())
    assert it.told == []
    assert it.waiting() == [written()]


async def test_a_queue_that_hangs_up_at_the_end() -> None:
    """The word that did not arrive is said again: given again, known, completed. One message."""
    it = It()
    it.server.keep("unspool", [written()])
    collector = it.collector()
    it.queue.broken = True
    assert not await collector.drain(asyncio.Event(), wait_ms=10)
    assert it.told == ["synced", "give back"]
    assert it.waiting() == [written()]
    assert await it.drained()
    assert len(it.spool.entries) == 1
    assert it.latest.counts[Fate.KNOWN] == 1


async def test_a_claim_promises_nothing() -> None:
    """A key that a relay is trying for a sender who waits may come to nothing: it is given back."""
    it = It()
    claim = msgspec.structs.replace(
        entry_of(written()), state=State.CLAIMED, attempt=1,
        leased_until=Instant(NOW + 60_000), keep_until=NEVER,
    )  # fmt: skip
    await it.spool.accept([claim])
    assert not await it.drained(written())
    assert it.waiting() == [written()]
    # It came to nothing: its lease runs out, and the key is ours.
    it.clock.at = Instant(NOW + 60_001)
    assert await it.drained()
    [entry] = it.spool.entries.values()
    assert entry.state is State.WAITING


async def test_beside_a_relay_that_tries_it() -> None:
    """I4. In the relay's own process its tries are seen, claims or none: no second attempt."""
    asked = asyncio.Event()
    answered = asyncio.Event()

    class Held:
        attempts = 0

        async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
            self.attempts += 1
            asked.set()
            await answered.wait()
            return Response(201, b"", (), b"made")

        async def aclose(self) -> None:
            pass

    transport = Held()
    plan = msgspec.structs.replace(PLAN, required=Survives.NOTHING)
    node = await Node.open(plan=plan, spool=MemorySpool(), transport=transport)  # type: ignore[arg-type]
    request = Request(
        b"POST", b"/orders", [(b"Host", b"x"), (b"Idempotency-Key", b"order-7")], b"tea"
    )
    trying = asyncio.create_task(node.relay(request, Caller("127.0.0.1", "http")))
    await asked.wait()
    server = MemoryServer()
    server.keep("unspool", [written(body="tea", fields=[["Host", "x"]])])

    def collector() -> Collector:
        return Collector(
            queue=MemoryQueue(server), called="memory:", custody=node.custody,
            options=node.options, secret=node.secret, clock=node.clock, chance=node.chance,
            tries=node.relay.tries,
        )  # fmt: skip

    assert not await collector().drain(asyncio.Event(), wait_ms=10)
    answered.set()
    assert (await trying).body == b"made"
    again = collector()
    assert await again.drain(asyncio.Event(), wait_ms=10)
    assert again.counts[Fate.KNOWN] == 1
    assert transport.attempts == 1
    await node.stop(drain_ms=0)


@pytest.mark.parametrize("prompt", [False, True], ids=["relay", "express"])
async def test_in_another_process_than_the_relay_that_tries_it(prompt: bool) -> None:
    """I4, I6. It sees no tries, and a relay with one worker writes no claims: what it brings waits
    while it is being tried at the door, and the answer that comes there is the message's."""
    made = Response(201, b"", (), b"made")
    let_go: list[Callable[[Answer], None]] = []

    class Held:
        attempts = 0

        async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
            self.attempts += 1
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            let_go.append(answer.set_result)
            return await answer

        def begin(
            self, request: Request, done: Callable[[Answer], None], /, *, repeat: bool
        ) -> bool:
            self.attempts += 1
            let_go.append(done)
            return True

        async def aclose(self) -> None:
            pass

    transport, spool = Held(), MemorySpool()
    plan = msgspec.structs.replace(PLAN, required=Survives.NOTHING)
    node = await Node.open(plan=plan, spool=spool, transport=transport)  # type: ignore[arg-type]
    node.start()
    fields = [(b"Host", b"x"), (b"Idempotency-Key", b"order-7")]
    request = Request(b"POST", b"/orders", fields, b"tea")
    told: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    caller = Caller("127.0.0.1", "http")
    if prompt:
        assert node.relay.begin(request, caller, told.set_result)
    else:
        trying = asyncio.create_task(node.relay(request, caller))
        trying.add_done_callback(lambda task: told.set_result(task.result()))
    while not let_go:
        await asyncio.sleep(0)
    server = MemoryServer()
    server.keep("unspool", [written(body="tea", fields=[["Host", "x"]])])
    collector = Collector(
        queue=MemoryQueue(server), called="memory:", custody=node.custody, options=node.options,
        secret=node.secret, clock=node.clock, chance=node.chance,
    )  # fmt: skip
    assert await collector.drain(asyncio.Event(), wait_ms=10)
    assert collector.counts[Fate.KEPT] == 1
    async with asyncio.timeout(60):
        while not node.dispatcher.deferred:
            await asyncio.sleep(0.001)
    assert transport.attempts == 1
    let_go.pop()(made)
    answer = await told
    assert answer.body == b"made"
    assert b"Idempotency-Stored" not in dict(answer.fields)
    [entry] = [one for one in spool.entries.values() if one.message.name == "order-7"]
    assert (entry.state, entry.answer and entry.answer.body) == (State.DELIVERED, b"made")
    assert transport.attempts == 1
    await node.stop(drain_ms=0)


async def test_told_to_stop() -> None:
    """It ends at once while it waits, and finishes the round that it is in."""
    it = It()
    told = asyncio.Event()
    running = asyncio.create_task(it.collector().run(told))
    await until(lambda: it.server.rung)  # it waits
    it.spool.synced.clear()
    it.server.keep("unspool", [written()])
    await until(lambda: it.spool.entries)
    told.set()
    await asyncio.sleep(0.05)
    assert not running.done()
    it.spool.synced.set()
    await asyncio.wait_for(running, 20)
    assert it.told == ["synced", "complete"]
    it.server.keep("unspool", [written("b")])
    told.clear()
    running = asyncio.create_task(it.collector().run(told))
    await until(lambda: len(it.spool.entries) == 2 and it.server.rung)
    told.set()
    await asyncio.wait_for(running, 20)


async def test_a_backlog_that_others_fill_and_empty() -> None:
    """What waits is counted as it is now: a relay elsewhere accepts and delivers, too."""
    it = It()
    it.terms = Terms(survives=Survives.NOTHING, required=Survives.NOTHING, backlog_max=2)
    collector = it.collector()
    await it.spool.accept([entry_of(written(name)) for name in "ab"])
    it.server.keep("unspool", [written("c")])
    told = asyncio.Event()
    running = asyncio.create_task(collector.run(told))
    await asyncio.sleep(0.05)
    assert it.waiting() == [written("c")]
    until = Instant(NOW + 60_000)
    leases = await it.spool.lease({OPTIONS.destination: 9}, now=NOW, until=until)
    made = Delivered(Response(200, b"OK", (), b""), until, until)
    await it.spool.settle([(lease, made) for lease in leases])
    async with asyncio.timeout(60):
        while not collector.counts[Fate.KEPT]:
            await asyncio.sleep(0.01)
    told.set()
    await running


async def test_trouble_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A queue that is down all night is one warning, and one line when it is back."""
    it = It()
    it.spool.refusal = Unavailable("the disk is gone. x")
    with caplog.at_level(logging.INFO):
        collector = it.collector()
        for _ in range(5):
            collector._in_trouble("gearmand hung up")
        collector._all_well()
    said = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    assert len(said) == 2
    await it.queue.aclose()


async def test_exacting() -> None:
    """What only a person can mend is said at the start, and is trouble like all other later."""

    class Locked(MemoryQueue):
        locked = True

        async def take(self, *, limit: int, wait_ms: int) -> Sequence[Taken]:
            if self.locked:
                raise Misconfigured("the password is wrong. x")
            return await super().take(limit=limit, wait_ms=wait_ms)

    def collector(queue: MemoryQueue, *, exacting: bool) -> Collector:
        terms = Terms(survives=Survives.NOTHING, required=Survives.NOTHING)
        return Collector(
            queue=queue, called="memory:", custody=Custody(spool=MemorySpool(), terms=terms),
            options=OPTIONS, secret=SECRET, clock=Still(), chance=bytes, exacting=exacting,
        )  # fmt: skip

    with pytest.raises(Misconfigured):
        await collector(Locked(), exacting=True).run(asyncio.Event())
    assert not await collector(Locked(), exacting=False).drain(asyncio.Event(), wait_ms=10)
    queue = Locked()
    queue.locked = False
    told = asyncio.Event()
    running = asyncio.create_task(collector(queue, exacting=True).run(told))
    await queue.put([written("a")])
    await until(lambda: not any(queue._server.waiting.values()) and queue._server.rung)
    queue.locked = True
    await queue.put([written("b")])
    await asyncio.sleep(0.05)
    assert not running.done()
    told.set()
    await asyncio.wait_for(running, 20)


async def test_many() -> None:
    """More than a take: all of them, each once."""
    it = It()
    assert await it.drained(*(written(f"k{number}") for number in range(500)))
    rows = await it.spool.browse(Query(), after=None, limit=1000)
    assert len({row.message.name for row in rows}) == 500
