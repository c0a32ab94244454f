"""What is Redis' own: its memory, its restarts, its scripts, and what a rotten byte costs."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from servers.redis import Redis, redis
from unspool.core.lifecycle import State
from unspool.core.message import NEVER, Instant, Key, Response
from unspool.errors import Corrupt, Full, NotDone, Unavailable
from unspool.spools.protocol import Duplicate, New, Query
from unspool.spools.redis.link import SCRIPT, Patience
from unspool.spools.redis.spool import RedisSpool
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    MINUTE,
    NOW,
    THERE,
    bounced,
    claimed,
    deferred,
    delivered,
    found,
    key,
    later,
    lease_all,
    names_of,
    settled,
    waiting,
)

PATIENT = Patience(measure_s=0.05)
QUICK = Patience(connect_s=1, answer_s=1, call_s=2, sync_ms=800, measure_s=0.05)
"""Where nobody answers."""
SOON = Patience(answer_s=2, call_s=4, sync_ms=1_600)
"""Where somebody does, until he is paused."""


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    # While an AOF is written anew for the first time, nothing can be opened.
    settings = {"maxmemory-policy": "noeviction", "auto-aof-rewrite-percentage": "0"}
    with redis(memory=True, settings=settings) as server:
        yield server


def named(request: Any) -> str:
    """The spool of this test."""
    return re.sub(r"[^a-z-]", "-", request.node.name)[:64]


@pytest.fixture
async def spool(server: Redis, request: pytest.FixtureRequest) -> AsyncIterator[RedisSpool]:
    spool = await RedisSpool.open(server.spool(named(request)), patience=PATIENT)
    yield spool
    await spool.aclose()


def at(request: pytest.FixtureRequest, rest: str) -> str:
    """A key of this test's spool."""
    return f"{{{named(request)}}}:{rest}"


# --- one file of keys -----------------------------------------------------------------------------


async def test_every_key_is_in_the_header(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest
) -> None:
    """The script's header names every key and its type; all share the hash tag, so one slot."""
    await spool.accept(
        [
            waiting("a"), waiting("h", due_at=NEVER), waiting("o", order_key="x"),
            waiting("p", order_key="x"), claimed("c"), settled("s"), waiting("bad"),
        ]
    )  # fmt: skip
    server.redis().hset(at(request, f"e:{key('bad')}"), "m", "nonsense")
    with pytest.raises(Corrupt):
        await spool.find([key("bad")])
    lease = (await lease_all(spool))[0]
    await spool.settle([(lease, delivered())])
    named = dict(re.findall(r"\{NAME\}:(\w+)\S* +(HASH|ZSET|SET|STRING) ", SCRIPT.decode()))
    seen = {"touched": "STRING"}  # only where it has to be asked
    for full in server.redis().scan_iter(at(request, "*"), count=1000):
        rest = full.decode("utf-8", "replace").partition("}:")[2]
        seen[rest.split(":")[0]] = server.redis().type(full).decode().upper()
    assert seen.keys() == named.keys()
    assert seen == named


async def test_nothing_is_left_behind(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest
) -> None:
    """11. Whatever came and went, after the sweep there is the spool's own key and no other."""
    await spool.accept(
        [waiting(f"{n:02}", order_key="xy "[n % 3].strip(), destination=(HERE, THERE)[n % 2])
         for n in range(12)] + [claimed("c"), settled("s")]
    )  # fmt: skip
    for _ in range(12):
        leases = list(await spool.lease({HERE: 9, THERE: 9}, now=NOW, until=LEASED_UNTIL))
        ends = [delivered(), bounced()] * len(leases)
        await spool.settle(list(zip(leases, ends, strict=False)))
    await spool.sweep(now=later(40 * DAY), limit=100)
    left = list(server.redis().scan_iter(at(request, "*"), count=1000))
    assert left == [at(request, "about").encode()]


async def test_scripts_flushed(server: Redis, spool: RedisSpool) -> None:
    """A server that has forgotten the script is given it again, and nobody notices."""
    await spool.accept([waiting("a")])
    server.redis().script_flush()
    await spool.accept([waiting("b")])
    assert names_of(await lease_all(spool)) == ["a", "b"]


# --- memory ---------------------------------------------------------------------------------------


