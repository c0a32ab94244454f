"""The PostgreSQL spool in trouble: a server that restarts, hangs, loses answers, has no room."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from crash.disks import ram_disk
from hostile import standstill
from servers.postgres import Postgres, open_folder, postgres
from servers.proxy import Proxy
from unspool.core.message import Key
from unspool.errors import Corrupt, Full, NotDone, Unavailable
from unspool.spools.open import open_spool
from unspool.spools.postgres.errors import translate
from unspool.spools.postgres.target import read_target
from unspool.spools.protocol import Duplicate, New, Spool
from unspool.testing.conformance.values import (
    LEASED_UNTIL,
    NOW,
    delivered,
    key,
    lease_all,
    lease_one,
    names_of,
    waiting,
)

T = TypeVar("T")

NUMBERS = itertools.count()
COMMIT = b"COMMIT\0"
"""As it goes over the wire; READ COMMITTED is another."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"trouble_{next(NUMBERS)}"


async def test_a_commit_whose_answer_is_lost(server: Postgres, schema: str) -> None:
    """12. It may or may not have happened, and says so; here it has, and doing it again is safe."""
    async with Proxy(server.port) as proxy:
        spool = await open_spool(server.spool(schema, port=proxy.port))
        proxy.cut_after = COMMIT
        with pytest.raises(Unavailable, match="may or may not have done this"):
            await spool.accept([waiting("a")])
        proxy.cut_after = b""
        assert isinstance((await spool.accept([waiting("a")]))[0], Duplicate)
        lease = await lease_one(spool)
        proxy.cut_after = COMMIT
        with pytest.raises(Unavailable, match="may or may not"):
            await spool.settle([(lease, delivered("yes"))])
        proxy.cut_after = b""
        assert list(await spool.settle([(lease, delivered("no"))])) == [False]
        [entry] = await spool.find([key("a")])
        assert entry is not None
        assert entry.answer == delivered("yes").answer
        await spool.aclose()


async def test_before_its_commit_nothing_has_happened(server: Postgres, schema: str) -> None:
    """12. The connection broke while the batch was written: it did not happen, and says so."""
    async with Proxy(server.port) as proxy:
        spool = await open_spool(server.spool(schema, port=proxy.port))
        proxy.cut_after = b"INSERT INTO"
        with pytest.raises(Unavailable, match="Nothing of this was done"):
            await spool.accept([waiting("a")])
        proxy.cut_after = b""
        assert isinstance((await spool.accept([waiting("a")]))[0], New)
        await spool.aclose()


async def test_a_server_that_stops_answering_is_waited_for_so_long(
    server: Postgres, schema: str
) -> None:
    """12. No verb hangs longer than its deadline, whoever waits together; then it goes on."""
    async with Proxy(server.port) as proxy:
        url = server.spool(schema, port=proxy.port, deadline_ms=1500, connections=3)
        spool = await eventually(lambda: open_spool(url))
        await eventually(lambda: spool.accept([waiting("a")]))
        proxy.stand_still = True
        verbs = [
            spool.accept([waiting("b")]), spool.find([key("a")]), lease_all(spool),
            spool.survey(after=None, limit=9), spool.accept([waiting("c")]), lease_all(spool),
        ]  # fmt: skip
        assert all(isinstance(error, Unavailable) for error in await _end_together(verbs, 1.5))
        proxy.stand_still = False
        assert len(await eventually(lambda: lease_all(spool))) >= 1
        await spool.aclose()


async def _end_together(verbs: Sequence[Awaitable[object]], deadline_s: float) -> list[object]:
    """How they end: soon after this deadline, and not one after the other. For as long as this loop
    itself stood still nobody could end."""

    async def end(verb: Awaitable[object]) -> tuple[float, object]:
        [told] = await asyncio.gather(verb, return_exceptions=True)
        return loop.time(), told

    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60), standstill() as stood_still_s:
        began = loop.time()
        ends = await asyncio.gather(*map(end, verbs))
    at = [moment for moment, _ in ends]
    assert max(at) - min(at) < deadline_s, "together, and not one after the other"
    assert min(at) - began < 2 * deadline_s + 3 * stood_still_s(), "no longer than its deadline"
    return [told for _, told in ends]


