"""The client's results: who has the request, and what was done to get there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unspool import (
    Accepted,
    Delivered,
    FellBack,
    Queued,
    Rejected,
    Undelivered,
    Unknown,
)
from unspool.client import Bounced, Settled
from unspool.client.adapter import stands
from unspool.client.events import Ended, News, Tried
from unspool.client.receipt import Receipt
from unspool.core.idempotency import minted_at
from unspool.core.lifecycle import State
from unspool.core.message import Cause, Failure, Request, Sent
from unspool.custody import Custody
from unspool.errors import Busy, Misconfigured, Reused, Saved, Unavailable
from unspool.problems import problem
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry
from unspool.testing.clock import virtually

from .kit import DOWN, OK, RESET, TAKEN, World, has, never, says, value

BUSY = says(409, b"", Retry_After="0")


async def test_an_answer_that_stands_is_delivered() -> None:
    """And looks as one expects a response to look."""
    world = World(a=OK)
    async with world.client() as client:
        result = await client.post("/orders", json={"item": "tea"}, key="order-7")
    assert isinstance(result, Delivered)
    assert result.key == "order-7"
    assert result.response.status == 201
    assert result.response.json() == {"order": 1}
    assert result.response.text == '{"order": 1}'
    assert result.response.headers["content-type"] == "application/json"
    assert "CONTENT-TYPE" in result.response.headers
    [asked] = world.servers["a"].asked
    assert (asked.method, asked.target, asked.body) == (b"POST", b"/orders", b'{"item":"tea"}')
    assert value(asked, "idempotency-key") == '"order-7"'
    assert value(asked, "content-type") == "application/json"
    assert value(asked, "unspool-attempt") == "1"
    assert 0 < float(value(asked, "unspool-deadline")) <= 10


async def test_4xx_is_rejected_and_never_tried_again() -> None:
    world = World(a=says(422, b"no such tea"), b=says(422, b"no such tea"))
    async with world.client() as client:
        result = await client.post("/orders", json=1)
    assert isinstance(result, Rejected)
    assert result.response.text == "no such tea"
    assert world.asked() == 1


async def test_another_server_is_tried_under_the_same_key() -> None:
    """K1: one call, however many attempts, is one key; two calls are two."""
    world = World(a=says(503), b=says(503), c=OK)
    async with world.client() as client:
        first = await client.post("/orders", json=1)
        second = await client.post("/orders", json=1)
    assert isinstance(first, Delivered)
    assert isinstance(second, Delivered)
    keys = [value(one, "idempotency-key") for s in world.servers.values() for one in s.asked]
    assert len(set(keys)) == 2
    assert first.key != second.key
    assert minted_at(first.key) is not None, "it tells when it was made"


async def test_attempts_carry_their_number_and_what_is_left_of_the_deadline() -> None:
    world = World(a=says(503), b=says(503))
    async with world.client() as client:
        with pytest.raises(Undelivered):
            await client.post("/orders", json=1, deadline=30)
    asked = [one for server in world.servers.values() for one in server.asked]
    assert sorted(value(one, "unspool-attempt") for one in asked) == ["1", "2", "3"]
    assert all(float(value(one, "unspool-deadline")) <= 30 for one in asked)


async def test_what_nobody_has_is_an_exception_with_the_request() -> None:
    """And with the last answer, and every attempt; sent again, it has the same key."""
    world = World(a=says(503, b"later"))
    async with world.client() as client:
        with pytest.raises(Undelivered) as caught:
            await client.post("/orders", json={"item": "tea"}, deadline=30)
        error = caught.value
        assert error.response.status == 503  # type: ignore[attr-defined]
        assert len(error.tries) == 3
        assert error.maybe_applied
        assert "under this key" in str(error)
        world.servers["a"].then(OK)
        result = await client.send(error.request)  # type: ignore[arg-type]
    assert isinstance(result, Delivered)
    assert len({value(one, "idempotency-key") for one in world.servers["a"].asked}) == 1


@pytest.mark.parametrize("answer", [RESET, says(500), says(502), says(503)])
async def test_without_a_key_what_may_have_been_applied_goes_nowhere_else(answer: Any) -> None:
    """Not to another server, not to a relay, not into the outbox."""
    world = World(a=answer, b=answer, relay=TAKEN)
    async with world.client("a", "b", queues=["https://relay"], outbox="memory:") as client:
        result = await client.post("/orders", json=1, key=False)
        assert isinstance(result, Unknown)
        assert result.request is not None
        assert client.statistics()["waiting"] == 0
    assert world.asked("a", "b") == 1
    assert world.asked("relay") == 0
    [asked] = world.servers["a"].asked or world.servers["b"].asked
    assert not has(asked, "idempotency-key")


async def test_servers_that_do_not_know_keys_get_a_post_once() -> None:
    world = World(a=RESET)
    async with world.client("a", servers_know_keys=False) as client:
        assert isinstance(await client.post("/orders", json=1, key="k"), Unknown)
        [first] = world.servers["a"].asked
        with pytest.raises(Undelivered):
            await client.put("/orders/1", json=1, deadline=30)
    assert value(first, "idempotency-key") == '"k"', "it is sent along all the same"
    assert world.asked("a") == 1 + 3, "a PUT may be repeated anyhow"


async def test_never_sent_goes_on_also_without_a_key() -> None:
    """Nobody can have applied what never left."""
    world = World(a=DOWN, b=DOWN, relay=TAKEN)
    async with world.client("a", "b", queues=["https://relay"]) as client:
        result = await client.post("/orders", json=1, key=False)
    assert isinstance(result, Accepted)


async def test_a_relay_in_front_that_says_that_it_did_nothing_is_believed() -> None:
    """A 503 of its own is no attempt at the service: also without a key it may go elsewhere."""
    world = World(a=problem("unreachable"), b=problem("refused"), relay=TAKEN)
    async with world.client("a", "b", queues=["https://relay"], deadline=30) as client:
        assert isinstance(await client.post("/orders", json=1, key=False), Accepted)
        world.servers["a"].then(problem("no-answer"))
        world.servers["b"].then(problem("no-answer"))
        assert isinstance(await client.post("/orders", json=1, key=False), Unknown)


async def test_a_relay_takes_over_what_no_server_answers() -> None:
    world = World(a=DOWN, relay=TAKEN)
    async with world.client("a", queues=["https://relay"], deadline=30) as client:
        result = await client.post("/orders", json=1, key="order-7", lifetime=3600, order="c-1")
    assert isinstance(result, Accepted)
    assert result.receipt.where == "https://relay"
    assert result.receipt.survives == "power"
    assert result.receipt.url.startswith("https://relay/_unspool/receipts/")
    [asked] = world.servers["relay"].asked
    assert value(asked, "prefer") == "respond-async"
    assert value(asked, "unspool-lifetime") == "3600"
    assert value(asked, "unspool-order") == "c-1"
    assert value(asked, "idempotency-key") == '"order-7"'


async def test_a_bare_202_is_an_answer_and_no_custody() -> None:
    """RFC 9110 §15.3.3: it is noncommittal. Whoever wants to be believed shows a receipt."""
    world = World(a=says(202, b"", Location="/tickets/7"))
    async with world.client() as client:
        result = await client.post("/orders", json=1)
    assert isinstance(result, Delivered)


async def test_a_relay_in_the_place_of_a_server_is_told_from_it() -> None:
    world = World(a=TAKEN)
    async with world.client() as client:
        result = await client.post("/orders", json=1)
    assert isinstance(result, Accepted)
    assert result.receipt.where == "https://a"


async def test_the_second_queue_is_asked_when_the_first_fails() -> None:
    world = World(a=DOWN, relay1=says(503), relay2=TAKEN)
    queues = ["https://relay1", "https://relay2"]
    async with world.client("a", queues=queues) as client:
        result = await client.post("/orders", json=1)
    assert isinstance(result, Accepted)
    assert result.receipt.where == "https://relay2"


@virtually
async def test_a_relay_that_hangs_has_its_slice_and_no_more() -> None:
    world = World(a=never, relay1=never, relay2=TAKEN)
    queues = ["https://relay1", "https://relay2"]
    loop = asyncio.get_running_loop()
    async with world.client("a", queues=queues) as client:
        began = loop.time()
        result = await client.post("/orders", json=1, deadline=0.6)
    assert isinstance(result, Accepted)
    assert loop.time() - began < 0.6


async def test_what_nobody_took_is_in_the_outbox_and_goes_out_later() -> None:
    """And the news comes to whoever wants it: callback, iterator, `wait`, events."""
    world, told = World(a=DOWN), list[Settled]()
    async with world.client(outbox="memory:", on_settled=told.append) as client:
        result = await client.post("/orders", json=1, key="order-7", deadline=30)
        assert result == Queued("order-7", "nothing", result.tries)

        async def first() -> Settled:
            async for one in client.settled():
                return one
            raise AssertionError

        hears = asyncio.create_task(first())
        await asyncio.sleep(0)
        world.servers["a"].then(OK)
        assert isinstance(await client.wait("order-7", timeout=60), Delivered)
        settled = await hears
        progress = await client.drain(timeout=60)
    assert progress.waiting == 0
    assert (settled.key, settled.ours) == ("order-7", True)
    assert isinstance(settled.result, Delivered)
    assert settled.result.response.json() == {"order": 1}
    assert told == [settled]
    assert News(settled) in world.events
    assert len({value(one, "idempotency-key") for one in world.servers["a"].asked}) == 1


async def test_the_news_says_how_it_ended_when_a_relay_or_a_server_took_it() -> None:
    world = World(a=DOWN, relay=DOWN)
    async with world.client("a", queues=["https://relay"], outbox="memory:") as client:
        await client.post("/orders", json=1, key="r", deadline=30)
        await client.post("/orders", json=2, key="s", deadline=30)
        world.servers["relay"].then(TAKEN)
        accepted = await client.wait("r", timeout=60)
        assert isinstance(accepted, Accepted)
        assert accepted.receipt.url.startswith("https://relay/")
        assert isinstance(await client.wait("s", timeout=60), Accepted)


async def test_rejected_later_is_rejected() -> None:
    world = World(a=DOWN)
    async with world.client(outbox="memory:") as client:
        await client.post("/orders", json=1, key="r", deadline=30)
        world.servers["a"].then(says(422, b"no"))
        result = await client.wait("r", timeout=60)
    assert isinstance(result, Rejected)
    assert result.response.body == b"no"


async def test_what_expires_is_given_up_and_said() -> None:
    world, told = World(a=DOWN), list[Settled]()
    async with world.client(outbox="memory:", on_settled=told.append) as client:
        await client.post("/orders", json=1, key="r", deadline=0.5, lifetime=1)
        result = await client.wait("r", timeout=60)
        assert isinstance(result, Bounced)
        assert result.reason == "expired"
        with pytest.raises(Undelivered, match="given up"):
            await client.post("/orders", json=1, key="r")
    assert [one.key for one in told] == ["r"]


async def test_in_the_outbox_without_a_key_it_ends_as_unknown_and_is_never_sent_twice() -> None:
    world = World(a=DOWN)
    async with world.client(outbox="memory:") as client:
        queued = await client.post("/orders", json=1, key=False, deadline=0.5)
        assert isinstance(queued, Queued)
        world.servers["a"].then(RESET)
        result = await client.wait(queued.key, timeout=60)
        assert isinstance(result, Unknown)
        before = world.asked("a")
        await asyncio.sleep(0.1)
    assert world.asked("a") == before


async def test_a_get_is_tried_elsewhere_and_kept_nowhere() -> None:
    world = World(a=says(503), b=says(503), relay=TAKEN)
    async with world.client("a", "b", queues=["https://relay"], outbox="memory:") as client:
        with pytest.raises(Undelivered):
            await client.get("/orders", deadline=30)
        world.servers["b"].then(OK)
        assert isinstance(await client.get("/orders"), Delivered)
        assert client.statistics()["waiting"] == 0
    assert world.asked("relay") == 0


async def test_contended_is_put_into_nobodys_custody() -> None:
    """A request for the last seat is worth nothing late."""
    world = World(a=DOWN, relay=TAKEN)
    async with world.client("a", queues=["https://relay"], outbox="memory:") as client:
        with pytest.raises(Undelivered):
            await client.post("/seats", json=1, contended=True, deadline=30)
        assert client.statistics()["waiting"] == 0
        world.servers["a"].then(RESET)
        assert isinstance(await client.post("/seats", json=1, contended=True), Unknown)
    assert world.asked("relay") == 0
    assert len(world.servers["a"].asked) == 3 + 1, "two servers would be two tickets"


async def test_contended_is_said_on_the_wire() -> None:
    """So that a relay in front of the server does not keep it."""
    world = World(a=OK)
    async with world.client("a") as client:
        await client.post("/seats", json=1, contended=True)
        await client.post("/seats", json=1)
    first, second = world.servers["a"].asked
    assert value(first, "Unspool-Contended") == "?1"
    assert not has(second, "Unspool-Contended")


async def test_contended_and_a_relay_in_front_kept_it_it_is_told_to_forget() -> None:
    """Never silently: either it forgets, or the caller is told who has it."""
    for status, kind in ((200, Unknown), (409, Accepted)):

        def answer(request: Request, status: int = status) -> Any:
            return says(status, b"{}") if request.method == b"DELETE" else TAKEN

        world = World(a=answer)
        async with world.client("a") as client:
            result = await client.post("/seats", json=1, contended=True)
        assert isinstance(result, kind)
        assert [one.method for one in world.servers["a"].asked] == [b"POST", b"DELETE"]


async def test_the_fallback_plan_is_for_what_nobody_has() -> None:
    """Blocking or not; it gets the request, and its value is the result."""
    printed: list[Any] = []

    def on_paper(request: Any) -> str:
        printed.append(request)
        return "printed"

    async def awaited(request: Any) -> str:
        return on_paper(request)

    for plan in (on_paper, awaited):
        world = World(a=DOWN)
        async with world.client(fallback=plan) as client:
            result = await client.post("/orders", json=1, key="k", deadline=0.5)
            assert isinstance(result, FellBack)
            assert (result.value, result.key) == ("printed", "k")
            world.servers["a"].then(says(422))
            assert isinstance(await client.post("/orders", json=1), Rejected)
    assert [one.key for one in printed] == ["k", "k"]


async def test_the_outbox_goes_before_the_fallback_plan() -> None:
    world = World(a=DOWN)
    async with world.client(outbox="memory:", fallback=lambda _: 1, outbox_max=1) as client:
        assert isinstance(await client.post("/o", json=1, deadline=0.5), Queued)
        assert isinstance(await client.post("/o", json=1, deadline=0.5), FellBack), "it is full"


async def test_in_progress_is_waited_for_under_the_same_key() -> None:
    """K3: 409 with Retry-After is not the answer; what it waits for is."""
    answers = iter([BUSY, OK])
    world = World(a=lambda _: next(answers))
    async with world.client() as client:
        result = await client.post("/orders", json=1, key="k")
    assert isinstance(result, Delivered)
    assert world.asked("a") == 2


async def test_a_server_that_does_not_know_what_an_attempt_did_is_believed() -> None:
    """Our middleware's 409 after a crash in mid-handler: nobody knows, now and in the outbox."""
    world = World(a=problem("outcome-unknown"), relay=TAKEN)
    async with world.client("a", queues=["https://relay"], outbox="memory:") as client:
        result = await client.post("/orders", json=1, key="k")
        assert isinstance(result, Unknown)
        assert (world.asked("a"), world.asked("relay")) == (1, 0)
        world.servers["a"].then(DOWN)
        world.servers["relay"].then(DOWN)
        assert isinstance(await client.post("/orders", json=2, key="l", deadline=0.5), Queued)
        world.servers["a"].then(problem("outcome-unknown"))
        assert isinstance(await client.wait("l", timeout=60), Unknown)


