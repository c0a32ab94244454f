"""The relay where it is hard: crashes of the spool, several nodes, scopes, waits and ages.

What a sender sees on an ordinary day stands in test_wire.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from kit import ALICE, BOB, OK, REFUSED, RESET, It, Service, has, node, says, told, value

from unspool.core.lifecycle import Keeping, Policy, State, Verdict
from unspool.core.message import Answer, Instant, Key, Request, Response
from unspool.errors import Full, Unavailable
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry, Lease, Tally
from unspool.testing.clock import VirtualClock, virtually

ASYNC = (b"Prefer", b"respond-async")
SHORT = Policy(keeping=Keeping(answer_ms=60_000, key_ms=600_000))


class Uncounted(MemorySpool):
    """Counting takes as long as counting ten million."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = asyncio.Event()

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        rows = await super().tally(edges)
        await self.counting.wait()
        return rows


@contextlib.asynccontextmanager
async def world(answer: Any = OK, **more: Any) -> AsyncIterator[It]:
    """A node in virtual time, which delivers."""
    async with node(answer, clock=VirtualClock(), **more) as it:  # type: ignore[arg-type]
        it.node.start()
        yield it


def slowly(answer: Answer, seconds: float) -> Any:
    async def answers(request: Request) -> Answer:
        await asyncio.sleep(seconds)
        return answer

    return answers


# --- ages ---------------------------------------------------------------------------------------


@virtually
async def test_a_key_that_was_kept_long_enough_runs_again_swept_or_not() -> None:
    """J6: age is judged by instants; the old entry is not in the way of the new one."""
    async with node(OK, clock=VirtualClock(), policy=SHORT) as it:  # nobody sweeps: not started
        await it.ask(key="k")
        await asyncio.sleep(601)
        other = await it.ask(key="k", body=b"another request")
        assert other.status == 201
        assert not has(other, b"idempotent-replayed")
        assert len(it.service.attempts) == 2
        replay = await it.ask(key="k", body=b"another request")
        assert has(replay, b"idempotent-replayed")
        assert len(it.service.attempts) == 2


@virtually
async def test_the_old_entry_is_not_in_the_way_of_custody_either() -> None:
    """A key of long ago that fails now is saved as new, not answered with the old answer."""
    async with node(OK, clock=VirtualClock(), policy=SHORT) as it:
        await it.ask(key="k")
        await asyncio.sleep(601)
        it.service.then(RESET)
        assert (await it.ask(key="k", body=b"another request")).status == 202


class Unswept(MemorySpool):
    """A spool whose broom has too much to do."""

    async def sweep(self, *, now: Instant, limit: int) -> int:
        return limit


@virtually
async def test_where_the_broom_cannot_keep_up_an_old_key_is_refused_and_not_run_unrecorded() -> (
    None
):
    """410 is a nuisance; an effect that no repeat would find is a fault."""
    async with node(OK, clock=VirtualClock(), policy=SHORT, spool=Unswept()) as it:
        await it.ask(key="k")
        await asyncio.sleep(601)
        assert (await it.ask(key="k")).status == 410
        assert len(it.service.attempts) == 1


@virtually
async def test_the_answers_age_and_the_keys_age_are_two_things() -> None:
    """J2: the answer is gone, the fact is not: 410, and nothing runs."""
    async with world(policy=SHORT) as it:
        await it.ask(key="k")
        await asyncio.sleep(120)
        assert (await it.ask(key="k")).status == 410
        assert (await it.ask(key="k", body=b"another")).status == 422
        assert len(it.service.attempts) == 1


@virtually
async def test_a_sender_may_ask_for_a_shorter_life_and_not_for_a_longer() -> None:
    """Unspool-Lifetime is a deadline of the sender's; the operator's is the limit."""
    async with world(RESET, lifetime_ms=100_000) as it:
        for seconds, lasts in ((b"10", 10), (b"99999", 100)):
            answer = told(
                await it.ask(b"POST", b"/", (b"Unspool-Lifetime", seconds), key=f"{lasts}")
            )
            accepted, expires = answer["accepted_at"], answer["expires_at"]
            assert minutes(expires) - minutes(accepted) == lasts


