"""Receipts: what a sender holds instead of the answer, and what it is told by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import BOB, NOW, OK, REFUSED, RESET, Still, has, node, says, told, value

from unspool.core.lifecycle import Bounced, Deferred, Keeping, Policy, Reason, State, Verdict
from unspool.core.message import (
    NEVER,
    Answer,
    Attempt,
    Destination,
    Instant,
    Key,
    Message,
    Request,
    Response,
)
from unspool.core.parking import park
from unspool.custody import SECRET_KEY
from unspool.problems import PROBLEMS
from unspool.receipts import RECEIPTS, accepted, describe, read_token, stamp, token
from unspool.spools.protocol import Entry, Lease
from unspool.testing.clock import VirtualClock, virtually

HTML = says(
    200, b"<script>", (b"Content-Type", b"text/html"), (b"Set-Cookie", b"s=1"),
    (b"Content-Security-Policy", b"default-src *"), (b"Clear-Site-Data", b'"*"'),
    (b"Access-Control-Allow-Origin", b"*"), (b"ETag", b'"e"'),
)  # fmt: skip
SHORT = Policy(keeping=Keeping(answer_ms=60_000, key_ms=600_000))


# --- tokens -------------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.text("abcXYZ019-_", min_size=22, max_size=22))
def test_a_token_is_read_back(nonce: bytes, key: str) -> None:
    """The capability holds the nonce and the key, and nothing has to be looked up to read it."""
    assert read_token(token(nonce, Key(key))) == (nonce, key)


@given(
    state=st.sampled_from([State.WAITING, State.CLAIMED]),
    due_at=st.sampled_from([NOW - 1, NOW, NOW + 5, NEVER]),
    attempt=st.integers(0, 1),
    leased_until=st.sampled_from([0, 1, NOW - 1, NOW + 1]),
    tried=st.booleans(),
    name=st.sampled_from(["", 'a"%s']),
)
def test_a_202_has_the_receipt_that_describe_tells(
    state: State, due_at: int, attempt: int, leased_until: int, tried: bool, name: str
) -> None:
    """Also where it was written by a form made beforehand."""
    at = Instant(NOW)
    message = Message(
        Key("k" * 22), b"", Destination("d"), at, Instant(NOW + 99), b"n" * 16, name=name
    )
    trail = (Attempt(1, at, 503, "503 %s", "maybe applied"),) if tried else ()
    entry = Entry(message, state, Instant(due_at), attempt, Instant(leased_until), trail)
    receipt = describe(entry, now=at, survives="power")
    response = accepted(entry, now=at, survives="power")
    assert json.loads(response.body) == json.loads(msgspec.json.encode(receipt))
    assert value(response, b"location").decode() == receipt.receipt


@given(st.text(max_size=60))
def test_what_is_no_token_is_none(text: str) -> None:
    """Total over texts."""
    read = read_token(text)
    assert read is None or token(*read)[22:] == text[22:]


@given(st.integers(0, 2**42))
def test_an_instant_is_written_in_utc_to_the_millisecond(instant: int) -> None:
    """RFC 3339, exact, and sorted as the instants are."""
    text = stamp(instant)  # type: ignore[arg-type]
    assert text.endswith("+00:00")
    assert round(datetime.fromisoformat(text).timestamp() * 1000) == instant


@virtually
async def test_only_the_whole_token_opens_a_receipt() -> None:
    """A guessed nonce, another key's nonce, the spool's secret, a listing: all the same 404."""
    async with node(RESET, clock=VirtualClock()) as it:
        mine = value(await it.ask(key="a"), b"location")
        other = value(await it.ask(b"POST", b"/orders", BOB, key="a"), b"location")
        nonce, key = mine[len(RECEIPTS) :][:22], mine[-22:]
        for wrong in (
            RECEIPTS.encode() + b"A" * 22 + key,
            RECEIPTS.encode() + other[len(RECEIPTS) :][:22] + key,
            RECEIPTS.encode() + nonce + b"B" * 22,
            RECEIPTS.encode() + b"A" * 22 + SECRET_KEY.encode(),
            RECEIPTS.encode() + b"AAAAAAAAAAAAAAAAAAAAAA" + SECRET_KEY.encode() + b"/response",
            mine[:-1], mine + b"x", mine + b"/", mine + b"/other", RECEIPTS.encode(),
        ):  # fmt: skip
            for method in (b"GET", b"DELETE"):
                answer = await it.ask(method, wrong, body=b"")
                assert answer.status in (404, 405), wrong
                assert nonce not in answer.body
        assert (await it.ask(b"GET", mine, body=b"")).status == 200


# --- what it tells ------------------------------------------------------------------------------


@virtually
async def test_a_receipt_tells_the_whole_story_as_it_goes() -> None:
    """Waiting with causes and the next attempt; delivered with status and where the answer is."""
    async with node(RESET, clock=VirtualClock()) as it:
        first = await it.ask(key="k")
        assert first.status == 202
        where = value(first, b"location")
        waits = told(await it.ask(b"GET", where, body=b""))
        assert waits["receipt"].encode() == where
        assert waits["state"] == "waiting"
        assert waits["survives"] == "nothing"
        assert waits["idempotency_key"] == "k"
        assert waits["held"] is False
        assert waits["attempting"] is False
        assert waits["next_attempt_at"] > waits["accepted_at"]
        assert waits["expires_at"] > waits["next_attempt_at"]
        [attempt] = waits["attempts"]
        assert attempt["number"] == 1
        assert attempt["status"] is None
        assert attempt["cause"].startswith("connection_terminated")
        assert attempt["sent"] == "maybe applied"
        it.service.then(OK)
        it.node.start()
        await asyncio.sleep(60)
        done = told(await it.ask(b"GET", where, body=b""))
        assert done["state"] == "delivered"
        assert done["status"] == 201
        assert done["response"].encode() == where + b"/response"
        assert [a["number"] for a in done["attempts"]] == [1, 2]
        assert done["delivered_at"] >= done["attempts"][1]["at"]
        assert "next_attempt_at" not in done


@virtually
async def test_retry_after_says_when_asking_is_worth_it() -> None:
    """While it waits: about when the next attempt is; afterwards not at all."""
    async with node(says(503, b"", (b"Retry-After", b"100")), clock=VirtualClock()) as it:
        where = value(await it.ask(key="k"), b"location")
        answer = await it.ask(b"GET", where, body=b"")
        assert 100 <= int(value(answer, b"retry-after")) <= 115
        it.service.then(OK)
        it.node.start()
        await asyncio.sleep(300)
        assert not has(await it.ask(b"GET", where, body=b""), b"retry-after")


@virtually
async def test_nothing_of_a_receipt_is_cached_or_leaks_by_a_referrer() -> None:
    """The address is the capability."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        seen = await it.receipt(answer)
        for each in (answer, seen):
            assert value(each, b"cache-control") == b"no-store"
        assert value(seen, b"referrer-policy") == b"no-referrer"
        assert has(seen, b"proxy-status")


