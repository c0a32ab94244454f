"""NATS: what only a server of its own can show: relays side by side, its end, limits.

The contract itself is proved in `test_spools` and `test_stateful`, power cuts in `tests/crash`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import tracemalloc
from binascii import a2b_base64, b2a_base64
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ports import free_port
from servers.nats import Nats, cluster, nats
from unspool.core.lifecycle import State
from unspool.core.message import Destination, Instant, Key, Request, Response
from unspool.core.record import Spoilt
from unspool.errors import Full, Misconfigured, Missing, NoSpool, PromiseBroken, Unavailable
from unspool.spools.nats.address import not_connected, read_url
from unspool.spools.nats.index import Index
from unspool.spools.nats.link import Link
from unspool.spools.nats.open import open_nats
from unspool.spools.nats.records import (
    FACTS,
    PART_BYTES,
    Facts,
    Known,
    Mail,
    checked_facts,
    entry_of,
    facts_header,
    facts_of,
    key_of,
    token_of,
    written,
)
from unspool.spools.nats.room import ROOM_MIN_BYTES
from unspool.spools.nats.spool import NatsSpool
from unspool.spools.nats.wire import Wire
from unspool.spools.open import reach_spool
from unspool.spools.protocol import Duplicate, Entry, Lease, Mismatch, New, Query, Survives
from unspool.testing.conformance.values import (
    HERE,
    NOW,
    THERE,
    claimed,
    deferred,
    delivered,
    found,
    key,
    later,
    lease_all,
    lease_one,
    names_of,
    waiting,
)

BUCKETS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Nats]:
    with nats() as server:
        yield server


@pytest.fixture
def url(server: Nats) -> str:
    return server.url(f"b{next(BUCKETS)}")


@asynccontextmanager
async def opened(*urls: str) -> AsyncIterator[list[NatsSpool]]:
    spools: list[NatsSpool] = []
    try:
        for url in urls:
            spools.append(await open_nats(url))
        yield spools
    finally:
        for spool in spools:
            await spool.aclose()


async def eventually(ask: Any, *, seconds: float = 30) -> Any:
    """What it gives once it gives something."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if got := await ask():
                    return got
            except Unavailable:
                pass
            await asyncio.sleep(0.02)


async def test_looking_makes_no_bucket(url: str) -> None:
    for _ in "12":
        with pytest.raises(NoSpool, match="looking makes none"):
            await reach_spool(url, create=False)


# -- relays side by side -------------------------------------------------------------------------


async def test_no_two_of_a_line_are_leased(url: str) -> None:
    """5. Three relays accept into one line and lease from it as fast as they can: what is leased is
    the one that was accepted first, and no other before it has settled."""
    async with opened(url, url, url) as spools:
        told: list[str] = []
        held: set[str] = set()

        async def relay(number: int, spool: NatsSpool) -> None:
            for turn in range(8):
                await spool.accept([waiting(f"{number}-{turn}", order_key="x")])
                await asyncio.sleep(0)
                for lease in await lease_all(spool):
                    name = lease.entry.message.key
                    held.add(name)
                    assert len(held) == 1
                    await asyncio.sleep(0.001)
                    held.discard(name)
                    told.append(name)
                    assert await spool.settle([(lease, delivered())]) == [True]

        await asyncio.gather(*(relay(n, spool) for n, spool in enumerate(spools)))
        async with asyncio.timeout(30):
            while len(told) < 24:  # none, where it has not heard yet what another has settled
                leases = await lease_all(spools[0])
                told += [lease.entry.message.key for lease in leases]
                await spools[0].settle([(lease, delivered()) for lease in leases])
                await asyncio.sleep(0)
        entries = await spools[0].browse(Query(), after=None, limit=99)
        assert told == [entry.message.key for entry in entries]
        assert len(told) == 24