def minutes(stamp: str) -> int:
    """Seconds of the day, of a stamp within one day."""
    hour, minute, second = stamp[11:19].split(":")
    return int(hour) * 3600 + int(minute) * 60 + int(second)


# --- scopes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"Authorization", b"Cookie", b"X-Api-Key", b"Proxy-Authorization"]
)
@virtually
async def test_every_field_of_the_scope_tells_callers_apart(name: bytes) -> None:
    """I10: also one that ends at the relay and never reaches the service."""
    scope = (b"authorization", b"cookie", b"x-api-key", b"proxy-authorization")
    async with world(scope_fields=scope) as it:
        it.service.then(lambda request: says(200, b"%d" % len(it.service.attempts)))
        first = await it.ask(b"POST", b"/", (name, b"a"), key="k")
        second = await it.ask(b"POST", b"/", (name, b"b"), key="k")
        third = await it.ask(b"POST", b"/", (name, b"a"), key="k")
        nobody = await it.ask(b"POST", b"/", key="k")
        assert (first.body, second.body, third.body, nobody.body) == (b"1", b"2", b"1", b"3")


@virtually
async def test_a_caller_cannot_drop_its_scope_by_naming_it_in_connection() -> None:
    """`Connection: x-api-key` ends the field here; whose key it is stays."""
    async with world(scope_fields=(b"x-api-key",)) as it:
        it.service.then(lambda request: says(200, b"%d" % len(it.service.attempts)))
        mine = [(b"X-Api-Key", b"a"), (b"Connection", b"x-api-key")]
        assert (await it.ask(b"POST", b"/", *mine, key="k")).body == b"1"
        assert (await it.ask(b"POST", b"/", key="k")).body == b"2"


@virtually
async def test_a_replay_has_nothing_of_the_first_exchange() -> None:
    """B2 to B4: no cookie, no date; the rest and the body exactly; and it says what it is."""
    answer = says(
        201, b"\x1f\x8b\x00", (b"Set-Cookie", b"s=1"), (b"Date", b"then"), (b"ETag", b'"e"'),
        (b"Content-Encoding", b"gzip"), (b"WWW-Authenticate", b"Basic"), (b"Link", b"</a>"),
        (b"Link", b"</b>"),
    )  # fmt: skip
    async with world(answer) as it:
        first, again = await it.ask(key="k"), await it.ask(key="k")
        assert has(first, b"set-cookie")
        assert not has(first, b"idempotent-replayed")
        assert (again.status, again.body) == (201, b"\x1f\x8b\x00")
        for gone in (b"set-cookie", b"date", b"www-authenticate"):
            assert not has(again, gone)
        assert [v for n, v in again.fields if n == b"Link"] == [b"</a>", b"</b>"]
        assert value(again, b"etag") == b'"e"'
        assert value(again, b"idempotent-replayed") == b"true"
        assert value(again, b"cache-control") == b"no-store"


# --- waiting ------------------------------------------------------------------------------------


@virtually
async def test_wait_gives_the_answer_of_a_later_attempt() -> None:
    """Prefer: wait=30 and a service that recovers in 5 s: 201 and no receipt."""
    async with world(RESET) as it:
        asyncio.get_running_loop().call_later(5, it.service.then, OK)
        began = it.clock.now()
        answer = await it.ask(b"POST", b"/", (b"Prefer", b"wait=30"), key="k")
        assert (answer.status, answer.body) == (201, OK.body)
        assert it.clock.now() - began < 15_000


@virtually
async def test_wait_in_vain_gives_the_receipt_in_time() -> None:
    """The sender said how long, and the operator how long at most."""
    async with world(RESET, wait_max_ms=20_000) as it:
        for wait, took_ms in ((b"wait=7", 7_000), (b"wait=999", 20_000)):
            began = it.clock.now()
            answer = await it.ask(b"POST", b"/", (b"Prefer", wait), key=wait.decode())
            assert answer.status == 202
            assert it.clock.now() - began == took_ms


