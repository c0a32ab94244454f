"""What a sender sees (design sections 5 and 6; docs/reference/wire.md)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kit import ALICE, BOB, OK, REFUSED, RESET, SLOW, has, node, says, told, value

from unspool.core.message import Request, Response, Severed
from unspool.errors import Full, Unavailable
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Survives

COOKIE = (b"Set-Cookie", b"session=1")


class Rest:
    """A body that is still on its way."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)
        self.closed = False

    async def read(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("status", [200, 204, 301, 304, 400, 401, 404, 422, 501])
async def test_answers_go_through_untouched(status: int) -> None:
    """2xx, 3xx, 4xx and the final 5xx are passed on with their fields; nothing is kept."""
    answer = says(status, b"body", (b"X-One", b"1"), (b"x-one", b"2"), COOKIE)
    async with node(answer) as it:
        assert await it.ask() is answer
        assert it.kept == []


async def test_the_request_goes_through_with_what_we_add() -> None:
    """Order, case and duplicates stay; Via, Forwarded and the attempt's number are added."""
    async with node() as it:
        await it.ask(b"POST", b"/a%2Fb//c?x=1", (b"X-B", b"1"), (b"x-b", b"2"), (b"TE", b"gzip"))
        [sent] = it.service.attempts
        assert (sent.method, sent.target) == (b"POST", b"/a%2Fb//c?x=1")
        names = [name for name, _ in sent.fields]
        assert names == [
            b"Host", b"Content-Type", b"X-B", b"x-b", b"Via", b"Forwarded", b"Unspool-Attempt",
        ]  # fmt: skip
        added = dict(sent.fields)
        assert added[b"Via"].startswith(b"1.1 unspool-")
        assert added[b"Forwarded"] == b'for=192.0.2.7;proto=http;host="relay.example"'
        assert added[b"Unspool-Attempt"] == b"1"


@pytest.mark.parametrize("trouble", [says(500), says(502), says(503), says(504), says(599),
                                     says(429), says(408), REFUSED, RESET, SLOW])  # fmt: skip
async def test_keyed_trouble_is_saved_and_delivered_later(trouble: Any) -> None:
    """202 with a receipt; once the service is well the receipt has its answer."""
    async with node(trouble) as it:
        response = await it.ask(key="k1")
        assert response.status == 202
        assert told(response)["state"] == "waiting"
        assert int(value(response, b"retry-after")) >= 1
        assert value(response, b"proxy-status").startswith(b"unspool; details=")
        it.service.then(OK)
        it.clock.at += 60_000
        await it.deliver()
        now = told(await it.receipt(response))
        assert (now["state"], now["status"]) == ("delivered", 201)
        assert [a["number"] for a in now["attempts"]] == [1, 2]
        assert (await it.receipt(response, b"/response")).body == OK.body
        keys = {dict(r.fields)[b"Idempotency-Key"] for r in it.service.attempts}
        assert keys == {b'"k1"'}, "every attempt carries the sender's key"
        assert [dict(r.fields)[b"Unspool-Attempt"] for r in it.service.attempts] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("trouble", "status"),
    [(says(500, b"oops"), 500), (says(503, b"oops"), 503), (RESET, 502), (SLOW, 504)],
)
async def test_what_may_not_be_repeated_is_passed_back_with_the_reason(
    trouble: Any, status: int
) -> None:
    """An unkeyed POST that may have been applied: the sender gets the failure itself, and why."""
    async with node(trouble) as it:
        response = await it.ask()
        assert response.status == status
        assert b"send an Idempotency-Key" in value(response, b"proxy-status")
        assert it.kept == []
        if isinstance(trouble, Response):
            assert response.body == b"oops"
            assert b"received-status=%d" % status in value(response, b"proxy-status")