@virtually
async def test_a_wait_ends_with_the_verdict_and_not_later() -> None:
    """?wait= is told at once; two who wait are both told."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        it.service.then(OK)
        began = it.clock.now()
        one = asyncio.create_task(it.receipt(answer, b"?wait=30"))
        two = asyncio.create_task(it.receipt(answer, b"/response?wait=30"))
        it.node.start()
        assert told(await one)["state"] == "delivered"
        assert (await two).body == OK.body
        assert it.clock.now() - began < 3_000


@virtually
async def test_a_wait_that_is_in_vain_ends_in_time() -> None:
    """As long as was asked and no longer than is allowed."""
    async with node(RESET, clock=VirtualClock(), wait_max_ms=10_000) as it:
        answer = await it.ask(key="k")
        for asked, took_ms in (
            (b"?wait=4", 4_000),
            (b"?wait=600", 10_000),
            (b"?a=1&wait=2", 2_000),
        ):
            began = it.clock.now()
            assert told(await it.receipt(answer, asked))["state"] == "waiting"
            assert it.clock.now() - began == took_ms
        began = it.clock.now()
        for nothing in (b"?wait=0", b"?other=5", b"?"):
            assert (await it.receipt(answer, nothing)).status == 200
        assert it.clock.now() == began


@pytest.mark.parametrize("bad", [b"?wait=", b"?wait=soon", b"?wait=-1", b"?wait=1e3"])
@virtually
async def test_a_wait_that_cannot_be_read_is_an_error(bad: bytes) -> None:
    """Not a preference: the sender wrote it in our address."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        assert (await it.receipt(answer, bad)).status == 400