async def test_a_line_whose_register_went_with_age(url: str) -> None:
    """5. A register that nobody has written for a day is gone: the line is as it was, and its
    next lease makes it anew."""
    async with opened(url, url) as (one, other):
        await one.accept([waiting("a", order_key="x"), waiting("b", order_key="x")])
        await other._watch.current()
        [subject] = [one._link.names.line(line) for line in one._watch.index.lines]
        await one._link.api(f"STREAM.PURGE.{one._link.names.stream}", {"filter": subject})
        assert names_of(await lease_all(other)) == ["a"]
        assert await lease_all(one) == []


async def test_a_relay_that_hears_late(url: str) -> None:
    """5. It believes that its message is the head, while a claim before it has come to wait: the
    server refuses the lease by the line's register, and it hears what it missed first."""
    async with opened(url, url) as (one, other):
        [claim] = await one.accept([claimed("a", order_key="x")])
        await other.accept([waiting("b", order_key="x")])
        await other._watch.current()
        hearing, other._watch._subscription = other._watch._subscription, None
        await one.settle([(Lease(claim.entry, later(60_000)), deferred(NOW))])
        leasing = asyncio.create_task(lease_all(other))
        await asyncio.sleep(0.05)
        other._watch._subscription = hearing
        await one.accept([waiting("elsewhere", destination=THERE)])
        assert names_of(await leasing) == ["a"]


async def test_what_is_cut_is_cut_between_entries(url: str) -> None:
    """1, 2. More than goes into one batch of the server's: an entry that lost its key to another
    relay's leaves nothing of itself in what that one has, and those that were taken are New."""
    async with opened(url, url) as (one, other):
        hearing, one._watch._subscription = one._watch._subscription, None
        await other.accept([_large("k", b"theirs")])
        answers = await one.accept([*(waiting(f"{n}") for n in range(1_000)), _large("k", b"ours")])
        one._watch._subscription = hearing
        assert [type(answer) for answer in answers] == [New] * 1_000 + [Mismatch]
        [lease] = await other.seize([key("k")], now=NOW, until=later(60_000))
        assert lease is not None
        assert lease.entry.message.request == _large("k", b"theirs").message.request
        assert other.corrupt == 0


async def test_verdicts_that_are_cut(url: str) -> None:
    """7. Somebody comes between behind the first of two batches: what is written by then was
    written under its lease, and is not told to have passed on."""
    async with opened(url, url) as (one, other):
        leases = []
        for start in range(0, 1_001, 91):
            names = [f"{number}" for number in range(start, start + 91)]
            await one.accept([waiting(name) for name in names])
            leases += await one.seize([*map(key, names)], now=NOW, until=later(60_000))
        kept = [lease for lease in leases if lease is not None]
        hearing, one._watch._subscription = one._watch._subscription, None
        await other._watch.current()
        await other.settle([(kept[-1], delivered("theirs"))])
        told = await one.settle([(lease, delivered("ours")) for lease in kept])
        one._watch._subscription = hearing
        assert list(told) == [True] * (len(kept) - 1) + [False]


def _large(name: str, word: bytes) -> Entry:
    entry = waiting(name, fingerprint=word)
    request = replace(entry.message.request, body=word * PART_BYTES)
    return replace(entry, message=replace(entry.message, request=request))


async def test_what_one_accepts_the_other_sees(url: str) -> None:
    """Its watch shows it and rings; `find` and `accept` of the key do not even wait for that."""
    async with opened(url, url) as (one, other):
        await one.accept([waiting("a")])
        [answer] = await other.accept([waiting("a")])
        assert isinstance(answer, Duplicate)
        await asyncio.wait_for(other.wait_arrival(), 30)
        await eventually(lambda: other.survey(after=None, limit=9))
        lease = await lease_one(other)
        assert list(await one.settle([(lease, delivered("yes"))])) == [True]
        assert list(await other.settle([(lease, delivered("no"))])) == [False]
        entry = await found(other, "a")
        assert entry is not None
        assert entry.answer == delivered("yes").answer