async def test_a_conflict_is_an_answer() -> None:
    world = World(a=says(409))
    async with world.client() as client:
        assert isinstance(await client.post("/orders", json=1, key="k"), Rejected)
    assert world.asked("a") == 1


async def test_a_replayed_answer_says_so() -> None:
    world = World(a=says(201, b"", Idempotent_Replayed="true"))
    async with world.client() as client:
        result = await client.post("/orders", json=1)
    assert isinstance(result, Delivered)
    assert result.response.replayed


async def test_a_server_that_forbids_it_is_not_asked_again() -> None:
    world = World(a=says(503, b"", Unspool_Retry="never"), b=OK)
    async with world.client("a") as client:
        with pytest.raises(Undelivered, match="not to try again"):
            await client.post("/orders", json=1)
    assert world.asked("a") == 1


async def test_nothing_is_kept_for_longer_than_the_servers_know_its_key() -> None:
    """K7: later it would run again."""
    world = World(a=says(200, b"", Idempotency_Retention="answer=1, key=2"))
    async with world.client(outbox="memory:") as client:
        await client.post("/orders", json=1)
        world.servers["a"].then(DOWN)
        await client.post("/orders", json=1, key="k", deadline=0.3)
        parts = await client.ready()
        assert parts.outbox is not None
        entry = await parts.outbox.find("k", ())
    assert entry is not None
    assert entry.message.expires_at - entry.message.accepted_at == 2_000