async def test_an_unkeyed_post_that_was_never_sent_is_saved() -> None:
    """Nothing reached the service, so it may go later; but only until it may have been applied."""
    async with node(REFUSED) as it:
        response = await it.ask()
        assert response.status == 202
        it.service.then(RESET)
        it.clock.at += 60_000
        await it.deliver()
        now = told(await it.receipt(response))
        assert (now["state"], now["reason"]) == ("bounced", "unknown")
        assert (await it.receipt(response, b"/response")).status == 502
        assert len(it.service.attempts) == 2
        assert it.service.repeats == [False, False]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_safe_methods_are_not_saved(method: bytes) -> None:
    """Nobody wants the answer to a GET tomorrow; a key on one is ignored."""
    async with node(REFUSED) as it:
        response = await it.ask(method, key="k1", body=b"")
        assert (response.status, it.kept) == (503, [])
        assert value(response, b"retry-after")
        assert told(response)["type"] == "/_unspool/problems/unreachable"


@pytest.mark.parametrize("method", [b"PUT", b"DELETE"])
async def test_idempotent_methods_are_saved_without_a_key(method: bytes) -> None:
    async with node(says(503)) as it:
        assert (await it.ask(method)).status == 202


async def test_respond_async_saves_first() -> None:
    """Prefer: respond-async: 202 without a try, also for a GET; then it is delivered."""
    async with node() as it:
        response = await it.ask(b"GET", b"/report", (b"Prefer", b"respond-async"), body=b"")
        assert (response.status, it.service.attempts) == (202, [])
        assert value(response, b"preference-applied") == b"respond-async"
        await it.deliver()
        assert told(await it.receipt(response))["state"] == "delivered"


async def test_wait_gives_the_real_answer() -> None:
    """Prefer: wait=N: the sender who waits gets the service's answer instead of a 202."""
    async with node(says(503)) as it:
        asking = asyncio.create_task(it.ask(b"POST", b"/o", (b"Prefer", b"wait=30"), key="k1"))
        await asyncio.sleep(0.01)
        it.service.then(OK)
        it.clock.at += 10_000
        await it.deliver()
        response = await asyncio.wait_for(asking, 20)
        assert (response.status, response.body) == (201, OK.body)


async def test_the_same_key_gets_the_same_answer() -> None:
    """Byte for byte, marked, without the fields of the one exchange; the service is asked once."""
    answer = says(
        201, b'{"n": 1}', (b"Location", b"/o/1"), COOKIE, (b"Cache-Control", b"max-age=9")
    )
    async with node(answer) as it:
        assert has(await it.ask(key="k1"), b"set-cookie"), "its first caller gets everything"
        again = await it.ask(key="k1")
        assert (again.status, again.body, value(again, b"location")) == (201, answer.body, b"/o/1")
        assert value(again, b"idempotent-replayed") == b"true"
        assert value(again, b"cache-control") == b"no-store"
        assert not has(again, b"set-cookie")
        bare = await it.ask(b"POST", b"/orders", (b"Idempotency-Key", b"k1"))
        assert value(bare, b"idempotent-replayed") == b"true", "quoted and bare are one key"
        assert len(it.service.attempts) == 1


async def test_a_waiting_key_gets_the_same_receipt() -> None:
    async with node(says(503)) as it:
        first, second = await it.ask(key="k1"), await it.ask(key="k1")
        assert second.status == 202
        assert value(first, b"location") == value(second, b"location")
        assert len(it.service.attempts) == 1


async def test_a_running_key_waits_or_is_told() -> None:
    """409 with Retry-After at once; with Prefer: wait the first one's answer; another body, 422."""
    gate = asyncio.Event()

    async def late(_: Request) -> Response:
        await gate.wait()
        return OK

    async with node(late) as it:
        first = asyncio.create_task(it.ask(key="k1"))
        await asyncio.sleep(0.01)
        told_off = await it.ask(key="k1")
        assert (told_off.status, value(told_off, b"retry-after")) == (409, b"1")
        assert (await it.ask(key="k1", body=b"other")).status == 422
        patient = asyncio.create_task(
            it.ask(b"POST", b"/orders", (b"Prefer", b"wait=60"), key="k1")
        )
        await asyncio.sleep(0.01)
        gate.set()
        assert (await first).body == OK.body
        assert value(await patient, b"idempotent-replayed") == b"true"
        assert len(it.service.attempts) == 1