async def test_what_was_read_before_it_was_shown_is_news(url: str) -> None:
    """A repeat, or a look at its receipt, is quicker than the watch: whoever waits for arrivals is
    woken all the same, though the watch has nothing new to tell by then."""
    async with opened(url, url) as (one, other):
        await other._watch.current()
        with contextlib.suppress(TimeoutError):
            while True:  # what it had heard when it was opened
                await asyncio.wait_for(other.wait_arrival(), 0.1)
        hearing, other._watch._subscription = other._watch._subscription, None
        await one.accept([waiting("a")])
        assert await found(other, "a")
        other._watch._subscription = hearing
        await asyncio.wait_for(other.wait_arrival(), 30)
        assert names_of(await lease_all(other)) == ["a"]


async def test_a_key_that_was_forgotten_elsewhere(url: str) -> None:
    """3, 7. What the other relay forgot a moment ago is new here, and settles there as unknown."""
    async with opened(url, url) as (one, other):
        await one.accept([claimed("a")])
        assert isinstance((await other.accept([claimed("a")]))[0], Duplicate)
        await other.sweep(now=later(120_000), limit=9)
        assert isinstance((await one.accept([claimed("a", at=later(1), nonce=b"2nd")]))[0], New)


async def test_a_watch_that_was_lost(url: str) -> None:
    """A consumer that somebody deletes is made again, behind what was seen last."""
    async with opened(url, url) as (one, other):
        await one.accept([waiting("a")])
        names = other._link.names
        await one._link.api(f"CONSUMER.DELETE.{names.stream}.{other._watch._consumer}")
        await one.accept([waiting("b")])
        assert await eventually(lambda: _leased(other, 2))
        assert other._watch.reloads == 0


async def test_a_message_that_did_not_come(url: str) -> None:
    """A gap in what is shown is noticed, and the rest is asked for again."""
    async with opened(url, url) as (one, other):
        other._watch._next -= 1
        await one.accept([waiting("a"), waiting("b")])
        assert await eventually(lambda: _leased(other, 2))


async def _leased(spool: NatsSpool, count: int) -> bool:
    lanes = await spool.survey(after=None, limit=9)
    return bool(lanes) and len(spool._watch.index.ready(HERE, now=NOW, limit=9)) == count


# -- the end of the server, and its return -------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_under_load(kill: bool) -> None:
    """Writes fail at once as Unavailable while it is away, nothing of what was taken is lost (a
    killed process leaves it to the system's cache), and everything goes on by itself."""
    with nats() as server:
        async with opened(server.url(), server.url()) as spools:
            taken: set[str] = set()
            refused: dict[int, str] = {}
            stop = asyncio.Event()

            async def sender(number: int) -> None:
                for turn in itertools.count():
                    if stop.is_set():
                        return
                    name = f"{number}-{turn}"
                    try:
                        await spools[number % 2].accept([waiting(name)])
                        taken.add(key(name))
                    except Unavailable as error:
                        refused.setdefault(number, str(error))
                        await asyncio.sleep(0.02)

            senders = [asyncio.create_task(sender(number)) for number in range(6)]
            await asyncio.sleep(0.3)
            refused.clear()
            await asyncio.to_thread(server.stop, kill=kill)
            # Also who was in the middle of something, and not by its deadline.
            await eventually(_all_of_them(refused, 6))
            assert not [said for said in refused.values() if "no answer within" in said]
            before = len(taken)
            await asyncio.to_thread(server.start)
            await eventually(_more(taken, before))
            stop.set()
            await asyncio.gather(*senders)
            assert all(await spools[0].find([Key(name) for name in taken]))
            for spool in spools:  # both know everything again, and each message is leased once
                await eventually(_knows(spool, taken))
                await eventually(_read_again(spool))
            leased: list[str] = []
            async with asyncio.timeout(30):
                while not set(leased) >= taken:  # who loses a race for some is given what he got
                    leases = await asyncio.gather(*(lease_all(one, limit=9_999) for one in spools))
                    leased += [lease.entry.message.key for some in leases for lease in some]
            assert len(leased) == len(set(leased))


def _all_of_them(refused: Mapping[int, str], count: int) -> Any:
    async def ask() -> bool:
        return len(refused) == count

    return ask