async def test_a_key_that_was_delivered_is_no_other_requests() -> None:
    """Refused before it is sent, also where nothing of it is in an outbox. The same is no reuse."""
    world = World(a=OK)
    async with world.client() as client:
        await client.post("/orders", json={"a": 1, "b": 2}, key="k")
        with pytest.raises(Reused):
            await client.post("/orders", json={"a": 1, "b": 3}, key="k")
        assert world.asked("a") == 1
        again = await client.post("/orders", json={"b": 2, "a": 1}, key="k")
    assert isinstance(again, Delivered), "the order of members means nothing"


async def test_two_calls_under_one_key_go_one_after_the_other() -> None:
    at_once = [0, 0]

    async def slow(_request: Request) -> Any:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0.02)
        at_once[0] -= 1
        return OK

    world = World(a=slow)
    async with world.client() as client:
        await asyncio.gather(*(client.post("/orders", json=1, key="k") for _ in range(5)))
    assert at_once[1] == 1


async def test_waiting_for_another_call_under_the_key_ends_with_the_deadline() -> None:
    """It is the other's to say what becomes of it: no fallback plan, and nothing sent."""
    world, printed = World(a=never), list[Any]()
    async with world.client("a", fallback=printed.append) as client:
        first = asyncio.create_task(client.post("/orders", json=1, key="k", deadline=30))
        while not world.asked():
            await asyncio.sleep(0.001)
        async with asyncio.timeout(20):
            with pytest.raises(Busy, match="still under way"):
                await client.post("/orders", json=1, key="k", deadline=0.1)
        assert (world.asked(), printed) == (1, [])
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        world.servers["a"].then(OK)
        assert isinstance(await client.post("/orders", json=1, key="k"), Delivered)