@pytest.mark.parametrize("claims", [False, True])
async def test_fifty_at_once_run_once(claims: bool) -> None:
    """However many come at the same time under one key, the service is asked once."""

    async def soon(_: Request) -> Response:
        await asyncio.sleep(0.01)
        return OK

    spool = MemorySpool()
    async with node(soon, spool=spool, claims=claims) as one:
        async with node(spool=spool, claims=claims, service=one.service, clock=one.clock) as two:
            askers = [one, two] if claims else [one]
            wait = (b"Prefer", b"wait=60")
            answers = await asyncio.gather(
                *(
                    askers[n % len(askers)].ask(b"POST", b"/orders", wait, key="k1")
                    for n in range(50)
                )
            )
        assert len(one.service.attempts) == 1
        assert {(a.status, a.body) for a in answers} == {(201, OK.body)}


@pytest.mark.parametrize("state", ["answered", "waiting"])
async def test_another_request_under_a_key_is_refused(state: str) -> None:
    """422 for another body, target, query or method, and no word of the first. JSON by meaning."""
    async with node(OK if state == "answered" else says(503)) as it:
        await it.ask(key="k1", body=b'{"a": 1, "b": 2}')
        for changed in (
            it.ask(key="k1", body=b'{"a": 1, "b": 3}'),
            it.ask(b"POST", b"/other", key="k1", body=b'{"a": 1, "b": 2}'),
            it.ask(b"POST", b"/orders?x=1", key="k1", body=b'{"a": 1, "b": 2}'),
            it.ask(b"PATCH", key="k1", body=b'{"a": 1, "b": 2}'),
        ):
            response = await changed
            assert response.status == 422
            assert told(response)["detail"] == told(response)["title"]
        same = await it.ask(key="k1", body=b'{ "b":2, "a":1 }')
        assert same.status == (201 if state == "answered" else 202)
        assert len(it.service.attempts) == 1


@pytest.mark.parametrize("field", [b"Authorization", b"Cookie"])
async def test_keys_belong_to_their_caller(field: bytes) -> None:
    """Two callers with one key and one body are two requests; nobody sees the other's answer."""
    async with node(lambda r: says(200, dict(r.fields)[field])) as it:
        first = await it.ask(b"POST", b"/o", (field, b"alice"), key="k1")
        second = await it.ask(b"POST", b"/o", (field, b"bob"), key="k1")
        assert (first.body, second.body) == (b"alice", b"bob")
        assert len(it.service.attempts) == 2
        assert ALICE != BOB


@pytest.mark.parametrize("status", [401, 403])
async def test_answers_about_the_moment_are_not_remembered(status: int) -> None:
    async with node(says(status)) as it:
        assert (await it.ask(key="k1")).status == status
        it.service.then(OK)
        assert (await it.ask(key="k1")).status == 201


async def test_a_key_that_is_too_old_is_refused() -> None:
    """After answer_keep the fact is known: 410, and nothing runs. After key_keep it is free."""
    async with node() as it:
        await it.ask(key="k1")
        it.clock.at += 25 * 3600 * 1000
        assert (await it.ask(key="k1")).status == 410
        assert len(it.service.attempts) == 1
        it.clock.at += 31 * 24 * 3600 * 1000
        assert (await it.ask(key="k1")).status == 201