async def test_out_of_memory(server: Redis, spool: RedisSpool) -> None:
    """12. Full: nothing of the batch was done. What is there can be leased, settled and swept,
    or there would never be room again."""
    await spool.accept([waiting("a"), waiting("b", repeat=False)])
    client = server.redis()
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)  # idle, it shrinks
    try:
        with pytest.raises(Full, match="out of memory"):
            await spool.accept([waiting("c"), waiting("d")])
        leases = await lease_all(spool)
        assert list(await spool.renew(leases, until=later(MINUTE))) == [True, True]
        ends = [(leases[0], delivered()), (leases[1], deferred(NOW))]
        assert list(await spool.settle(ends)) == [True, True]
        assert await spool.seize([key("b")], now=NOW, until=LEASED_UNTIL) != [None]
        assert await spool.sweep(now=later(30 * DAY), limit=9) == 1
        with pytest.raises(Full):
            await spool.accept([waiting("c"), waiting("d")])
    finally:
        client.config_set("maxmemory", 0)
    assert list(await spool.find([key("a"), key("c"), key("d")])) == [None, None, None]
    assert all(isinstance(a, New) for a in await spool.accept([waiting("c"), waiting("d")]))


async def test_what_is_large_comes_in_pieces(server: Redis) -> None:
    """1, 4. An answer of hundreds of MiB is none that anybody waits for: a lease gives fewer, and
    what has to be whole is fetched one by one."""
    spool = await RedisSpool.open(server.spool("large"))
    small = waiting("x").message.request
    assert small is not None
    large = replace(small, body=bytes(3 << 20))
    names = [f"{number}" for number in range(6)]
    for name in names:
        entry = waiting(name)
        await spool.accept([replace(entry, message=replace(entry.message, request=large))])
    pages = await spool.browse(Query(), after=None, limit=6, requests=True)
    assert [entry.message.request for entry in pages] == [large] * 6
    seized = await spool.seize([key(name) for name in names], now=NOW, until=LEASED_UNTIL)
    assert [lease and lease.entry.message.request for lease in seized] == [large] * 6
    await spool.settle([(lease, deferred(NOW)) for lease in seized if lease])
    leases = await lease_all(spool)
    assert len(leases) == 3
    leases += await lease_all(spool)
    assert [lease.entry.message.request for lease in leases] == [large] * 6
    answer = Response(200, b"OK", (), bytes(3 << 20))
    for lease in leases:
        await spool.settle([(lease, replace(delivered(), answer=answer))])
    entries = await spool.find([key(name) for name in names])
    assert [entry and entry.answer for entry in entries] == [answer] * 6
    await spool.aclose()


@asynccontextmanager
async def between(port: int, then: Callable[[], Awaitable[object]]) -> AsyncIterator[str]:
    """The server's URL through something that does `then` before it passes on what asks for one
    item more: what was left out of an answer."""
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: Any, writer: Any, *, out: bool) -> None:
        while sent := await reader.read(1 << 16):
            if out and asked and re.search(rb"\r\n(find|part)\r\n", sent):
                asked.clear()
                await then()
            elif out and re.search(rb"\r\n(find|seize)\r\n", sent):
                asked.append(True)
            writer.write(sent)
        writer.close()

    async def serve(reader: Any, writer: Any) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", port)
        tasks.add(asyncio.create_task(carry(reader, to, out=True)))
        tasks.add(asyncio.create_task(carry(there, writer, out=False)))

    asked: list[bool] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        await asyncio.gather(*tasks)
        await server.wait_closed()


async def test_what_is_fetched_may_have_changed_meanwhile(server: Redis) -> None:
    """12. What was left out of a large answer, and is another's or nobody's by the time it is asked
    for, is not spoilt: nothing is set aside, and what became of it is said."""
    other = await RedisSpool.open(server.spool("meanwhile"))
    small = waiting("x").message.request
    assert small is not None
    large = replace(small, body=bytes(3 << 20))
    answer = Response(200, b"OK", (), bytes(3 << 20))
    names = ["1", "2", "3", "4"]
    for name in names:
        entry = waiting(name)
        await other.accept([replace(entry, message=replace(entry.message, request=large))])
        await other.accept([replace(settled(f"s{name}"), answer=answer)])

    async def end_the_last() -> None:
        late = later(DAY)
        [lease] = await other.seize([key("4")], now=late, until=later(2 * DAY))
        assert lease is not None
        assert await other.settle([(lease, delivered())]) == [True]

    async with between(server.port, end_the_last) as url:
        spool = await RedisSpool.open(f"{url}?name=meanwhile")
        leases = await spool.seize([key(n) for n in names], now=NOW, until=LEASED_UNTIL)
        assert [lease is not None for lease in leases] == [True, True, True, False]
        assert await spool.damaged(after=None, limit=9) == []
        await spool.aclose()

    for days, known in ((20, 4), (50, 3)):  # answers are kept for one, entries for 30

        async def sweep(days: int = days) -> None:
            await other.sweep(now=later(days * DAY), limit=99)

        async with between(server.port, sweep) as url:
            spool = await RedisSpool.open(f"{url}?name=meanwhile")
            entries = await spool.find([key(f"s{n}") for n in names])
            assert [entry is not None for entry in entries] == [True] * known + [False] * (
                4 - known
            )
            assert [entry.answer == answer for entry in entries if entry][:3] == [True] * 3
            assert await spool.damaged(after=None, limit=9) == []
            await spool.aclose()
        await other.sweep(now=later(50 * DAY), limit=99)
        for n in names:
            await other.accept([replace(settled(f"s{n}"), answer=answer)])
    await other.aclose()