async def test_what_may_be_in_the_outbox_all_the_same_is_not_said_to_be_yours() -> None:
    """Its answer was lost (clause 12): looked for and found it is queued; else what may be repeated
    is told as maybe applied, and what may not is unknown: it may go out from there."""

    class Lost(MemorySpool):
        keeps = True

        async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
            if entries[0].state is State.WAITING:
                if self.keeps:
                    await super().accept(entries)
                raise Unavailable("the connection was lost")
            return await super().accept(entries)

    world, spool = World(a=DOWN), Lost()
    async with world.client("a", outbox="memory:", sends=False) as client:
        parts = await client.ready()
        outbox = parts.outbox
        assert outbox is not None

        def over_it() -> None:  # anew, for custody leaves a spool alone for a while after trouble
            outbox.custody = Custody(spool=spool, terms=outbox.custody.terms)  # type: ignore[misc]

        over_it()
        assert isinstance(await client.post("/orders", json=1, key="found"), Queued)
        spool.keeps = False
        over_it()
        with pytest.raises(Undelivered) as caught:
            await client.post("/orders", json=1, key="lost")
        assert caught.value.maybe_applied
        over_it()
        assert isinstance(await client.post("/orders", json=1, key=False), Unknown)


async def test_a_key_that_waits_is_not_sent_beside_its_own_request() -> None:
    world = World(a=DOWN)
    async with world.client(outbox="memory:", sends=False) as client:
        first = await client.post("/orders", json=1, key="k", deadline=0.3)
        asked = world.asked("a")
        second = await client.post("/orders", json=1, key="k")
    assert isinstance(first, Queued)
    assert isinstance(second, Queued)
    assert world.asked("a") == asked


