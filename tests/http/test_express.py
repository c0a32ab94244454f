"""The express road, from door to service and back, over real sockets.

Each test first warms the road up: the first request of a connection to the service is carried by
the other road, because there is no connection at hand yet. `took` says which road a request took.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import pytest
from callers import Calling, call, opened

from hostile import (
    GOOD,
    Hostile,
    Peer,
    Script,
    answers,
    both_loops,
    eventually,
    reset_at_once,
)
from unspool.core.lane import NO_PAUSE
from unspool.core.lifecycle import State
from unspool.core.message import Cause, Failure, Instant, Key, Request, Response, Sent
from unspool.core.outcome import judge
from unspool.errors import Corrupt, Full, NotDone, Unavailable, UnspoolError
from unspool.ingress.http import Door
from unspool.ingress.protocol import Caller
from unspool.node import Node, plan_for
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry, Survives
from unspool.transports.http import HttpTransport

POST = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
PUT = POST.replace(b"POST", b"PUT")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
FAILS = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


class Counted:
    """The relay, with a count of which road each request took."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.express = 0
        self.other = 0

    def begin(self, request: Request, caller: Caller, done: Callable[[Response], None], /) -> bool:
        begun = self.node.relay.begin(request, caller, done)
        self.express += begun
        return begun

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        self.other += 1
        return await self.node.relay(request, caller)


class Ill(MemorySpool):
    """A spool that fails to accept while it is told to."""

    error: Exception | None = None
    happens = False
    """Though it fails."""
    gate: asyncio.Event | None = None
    gated = False
    """Somebody waits at the gate."""
    finds = 0
    blind: Exception | None = None
    """It finds nothing, and says so."""

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        if self.gate is not None:
            self.gated = True
            await self.gate.wait()
        if self.error is None:
            return await super().accept(entries)
        if self.happens:
            await super().accept(entries)
        raise self.error

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        self.finds += len(keys)
        if self.blind is not None:
            raise self.blind
        return await super().find(keys)


@contextlib.asynccontextmanager
async def road(*scripts: Script) -> AsyncIterator[tuple[Calling, Counted, Hostile, Door]]:
    async with Hostile(*scripts) as server:
        transport = HttpTransport(server.origin)
        plan = msgspec.structs.replace(plan_for(server.origin), required=Survives.NOTHING)
        spool = Ill()
        node = await Node.open(plan=plan, spool=spool, transport=transport)
        counted = Counted(node)
        async with opened(counted) as door, call(door) as caller:
            yield caller, counted, server, door
        await node.stop(drain_ms=0)
        await transport.aclose()


async def warm(caller: Calling, counted: Counted) -> None:
    await caller.send(POST)
    assert (await caller.answer()).status == 200
    assert (counted.express, counted.other) == (0, 1)