# --- the answer itself --------------------------------------------------------------------------


@virtually
async def test_the_answer_is_served_as_somebody_elses_bytes() -> None:
    """Sandboxed, not sniffed, not cached; nothing in it speaks for our origin."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        early = await it.receipt(answer, b"/response")
        assert early.status == 202
        it.service.then(HTML)
        it.node.start()
        await asyncio.sleep(60)
        served = await it.receipt(answer, b"/response")
        assert (served.status, served.body) == (200, b"<script>")
        assert value(served, b"content-type") == b"text/html"
        assert value(served, b"etag") == b'"e"'
        assert value(served, b"x-content-type-options") == b"nosniff"
        assert value(served, b"content-security-policy") == b"sandbox; default-src 'none'"
        assert value(served, b"cache-control") == b"no-store"
        assert has(served, b"unspool-answered-at")
        for gone in (b"set-cookie", b"clear-site-data", b"access-control-allow-origin"):
            assert not has(served, gone)


@pytest.mark.parametrize(
    ("first", "then", "status", "reason"),
    [(RESET, RESET, 410, "expired"), (REFUSED, RESET, 502, "unknown")],
)
@virtually
async def test_a_bounce_is_told_with_its_reason(
    first: Answer, then: Answer, status: int, reason: str
) -> None:
    """410 where it was given up, 502 where nobody can know; and the receipt has every attempt."""
    async with node(first, clock=VirtualClock()) as it:
        it.service.then(first)
        life = (b"Unspool-Lifetime", b"60")
        answer = await it.ask(b"POST", b"/orders", life, key="" if reason == "unknown" else "k")
        assert answer.status == 202
        it.service.then(then)
        it.node.start()
        await asyncio.sleep(120)
        state = told(await it.receipt(answer))
        assert (state["state"], state["reason"]) == ("bounced", reason)
        assert state["bounced_at"] > state["accepted_at"]
        assert state["attempts"]
        assert (await it.receipt(answer, b"/response")).status == status


@virtually
async def test_an_answer_is_kept_for_its_time_and_the_fact_for_longer() -> None:
    """J2: then 410, then 404, judged by the instants and not by the broom."""
    async with node(RESET, clock=VirtualClock(), policy=SHORT) as it:
        answer = await it.ask(key="k")
        it.service.then(OK)
        it.node.start()
        await asyncio.sleep(10)
        assert (await it.receipt(answer, b"/response")).status == 201
        await asyncio.sleep(60)
        assert (await it.receipt(answer, b"/response")).status == 410
        assert told(await it.receipt(answer))["state"] == "delivered"
        await asyncio.sleep(700)
        assert (await it.receipt(answer)).status == 404


# --- cancelling ---------------------------------------------------------------------------------


@virtually
async def test_delete_ends_what_waits_and_nothing_is_tried_after_it() -> None:
    """The receipt says so, and when; whoever waits for it is told; a repeat is refused."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        await asyncio.sleep(0.5)
        waits = asyncio.create_task(it.receipt(answer, b"?wait=30"))
        await asyncio.sleep(0)
        gone = await it.receipt(answer, method=b"DELETE")
        at = it.clock.now()
        assert gone.status == 200
        state = told(gone)
        assert (state["state"], state["reason"]) == ("bounced", "cancelled")
        assert state["bounced_at"] == stamp(it.clock.now())
        assert told(await waits)["reason"] == "cancelled"
        assert it.clock.now() == at
        assert it.node.custody.backlog == 0
        it.service.then(OK)
        it.node.start()
        await asyncio.sleep(3_600)
        assert len(it.service.attempts) == 1
        assert (await it.receipt(answer, method=b"DELETE")).status == 409
        assert (await it.ask(key="k")).status == 410