def _more(taken: set[str], than: int) -> Any:
    async def ask() -> bool:
        return len(taken) > than + 20

    return ask


def _read_again(spool: NatsSpool) -> Any:
    async def ask() -> bool:
        return spool._watch.reloads >= 1

    return ask


def _knows(spool: NatsSpool, taken: set[str]) -> Any:
    async def ask() -> bool:
        return all(spool._watch.index.get(Key(name)) for name in taken)

    return ask


@pytest.mark.skipif("UNSPOOL_CRASH_ROUNDS" not in os.environ, reason="takes half a minute")
@pytest.mark.timeout(300)
async def test_servers_of_a_cluster_are_killed_one_by_one() -> None:
    """1. With three replicas the promise is `machine`, and nothing that was taken is lost when one
    server after the other is killed and comes back; whoever was connected to it goes elsewhere."""
    with cluster() as servers:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        url = f"nats://{hosts}/unspool?sync_interval=always&survives=machine&replicas=3"
        await eventually(lambda: _answers(url), seconds=30)
        async with opened(url, url) as spools:
            assert spools[0].promises.survives is Survives.MACHINE
            taken: set[str] = set()
            stop = asyncio.Event()

            async def sender(number: int) -> None:
                for turn in itertools.count():
                    if stop.is_set():
                        return
                    try:
                        await spools[number % 2].accept([waiting(f"{number}-{turn}")])
                        taken.add(key(f"{number}-{turn}"))
                    except Unavailable:
                        await asyncio.sleep(0.05)

            senders = [asyncio.create_task(sender(number)) for number in range(4)]
            for server in servers:
                await eventually(_more(taken, len(taken)), seconds=30)
                await asyncio.to_thread(server.kill)
                await eventually(_more(taken, len(taken)), seconds=30)
                await asyncio.to_thread(server.start)
                await asyncio.sleep(3)  # until it has what it missed
            stop.set()
            await asyncio.gather(*senders)
            known = await spools[0].find([Key(name) for name in taken])
            print(f"\ncluster: {len(taken)} taken, {sum(map(bool, known))} found")
            assert all(known)
            for spool in spools:
                await eventually(_knows(spool, taken))


async def _answers(url: str) -> bool:
    async with opened(url):
        return True


async def test_killed_in_the_middle_of_a_batch() -> None:
    """A batch that the server has begun to write down when it is killed is there whole, or not."""
    chance = random.Random(5)
    with nats() as server:
        for number in range(2 * max(1, int(os.environ.get("UNSPOOL_CRASH_ROUNDS", "1")))):
            blocks = server.folder / f"js/jetstream/$G/streams/KV_b{number}/msgs"
            async with opened(server.url(f"b{number}")) as [spool]:
                before = _size_of(blocks)
                entries = [large(f"{n}", 8_000) for n in range(1_000)]
                accepting = asyncio.create_task(spool.accept(entries))
                while _size_of(blocks) == before and not accepting.done():
                    await asyncio.sleep(0)
                await asyncio.sleep(chance.random() * 0.01)
                server.kill()
                [ended] = await asyncio.gather(accepting, return_exceptions=True)
                server.start()
            async with opened(server.url(f"b{number}")) as [spool]:
                found = len(spool._watch.index)
                assert found == 1_000 or (found == 0 and isinstance(ended, Unavailable))


