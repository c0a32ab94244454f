"""The PostgreSQL spool among several, and what is PostgreSQL's own: locks, lines, bells, bytes."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from servers.pgbouncer import pgbouncer
from servers.postgres import Postgres, postgres
from unspool.core.lifecycle import Deferred, Forgotten
from unspool.core.message import NEVER, Destination, Key
from unspool.errors import Corrupt
from unspool.spools.open import open_spool
from unspool.spools.postgres.bell import LISTENING_S
from unspool.spools.postgres.spool import PostgresSpool
from unspool.spools.postgres.write import STATEMENT_BYTES
from unspool.spools.protocol import Duplicate, Entry, Lease, New, Query, Spool
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    NOW,
    THERE,
    claimed,
    deferred,
    delivered,
    key,
    later,
    lease_all,
    lease_one,
    names_of,
    settled,
    waiting,
)

NUMBERS = itertools.count()
DEADLINE_MS = 30_000
"""A machine may be held up for longer than senders would wait."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres(settings={"wal_writer_delay": "10s"}) as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"own_{next(NUMBERS)}"


@pytest_asyncio.fixture
async def pair(server: Postgres, schema: str) -> AsyncIterator[tuple[Spool, Spool]]:
    """Two who share a spool."""
    one, two = [await open_spool(server.spool(schema, deadline_ms=DEADLINE_MS)) for _ in "12"]
    yield one, two
    await one.aclose()
    await two.aclose()


async def test_batches_that_cross_do_not_lock_each_other_up(
    pair: tuple[Spool, Spool], server: Postgres
) -> None:
    """Two relays accept, lease, settle, renew, seize and sweep the same keys in any order at once:
    PostgreSQL has no deadlock to break, and each key is New once in each round."""
    before = deadlocks(server)
    chance = random.Random(4)
    for number in range(8):
        names = [f"{number}-{place}" for place in range(80)]
        ordered = number % 2 == 1  # whose lines are locked first, which hides what rows would do

        async def busy(spool: Spool, names: list[str] = names, ordered: bool = ordered) -> int:
            lines = ["", "x", "y"] if ordered else [""]
            batch = [waiting(name, order_key=chance.choice(lines)) for name in names]
            chance.shuffle(batch)
            answers = await spool.accept(batch)
            leases = await lease_all(spool, limit=chance.randrange(20, 60))
            held = [lease for lease in leases if chance.random() < 0.7]
            chance.shuffle(held)
            await asyncio.gather(
                spool.settle(
                    [(lease, chance.choice([delivered(), deferred(NOW)])) for lease in held]
                ),
                spool.renew(leases, until=LEASED_UNTIL),
                spool.seize([key(name) for name in names[::3]], now=NOW, until=LEASED_UNTIL),
                spool.sweep(now=later(31 * DAY), limit=5),
            )
            return sum(isinstance(answer, New) for answer in answers)

        new = sum(await asyncio.gather(*(busy(spool) for spool in pair for _ in range(3))))
        assert new >= 80
    assert deadlocks(server) == before


def deadlocks(server: Postgres) -> int:
    [[count]] = server.execute("SELECT sum(deadlocks) FROM pg_stat_database")
    return int(count)


async def test_a_line_has_one_head_whoever_joins_and_leaves_it(pair: tuple[Spool, Spool]) -> None:
    """5. Two relays accept into one line and take from it at once: it is never overtaken."""
    done: list[str] = []
    accepted: list[str] = []

    async def join(spool: Spool, who: str) -> None:
        for number in range(20):
            accepted.append(f"{who}{number:02}")
            await spool.accept([waiting(f"{who}{number:02}", order_key="x")])

    async def take(spool: Spool) -> None:
        while len(done) < 40:
            leases = await lease_all(spool, limit=5)
            assert len(leases) <= 1, "two of one line at once"
            for name in names_of(leases):
                done.append(name)
            await spool.settle([(lease, delivered()) for lease in leases])

    one, two = pair
    await asyncio.wait_for(asyncio.gather(join(one, "a"), join(two, "b"), take(one), take(two)), 90)
    for who in "ab":
        assert [name for name in done if name[0] == who] == [f"{who}{n:02}" for n in range(20)]
    found = await one.browse(Query(), after=None, limit=99)
    assert names_of(list(found)) == done, "the order of acceptance"