@pytest.mark.parametrize(
    "bad", [b'"open', b'"a" "b"', b"", b"  ", b"a,b", b'"\xc3\xa9"', b"x" * 256]
)
async def test_a_key_that_cannot_be_read_is_refused(bad: bytes) -> None:
    """400, nothing is tried, and the raw key is not in the answer."""
    async with node() as it:
        response = await it.ask(b"POST", b"/o", (b"Idempotency-Key", bad))
        assert (response.status, it.service.attempts) == (400, [])
        assert len(bad) < 3 or bad not in response.body
        two = await it.ask(b"POST", b"/o", (b"Idempotency-Key", b"a"), (b"idempotency-key", b"a"))
        assert two.status == 400


async def test_a_receipt_serves_the_answer_harmlessly() -> None:
    """Somebody else's bytes from our origin: sandboxed, not cached, without origin-wide fields."""
    nasty = says(
        200, b"<script>", (b"Content-Type", b"text/html"), COOKIE, (b"Clear-Site-Data", b'"*"'),
        (b"Content-Security-Policy", b"default-src *"), (b"Cache-Control", b"public"),
    )  # fmt: skip
    async with node(says(503)) as it:
        response = await it.ask(key="k1")
        it.service.then(nasty)
        it.clock.at += 60_000
        await it.deliver()
        served = await it.receipt(response, b"/response")
        assert (served.status, served.body) == (200, b"<script>")
        assert value(served, b"x-content-type-options") == b"nosniff"
        assert value(served, b"content-security-policy") == b"sandbox; default-src 'none'"
        assert value(served, b"cache-control") == b"no-store"
        assert not has(served, b"set-cookie")
        assert not has(served, b"clear-site-data")


async def test_a_receipt_is_the_only_way_in() -> None:
    """Unknown, altered or malformed: 404, whatever is missing. There is no listing."""
    async with node(says(503)) as it:
        path = value(await it.ask(key="k1"), b"location")
        token = path.rpartition(b"/")[2]
        other = (b"A" if token[:1] != b"A" else b"B") + token[1:]
        for wrong in (other, token[:-1], token + b"x", b"", b"../../x", b"unspool.secret........"):
            response = await it.ask(b"GET", b"/_unspool/receipts/" + wrong, body=b"")
            assert response.status == 404, wrong
        assert (await it.ask(b"GET", path, body=b"")).status == 200
        assert (await it.ask(b"POST", path, body=b"")).status == 405
        assert it.service.attempts.__len__() == 1, "nothing under /_unspool/ is passed on"


async def test_delete_cancels_what_is_not_under_way() -> None:
    async with node(says(503)) as it:
        response = await it.ask(key="k1")
        cancelled = told(await it.receipt(response, method=b"DELETE"))
        assert (cancelled["state"], cancelled["reason"]) == ("bounced", "cancelled")
        assert (await it.receipt(response, method=b"DELETE")).status == 409
        it.service.then(OK)
        it.clock.at += 60_000
        await it.deliver()
        assert len(it.service.attempts) == 1
        assert (await it.ask(key="k1")).status == 410


async def test_it_bounces_at_its_expiry_with_every_attempt() -> None:
    """Unspool-Lifetime: given up after it, and the receipt tells the whole story (I2)."""
    async with node(says(503)) as it:
        response = await it.ask(b"POST", b"/o", (b"Unspool-Lifetime", b"30"), key="k1")
        for _ in range(6):
            it.clock.at += 8_000
            await it.deliver()
        now = told(await it.receipt(response))
        assert (now["state"], now["reason"]) == ("bounced", "expired")
        tried = [a["number"] for a in now["attempts"] if a["status"] == 503]
        assert tried == list(range(1, len(it.service.attempts) + 1))
        assert len(tried) >= 3
        assert (await it.receipt(response, b"/response")).status == 410


async def test_a_body_too_large_to_keep_streams_without_custody() -> None:
    """It goes through; asked for custody it is 413; failing, it is passed back and said so."""
    async with node() as it:
        assert (await it.ask(key="k1", rest=Rest(b"more"))).status == 201
        assert it.kept == []
        rest = Rest(b"more")
        refused = await it.ask(b"POST", b"/o", (b"Prefer", b"respond-async"), rest=rest)
        assert (refused.status, rest.closed) == (413, True)
        it.service.then(REFUSED)
        assert (await it.ask(key="k2", rest=Rest(b"more"))).status == 503