async def eventually(ask: Callable[[], Awaitable[T]]) -> T:
    """What it gives, when it is not held up for longer than its deadline."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_it_lets_go_of_a_server_that_does_not_answer(server: Postgres, schema: str) -> None:
    """Closing waits for what was begun, and no longer than that may take."""
    async with Proxy(server.port) as proxy:
        url = server.spool(schema, port=proxy.port, deadline_ms=1000)
        spool = await eventually(lambda: open_spool(url))
        waiter = asyncio.create_task(spool.wait_arrival())
        await asyncio.sleep(0.1)
        proxy.stand_still = True
        finding = asyncio.create_task(_quiet(spool.find([key("a")])))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await spool.aclose()
        await asyncio.gather(finding, waiter, return_exceptions=True)
        with pytest.raises(Unavailable, match="is closed"):
            await spool.find([key("a")])


async def _quiet(verb: object) -> None:
    with pytest.raises(Unavailable):
        await verb  # type: ignore[misc]


async def test_a_relay_that_stands_still_holds_nobody_up_for_long(
    server: Postgres, schema: str
) -> None:
    """It was paused between its INSERT and its COMMIT: the server lets go of its locks, and who
    comes with the same key is served."""
    async with Proxy(server.port) as proxy:
        url = server.spool(schema, port=proxy.port, deadline_ms=2000)
        paused = await eventually(lambda: open_spool(url))
        other = await open_spool(server.spool(schema, deadline_ms=60_000))
        for number in range(9):  # once more, where all stood still until the server had let go
            a, b = f"a{number}", f"b{number}"
            proxy.stand_still_after = b"INSERT INTO"
            pausing = asyncio.create_task(_quiet(paused.accept([waiting(a, order_key="x")])))
            while not (proxy.stand_still or pausing.done()):
                await asyncio.sleep(0.005)
            began = time.monotonic()
            answers = await other.accept([waiting(a), waiting(b, order_key="x")])
            waited_s = time.monotonic() - began
            assert all(isinstance(answer, New) for answer in answers)
            await pausing
            proxy.stand_still_after, proxy.stand_still = b"", False
            if waited_s > 0.2:
                break
        assert 0.2 < waited_s < 45
        await other.aclose()
        await paused.aclose()


async def test_what_another_program_has_locked(server: Postgres, schema: str) -> None:
    """12. Somebody's LOCK TABLE is waited for until the deadline; nothing of the batch is done."""
    url = server.spool(schema, deadline_ms=1500)
    spool = await eventually(lambda: open_spool(url))
    with psycopg.connect(server.conninfo()) as other:
        other.execute(f"LOCK TABLE {schema}.message".encode())
        for _ in range(9):  # a server that is held up itself does not get to say so
            with pytest.raises(Unavailable, match="Nothing of this was done") as caught:
                await spool.accept([waiting("a")])
            if "did not answer in time" not in str(caught.value):
                break
        assert "took too long" in str(caught.value)
    assert await eventually(lambda: spool.find([key("a")])) == [None]
    [answer] = await eventually(lambda: spool.accept([waiting("a")]))
    assert isinstance(answer, New | Duplicate)  # the latter, where it was held up meanwhile
    await spool.aclose()


async def test_who_waits_for_another_batch_waits_no_longer(server: Postgres, schema: str) -> None:
    """An accept has one deadline, with all that it waits for: its turn, too."""
    url = server.spool(schema, deadline_ms=2000)
    spool = await eventually(lambda: open_spool(url))
    with psycopg.connect(server.conninfo()) as other:
        other.execute(f"LOCK TABLE {schema}.message".encode())
        calls = [spool.accept([waiting(name)]) for name in "abc"]
        ends = await _end_together(calls, 2)
    held_up = "did not answer in time"  # a server that is held up itself does not get to say so
    assert all(isinstance(end, NotDone) or held_up in str(end) for end in ends), ends
    assert sum(isinstance(end, NotDone) for end in ends) >= 2, "they had not had their turn"
    await spool.aclose()