# --- what a rotten byte costs ---------------------------------------------------------------------


@pytest.mark.parametrize("field", ["c", "m", "t"])
@pytest.mark.parametrize(
    "look", ["lease", "seize", "settle", "expire", "sweep", "browse", "accept"]
)
async def test_a_spoilt_record(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest, field: str, look: str
) -> None:
    """12. Whoever meets it first sets it aside; its key is not run again, its line goes on."""
    await spool.accept([waiting("a", order_key="x"), waiting("b", order_key="x"), waiting("c")])
    [a, c] = await lease_all(spool)
    await spool.settle([(a, deferred(NOW)), (c, delivered(keep_ms=1))])
    record = at(request, f"e:{key('c' if look == 'sweep' else 'a')}")
    kept = server.redis().hget(record, field)
    server.redis().hset(record, field, bytes([kept[0] ^ 1]) + kept[1:])
    match look:
        case "lease":
            await lease_all(spool)
        case "seize":
            assert await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL) == [None]
        case "settle":
            assert await spool.settle([(a, delivered())]) == [False]
        case "expire":
            await spool.expire(now=later(6 * DAY), until=later(7 * DAY), limit=9)
        case "sweep":
            assert await spool.sweep(now=later(DAY), limit=9) == 0
        case "browse":
            assert len(await spool.browse(Query(), after=None, limit=9)) == 2
        case "accept":
            with pytest.raises(Corrupt):
                await spool.accept([waiting("new"), waiting("a")])
            assert await found(spool, "new") is None, "nothing of the batch was done"
    [aside] = await spool.damaged(after=None, limit=9)
    before = server.redis().hget(record, "bad")
    with pytest.raises(Corrupt):
        await spool.find([aside.key, aside.key])
    with pytest.raises(Corrupt):
        await spool.accept([waiting(aside.key.rstrip("."))])
    assert server.redis().hget(record, "bad") == before, "all its bytes are kept"
    again = await RedisSpool.open(server.spool(named(request)))
    assert again.corrupt == 1
    await again.aclose()
    if look != "sweep":
        left = await lease_all(spool, now=later(9 * DAY), until=later(10 * DAY))
        assert names_of(left) == ["b"]
        [row] = await spool.tally([NOW])
        assert sum(row.counts) == 1


async def test_a_spoilt_request(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest
) -> None:
    """12. A body that is not what was promised is given to nobody."""
    await spool.accept([waiting("a"), waiting("b"), waiting("c")])
    record = at(request, f"r:{key('a')}")
    kept = server.redis().get(record)
    server.redis().set(record, kept[:-1] + bytes([kept[-1] ^ 1]))
    server.redis().delete(at(request, f"r:{key('b')}"))
    assert names_of(await lease_all(spool)) == ["c"]
    assert spool.corrupt == 2
    assert [one.key for one in await spool.damaged(after=None, limit=9)] == [key("a"), key("b")]


@pytest.mark.parametrize("look", ["lease", "expire"])
async def test_a_spoilt_place(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest, look: str
) -> None:
    """12. A record that is spoilt beyond being found in every index is passed by, once and for all:
    nothing goes round and round it."""
    await spool.accept([waiting("a"), waiting("b")])
    server.redis().hset(at(request, f"e:{key('a')}"), "c", "nonsense")
    server.redis().zrem(at(request, "all"), key("a"))
    now, until = later(6 * DAY), later(7 * DAY)
    if look == "expire":
        leases = list(await spool.expire(now=now, until=until, limit=1))
    else:
        assert await spool.lease({HERE: 1}, now=now, until=until) == []
        leases = list(await spool.lease({HERE: 1}, now=now, until=until))
    assert names_of(leases) == ["b"]
    assert [one.key for one in await spool.damaged(after=None, limit=9)] == [key("a")]