async def test_events_tell_what_is_done() -> None:
    world = World(a=DOWN, b=OK)
    async with world.client("a", "b") as client:
        for _ in range(6):
            await client.post("/orders", json=1, key=None)
    tried = [one for one in world.events if isinstance(one, Tried)]
    ended = [one for one in world.events if isinstance(one, Ended)]
    assert len(ended) == 6
    assert {one.result for one in ended} == {"Delivered"}
    assert len(tried) == world.asked()
    assert {one.attempt.status for one in tried} == {0, 201}


async def test_a_listener_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Any) -> None:
        raise ValueError("my own mistake")

    world = World(a=DOWN)
    client = world.client(outbox="memory:", on_settled=broken)
    async with client:
        await client.post("/orders", json=1, key="k", deadline=0.3)
        world.servers["a"].then(OK)
        assert isinstance(await client.wait("k", timeout=60), Delivered)
        await client.drain(timeout=60)
        assert "on_settled made a mistake" in caplog.text


@virtually
async def test_a_slow_server_is_hedged_and_the_first_answer_counts() -> None:
    """After what is usual, one more is asked; only one in a hundred, and only if asked for."""

    async def slow(_request: Request) -> Any:
        await asyncio.sleep(0.5)
        return OK

    world = World(a=OK, b=OK)
    async with world.client(hedge=True) as client:
        for _ in range(150):
            await client.post("/orders", json=1)
        world.servers["a"].then(slow)
        world.servers["b"].then(slow)
        before = world.asked()
        result = await client.post("/orders", json=1, deadline=2)
        assert isinstance(result, Delivered)
        assert world.asked() == before + 2
        result = await client.post("/orders", json=1, deadline=2)
        assert world.asked() == before + 3, "one in a hundred"