def _size_of(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size if file.suffix == ".blk" else 0
    return size


async def test_a_server_that_forgot(url: str) -> None:
    """After a power cut without syncs the stream has gone back: what is not there any more is not
    leased, and what came in since is known, though it has the old ones' numbers."""
    with nats() as server:
        async with opened(server.url(), server.url()) as (one, other):
            await one.accept([waiting(name) for name in "abc"])
            await eventually(lambda: _leased(other, 3))
            server.stop()
            shutil.rmtree(server.folder / "js")
            server.start()
            made = await eventually(lambda: _remade(server))
            await made.accept([waiting("x"), waiting("y")])
            await made.aclose()
            await eventually(lambda: _leased(other, 2))
            assert names_of(await lease_all(other)) == ["x", "y"]


async def _remade(server: Nats) -> NatsSpool:
    return await open_nats(server.url())


# -- large messages, and full streams ------------------------------------------------------------


def large(name: str, size: int) -> Any:
    entry = waiting(name)
    request = Request(b"POST", b"/", (), bytes([size % 251]) * size)
    return replace(entry, message=replace(entry.message, request=request))


async def test_what_is_large_lies_apart(url: str) -> None:
    """1, 7. A body of a megabyte, which the server takes in no single message, comes back whole,
    is not written again with a lease, and goes when it has settled; so does an answer."""
    async with opened(url) as [spool]:
        entry = large("a", 1024 * 1024)
        await spool.accept([entry, waiting("b")])
        lease = (await lease_all(spool))[0]
        assert lease.entry.message == entry.message
        await spool.settle([(lease, deferred(NOW))])
        lease = await lease_one(spool)
        assert lease.entry.message == entry.message
        whole = Response(200, b"OK", (), b"z" * 600_000)
        await spool.settle([(lease, replace(delivered(), answer=whole))])
        entry = await found(spool, "a")
        assert entry is not None
        assert entry.answer == whole
        assert await _parts(spool) == 3
        assert await spool.sweep(now=later(2 * 86_400_000), limit=9) == 1
        assert await _parts(spool) == 0
        entry = await found(spool, "a")
        assert entry is not None
        assert (entry.state, entry.answer) == (State.DELIVERED, None)


async def _parts(spool: NatsSpool) -> int:
    names = spool._link.names
    parts = [f"{kind}.{number}" for kind in "ra" for number in range(9)]
    raws = await spool._link.last([names.part(key("a"), part) for part in parts])
    return sum(bool(raw.payload) for raw in raws.values())


async def test_a_full_stream_can_be_emptied(server: Nats) -> None:
    """Full: refused as `Full`, and it did not happen; what is there can still be leased, settled
    and swept, and then there is room again."""
    async with opened(server.url("small", f"max_bytes={ROOM_MIN_BYTES}")) as [spool]:
        taken = 0
        with contextlib.suppress(Full):
            for number in itertools.count():
                await spool.accept([large(f"{number}-{n}", 30_000) for n in range(50)])
                taken += 50
        assert 700 < taken < 1_100
        leases = []
        while some := await lease_all(spool, limit=9_999):
            leases += some
        assert len(leases) == taken
        whole = replace(delivered(), answer=Response(200, b"OK", (), b"z" * 60_000))
        assert all(await spool.settle([(lease, whole) for lease in leases[:100]]))
        assert all(await spool.settle([(lease, delivered()) for lease in leases[100:]]))
        await asyncio.sleep(1.1)  # so often it looks
        assert isinstance((await spool.accept([large("new", 20_000)]))[0], New)
    with pytest.raises(Misconfigured, match="less than"):
        await open_nats(server.url("tiny", "max_bytes=1000000"))


async def test_a_message_larger_than_the_server_takes() -> None:
    """12. It is refused as `Full`, and the connection lives on."""
    with nats(settings="max_payload: 131072") as server:
        async with opened(server.url()) as [spool]:
            entry = waiting("a", order_key="x" * 200_000)
            with pytest.raises(Full, match="max_payload"):
                await spool.accept([entry])
            assert isinstance((await spool.accept([large("b", 300_000)]))[0], New)
            assert (await lease_one(spool)).entry.message == large("b", 300_000).message


# -- promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "survives"),
    [
        ("", Survives.PROCESS),
        ("sync_interval=always", Survives.POWER),
        ("storage=memory", Survives.NOTHING),
        ("storage=memory&sync_interval=always", Survives.NOTHING),
    ],
)
async def test_what_it_survives(server: Nats, query: str, survives: Survives) -> None:
    """1. As the operator says, and never more than the storage gives."""
    async with opened(server.url(f"b{next(BUCKETS)}", query)) as [spool]:
        assert spool.promises.survives is survives
        assert spool.promises.shared