async def test_an_index_that_is_not_true(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest
) -> None:
    """I3. What has settled is not leased, whatever an index says; nor is what has another place."""
    await spool.accept([waiting("a")])
    indexes = [at(request, f"w:{HERE}"), at(request, "x")]
    [member] = server.redis().zrange(indexes[0], 0, -1)
    [lease] = await lease_all(spool)
    await spool.settle([(lease, delivered())])
    await spool.accept([waiting("b")])
    for index in indexes:
        server.redis().zadd(index, {member: 1, bytes(6) + key("b").encode(): 1})
    assert names_of(await lease_all(spool)) == ["b"]
    left = await spool.expire(now=later(6 * DAY), until=later(7 * DAY), limit=9)
    assert names_of(list(left)) == ["b"]


async def test_a_spoilt_answer(
    server: Redis, spool: RedisSpool, request: pytest.FixtureRequest
) -> None:
    """12. It is not given; the fact stays, so nothing is done twice."""
    await spool.accept([settled("a"), settled("b")])
    for name in "ab":
        server.redis().set(at(request, f"a:{key(name)}"), b"\1nonsense")
    with pytest.raises(Corrupt):
        await spool.find([key("a")])
    new, answer = await spool.accept([claimed("c"), claimed("b")])
    assert isinstance(new, New)
    assert isinstance(answer, Duplicate)
    assert (answer.entry.state, answer.entry.answer) == (State.DELIVERED, None)
    with pytest.raises(Corrupt):
        await spool.find([key("b")])
    assert spool.corrupt == 2


# --- several, and cut off -------------------------------------------------------------------------


async def test_an_accept_elsewhere_is_heard(server: Redis, spool: RedisSpool, request: Any) -> None:
    """Another relay's accept wakes who waits, at once; without the channel, within seconds."""
    other = await RedisSpool.open(server.spool(named(request)))
    try:
        waiter = asyncio.create_task(spool.wait_arrival())
        until = asyncio.get_running_loop().time() + 20
        while not server.redis().pubsub_numsub(at(request, "bell"))[0][1]:
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.01)
        took = []
        for number in range(5):  # a look without the channel comes after a second, each time
            began = asyncio.get_running_loop().time()
            await other.accept([waiting(f"a{number}")])
            await asyncio.wait_for(waiter, 30)
            took.append(asyncio.get_running_loop().time() - began)
            waiter = asyncio.create_task(spool.wait_arrival())
            await asyncio.sleep(0)
            if min(took) < 0.5:
                break
        assert min(took) < 0.5
        server.redis().client_kill_filter(_type="pubsub")
        await other.accept([waiting("b")])
        await asyncio.wait_for(waiter, 30)
    finally:
        await other.aclose()


async def test_cancelled_calls_mix_up_no_replies(spool: RedisSpool) -> None:
    """13. However many callers go away in mid-call, everybody else gets his own answer."""
    names = [f"{number:03}" for number in range(60)]
    await spool.accept([waiting(name) for name in names])
    dice = random.Random(7)

    async def ask(name: str) -> None:
        entry = await found(spool, name)
        assert entry is not None
        assert entry.message.key == key(name)

    for _ in range(15):
        calls = [asyncio.create_task(ask(dice.choice(names))) for _ in range(30)]
        await asyncio.sleep(dice.uniform(0, 0.01))
        for call in calls:
            if dice.random() < 0.5:
                call.cancel()
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError)


async def test_closing_at_any_moment(server: Redis) -> None:
    """Whoever listens is let go of at once, wherever he is. (In Python 3.11 a cancellation that
    meets the end of a send is lost: he would have listened for 15 s more.)"""
    for turns in range(25):
        spool = await RedisSpool.open(server.spool("closing"))
        began = asyncio.get_running_loop().time()
        waiter = asyncio.create_task(spool.wait_arrival())
        for _ in range(turns):
            await asyncio.sleep(0)
        await spool.aclose()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert asyncio.get_running_loop().time() - began < 10
    before = asyncio.all_tasks()
    spool = await RedisSpool.open(server.spool("closing"))
    await spool.aclose()
    with pytest.raises(NotDone, match="closed"):
        await spool.wait_arrival()
    assert asyncio.all_tasks() <= before, "nobody listens any more"