@virtually
async def test_a_hedge_that_meets_its_own_request_does_not_end_it() -> None:
    """Servers that share what they know of keys tell the second that the first is being worked on.
    That is no answer: the first one's is."""
    cut: list[str] = []
    working: set[str] = set()

    async def works(request: Request) -> Any:
        key = value(request, "Idempotency-Key")
        if key in working:
            return says(409, Retry_After="1")
        working.add(key)
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            cut.append(key)
            raise
        return OK

    world = World(a=OK, b=OK)
    async with world.client(hedge=True) as client:
        for _ in range(150):
            await client.post("/orders", json=1)
        world.servers["a"].then(works)
        world.servers["b"].then(works)
        before = world.asked()
        result = await client.post("/orders", json=1, deadline=2)
        assert isinstance(result, Delivered)
        assert (world.asked(), cut) == (before + 2, [])


async def test_closing_lets_calls_under_way_end(tmp_path: Path) -> None:
    """For `drain_ms`; new ones are refused at once."""

    async def soon(_request: Request) -> Any:
        await asyncio.sleep(0.1)
        return OK

    world = World(a=soon)
    client = world.client(outbox=str(tmp_path / "outbox.db"))
    call = asyncio.create_task(client.post("/orders", json=1))
    while not world.asked():
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0.01)
    with pytest.raises(Misconfigured, match="it is closed"):
        await client.get("/")
    assert isinstance(await call, Delivered)
    await closing