async def test_one_replica_is_one_machine(server: Nats) -> None:
    """1. survives=machine is refused where there is one replica."""
    with pytest.raises(PromiseBroken, match="one replica"):
        await open_nats(server.url("one", "sync_interval=always&survives=machine"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nats:///bucket", "names no bucket"),
        ("nats://host:4222", "names no bucket"),
        ("nats://host/a.b", "names no bucket"),
        ("nats://host/b?nonsense=1", "nonsense"),
        ("nats://host/b?sync_interval=2m", "sync_interval=2m"),
        ("nats://host/b?survives=machine", "without sync_interval"),
        ("nats://host:port/b", "number"),
        ("nats://host/b?replicas=three", "number"),
    ],
)
def test_urls_that_say_nothing(url: str, says: str) -> None:
    """What cannot be meant is refused with what can."""
    with pytest.raises(Misconfigured, match=says):
        read_url(url)


def test_a_url_in_full() -> None:
    """Servers, credentials and bucket; the password is in nothing that is shown."""
    place = read_url("nats://me:s%40cret@a:1,b/bucket?replicas=3&tls=yes")
    assert place.address.servers == ("a:1", "b:4222")
    assert (place.address.user, place.address.password) == ("me", "s@cret")
    assert "cret" not in place.address.shown
    assert (place.replicas, place.address.tls) == (3, True)
    assert read_url("nats://to%2Fken@a/b").address.token == "to/ken"


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("nats://h/b", "nats --server h:4222"),
        ("nats://me:hunter2@[::1]:1,b/b?tls=yes",
         "nats --server 'tls://[::1]:1,tls://b:4222' --user me"),
        ("nats://hunter2@h/b", "nats --server h:4222"),
        ("nats://h/b?creds=/my%20creds", "nats --server h:4222 --creds '/my creds'"),
    ],
)  # fmt: skip
def test_how_an_operator_asks(url: str, command: str) -> None:
    """Every command that is told names the very servers, ready for a shell; never a secret."""
    address = read_url(url).address
    down = str(not_connected(address, OSError("refused"), ""))
    assert down.endswith(f"runs: {command} server check connection")
    assert "hunter2" not in down


async def test_a_server_that_went_away() -> None:
    """Also what is told later names the server."""
    with nats() as server:
        async with opened(server.url()) as [spool]:
            server.kill()
            with pytest.raises(Unavailable, match=f"nats --server 127.0.0.1:{server.port} stream"):
                await spool.accept([waiting("a")])


# -- servers that will not do --------------------------------------------------------------------


async def test_without_jetstream() -> None:
    """A server without JetStream is refused, with how to start it."""
    with nats(jetstream=None) as server, pytest.raises(Misconfigured, match="has no JetStream"):
        await open_nats(server.url())


async def test_with_a_wrong_password() -> None:
    """Wrong credentials are told at once, as what they are."""
    with nats(settings="authorization { user: me, password: right }") as server:
        with pytest.raises(Misconfigured, match="does not let us in"):
            await open_nats(server.url(user="me:wrong"))
        async with opened(server.url(user="me:right")):
            pass


async def test_credentials_that_cannot_be_read(server: Nats) -> None:
    """A file that is not there, or the package that reads it, is named as what is missing."""
    with pytest.raises((Misconfigured, Missing), match=r"cannot be read|pip install nkeys"):
        await open_nats(server.url("b", "creds=/no/such/file"))


async def test_who_may_not_write() -> None:
    """A user without permission to publish is told so when it is opened, not at the first 503."""
    may = 'permissions { publish: [%s "$JS.API.>", "$JS.FC.>"], subscribe: "_INBOX.>" }'
    less, enough = may % "", may % '"$KV.unspool.>",'
    users = f"{{ user: a, password: pw, {less} }}, {{ user: b, password: pw, {enough} }}"
    with nats(settings=f"authorization {{ users: [ {users} ] }}") as server:
        with pytest.raises(Misconfigured, match="permission"):
            await open_nats(server.url(user="a:pw"))
        async with opened(server.url(user="b:pw")) as [spool]:
            await spool.accept([waiting(f"{number}") for number in range(600)])
            assert len(await lease_all(spool, limit=1_000)) == 600