async def test_flushed_under_our_feet(server: Redis, spool: RedisSpool, request: Any) -> None:
    """Who has lost everything promises nothing more, and says so; opened again it begins anew."""
    await spool.accept([waiting("a")])
    for one in server.redis().scan_iter(at(request, "*"), count=1000):
        server.redis().delete(one)
    with pytest.raises(NotDone, match="flushed"):
        await spool.accept([waiting("b")])
    again = await RedisSpool.open(server.spool(named(request)))
    try:
        assert isinstance((await again.accept([waiting("a")]))[0], New)
        with pytest.raises(Unavailable, match="flushed"):
            await spool.accept([waiting("b")])
    finally:
        await again.aclose()


async def test_it_comes_and_goes() -> None:
    """A server that is paused, killed or restarted costs Unavailable and no hang; nothing that was
    accepted is missing, and it goes on by itself."""
    with redis() as server:
        spool = await RedisSpool.open(server.url)
        hasty = await RedisSpool.open(server.url, patience=SOON)  # connected by now
        try:
            kept = [name for n in range(200) if (name := await _try(spool, f"{n:04}"))]
            assert len(kept) == 200
            server.pause()
            async with asyncio.timeout(30):
                with pytest.raises(Unavailable) as paused:
                    await hasty.accept([waiting("paused")])
            assert not isinstance(paused.value, NotDone), "it may read it yet"
            server.resume()
            calls = [asyncio.create_task(_try(spool, f"{n:04}")) for n in range(1000, 1400)]
            await asyncio.sleep(0.02)
            server.kill()
            kept += [name for name in await asyncio.gather(*calls) if name]
            with pytest.raises(NotDone):
                await spool.accept([waiting("down")])
            server.start()
            assert await _try(spool, "2000")
            entries = await spool.find([key(name) for name in kept])
            assert all(entries)
        finally:
            await hasty.aclose()
            await spool.aclose()


async def _try(spool: RedisSpool, name: str) -> str | None:
    try:
        await spool.accept([waiting(name)])
    except Unavailable:
        return None
    return name


async def test_a_server_that_never_answers() -> None:
    """It takes connections and says nothing: there is a deadline for that, too."""

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    mute = await asyncio.start_server(nothing, "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    try:
        with pytest.raises(Unavailable, match="in time"):
            await asyncio.wait_for(RedisSpool.open(f"redis://127.0.0.1:{port}", patience=QUICK), 60)
    finally:
        mute.close()
        await mute.wait_closed()


async def test_a_torn_batch_is_no_batch(tmp_path: Path) -> None:
    """1. Wherever the AOF was torn off, each batch is there whole or not at all, and all before
    it are: Redis writes a script's changes as one transaction, and drops one that has no end."""
    dice = random.Random(3)
    with redis(folder=tmp_path / "data") as server:
        for number in range(5):
            spool = await RedisSpool.open(server.spool(f"torn{number}"))
            for batch in range(6):
                await spool.accept([waiting(f"{batch}-{n}", order_key="x") for n in range(5)])
                leases = await lease_all(spool)
                await spool.settle([(leases[0], deferred(NOW))])
            await spool.aclose()
            server.kill()
            [*_, tail] = sorted((tmp_path / "data").rglob("*.aof"))  # base, incr: or one for all
            size = tail.stat().st_size
            assert b"EVAL" not in tail.read_bytes(), "the AOF has what it wrote, not the script"
            with tail.open("r+b") as aof:
                aof.truncate(size - dice.randint(1, 3_000))
            server.start()
            spool = await RedisSpool.open(server.spool(f"torn{number}"))
            names = names_of(list(await spool.browse(Query(), after=None, limit=99)))
            whole = [f"{batch}-{n}" for batch in range(6) for n in range(5)]
            assert names == whole[: len(names)]
            assert len(names) % 5 == 0
            assert spool.corrupt == 0
            now = later(DAY)
            walked = []
            while leases := await lease_all(spool, now=now, until=Instant(now + 1)):
                walked += names_of(leases)
                await spool.settle([(lease, delivered()) for lease in leases])
            assert walked == names, "the line is whole"
            await spool.aclose()


async def test_find_takes_any_key(spool: RedisSpool) -> None:
    """Keys are bytes to Redis: braces, colons and spaces mean nothing."""
    strange = [Key("{x}"), Key("a:b c"), Key("*"), Key("ä\0\n")]
    entries = [
        replace(entry, message=replace(entry.message, key=name))
        for entry, name in ((waiting("a"), name) for name in strange)
    ]
    await spool.accept(entries)
    assert [entry and entry.message.key for entry in await spool.find(strange)] == strange