@virtually
async def test_wait_for_an_answer_too_large_to_keep_says_so() -> None:
    """An empty body must not pass for the answer's."""
    policy = Policy(keeping=Keeping(answer_max_bytes=10))
    async with world(RESET, policy=policy) as it:
        asyncio.get_running_loop().call_later(3, it.service.then, says(200, b"x" * 11))
        answer = await it.ask(b"POST", b"/", (b"Prefer", b"wait=30"), key="k")
        assert (answer.status, answer.body) == (200, b"")
        assert value(answer, b"unspool-body-kept") == b"?0"


@virtually
async def test_wait_for_what_bounces_is_told() -> None:
    """410 at its expiry, not a receipt after it."""
    async with world(RESET) as it:
        fields = ((b"Prefer", b"wait=60"), (b"Unspool-Lifetime", b"5"))
        answer = await it.ask(b"POST", b"/", *fields, key="k")
        assert (answer.status, told(answer)["type"][-7:]) == (410, "bounced")


@virtually
async def test_a_sender_who_goes_away_leaves_the_key_free_for_the_next() -> None:
    """A cancelled call must not make its key "running" for ever."""
    async with world(slowly(OK, 50)) as it:
        first = asyncio.create_task(it.ask(key="k"))
        await asyncio.sleep(1)
        assert (await it.ask(key="k")).status == 409
        first.cancel()
        await asyncio.sleep(0)
        it.service.then(OK)
        assert (await it.ask(key="k")).status == 201


@virtually
async def test_respond_async_saves_without_a_try_and_says_so() -> None:
    """Preference-Applied; the attempt comes from the spool."""
    async with node(clock=VirtualClock()) as it:
        answer = await it.ask(b"POST", b"/", ASYNC)
        assert (answer.status, value(answer, b"preference-applied")) == (202, b"respond-async")
        assert it.service.attempts == []
        assert (await it.ask(b"GET", b"/", ASYNC, body=b"")).status == 202


# --- trouble with the spool ---------------------------------------------------------------------