async def test_a_large_answer_is_remembered_as_a_fact() -> None:
    """Its first caller gets it all; the repeat gets status and fields, no body, and is told."""

    class Endless(Rest):
        async def read(self) -> bytes:
            return b"y" * 65536 if len(self.parts) < 40 and not self.parts.append(b"") else b""

    def large(_: Request) -> Response:
        return Response(200, b"", [(b"X-A", b"1")], b"begin", Endless(), -1)

    async with node(large) as it:
        first = await it.ask(key="k1")
        assert first.rest is not None
        size = len(first.body)
        while part := await first.rest.read():
            size += len(part)
        assert size == 5 + 40 * 65536
        again = await it.ask(key="k1")
        assert (again.status, again.body, value(again, b"unspool-body-kept")) == (200, b"", b"?0")
        assert len(it.service.attempts) == 1


async def test_an_answer_that_breaks_off_is_no_answer() -> None:
    """A keyed answer that ends too early is not recorded and not passed on: it is saved."""

    class Breaks(Rest):
        async def read(self) -> bytes:
            raise Severed("the connection broke off")

    async with node(lambda _: Response(200, b"", [], b"ha", Breaks(), -1)) as it:
        assert (await it.ask(key="k1")).status == 202


async def test_a_loop_is_noticed() -> None:
    """A request that has been here before: 508. Another relay's Via is nothing to us."""
    async with node() as it:
        await it.ask()
        via = dict(it.service.attempts[0].fields)[b"Via"]
        assert (await it.ask(b"POST", b"/o", (b"Via", via))).status == 508
        assert (await it.ask(b"POST", b"/o", (b"Via", b"1.1 unspool-00000000"))).status == 201


async def test_below_the_required_grade_nothing_is_promised() -> None:
    """A spool that survives less than was asked for is not used: 503, and the sender keeps it."""
    async with node(REFUSED, required=Survives.POWER) as it:
        response = await it.ask(key="k1")
        assert (response.status, it.kept) == (503, [])
        assert told(response)["where"] == "It was not taken: you still have it."


async def test_a_full_spool_refuses_and_passes_through() -> None:
    """Disk full: 503 with Retry-After for what would be saved; what succeeds goes through, and a
    keyed answer that cannot be recorded says so."""

    class Filled(MemorySpool):
        full = False

        async def accept(self, entries: Any, /) -> Any:
            if self.full:
                raise Full("The disk is full. Nothing was taken.")
            return await super().accept(entries)

    spool = Filled()
    async with node(REFUSED, spool=spool) as it:
        spool.full = True
        response = await it.ask(key="k1")
        assert (response.status, value(response, b"retry-after")) == (503, b"1")
        it.service.then(OK)
        assert (await it.ask()).status == 201
        it.clock.at += 5_000
        recorded = await it.ask(key="k2")
        assert (recorded.status, value(recorded, b"idempotency-stored")) == (201, b"false")
        spool.full = False
        it.service.then(REFUSED)
        it.clock.at += 5_000
        assert (await it.ask(key="k1")).status == 202


def uuid7(at_ms: int) -> str:
    return f"{at_ms >> 16:08x}-{at_ms & 0xFFFF:04x}-7abc-8def-0123456789ab"