async def test_closed_while_it_works(server: Postgres, schema: str) -> None:
    """What was begun is ended, and nothing runs on: no bell is rung or heard any more."""
    before = asyncio.all_tasks()
    spool = await open_spool(server.spool(schema))
    accepts = [spool.accept([waiting(f"{number}")]) for number in range(5)]
    await spool.aclose()
    assert all(isinstance(one, New) for [one] in await asyncio.gather(*accepts))
    with pytest.raises(NotDone, match="closed"):
        await spool.wait_arrival()
    assert asyncio.all_tasks() <= before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
async def test_restarted_under_load(schema: str, how: signal.Signals) -> None:
    """What was accepted is there, whoever was told that it may be is right either way, and when the
    server is back the spool goes on by itself, and hears again."""
    with postgres(durable=True) as server:
        spool, other = [await open_spool(server.spool(schema)) for _ in "12"]
        told: set[Key] = set()
        asked = 0
        refused = 0
        stop = False

        async def load(who: str) -> None:
            nonlocal asked, refused
            for number in itertools.count():
                if stop:
                    return
                entry = waiting(f"{who}{number}")
                asked += 1
                try:
                    await spool.accept([entry])
                    told.add(entry.message.key)
                except Unavailable:
                    refused += 1
                    await asyncio.sleep(0.02)

        async def goes_on() -> None:
            before = len(told)
            async with asyncio.timeout(60):
                while len(told) < before + 20:
                    await asyncio.sleep(0.01)

        listening = asyncio.create_task(_wait_often(other))
        loads = [asyncio.create_task(load(who)) for who in "abcd"]
        for _ in range(2):
            await goes_on()
            await asyncio.to_thread(server.stop, how)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
        await goes_on()  # by itself
        stop = True
        await asyncio.gather(*loads)
        assert refused
        found = await spool.find(sorted(told))
        assert all(found)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await spool.aclose()
        await other.aclose()


async def _wait_often(spool: Spool) -> None:
    while True:
        await spool.wait_arrival()


async def test_while_nobody_is_there_it_says_so_at_once(schema: str) -> None:
    """A refused connection is no timeout."""
    with postgres() as server:
        spool = await open_spool(server.spool(schema))
        await spool.accept([waiting("a")])
        server.stop()
        took = []
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(Unavailable, match="cannot be reached"):
                await spool.find([key("a")])
            took.append(time.monotonic() - began)
        assert sorted(took)[1] < 4, "a verb may take 5 s; we may have been held up once"
        server.start()
        assert names_of(await lease_all(spool)) == ["a"]
        await spool.aclose()


@pytest.fixture
def small(server: Postgres) -> Iterator[Path]:
    """A disk of 1 MiB that the server may write to."""
    if os.geteuid() != 0 or server.who is None:
        pytest.skip("it takes root to mount a small disk")
    with open_folder() as folder, ram_disk(folder, size_mib=1) as mount:
        os.chown(mount, server.who.pw_uid, server.who.pw_gid)
        yield mount


async def test_a_full_disk_is_told_before_anything_was_promised(
    server: Postgres, schema: str, small: Path
) -> None:
    """12. `Full`: it did not happen; what was accepted is kept, and can be taken."""
    spool = await open_spool(server.spool(schema))
    server.execute(f"CREATE TABLESPACE small LOCATION '{small}'")
    server.execute(f"ALTER TABLE {schema}.body SET TABLESPACE small")
    accepted = 0
    full: Full | None = None
    while full is None:
        try:
            await spool.accept([waiting(f"{accepted}-{place}") for place in range(100)])
            accepted += 100
        except Full as error:
            full = error
    assert "no room left on its disk" in str(full)
    assert "Nothing of this was done" in str(full)
    assert len(await lease_all(spool, limit=100_000)) == accepted > 500
    await spool.aclose()
    server.execute(f"DROP SCHEMA {schema} CASCADE")
    server.execute("DROP TABLESPACE small")