@both_loops
async def test_an_ordinary_request_takes_it_and_is_unchanged() -> None:
    """The answer is the service's own, and the request carries what the other road adds."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        await caller.send(POST)
        answer = await caller.answer()
        assert (answer.status, answer.body, answer["X-Good"]) == (200, b"ok", "yes")
        assert (counted.express, counted.other) == (1, 1)
        first, second = server.requests
        assert sorted(first.fields) == sorted(second.fields)
        assert b"Unspool-Attempt: 1" in second.fields
        assert second.body == b"hi"


@both_loops
async def test_what_asks_for_something_does_not_take_it() -> None:
    """A preference, an order, a relay before: for the other road. So are HEAD and our own pages."""
    async with road(answers(GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        for line in (
            b"Prefer: wait=1", b"Unspool-Lifetime: 60", b"Via: 1.1 other",
            b'Idempotency-Key: "k"\r\nPrefer: wait=1', b"Idempotency-Key: a\r\nX: y\r\nPrefer: b",
        ):  # fmt: skip
            await caller.send(POST.replace(b"Host: x", b"Host: x\r\n" + line))
            assert (await caller.answer()).status == 200
        for line in (b"Idempotency-Key: a\r\nIdempotency-Key: b", b'Idempotency-Key: "'):
            await caller.send(POST.replace(b"Host: x", b"Host: x\r\n" + line))
            assert (await caller.answer()).status == 400
        await caller.send(GET.replace(b"GET / ", b"GET /_unspool/nothing "))
        assert (await caller.answer()).status == 404
        assert counted.express == 0


@both_loops
async def test_a_failure_that_may_be_repeated_is_saved() -> None:
    """A PUT that met a 503 on the express road: 202, and it is in the spool once."""
    async with road(answers(GOOD, FAILS)) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(PUT)
        answer = await caller.answer()
        assert answer.status == 202
        assert counted.express == 1
        [kept] = [e for e in counted.node.custody.spool.entries.values() if e.message.request]
        names = [name for name, _ in kept.message.request.fields]
        assert b"Unspool-Attempt" not in names
        assert kept.message.request.body == b"hi"
        assert [a.number for a in kept.trail] == [1]


@both_loops
async def test_a_failure_that_may_not_be_repeated_is_passed_back_with_the_reason() -> None:
    """An unkeyed POST that met a 503 gets that 503, and is told why it was not saved."""
    async with road(answers(GOOD, FAILS)) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(POST)
        answer = await caller.answer()
        assert (answer.status, answer.body) == (503, b"busy")
        assert "send an Idempotency-Key" in answer["Proxy-Status"]
        assert counted.express == 1


@both_loops
async def test_who_is_under_way_at_the_end_is_told() -> None:
    """The transport closes under them: saved if it may be repeated, and a 503 of ours if not."""

    async def good_and_then_silence(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        await peer.gone()

    for what, status in ((PUT, 202), (POST, 503), (GET, 503)):
        async with road(good_and_then_silence) as (caller, counted, server, _):
            await warm(caller, counted)
            await caller.send(what)
            await eventually(lambda s=server: len(s.requests) == 2)
            assert counted.express == 1
            await counted.node.relay._transport.aclose()
            answer = await caller.answer()
            assert answer.status == status
            if status == 503:
                assert (b"closing" in answer.body) == (what is GET)
                assert ("Retry-After" in answer) == (what is GET)


@both_loops
async def test_a_service_that_resets_is_no_silence() -> None:
    """The connection dies under a PUT: it goes out once more, and the second answer stands."""

    async def one_then_reset(peer: object) -> None:
        await peer.request()
        await peer.send(GOOD)
        await reset_at_once(peer)

    async with road(one_then_reset, answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        await caller.send(PUT)
        assert (await caller.answer()).status == 200
        assert counted.express == 1
        assert server.connections == 2


@both_loops
async def test_pipelined_requests_are_answered_in_order() -> None:
    """However they are carried, answers come in the order of the requests."""
    numbered = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d" % n for n in range(30)]
    async with road(answers(*numbered)) as (caller, counted, _, _):
        await caller.send(POST)
        assert (await caller.answer()).body == b"00"
        await caller.send(POST * 29)
        assert [int((await caller.answer()).body) for _ in range(29)] == list(range(1, 30))
        assert counted.express >= 1


@both_loops
async def test_a_large_answer_is_handed_over_to_stream() -> None:
    """What is too large to keep streams, though the request took the express road."""
    size = 3 * 1024 * 1024
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size
    async with road(answers(GOOD, large, GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(POST)
        answer = await caller.answer()
        assert len(answer.body) == size
        assert counted.express == 1
        await caller.send(POST)
        assert (await caller.answer()).body == b"ok"


@both_loops
async def test_a_half_closed_caller_gets_its_answer() -> None:
    """The caller has shut its writing side while its request is on the express road."""
    gate = asyncio.Event()

    async def late(peer: object) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        await gate.wait()
        await peer.send(GOOD)
        await peer.gone()

    async with road(late) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(POST)
        caller.writer.write_eof()
        await asyncio.sleep(0.05)
        gate.set()
        assert (await caller.answer()).status == 200
        assert await caller.rest() == b""
        assert counted.express == 1


@both_loops
async def test_a_caller_that_vanished_leaves_nothing_behind() -> None:
    """Its answer is dropped, its connection forgotten, and the service's connection reused."""
    gate = asyncio.Event()

    async def late(peer: object) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        await gate.wait()
        await peer.send(GOOD)
        await answers(GOOD)(peer)

    async with road(late) as (caller, counted, server, door):
        await warm(caller, counted)
        await caller.send(POST)
        await eventually(lambda: len(server.requests) == 2)
        caller.vanish()
        await eventually(lambda: door.statistics().connections == 0)
        gate.set()
        async with call(door) as another:
            await another.send(POST)
            assert (await another.answer()).status == 200
        assert server.connections == 1