async def test_before_is_on_disk_before_the_first_byte(tmp_path: Path) -> None:
    """When the server sees it, another process could read it from the file."""
    seen: list[int] = []

    async def looks(_request: Request) -> Any:
        parts = await client.ready()
        assert parts.outbox is not None
        entry = await parts.outbox.find("order-7", ())
        assert entry is not None
        seen.append(entry.state)
        return OK

    world = World(a=looks)
    file = tmp_path / "outbox.db"
    async with world.client(outbox=str(file), durability="before") as client:
        result = await client.post("/orders", json=1, key="order-7")
        assert isinstance(result, Delivered)
        again = await client.post("/orders", json=1, key="order-7")
        assert isinstance(again, Delivered)
        assert again.response.json() == {"order": 1}
    assert seen == [0]
    assert world.asked("a") == 1, "the second was told what had become of the first"


async def test_before_what_nobody_took_waits_under_the_same_entry(tmp_path: Path) -> None:
    world = World(a=DOWN)
    options: dict[str, Any] = {"outbox": str(tmp_path / "o.db"), "durability": "before"}
    async with world.client(**options) as client:
        assert isinstance(await client.post("/o", json=1, key="k", deadline=0.3), Queued)
        world.servers["a"].then(OK)
        assert isinstance(await client.wait("k", timeout=60), Delivered)
        world.servers["a"].then(RESET)
        unknown = await client.post("/o", json=1, key=False)
        assert isinstance(unknown, Unknown)
        assert isinstance(await client.wait(unknown.key, timeout=0), Unknown)


async def test_the_usual_touches_no_disk(tmp_path: Path) -> None:
    """durability="on-error": no byte of the outbox's files changes while servers answer."""
    world = World(a=OK)

    def image() -> dict[str, tuple[int, int]]:
        return {
            one.name: (one.stat().st_size, one.stat().st_mtime_ns)
            for one in tmp_path.iterdir()
            if not one.name.endswith("-shm")
        }

    async with world.client(outbox=str(tmp_path / "o.db")) as client:
        await client.post("/orders", json=1, key="first")
        before = image()
        for number in range(50):
            await client.post("/orders", json=1, key=f"k{number}")
            await client.post("/orders", json=1)
        assert image() == before


async def test_closing_is_clean_and_a_closed_client_says_so() -> None:
    world = World(a=OK)
    client = world.client(outbox="memory:")
    await client.post("/orders", json=1)
    await client.aclose()
    await client.aclose()
    assert world.servers["a"].closed
    with pytest.raises(Exception, match="it is closed"):
        await client.post("/orders", json=1)


async def test_a_command_that_is_told_runs_nothing_else() -> None:
    """Where a receipt is comes from the relay: pasted into a shell it is one word."""

    async def silent(request: object, *, timeout_ms: int) -> Failure:
        return Failure(Cause.CONNECTION_REFUSED, "refused", Sent.NEVER)

    path = "/_unspool/receipts/x;reboot"
    receipt = Receipt(where="https://a.example", key="k", path=path, ask=silent)
    with pytest.raises(Unavailable) as caught:
        await receipt.status()
    assert str(caught.value).endswith(f"curl 'https://a.example{path}'")
    with pytest.raises(Saved, match="curl 'https:"):
        stands(Accepted(receipt))