async def test_a_server_that_takes_too_little() -> None:
    """max_payload is checked when it is opened."""
    with (
        nats(settings="max_payload: 65536") as server,
        pytest.raises(Misconfigured, match="max_payload"),
    ):
        await open_nats(server.url())


async def test_another_program_s_bucket(url: str) -> None:
    """What others keep there is not touched; an empty one is taken over as it was made."""
    place = read_url(url)
    link = Link(await Wire.connect(place.address, place.names))
    stream, subjects = place.names.stream, [f"{place.names.prefix}>"]
    made = {"name": stream, "subjects": subjects, "max_bytes": 10**9, "allow_direct": True}
    await link.api(f"STREAM.CREATE.{stream}", made)
    async with opened(url) as [spool]:
        assert spool.promises.shared
    config = (await link.api(f"STREAM.INFO.{stream}"))["config"]
    assert (config["max_bytes"], config["max_msgs_per_subject"]) == (10**9, 1)
    await link.api(f"STREAM.DELETE.{stream}")
    await link.api(f"STREAM.CREATE.{stream}", made)
    await link.commit([Mail(f"{place.names.prefix}somebody.else", b"theirs", {})])
    with pytest.raises(Misconfigured, match="another program"):
        await open_nats(url)
    await link.wire.aclose()


async def test_a_bucket_that_was_changed(url: str) -> None:
    """A stream that would forget what waits is refused."""
    async with opened(url) as [spool]:
        await spool.accept([waiting("a")])
        stream = spool._link.names.stream
        config = (await spool._link.api(f"STREAM.INFO.{stream}"))["config"]
        await spool._link.api(f"STREAM.UPDATE.{stream}", {**config, "max_age": 10**12})
    with pytest.raises(PromiseBroken, match="max_age"):
        await open_nats(url)


async def test_servers_that_do_not_answer() -> None:
    """Too old a server is refused; one that says nothing, or answers nothing, is given up within
    seconds, also where it has been as it should for a while: a batch larger than what is buffered
    for it, too. Then it goes on."""

    async def refused(info: dict[str, str] | None) -> str:
        async with _pretender(info) as port, asyncio.timeout(40):
            try:
                await open_nats(f"nats://127.0.0.1:{port}/b")
            except (Misconfigured, Unavailable) as error:
                return str(error)
        return "it was opened"

    async def paused() -> list[str]:
        with nats() as server:
            async with opened(server.url()) as [spool]:
                await spool.accept([waiting("a")])
                server.pause()
                entries = [large(f"{number}", 30_000) for number in range(500)]
                writes = [spool.accept(entries), spool.find([key("a")]), spool.tally([NOW])]
                told = await asyncio.gather(*writes, return_exceptions=True)
                server.resume()
                assert await eventually(lambda: spool.find([key("a")]))
                return [type(one).__name__ for one in told]

    old, mute, silent, stopped = await asyncio.gather(
        refused({"version": "2.9.10"}), refused({"version": "2.15.1"}), refused(None), paused()
    )
    assert stopped == ["Unavailable"] * 3
    assert "of version 2.9.10; the spool needs 2.12" in old
    assert "no answer within" in mute
    assert "No NATS server answers" in silent