@pytest.mark.parametrize("claims", [False, True])
async def test_a_key_that_tells_its_age_is_not_run_too_late_or_too_early(claims: bool) -> None:
    """J3, J4: it may have run and been forgotten; one from the future is a mistake. What is known
    is known however old its key is, and a refusal leaves nothing behind."""
    async with node(claims=claims) as it:
        now, key_ms = it.clock.now(), it.node.plan.options.policy.keeping.key_ms
        old = await it.ask(key=uuid7(now - key_ms - 1))
        assert (old.status, told(old)["type"]) == (410, "/_unspool/problems/expired")
        early = await it.ask(key=uuid7(now + 6 * 60_000))
        assert (early.status, told(early)["type"]) == (400, "/_unspool/problems/key-malformed")
        assert it.service.attempts == []
        assert it.kept == []
        last = uuid7(now - key_ms + 1)
        assert (await it.ask(key=last)).status == 201
        it.clock.at += 2
        again = await it.ask(key=last)
        assert (again.status, value(again, b"idempotent-replayed")) == (201, b"true")
        assert len(it.service.attempts) == 1


async def test_every_answer_about_a_key_tells_how_long_it_is_remembered() -> None:
    """J1: first answers, replays, receipts and refusals; not answers that have no key."""
    async with node() as it:
        first = await it.ask(key="k1")
        replay = await it.ask(key="k1")
        refused = await it.ask(key="k1", body=b"{}")
        it.service.then(REFUSED)
        saved = await it.ask(key="k2")
        assert [each.status for each in (first, replay, refused, saved)] == [201, 201, 422, 202]
        for each in (first, replay, refused, saved):
            assert value(each, b"idempotency-retention") == b"answer=86400, key=2592000"
        document = await it.ask(b"GET", b"/_unspool/retention", body=b"")
        assert told(document) == {"answer": 86400, "key": 2592000}
        it.service.then(OK)
        it.clock.at += 60_000
        assert not has(await it.ask(), b"idempotency-retention")


@pytest.mark.parametrize("claims", [False, True])
async def test_where_the_memory_does_not_answer_nothing_runs(claims: bool) -> None:
    """J7: a request with a key is a 503 with Retry-After; one without goes through."""

    class Mute(MemorySpool):
        mute = False

        async def find(self, keys: Any, /) -> Any:
            if self.mute:
                raise Unavailable("The spool does not answer.")
            return await super().find(keys)

        async def accept(self, entries: Any, /) -> Any:
            if self.mute:
                raise Unavailable("The spool does not answer.")
            return await super().accept(entries)

    spool = Mute()
    async with node(spool=spool, claims=claims) as it:
        spool.mute = True
        response = await it.ask(key="k1")
        assert (response.status, value(response, b"retry-after")) == (503, b"1")
        assert it.service.attempts == []
        assert (await it.ask()).status == 201
        spool.mute = False
        assert (await it.ask(key="k1")).status == 201


async def test_a_closed_lane_costs_newcomers_nothing() -> None:
    """Once it is known to be down: straight to the spool, or 503 at once; then one probe."""
    async with node(REFUSED) as it:
        for n in range(6):
            await it.ask(key=f"k{n}")
        tried = len(it.service.attempts)
        assert tried == 5
        assert (await it.ask(key="late")).status == 202
        response = await it.ask(b"GET", body=b"")
        assert (response.status, len(it.service.attempts)) == (503, tried)
        it.clock.at += 6_000
        it.service.then(OK)
        assert (await it.ask(b"GET", body=b"")).status == 201, "the probe"


async def test_an_order_is_kept() -> None:
    """Under one order key messages arrive in the order they were accepted, one at a time."""
    async with node(says(503)) as it:
        order = (b"Unspool-Order", b"customer-7")
        for n in range(4):
            await it.ask(b"POST", b"/%d" % n, order, (b"Prefer", b"respond-async"), key=f"k{n}")
        await it.deliver()
        it.service.then(OK)
        for _ in range(8):
            it.clock.at += 70_000
            await it.deliver()
        targets = [r.target for r in it.service.attempts]
        assert [t for n, t in enumerate(targets) if t not in targets[:n]] == [
            b"/0", b"/1", b"/2", b"/3",
        ]  # fmt: skip
        assert targets == sorted(targets)