async def test_a_claim_is_taken_over_once(pair: tuple[Spool, Spool]) -> None:
    """3. Of all who come at once for a claim that ran out, one gets it."""
    for number in range(5):
        name = f"c{number}"
        await pair[0].accept([claimed(name)])
        answers = await asyncio.gather(
            *(
                spool.accept([claimed(name, at=LEASED_UNTIL, until=later(DAY), nonce=bytes(16))])
                for spool in pair
                for _ in range(4)
            )
        )
        kinds = [type(answer) for [answer] in answers]
        assert (kinds.count(New), kinds.count(Duplicate)) == (1, 7)


async def test_whoever_waits_for_an_end_is_given_its_answer(
    pair: tuple[Spool, Spool], server: Postgres, schema: str
) -> None:
    """2. A key that settles while its repeat comes in is a Duplicate with its answer, and not one
    whose answer seems to be forgotten. (Twice in one batch: so it is not tried as a new one first,
    which mostly waits in its place.)"""
    import psycopg

    await pair[0].accept([claimed("a"), settled("s")])
    names = {"a": key("a").encode(), "s": key("s").encode()}
    ends = f"""UPDATE {schema}.message SET state = 2, leased_until = 0 WHERE key = %(a)s"""
    answers = f"""UPDATE {schema}.body SET answer = (
                      SELECT answer FROM {schema}.body JOIN {schema}.message USING (id)
                      WHERE key = %(s)s)
                  WHERE id = (SELECT id FROM {schema}.message WHERE key = %(a)s)"""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(server.conninfo()) as other:
        other.execute(ends.encode(), names)
        other.execute(answers.encode(), names)
        asking = asyncio.ensure_future(pair[1].accept([claimed("a"), claimed("a")]))
        while server.execute(waits) == [(0,)]:
            await asyncio.sleep(0.01)
        other.commit()
    for one in await asking:
        assert isinstance(one, Duplicate)
        assert one.entry.answer == settled("s").answer


async def test_a_lease_steps_over_what_another_is_changing(
    pair: tuple[Spool, Spool], server: Postgres, schema: str
) -> None:
    """4. Rows that somebody holds in an open transaction are not waited for."""
    import psycopg

    await pair[0].accept([waiting("a"), waiting("b"), waiting("t", destination=THERE)])
    with psycopg.connect(server.conninfo()) as other:
        statement = f"SELECT 1 FROM {schema}.message WHERE key = %s FOR UPDATE"
        other.execute(statement.encode(), [key("a").encode()])
        # It is held until the end of this block: who waited for it would be `Unavailable`.
        leases = await pair[1].lease({HERE: 5, THERE: 5}, now=NOW, until=LEASED_UNTIL)
        assert names_of(list(leases)) == ["b", "t"]
        assert list(await pair[1].expire(now=later(6 * DAY), until=later(7 * DAY), limit=9)) != []
    assert names_of(await lease_all(pair[1])) == ["a"]


async def test_others_hear_of_an_arrival(pair: tuple[Spool, Spool]) -> None:
    """wait_arrival: a NOTIFY comes over; also of what was released or fell free. (After LISTENING_S
    whoever waits looks by himself: that is no ring.)"""
    one, two = pair
    assert isinstance(two, PostgresSpool)
    await two.wait_arrival()  # it listens from now on
    await eventually(lambda: two.hears)
    await quiet(two)
    for change in ("accept", "settle"):
        rung = two._arrivals._rung
        waiter = asyncio.create_task(two.wait_arrival())
        await asyncio.sleep(0.05)
        while two._arrivals._rung != rung or waiter.done():  # a bell was on its way for longer
            await waiter
            rung = two._arrivals._rung
            waiter = asyncio.create_task(two.wait_arrival())
            await asyncio.sleep(0.05)
        if change == "accept":
            await one.accept([waiting("a", due_at=NEVER), waiting("b")])
        else:
            [lease] = await one.seize([key("a")], now=NOW, until=LEASED_UNTIL)
            assert lease is not None
            await one.settle([(lease, deferred(NOW))])
        await waiter
        await eventually(lambda rung=rung: two._arrivals._rung > rung)
        await quiet(two)


async def quiet(spool: Spool) -> None:
    """Until no bell is on its way any more."""
    while True:
        try:
            await asyncio.wait_for(spool.wait_arrival(), 0.2)
        except TimeoutError:
            return