@asynccontextmanager
async def _pretender(info: dict[str, str] | None) -> AsyncIterator[int]:
    """Somebody who speaks NATS so far, and no further. None: not a word."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if info is not None:
            told = {"server_id": "X", "max_payload": 1 << 20, "headers": True, **info}
            writer.write(b"INFO " + json.dumps(told).encode() + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"PING") and info is not None:
                writer.write(b"PONG\r\n")

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        for writer in writers:
            writer.close()
        listener.close()
        await listener.wait_closed()


async def test_nobody_there() -> None:
    """Refused is told at once."""
    with pytest.raises(Unavailable, match="No NATS server answers"):
        await open_nats(f"nats://127.0.0.1:{free_port()}/b")


# -- the index -----------------------------------------------------------------------------------


def facts(name: str, *, place: int = 0, **fields: Any) -> Facts:
    return replace(facts_of(waiting(name), place=place), **fields)


def test_the_highest_revision_holds() -> None:
    """Told out of turn, of a key the highest revision holds, and what was removed stays so."""
    index = Index()
    assert index.apply(5, facts("a", place=1, due_at=later(5)))
    assert not index.apply(1, facts("a"))
    assert index.remove(9, key("a"))
    assert not index.apply(7, facts("a", place=1))
    index.passed(9)
    assert index.get(key("a")) is None
    assert index.apply(10, facts("a"))
    assert index.ready(HERE, now=NOW, limit=9) == [(10, facts("a"))]


def test_heaps_do_not_grow_with_changes() -> None:
    """What has changed since is thrown out: ten thousand leases of a message cost as one."""
    index = Index()
    index.apply(1, facts("a"))
    for number in range(2, 10_000):
        index.apply(number, facts("a", place=1, attempt=number, leased_until=later(number)))
    assert len(index._lanes[HERE]) < 100
    assert len(index._expiry) < 100


def test_memory_for_a_message_that_waits() -> None:
    """Stated in docs/howto/choose-a-spool.md: some 550 bytes for what waits, 450 for what is
    remembered."""
    tracemalloc.start()
    try:
        index = Index()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 4_001):
            name = f"{number:022}"
            index.apply(number, facts("a", key=Key(name), accepted_at=Instant(NOW + number)))
        waits = (tracemalloc.get_traced_memory()[0] - before) / 4_000
        for number in range(1, 4_001):
            name = Key(f"{number:022}")
            state = int(State.DELIVERED)
            kept = facts("a", key=name, place=number, state=state, keep_until=later(number))
            index.apply(4_000 + number, kept)
        remembered = (tracemalloc.get_traced_memory()[0] - before) / 4_000
    finally:
        tracemalloc.stop()
    assert 300 < waits < 600
    assert 250 < remembered < 500


def test_keys_in_subjects() -> None:
    """Any key has a subject of its own, and comes back from it."""
    keys = ["a", "A", "a ", "ä", "a.b", "*", ">", "=20", "\n", "x" * 22, "_-", "\0", "😀", "\ud800"]
    tokens = [token_of(name) for name in keys]
    assert len(set(tokens)) == len(keys)
    assert [key_of(token) for token in tokens] == keys
    assert all(set(token) <= set("=-_" + "".join(map(chr, range(48, 123)))) for token in tokens)


def test_a_flipped_bit_is_noticed() -> None:
    """12. In facts, envelope, status, request or answer, and in what holds them together."""
    entry = waiting("a", order_key="x")
    change = written(entry, place=7, expected=0, part_bytes=PART_BYTES)
    assert change.facts is not None
    header = a2b_base64(facts_header(change.facts))
    for at in range(len(header)):
        for bit in range(8):
            text = b2a_base64(_flipped(header, at, bit), newline=False).decode()
            with pytest.raises(Spoilt):
                checked_facts(text, key("a"))
    for at in range(len(change.body)):
        with pytest.raises(Spoilt):
            entry_of(Known(1, change.facts, _flipped(change.body, at, at % 8)), request=True)
    with pytest.raises(Spoilt):
        checked_facts("no base64 at all", key("a"))
    with pytest.raises(Spoilt):
        checked_facts(facts_header(change.facts), key("b"))


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


async def test_a_stranger_s_message_is_set_aside(url: str) -> None:
    """12. Whoever writes by hand into the bucket stops nobody."""
    async with opened(url) as [spool]:
        name = spool._link.names.message(key("a"))
        await spool._link.commit([Mail(name, b"hello", {}), Mail(f"{name}x", b"", {FACTS: "no"})])
        await spool.accept([waiting("b")])
        await spool._watch.current()
        assert spool.corrupt == 2
        assert names_of(await lease_all(spool)) == ["b"]
        assert Destination("") not in spool._watch.index._lanes