@pytest.mark.parametrize("field", [(b"Unspool-Lifetime", b"soon"), (b"Unspool-Lifetime", b"0"),
                                   (b"Unspool-Order", b"x" * 300)])  # fmt: skip
async def test_fields_for_us_must_be_readable(field: tuple[bytes, bytes]) -> None:
    async with node() as it:
        assert (await it.ask(b"POST", b"/o", field)).status == 400
        assert it.service.attempts == []


async def test_everything_of_ours_says_so() -> None:
    """Each problem is application/problem+json with Proxy-Status, and its type can be read."""
    async with node(REFUSED) as it:
        response = await it.ask(b"GET", body=b"")
        assert value(response, b"content-type") == b"application/problem+json"
        assert value(response, b"proxy-status").startswith(b"unspool; error=connection_refused")
        page = await it.ask(b"GET", told(response)["type"].encode(), body=b"")
        assert page.status == 200
        assert b"unreachable (503)" in page.body
        assert (await it.ask(b"GET", b"/_unspool/nothing", body=b"")).status == 404


async def test_what_is_out_of_time_at_the_spool_is_never_run() -> None:
    """A spool that cannot be asked: 503 for a keyed request, and nothing is executed (J7)."""

    class Deaf(MemorySpool):
        async def find(self, keys: Any, /) -> Any:
            raise Full("The spool does not answer.")

    async with node(spool=Deaf()) as it:
        assert (await it.ask(key="k1")).status == 503
        assert it.service.attempts == []
        assert (await it.ask()).status == 201


@pytest.mark.parametrize("wish", [(b"X-None", b""), (b"Prefer", b"respond-async"),
                                  (b"Unspool-Order", b"seats")])  # fmt: skip
async def test_what_is_contended_is_never_saved(wish: tuple[bytes, bytes]) -> None:
    """Worth nothing late: the service's own answer goes back, whatever else is asked for."""
    contended = (b"Unspool-Contended", b"?1")
    async with node(says(503, b"sold?")) as it:
        response = await it.ask(b"POST", b"/seats", contended, wish, key="k1")
        assert (response.status, response.body) == (503, b"sold?")
        assert b"worth nothing late" in value(response, b"proxy-status")
        assert it.kept == []
        [asked] = it.service.attempts
        assert contended in asked.fields, "another relay behind us must know, too"
        response = await it.ask(b"POST", b"/seats", (b"Unspool-Contended", b"?0"), key="k2")
        assert response.status == 202


async def test_a_sender_who_waits_for_so_long_hears_of_the_receipt_in_time() -> None:
    """The attempt is given up a little before he goes, and saved; what is kept says no deadline."""

    async def hangs(_request: Request) -> Any:
        await asyncio.sleep(60)

    async with node(hangs) as it, asyncio.timeout(30):
        response = await it.ask(b"POST", b"/o", (b"Unspool-Deadline", b"0.200"), key="k1")
        assert response.status == 202
        [asked] = it.service.attempts
        assert value(asked, b"unspool-deadline") == b"0.160"
        it.service.then(OK)
        it.clock.at += 60_000
        await it.deliver()
        assert not has(it.service.attempts[1], b"unspool-deadline")
        for field in (b"soon", b"", b"1e9", b"-1", b"9" * 9):
            assert (await it.ask(b"POST", b"/o", (b"Unspool-Deadline", field))).status == 201


async def test_for_a_sender_who_repeats_himself_servers_are_not_gone_through_again() -> None:
    """Three attempts of his through two servers of ours would be six. What may be saved is saved
    all the same."""
    async with node(OK) as it:
        for number, repeat in ((b"1", True), (b"2", False), (b"3", False)):
            await it.ask(b"GET", b"/o", (b"Unspool-Attempt", number), body=b"")
            assert it.service.repeats[-1] is repeat
        it.service.then(RESET)
        again = (b"Unspool-Attempt", b"2")
        assert (await it.ask(b"POST", b"/o", again, key="k1")).status == 202