async def eventually(true: object, *, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def test_behind_pgbouncer_nothing_hangs_on_a_session(
    server: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Transactions of many connections share two sessions: the verbs work, and as nobody hears a
    NOTIFY there, arrivals are looked for, and the log says so."""
    with pgbouncer(server) as port:
        url = server.spool(schema, port=port, deadline_ms=DEADLINE_MS)
        one, two = [await open_spool(url) for _ in "12"]
        try:
            await asyncio.gather(
                *(
                    spool.accept([waiting(f"{place}-{number}", order_key="x" * (number % 2))])
                    for place, spool in enumerate((one, two))
                    for number in range(20)
                )
            )
            taken = await asyncio.gather(*(lease_all(spool, limit=9) for spool in (one, two) * 3))
            leases = [lease for batch in taken for lease in batch]
            assert len({lease.entry.message.key for lease in leases}) == len(leases) == 21
            assert all(await two.settle([(lease, delivered()) for lease in leases]))
            assert len(await one.find([key("0-0"), key("1-19")])) == 2
            assert isinstance(two, PostgresSpool)
            waits = asyncio.create_task(_wait_often(two))
            await eventually(lambda: "PgBouncer" in caplog.text)
            waits.cancel()
            assert not two.hears
            took = []
            while not took or (min(took) >= LISTENING_S - 1 and len(took) < 5):
                began = time.monotonic()
                await two.wait_arrival()
                took.append(time.monotonic() - began)
            assert min(took) < LISTENING_S - 1
        finally:
            await one.aclose()
            await two.aclose()


async def _wait_often(spool: Spool) -> None:
    while True:
        await spool.wait_arrival()


async def test_in_a_large_spool_rows_are_looked_up(
    pair: tuple[Spool, Spool], server: Postgres, schema: str
) -> None:
    """However many wait, and whatever the planner thinks of a lane with all of them in it: no verb
    that senders or the dispatcher wait for reads the tables through."""
    one, _ = pair
    for start in range(0, 4_000, 500):
        await one.accept([waiting(f"{start + number}", at=later(start)) for number in range(500)])
    server.execute(f"ANALYZE {schema}.message")
    server.execute(f"ANALYZE {schema}.body")
    before = read_through(server, schema)
    await one.accept([waiting("a", destination=THERE), claimed("c")])
    await one.accept([waiting("a"), waiting("x", order_key="x")])
    leases = list(await one.lease({HERE: 3, THERE: 3}, now=NOW, until=LEASED_UNTIL))
    assert len(leases) == 4
    assert all(await one.renew(leases, until=LEASED_UNTIL))
    assert all(await one.settle([(lease, delivered()) for lease in leases]))
    await one.find([key("a"), key("c"), key("9")])
    await one.survey(after=None, limit=9)
    await one.seize([key("17")], now=NOW, until=LEASED_UNTIL)
    await one.expire(now=later(5 * DAY + 1), until=later(6 * DAY), limit=5)
    await one.sweep(now=later(31 * DAY), limit=5)
    assert read_through(server, schema) == before


def read_through(server: Postgres, schema: str) -> int:
    """How often one of its tables was, by sessions that have ended: then it is counted."""
    ours = "FROM pg_stat_activity WHERE application_name = 'unspool'"
    server.execute(f"SELECT pg_terminate_backend(pid) {ours}")
    while server.execute(f"SELECT count(*) {ours}") != [(0,)]:
        time.sleep(0.01)
    [[count]] = server.execute(
        "SELECT sum(seq_scan) FROM pg_stat_user_tables"
        " WHERE schemaname = %s AND relname IN ('message', 'body')", schema,
    )  # fmt: skip
    return int(count)


async def test_any_text_is_a_key(pair: tuple[Spool, Spool]) -> None:
    """Keys, names, destinations and order keys hold NUL and what is no Unicode, and stay as they
    are, in their order."""
    odd = ["\0", "a\0b", "\ud800", "\udcff", "\U0001f984", "'\"\\%s", ""]
    entries = [
        replace(
            waiting(f"{number}"),
            message=replace(
                waiting(f"{number}").message, key=Key(f"{text}{number}"), name=text,
                destination=Destination(f"http://{text}"), order_key=text,
            ),
        )
        for number, text in enumerate(odd)
    ]  # fmt: skip
    assert all(isinstance(answer, New) for answer in await pair[0].accept(entries))
    found = await pair[1].browse(Query(), after=None, limit=99, requests=True)
    assert list(found) == entries
    lanes = await pair[1].survey(after=None, limit=99)
    names = [Destination(f"http://{text}") for text in odd]
    assert [lane.destination for lane in lanes] == sorted(names, key=_bytes)
    leases = await pair[1].lease(dict.fromkeys(names, 1), now=NOW, until=LEASED_UNTIL)
    assert len(leases) == len(odd)
    assert all(await pair[0].settle([(lease, delivered()) for lease in leases]))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


async def test_a_batch_of_large_ones_is_several_statements(pair: tuple[Spool, Spool]) -> None:
    """1. It is one batch all the same."""
    big = STATEMENT_BYTES // 2 - 100
    entries = [_with_body(waiting(name), bytes([65 + place]) * big) for place, name in
               enumerate("abcde")]  # fmt: skip
    await pair[0].accept(entries)
    leases = await lease_all(pair[1])
    assert [lease.entry.message for lease in leases] == [entry.message for entry in entries]


def _with_body(entry: Entry, body: bytes) -> Entry:
    request = entry.message.request
    assert request is not None
    return replace(entry, message=replace(entry.message, request=replace(request, body=body)))


async def test_a_row_that_rots_is_set_aside_alone(
    pair: tuple[Spool, Spool], server: Postgres, schema: str
) -> None:
    """12. Whatever of it rots: the request, the status, a name that is none. Its line goes on."""
    one, two = pair
    await one.accept(
        [waiting("a", order_key="x"), waiting("b", order_key="x"), waiting("c"), waiting("d"),
         waiting("e", destination=THERE), waiting("f")]
    )  # fmt: skip
    for name, change in (
        ("a", "status = status || 'x'"),
        ("c", "name = '\\xff'"),
        ("e", "destination = '\\xff'"),
    ):
        statement = f"UPDATE {schema}.message SET {change} WHERE key = %s"
        server.execute(statement, key(name).encode())
    server.execute(
        f"UPDATE {schema}.body SET request = overlay(request PLACING 'x' FROM 20) WHERE id ="
        f" (SELECT id FROM {schema}.message WHERE key = %s)", key("d").encode(),
    )  # fmt: skip
    assert [lane.destination for lane in await one.survey(after=None, limit=9)] == [HERE]
    assert names_of(await lease_all(one)) == ["f"]
    assert names_of(await lease_all(two)) == ["b"], "the line went on"
    with pytest.raises(Corrupt, match="set aside"):
        await two.accept([waiting("a")])
    damaged = await one.damaged(after=None, limit=9)
    assert [one.key for one in damaged] == [key(name) for name in "acde"]
    again = await open_spool(server.spool(schema))
    assert isinstance(again, PostgresSpool)
    assert again.corrupt == 4
    await again.aclose()


async def test_what_is_spoilt_ends_no_page(
    pair: tuple[Spool, Spool], server: Postgres, schema: str
) -> None:
    """10, 12. A page is short only at the end: who walks from page to page would take it for it."""
    one, _ = pair
    await one.accept([waiting(name) for name in "abcd"])
    for name in "ab":
        statement = f"UPDATE {schema}.message SET status = status || 'x' WHERE key = %s"
        server.execute(statement, key(name).encode())
    assert names_of(list(await one.browse(Query(), after=None, limit=2))) == ["c", "d"]


async def test_settled_again_under_another_order(pair: tuple[Spool, Spool]) -> None:
    """6, 7. Two verdicts of one key in a batch, a forgotten claim and a stranger between others."""
    one, two = pair
    [claim] = await one.accept([claimed("c")])
    await one.accept([waiting("a"), waiting("b", order_key="x")])
    [a, b] = await lease_all(one)
    stranger = Lease(replace(waiting("s"), attempt=1), LEASED_UNTIL)
    pairs = [
        (b, deferred(NOW)), (Lease(claim.entry, LEASED_UNTIL), Forgotten()), (b, Deferred(NEVER)),
        (stranger, delivered()), (a, Forgotten()), (a, delivered()), (b, delivered()),
    ]  # fmt: skip
    assert list(await two.settle(pairs)) == [True, True, True, False, False, True, True]
    assert await lease_all(two) == []


async def test_a_forgotten_claim_is_not_renewed_under_another(pair: tuple[Spool, Spool]) -> None:
    """15, 6. The claim made since under the same key has the same number, and is not this one."""
    one, two = pair
    [claim] = await one.accept([claimed("c")])
    lease = Lease(claim.entry, LEASED_UNTIL)
    await one.settle([(lease, Forgotten())])
    await two.accept([claimed("c", nonce=b"the second nonce")])
    assert list(await one.renew([lease], until=later(DAY))) == [False]
    [entry] = await two.find([key("c")])
    assert entry is not None
    assert entry.leased_until == LEASED_UNTIL


async def test_leases_are_synced_all_of_them(pair: tuple[Spool, Spool], server: Postgres) -> None:
    """4. The server may lose its power while the holder lives: then two would hold one token."""
    one, _ = pair
    await one.accept([waiting("a", repeat=True)])
    before = server.flushed()
    await lease_one(one)
    assert server.flushed() - before > 100