@both_loops
async def test_a_closing_door_says_so() -> None:
    """The answer to what was under way when the door began to close ends its connection."""
    gate = asyncio.Event()

    async def late(peer: object) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        await gate.wait()
        await peer.send(GOOD)
        await peer.gone()

    async with road(late) as (caller, counted, server, door):
        await warm(caller, counted)
        await caller.send(POST)
        await eventually(lambda: len(server.requests) == 2)
        closing = asyncio.create_task(door.close(drain_ms=20_000))
        await asyncio.sleep(0.02)
        gate.set()
        answer = await caller.answer()
        assert (answer.status, answer["Connection"]) == (200, "close")
        assert await closing == 0
        assert counted.express == 1


@both_loops
async def test_a_lane_in_trouble_closes_the_road() -> None:
    """After a failure the lane is no longer calm: the other road, until it is again."""
    async with road(answers(GOOD, FAILS, GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(POST)
        assert (await caller.answer()).status == 503
        await caller.send(POST)
        assert (await caller.answer()).status == 200
        assert (counted.express, counted.other) == (1, 2)
        await caller.send(POST)
        assert (await caller.answer()).status == 200
        assert (counted.express, counted.other) == (2, 2)


# --- with a key -----------------------------------------------------------------------------------


def keyed(name: bytes, *lines: bytes, body: bytes = b"hi") -> bytes:
    head = b"\r\n".join([b"Host: x", b"Idempotency-Key: " + name, *lines])
    return POST.replace(b"Host: x", head).replace(b"hi", body)


def kept(counted: Counted) -> list[State]:
    entries = counted.node.custody.spool.entries.values()
    return [entry.state for entry in entries if entry.message.name or entry.message.request]


@both_loops
async def test_a_keyed_request_is_recorded_and_repeated_on_the_road() -> None:
    """The answer is in the spool before it is seen; a repeat gets it byte for byte."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        await caller.send(keyed(b'"k"'))
        first = await caller.answer()
        assert (first.status, first.body) == (200, b"ok")
        assert kept(counted) == [State.DELIVERED]
        await caller.send(keyed(b"k"))
        again = await caller.answer()
        assert (again.status, again.body, again["X-Good"]) == (200, b"ok", "yes")
        assert again["Idempotent-Replayed"] == "true"
        await caller.send(keyed(b"k", body=b"no"))
        assert (await caller.answer()).status == 422
        assert (counted.express, counted.other) == (3, 1)
        assert len(server.requests) == 2
        assert b'Idempotency-Key: "k"' in server.requests[1].fields


@both_loops
async def test_an_answer_in_memory_is_no_younger_than_it_is() -> None:
    """Too old: 410. Kept long enough, and the key is free again, though it was never swept."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        await caller.send(keyed(b"k"))
        assert (await caller.answer()).status == 200
        recent = counted.node.custody.recent
        spool = counted.node.custody.spool
        [old] = [e for e in spool.entries.values() if e.message.name]
        replace = msgspec.structs.replace
        aged = replace(old, answer_until=Instant(1))
        recent.keep(aged)
        await caller.send(keyed(b"k"))
        assert (await caller.answer()).status == 410
        aged = spool.entries[old.message.key] = replace(aged, keep_until=Instant(1))
        recent.keep(aged)
        await caller.send(keyed(b"k"))
        again = await caller.answer()
        assert (again.status, len(server.requests)) == (200, 3)
        assert "Idempotent-Replayed" not in [name for name, _ in again.fields]


@both_loops
async def test_a_key_belongs_to_its_caller_on_the_road_too() -> None:
    """Other credentials, another key (I10); and the same scope as on the other road."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        for line, times in ((b"X: y", 1), (b"Authorization: a", 2), (b"cookie: a", 3)):
            for prefer in (b"X: y", b"Prefer: wait=0"):
                await caller.send(keyed(b"k", line, prefer))
                assert (await caller.answer()).status == 200
            assert len(server.requests) == 1 + times
        assert (counted.express, counted.other) == (3, 4)


@both_loops
async def test_a_key_under_way_is_not_tried_twice() -> None:
    """Whoever comes meanwhile is told by the other road; afterwards he gets the answer."""
    gate = asyncio.Event()

    async def late(peer: object) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        await gate.wait()
        await peer.send(GOOD)
        await peer.gone()

    async with road(late) as (caller, counted, server, door):
        await warm(caller, counted)
        await caller.send(keyed(b"k"))
        await eventually(lambda: len(server.requests) == 2)
        async with call(door) as another:
            await another.send(keyed(b"k"))
            assert (await another.answer()).status == 409
            await another.send(keyed(b"k", b"Prefer: wait=30"))
            await asyncio.sleep(0.02)
            gate.set()
            assert (await another.answer())["Idempotent-Replayed"] == "true"
        assert (await caller.answer()).status == 200
        assert len(server.requests) == 2


@both_loops
async def test_a_vanished_caller_with_a_key_finds_the_answer_later() -> None:
    gate = asyncio.Event()

    async def late(peer: object) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        await gate.wait()
        await peer.send(GOOD)
        await peer.gone()

    async with road(late) as (caller, counted, server, door):
        await warm(caller, counted)
        await caller.send(keyed(b"k"))
        await eventually(lambda: len(server.requests) == 2)
        caller.vanish()
        gate.set()
        await eventually(lambda: kept(counted) == [State.DELIVERED])
        async with call(door) as another:
            await another.send(keyed(b"k"))
            assert (await another.answer())["Idempotent-Replayed"] == "true"


@both_loops
async def test_a_failure_with_a_key_is_saved_and_its_repeat_gets_the_same_receipt() -> None:
    async with road(answers(GOOD, FAILS)) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(keyed(b"k"))
        first = await caller.answer()
        assert first.status == 202
        assert kept(counted) == [State.WAITING]
        await caller.send(keyed(b"k"))
        assert (await caller.answer())["Location"] == first["Location"]
        assert counted.express >= 1


def close_lane(counted: Counted) -> None:
    lane = counted.node.scheduler.lane(counted.node.plan.options.destination)
    now = counted.node.clock.now()
    refused = judge(Failure(Cause.CONNECTION_REFUSED, "it refused", Sent.NEVER))
    for number in range(20):
        lane.saw(refused, key=Key(f"{number}"), now=now, chance=0.5, hint_ms=None, detail="refused")
    assert not lane.is_open(now)


@both_loops
async def test_what_may_not_be_tried_is_saved_on_the_road() -> None:
    """The lane is closed: 202 for what may be saved, the other road for what may not."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        close_lane(counted)
        await caller.send(POST)
        plain = await caller.answer()
        assert (plain.status, counted.node.custody.backlog) == (202, 1)
        assert "not tried" in plain["Proxy-Status"]
        await caller.send(keyed(b"k"))
        named = await caller.answer()
        assert named.status == 202
        await caller.send(keyed(b"k"))
        assert (await caller.answer())["Location"] == named["Location"]
        assert kept(counted) == [State.WAITING, State.WAITING]
        assert (counted.express, counted.other) == (3, 1)
        await caller.send(GET)
        assert (await caller.answer()).status == 503
        assert counted.express == 3
        await caller.send(GET.replace(b"GET / ", b"GET " + plain["Location"].encode() + b" "))
        assert b'"waiting"' in (await caller.answer()).body
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [(Full("the disk is full"), "the disk is full"), (Corrupt("spoilt"), "cannot be read")],
)
@both_loops
async def test_a_spool_in_trouble_promises_nothing_on_the_road(
    error: UnspoolError, told: str
) -> None:
    """Not saved is 503; not recorded is said beside the true answer, or is a refusal."""
    async with road(answers(GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        spool = counted.node.custody.spool
        spool.error = error
        await caller.send(keyed(b"k"))
        answer = await caller.answer()
        if isinstance(error, Full):
            assert (answer.status, answer["Idempotency-Stored"]) == (200, "false")
        else:
            assert answer.status == 503
        close_lane(counted)
        counted.node.custody._trouble = ""
        await caller.send(POST)
        answer = await caller.answer()
        assert answer.status == 503
        assert told in answer.body.decode()
        assert kept(counted) == []
        spool.error = None
        counted.node.custody._trouble = ""
        await caller.send(POST)
        assert (await caller.answer()).status == 202


# --- a key that may not be tried: the spool itself says whether it is new ---------------------


def forget_recent(counted: Counted) -> None:
    recent = counted.node.custody.recent
    for entry in counted.node.custody.spool.entries.values():
        recent.drop(entry.message.key)


@both_loops
async def test_a_new_key_is_saved_without_being_looked_up_and_a_known_one_is_what_it_was() -> None:
    """The lane is closed: the kept answer, 422 for another request, and nothing of it is saved."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        await caller.send(keyed(b"done"))
        assert (await caller.answer()).status == 200
        spool = counted.node.custody.spool
        spool.finds = 0
        close_lane(counted)
        await caller.send(keyed(b"new"))
        assert (await caller.answer()).status == 202
        assert spool.finds == 0
        forget_recent(counted)
        await caller.send(keyed(b"done"))
        again = await caller.answer()
        assert (again.status, again["Idempotent-Replayed"]) == (200, "true")
        assert spool.finds == 1
        for name in (b"done", b"new"):
            forget_recent(counted)
            await caller.send(keyed(name, body=b"no"))
            assert (await caller.answer()).status == 422
        assert kept(counted) == [State.DELIVERED, State.WAITING]
        assert (counted.express, counted.other, len(server.requests)) == (5, 1, 2)


@both_loops
async def test_a_key_that_says_it_is_too_old_is_looked_up_and_never_saved() -> None:
    """J3: refused, unless it is known; nobody has to be asked for a younger one."""
    old = b"00000000-0000-7000-8000-000000000000"
    async with road(answers(GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        close_lane(counted)
        await caller.send(keyed(old))
        assert (await caller.answer()).status == 410
        assert kept(counted) == []


@both_loops
async def test_what_was_kept_long_enough_does_not_stand_in_the_way_of_a_save() -> None:
    """J6: under its key another request is new, though it was never swept."""
    async with road(answers(GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        await caller.send(keyed(b"k"))
        assert (await caller.answer()).status == 200
        spool = counted.node.custody.spool
        [old] = [e for e in spool.entries.values() if e.message.name]
        forget_recent(counted)
        spool.entries[old.message.key] = msgspec.structs.replace(old, keep_until=Instant(1))
        close_lane(counted)
        await caller.send(keyed(b"k", body=b"no"))
        assert (await caller.answer()).status == 202
        assert kept(counted) == [State.WAITING]


@pytest.mark.parametrize("happened", [False, True])
@pytest.mark.parametrize("known", [False, True])
@both_loops
async def test_a_spool_that_fails_to_save_a_key_is_asked_what_it_knows_of_it(
    happened: bool, known: bool
) -> None:
    """A full disk takes no receipt away from who holds one, and what was taken in spite of the
    error is not called refused; who is not known is told 503, and nothing is promised."""
    async with road(answers(GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        close_lane(counted)
        if known:
            await caller.send(keyed(b"k"))
            first = await caller.answer()
        spool = counted.node.custody.spool
        spool.error = Unavailable("nobody knows") if happened else Full("the disk is full")
        spool.happens = happened
        await caller.send(keyed(b"k"))
        answer = await caller.answer()
        assert answer.status == (202 if known or happened else 503)
        if known:
            assert answer["Location"] == first["Location"]
        assert kept(counted) == [State.WAITING] * (known or happened)


@both_loops
async def test_two_who_come_with_one_key_at_once_get_one_receipt() -> None:
    """The second waits for what becomes of the first's save."""
    async with road(answers(GOOD)) as (caller, counted, _, door), call(door) as another:
        await warm(caller, counted)
        close_lane(counted)
        spool = counted.node.custody.spool
        spool.gate = asyncio.Event()
        await caller.send(keyed(b"k"))
        await eventually(lambda: spool.gated)
        await another.send(keyed(b"k"))
        await asyncio.sleep(0.02)
        spool.gate.set()
        one, other = await caller.answer(), await another.answer()
        assert (one.status, other.status) == (202, 202)
        assert one["Location"] == other["Location"]
        assert kept(counted) == [State.WAITING]


@pytest.mark.parametrize("looking", [True, False])
@both_loops
async def test_a_key_that_the_spool_may_have_yet_is_not_tried_and_not_called_refused_for_sure(
    looking: bool,
) -> None:
    """What nobody knows may come to the spool later, and would be delivered beside the try: though
    the lane would let it go by now. And a look that fails, too, does not make it known (12)."""
    async with road(answers(GOOD)) as (caller, counted, server, _):
        await warm(caller, counted)
        close_lane(counted)
        spool = counted.node.custody.spool
        spool.error = Unavailable("The disk is gone. It may or may not have this; repeat it.")
        spool.blind = None if looking else NotDone("This was not given to it; send it again.")
        spool.gate = asyncio.Event()
        await caller.send(keyed(b"k"))
        await eventually(lambda: spool.gated)
        lane = counted.node.scheduler.lane(counted.node.plan.options.destination)
        lane._quiet = NO_PAUSE
        assert lane.is_open(counted.node.clock.now())
        spool.gate.set()
        answer = await caller.answer()
        assert answer.status == 503
        assert "may or may not have this" in answer.body.decode()
        assert b"/in-doubt" in answer.body
        assert len(server.requests) == 1
        spool.error = spool.blind = None
        counted.node.custody._trouble = ""
        await caller.send(keyed(b"k"))
        assert (await caller.answer()).status == 200


@pytest.mark.parametrize("what", [POST, keyed(b"k")], ids=["unnamed", "keyed"])
@both_loops
async def test_a_mistake_before_the_save_is_an_answer_and_keeps_no_key(what: bytes) -> None:
    """Whatever goes wrong: the connection goes on, and the next one under the key is served."""

    def broken() -> int:
        raise RuntimeError("nobody thought of this")

    async with road(answers(GOOD)) as (caller, counted, _, _):
        await warm(caller, counted)
        close_lane(counted)
        custody = counted.node.custody
        custody._disk_free = broken
        custody._admitted_at = Instant(0)
        await caller.send(what)
        assert (await caller.answer()).status == 500
        custody._disk_free = None
        await caller.send(what)
        assert (await caller.answer()).status == 202