async def test_who_is_locked_out_while_it_runs_waits(server: Postgres, schema: str) -> None:
    """12. A password that was changed is an outage to a relay that runs, and ends as one."""
    server.execute(f"CREATE ROLE {schema} LOGIN; CREATE SCHEMA AUTHORIZATION {schema}")
    spool = await open_spool(server.spool(schema).replace("unspool@", f"{schema}@"))
    server.execute(f"ALTER ROLE {schema} RENAME TO other_{schema}")
    of_it = f"FROM pg_stat_activity WHERE usename = 'other_{schema}'"
    while server.execute(f"SELECT pg_terminate_backend(pid) {of_it}"):
        await asyncio.sleep(0.02)
    with pytest.raises(Unavailable, match="is not for this user"):
        await spool.accept([waiting("a")])
    server.execute(f"ALTER ROLE other_{schema} RENAME TO {schema}")
    assert isinstance((await spool.accept([waiting("a")]))[0], New)
    await spool.aclose()


async def test_no_connection_is_left(schema: str) -> None:
    """53300: others have them all."""
    with postgres(settings={"max_connections": "5", "superuser_reserved_connections": "0",
                            "max_wal_senders": "0", "autovacuum": "off"}) as server:  # fmt: skip
        spool = await open_spool(server.spool(schema))
        others = [psycopg.connect(server.conninfo()) for _ in range(4)]
        await spool.accept([waiting("a")])
        verbs = [spool.find([key("a")]) for _ in range(6)]
        ended = await asyncio.gather(*verbs, return_exceptions=True)
        errors = [error for error in ended if isinstance(error, BaseException)]
        assert all(isinstance(error, Unavailable) for error in errors)
        for other in others:
            other.close()
        # Their sessions end a moment after they have been let go.
        assert names_of(await eventually(lambda: lease_all(spool))) == ["a"]
        await spool.aclose()


def test_the_codes_are_told_apart() -> None:
    """12. What is known not to have happened, and what nobody knows."""
    target = read_target("postgres://me:hunter2@h/db")
    damaged = translate(psycopg.errors.DataCorrupted("bad page"), target, committing=True)
    assert isinstance(damaged, Corrupt)
    full = translate(psycopg.errors.DiskFull("no space"), target, committing=True)
    assert isinstance(full, Full)
    lost = translate(psycopg.OperationalError("gone"), target, committing=True)
    assert isinstance(lost, Unavailable)
    assert "may or may not" in str(lost)
    early = translate(psycopg.OperationalError("gone"), target, committing=False)
    assert "Nothing of this was done" in str(early)
    late = translate(psycopg.errors.DiskFull("?"), target, committing=True, late=True)
    assert "may or may not" in str(late)
    for error in (damaged, full, lost, early, late):
        assert "hunter2" not in str(error)


async def test_a_lease_that_was_lost_comes_back(server: Postgres, schema: str) -> None:
    """4, 12. The answer to a lease was lost: nobody has it, and it comes due at its end."""
    async with Proxy(server.port) as proxy:
        spool = await open_spool(server.spool(schema, port=proxy.port))
        await spool.accept([waiting("a")])
        proxy.cut_after = b"SKIP LOCKED"
        with pytest.raises(Unavailable):
            await lease_all(spool)
        proxy.cut_after = b""
        await asyncio.sleep(0.1)
        assert await lease_all(spool, now=NOW) == []
        assert names_of(await lease_all(spool, now=LEASED_UNTIL)) == ["a"]
        await spool.aclose()