@virtually
async def test_what_is_under_way_or_done_cannot_be_cancelled() -> None:
    """409: an attempt may have its effect at any moment."""

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(10)
        return OK

    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        it.service.then(slowly)
        it.node.start()
        await asyncio.sleep(5)
        assert told(await it.receipt(answer))["attempting"] is True
        assert (await it.receipt(answer, method=b"DELETE")).status == 409
        await asyncio.sleep(30)
        assert told(await it.receipt(answer))["state"] == "delivered"
        assert (await it.receipt(answer, method=b"DELETE")).status == 409


# --- the rest of our addresses ------------------------------------------------------------------


@virtually
async def test_other_methods_are_told_which_there_are() -> None:
    """405 with Allow, on the receipt and on its answer."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        for tail, allow in ((b"", b"GET, HEAD, DELETE"), (b"/response", b"GET, HEAD")):
            refused = await it.receipt(answer, tail, method=b"POST")
            assert (refused.status, value(refused, b"allow")) == (405, allow)
        assert (await it.receipt(answer, b"/response", method=b"DELETE")).status == 405
        assert (await it.receipt(answer, method=b"HEAD")).status == 200
        assert it.service.attempts[1:] == []


@pytest.mark.parametrize("name", sorted(PROBLEMS))
async def test_every_problem_has_a_page(name: str) -> None:
    """The `type` of a problem document can be followed."""
    async with node() as it:
        page = await it.ask(b"GET", b"/_unspool/problems/" + name.encode(), body=b"")
        assert page.status == 200
        assert PROBLEMS[name].title.encode() in page.body
        assert it.service.attempts == []


async def test_nothing_under_our_prefix_goes_on_to_the_service() -> None:
    """It is ours, whatever is asked of it."""
    async with node() as it:
        for target in (b"/_unspool/", b"/_unspool/x", b"/_unspool/problems/nope"):
            assert (await it.ask(b"GET", target, body=b"")).status == 404
        assert (await it.ask(b"POST", b"/_unspool/x")).status == 405
        assert it.service.attempts == []


async def test_health_says_whether_it_takes_and_delivers() -> None:
    """For probes: 200 only where custody is taken and a dispatcher runs."""
    async with node(clock=Still()) as it:
        ill = await it.ask(b"GET", b"/_unspool/health", body=b"")
        assert (ill.status, json.loads(ill.body)["delivers"]) == (503, False)
        it.node.start()
        await asyncio.sleep(0)
        well = await it.ask(b"GET", b"/_unspool/health", body=b"")
        assert (well.status, json.loads(well.body)["ready"]) == (200, True)


# --- moved --------------------------------------------------------------------------------------


async def _said(it: Any, answer: Response, verdict: Callable[[Lease], Verdict]) -> None:
    """An operator's verdict on the message of this receipt."""
    key = Key(value(answer, b"location")[-22:].decode())
    now = it.clock.now()
    [lease] = await it.node.custody.spool.seize([key], now=now, until=Instant(now + 60_000))
    assert await it.node.custody.spool.settle([(lease, verdict(lease))]) == [True]


@virtually
async def test_what_was_moved_says_so_and_is_not_tried_here() -> None:
    """Responsibility did not come back to the sender: a repeat is told to ask elsewhere (421)."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")
        until = Instant(it.clock.now() + 1_000_000_000)
        await _said(it, answer, lambda lease: Bounced(Reason.MOVED, until, lease.entry.trail))
        state = told(await it.receipt(answer))
        assert (state["state"], state["reason"]) == ("moved", "moved")
        assert "come back to you" not in state["where"]
        assert (await it.receipt(answer, b"/response")).status == 421
        repeat = await it.ask(key="k")
        assert repeat.status == 421
        assert json.loads(repeat.body)["type"].endswith("/moved")
        assert len(it.service.attempts) == 1


@virtually
async def test_what_is_being_moved_here_cannot_be_cancelled_here() -> None:
    """Its old relay may have it in hand: to say that it was cancelled would be a guess."""
    async with node(RESET, clock=VirtualClock()) as it:
        answer = await it.ask(key="k")

        def parked(lease: Lease) -> Deferred:
            trail = park(lease.entry.trail, due_at=Instant(9), number=1, now=it.clock.now())
            return Deferred(NEVER, trail)

        await _said(it, answer, parked)
        assert (await it.receipt(answer, method=b"DELETE")).status == 409
        assert told(await it.receipt(answer))["state"] == "waiting"