class Ill(MemorySpool):
    """A spool whose verbs fail, before or after they were done."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Exception] = {}
        self.after: dict[str, Exception] = {}

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        if "accept" in self.before:
            raise self.before["accept"]
        answers = await super().accept(entries)
        if "accept" in self.after:
            raise self.after["accept"]
        return answers

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        if "find" in self.before:
            raise self.before["find"]
        return await super().find(keys)

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        if "settle" in self.before:
            raise self.before["settle"]
        return await super().settle(settlements)


@pytest.mark.parametrize("error", [Full("no room"), Unavailable("gone"), RuntimeError("a bug")])
@virtually
async def test_what_could_not_be_saved_is_given_back_with_its_answer(error: Exception) -> None:
    """The sender keeps it, and is told; nothing is answered 202."""
    spool = Ill()
    async with world(says(500, b"oops"), spool=spool) as it:
        spool.before["accept"] = error
        answer = await it.ask(key="k")
        if isinstance(error, RuntimeError):
            assert answer.status == 500
            assert told(answer)["type"].endswith("internal")
        else:
            assert (answer.status, answer.body) == (500, b"oops")
            assert b"not saved" in value(answer, b"proxy-status")
        spool.before.clear()
        await asyncio.sleep(2)
        assert (await it.ask(key="k")).status == 202


@pytest.mark.parametrize("error", [Full("no room"), Unavailable("gone")])
@virtually
async def test_without_an_answer_to_give_back_it_is_503_and_when_to_come_again(
    error: Exception,
) -> None:
    """The rejecting of responsibility: Retry-After, a problem, Proxy-Status. What the spool may
    have is not called refused: nobody knows."""
    spool = Ill()
    async with world(REFUSED, spool=spool) as it:
        spool.before["accept"] = error
        first = "in-doubt" if isinstance(error, Unavailable) else "refused"
        for name in (first, "refused"):  # once tried and failed, once not asked at all
            answer = await it.ask(key="k")
            assert answer.status == 503
            assert int(value(answer, b"retry-after")) >= 1
            assert has(answer, b"proxy-status")
            assert told(answer)["type"].endswith(f"/{name}")
        assert it.kept == []


@pytest.mark.parametrize("error", [Unavailable("gone"), RuntimeError("a bug")])
@virtually
async def test_an_answer_that_streams_is_closed_where_another_is_given(error: Exception) -> None:
    """It holds a connection to the service, and there are so many and no more."""
    closed: list[bool] = []

    class Rest:
        async def read(self) -> bytes:
            await asyncio.Event().wait()
            return b""

        def close(self) -> None:
            closed.append(True)

    spool = Ill()
    async with world(Response(429, b"", [], b"wait", Rest()), spool=spool) as it:
        spool.before["accept"] = error
        answer = await it.ask()
        assert told(answer)["type"].endswith(("/unknown", "/internal"))
        assert closed


@virtually
async def test_an_accept_that_was_done_and_not_confirmed_is_found_by_the_repeat() -> None:
    """Unavailable: it may have happened. The sender repeats it, and nothing is doubled."""
    spool = Ill()
    async with world(RESET, spool=spool) as it:
        spool.after["accept"] = Unavailable("gone")
        assert (await it.ask(key="k")).status == 503
        spool.after.clear()
        it.service.then(OK)
        again = await it.ask(b"POST", b"/orders", (b"Prefer", b"wait=30"), key="k")
        assert again.status == 201
        assert len(it.kept) == 1


@virtually
async def test_a_key_that_cannot_be_looked_up_is_not_run() -> None:
    """J7: 503 and Retry-After, and no execution."""
    spool = Ill()
    async with world(spool=spool) as it:
        spool.before["find"] = Unavailable("gone")
        answer = await it.ask(key="k")
        assert (answer.status, it.service.attempts) == (503, [])
        assert has(answer, b"retry-after")
        assert (await it.ask()).status == 201  # who names nothing needs no spool


@virtually
async def test_an_answer_that_could_not_be_recorded_is_passed_on_and_marked() -> None:
    """F10: it is true, so the sender gets it; and is told that nobody will remember."""
    spool = Ill()
    async with world(spool=spool) as it:
        spool.before["accept"] = Unavailable("gone")
        answer = await it.ask(key="k")
        assert (answer.status, value(answer, b"idempotency-stored")) == (201, b"false")


@virtually
async def test_a_spool_that_failed_is_left_alone_for_a_moment() -> None:
    """An outage of the disk costs a refusal and not a timeout for each sender."""
    spool = Ill()
    async with world(RESET, spool=spool) as it:
        spool.before["accept"] = Unavailable("gone")
        await it.ask(key="a")
        spool.before.clear()
        assert (await it.ask(key="b")).status == 503
        assert it.kept == []
        await asyncio.sleep(1.1)
        assert (await it.ask(key="c")).status == 202


@virtually
async def test_the_backlog_counts_what_is_new_and_no_repeat() -> None:
    """A limit on the backlog must not fill with duplicates, and empties as it is delivered."""
    async with world(RESET, backlog_max=3) as it:
        for _ in range(10):
            assert (await it.ask(b"POST", b"/", ASYNC, key="same")).status == 202
        assert it.node.custody.backlog == 1
        assert (await it.ask(b"POST", b"/", ASYNC, key="b")).status == 202
        assert (await it.ask(b"POST", b"/", ASYNC, key="c")).status == 202
        assert (await it.ask(b"POST", b"/", ASYNC, key="d")).status == 503
        it.service.then(OK)
        await asyncio.sleep(120)
        assert it.node.custody.backlog == 0
        assert (await it.ask(b"POST", b"/", ASYNC, key="d")).status == 202


@virtually
async def test_no_backlog_is_told_before_it_was_counted() -> None:
    """Whoever waits for a backlog of none after a start must not be told of none too early."""
    spool = Uncounted()
    async with node(RESET, clock=VirtualClock(), spool=spool) as it:
        for number in range(60):
            await it.ask(b"POST", b"/", ASYNC, key=f"{number}")
        it.service.then(slowly(OK, 1))
        it.node.start()
        await asyncio.sleep(2.5)
        assert it.node.dispatcher.delivered
        assert it.node.ready()["backlog"] is None
        spool.counting.set()
        await asyncio.sleep(0.2)
        left = sum(entry.state is State.WAITING for entry in it.kept)
        assert 0 < left < 60
        assert it.node.ready()["backlog"] == left


class Miscounted(MemorySpool):
    """Counting makes a mistake, once."""

    tallies = 0

    async def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        self.tallies += 1
        if self.tallies == 1:
            raise RuntimeError("a bug of ours")
        return await super().tally(edges)


@virtually
async def test_a_count_that_made_a_mistake_is_made_again() -> None:
    """A backlog that is never counted again drifts, and with it what `backlog_max` admits."""
    async with world(spool=Miscounted()) as it:
        await asyncio.sleep(1)
        assert it.node.ready()["backlog"] is None
        await asyncio.sleep(10)
        assert it.node.ready()["backlog"] == 0


class Doubtful(MemorySpool):
    """The first verdict is written, and nobody hears of it."""

    settles = 0

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept = await super().settle(settlements)
        self.settles += 1
        if self.settles == 1:
            raise Unavailable("simulated")
        return kept


@virtually
async def test_who_waits_hears_of_a_verdict_of_which_nobody_could_tell() -> None:
    """It is written once more, finds itself there, and is told: at once, not at the end of what
    the sender is ready to wait."""
    async with world(spool=Doubtful()) as it:
        began_at = it.clock.now()
        told = await it.ask(b"POST", b"/", ASYNC, (b"Prefer", b"wait=30"), key="a")
        assert told.status == 201
        assert it.clock.now() - began_at < 3_000


@virtually
async def test_an_entry_that_was_known_already_adds_nothing_to_the_backlog() -> None:
    """The accept that is repeated after trouble is a Duplicate, and one message waits."""
    async with node(clock=VirtualClock()) as it:
        await it.ask(b"POST", b"/", ASYNC, key="k")
        [entry] = it.kept
        for _ in range(3):
            await it.node.custody.accept(entry, now=it.clock.now())
        assert it.node.custody.backlog == 1


# --- several nodes over one spool ---------------------------------------------------------------


@contextlib.asynccontextmanager
async def pair(answer: Any = OK, *, spool: Any = None) -> AsyncIterator[tuple[It, It, Service]]:
    """Two nodes that write claims, one spool, one service, one clock."""
    spool, clock, service = spool or MemorySpool(), VirtualClock(), Service(answer)
    more: Any = {"spool": spool, "clock": clock, "service": service, "claims": True}
    async with node(**more) as one, node(**more) as two:
        one.node.start()
        two.node.start()
        yield one, two, service


@pytest.mark.parametrize("each", [1, 10])
@virtually
async def test_two_nodes_that_race_for_a_key_run_it_once(each: int) -> None:
    """E2: one executes; the others are told it is running, and later get the same answer."""
    async with pair(slowly(OK, 2)) as (one, two, service):
        answers = await asyncio.gather(*(n.ask(key="k") for n in (one, two) for _ in range(each)))
        assert sorted(a.status for a in answers) == [201] + [409] * (2 * each - 1)
        assert all(has(a, b"retry-after") for a in answers if a.status == 409)
        for n in (one, two):
            assert value(await n.ask(key="k"), b"idempotent-replayed") == b"true"
        assert len(service.attempts) == 1


@virtually
async def test_who_waits_at_one_node_gets_the_answer_of_the_other() -> None:
    """E4: Prefer: wait is heard across nodes, and bounded."""
    async with pair(slowly(OK, 4)) as (one, two, service):
        first = asyncio.create_task(one.ask(key="k"))
        await asyncio.sleep(0.1)
        began = two.clock.now()
        assert (await two.ask(b"POST", b"/orders", (b"Prefer", b"wait=2"), key="k")).status == 409
        assert two.clock.now() - began == 2_000
        again = await two.ask(b"POST", b"/orders", (b"Prefer", b"wait=30"), key="k")
        assert (again.status, value(again, b"idempotent-replayed")) == (201, b"true")
        assert (await first).status == 201
        assert len(service.attempts) == 1


@virtually
async def test_another_request_under_a_key_that_runs_elsewhere_is_refused_at_once() -> None:
    """C8: no waiting for what can only be refused."""
    async with pair(slowly(OK, 30)) as (one, two, service):
        first = asyncio.create_task(one.ask(key="k"))
        await asyncio.sleep(0.1)
        began = two.clock.now()
        wait = (b"Prefer", b"wait=60")
        assert (await two.ask(b"POST", b"/orders", wait, key="k", body=b"other")).status == 422
        assert two.clock.now() == began
        await first
        assert len(service.attempts) == 1


@virtually
async def test_a_claim_that_was_given_up_is_free_when_its_lease_is_over() -> None:
    """F1: 409 while it holds; then the next may try, not after a day."""
    async with pair(slowly(OK, 10**6)) as (one, two, service):
        first = asyncio.create_task(one.ask(key="k"))
        await asyncio.sleep(1)
        first.cancel()  # its node died
        assert (await two.ask(key="k")).status == 409
        service.then(OK)
        await asyncio.sleep(91)
        assert (await two.ask(key="k")).status == 201
        assert (await one.ask(key="k")).status == 201
        assert len(service.attempts) == 2


@virtually
async def test_a_claim_that_fails_is_saved_and_either_node_delivers_it() -> None:
    """One receipt at both; one delivery."""
    async with pair(RESET) as (one, two, service):
        first = await one.ask(key="k")
        again = await two.ask(key="k")
        assert (first.status, again.status) == (202, 202)
        assert value(first, b"location") == value(again, b"location")
        service.then(OK)
        await asyncio.sleep(60)
        assert told(await two.receipt(first))["state"] == "delivered"
        assert len(service.attempts) == 2


@pytest.mark.parametrize("status", [401, 403])
@virtually
async def test_a_claim_of_which_nothing_is_remembered_is_free_at_once(status: int) -> None:
    """G2: with a better token, the same key runs."""
    async with pair(says(status)) as (one, two, service):
        assert (await one.ask(key="k")).status == status
        service.then(OK)
        assert (await two.ask(key="k")).status == 201


@virtually
async def test_a_claim_that_is_refused_custody_is_free_at_once() -> None:
    """Nothing was promised, so nothing is held: when there is room, the same key is taken."""
    async with world(REFUSED, claims=True, backlog_max=1) as it:
        assert (await it.ask(b"POST", b"/", ASYNC, key="a")).status == 202
        assert (await it.ask(b"POST", b"/", ASYNC, key="b")).status == 503
        it.service.then(OK)
        await asyncio.sleep(10)
        assert (await it.ask(b"POST", b"/", key="b")).status == 201


@virtually
async def test_two_nodes_never_deliver_one_message_twice() -> None:
    """I4: one lease at a time, over many messages."""
    async with pair(slowly(OK, 0.5)) as (one, two, service):
        for number in range(60):
            await (one, two)[number % 2].ask(b"POST", b"/", ASYNC, key=f"k{number}")
        await asyncio.sleep(120)
        assert len(service.attempts) == 60
        assert {entry.state for entry in one.kept} == {State.DELIVERED}
        assert one.node.dispatcher.delivered + two.node.dispatcher.delivered == 60


@virtually
async def test_a_relay_that_gets_its_own_request_back_says_so_and_two_in_a_row_do_not() -> None:
    """508 for a loop; another relay, with a spool of its own, is no loop."""
    async with world() as it, world() as second:
        await it.ask(b"GET", b"/", body=b"")
        via = value(Response(200, b"", it.service.attempts[0].fields), b"via")
        assert (await it.ask(b"GET", b"/", (b"Via", via), body=b"")).status == 508
        assert (await second.ask(b"GET", b"/", (b"Via", via), body=b"")).status == 201


@virtually
async def test_two_callers_with_one_key_wait_for_nothing_of_each_other() -> None:
    """D1: a slow request of one does not make the other's key "running"."""
    async with world(slowly(OK, 30)) as it:
        first = asyncio.create_task(it.ask(b"POST", b"/orders", ALICE, key="k"))
        await asyncio.sleep(1)
        it.service.then(OK)
        assert (await it.ask(b"POST", b"/orders", BOB, key="k")).status == 201
        assert (await it.ask(b"POST", b"/orders", ALICE, key="k")).status == 409
        await first
