"""Retry around an ASGI application, called as a server would: what fails is done later."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from asgikit import Caller, Reply, SharedMemory, lifespan

from unspool.answers import MARKS
from unspool.core.lifecycle import State
from unspool.errors import Misconfigured
from unspool.middleware.asgi import Idempotency, Retry

QUICK = {"backoff_least_ms": 30, "backoff_most_ms": 60, "survives": "nothing"}


class Shop:
    """An application by hand: what it answers next, and what it has seen."""

    def __init__(self) -> None:
        self.next: list[Any] = []
        self.usual: Any = 201
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []
        self.lifespan: list[str] = []
        self.seen = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                event = await receive()
                if event["type"] == "lifespan.startup":
                    scope["state"]["pool"] = "the pool"
                await send({"type": event["type"] + ".complete"})
                if event["type"] == "lifespan.shutdown":
                    return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        body = b""
        more = True
        while more:
            event = await receive()
            body += event["body"]
            more = event["more_body"]
        self.scopes.append(scope)
        self.bodies.append(body)
        self.seen.set()
        does = self.next.pop(0) if self.next else self.usual
        if isinstance(does, Exception):
            raise does
        if callable(does):
            does = await does()
        await send({"type": "http.response.start", "status": does, "headers": [(b"x-shop", b"1")]})
        await send({"type": "http.response.body", "body": b"%d" % does})

    def attempts(self) -> list[str]:
        return [header(scope, b"unspool-attempt") for scope in self.scopes]


def header(scope: Any, name: bytes) -> str:
    return b", ".join(value for key, value in scope["headers"] if key == name).decode()


@contextlib.asynccontextmanager
async def running(shop: Any, spool: Any = None, **options: Any) -> AsyncIterator[Caller]:
    app = Retry(shop, spool=spool or SharedMemory(), **{**QUICK, **options})
    stop, told = await lifespan(app)
    assert told[0]["type"] == "lifespan.startup.complete", told
    try:
        yield Caller(app)
    finally:
        await stop()


async def receipt(call: Caller, reply: Reply, *, wait: int = 50) -> Any:
    where = reply["location"]
    assert where
    found = await call(
        "GET", where, key=None, raw_path=where.encode(), query_string=b"wait=%d" % wait
    )
    return json.loads(found.body)


@pytest.mark.parametrize("fails", [500, 503, 502, ZeroDivisionError("boom")])
async def test_what_fails_is_saved_and_done_later(fails: Any, caplog: Any) -> None:
    """H1 to H4: 202 with a receipt; a repeat gets the same receipt; run again with the same key
    and body until it succeeds; then a repeat gets the answer."""
    shop = Shop()
    shop.next = [fails, fails]
    async with running(shop) as call:
        saved = await call(key='"a"', body=b'{"item": "tea"}')
        assert saved.status == 202
        again = await call(key="a", body=b'{"item": "tea"}')
        assert again["location"] == saved["location"] or again["idempotent-replayed"]
        found = await receipt(call, saved)
        assert (found["state"], found["status"]) == ("delivered", 201)
        assert shop.attempts() == ["1", "2", "3"]
        assert shop.bodies == [b'{"item": "tea"}'] * 3
        assert {header(scope, b"idempotency-key") for scope in shop.scopes} == {'"a"'}
        replay = await call(key="a", body=b'{"item": "tea"}')
        assert (replay.status, replay["idempotent-replayed"]) == (201, "true")
        answer = await call("GET", found["response"], raw_path=found["response"].encode())
        assert (answer.status, answer.body) == (201, b"201")
    assert ("ZeroDivisionError: boom" in caplog.text) is isinstance(fails, Exception)


async def test_what_may_not_be_repeated_is_passed_back() -> None:
    """H5: a POST without a key is the application's alone, its exceptions the server's; of a 5xx
    its sender is told why it was not saved."""
    shop = Shop()
    spool = SharedMemory()
    async with running(shop, spool) as call:
        shop.next = [500]
        told = await call()
        assert (told.status, told.body) == (500, b"500")
        assert "Idempotency-Key" in (told["proxy-status"] or "")
        shop.next = [ZeroDivisionError()]
        with pytest.raises(ZeroDivisionError):
            await call()
        shop.next = [500, 500]
        for method in ("GET", "HEAD"):
            told = await call(method, key="a")
            assert (told.status, told["proxy-status"]) == (500, None)
        assert not [entry for entry in spool.entries.values() if entry.message.destination]
        shop.next = [500]
        assert (await call("PUT")).status == 202  # RFC 9110 §9.2.2


async def test_a_refusal_is_an_answer() -> None:
    """4xx is the sender's to mend: passed on, and remembered."""
    shop = Shop()
    async with running(shop) as call:
        shop.next = [404]
        assert (await call(key="a")).status == 404
        assert (await call(key="a"))["idempotent-replayed"] == "true"
        assert len(shop.scopes) == 1


async def test_the_first_attempt_sees_the_servers_scope_and_later_ones_one_like_it() -> None:
    """Client, scheme, mount, state and the application itself; what is ours is not shown, and what
    a caller forges of it neither."""
    shop = Shop()
    shop.next = [500]
    forged = [("unspool-scope", '["ftp"]'), ("unspool-principal", "x"), ("unspool-attempt", "9")]
    live = {
        "scheme": "https", "client": ("10.0.0.7", 4242), "server": ("shop.example", 443),
        "root_path": "/äpi", "extensions": {"tls": {"cipher": 1}}, "user": "live only",
        "state": {"request_id": 7}, "http_version": "2",
    }  # fmt: skip
    async with running(shop) as call:
        path = "/äpi/o%20ders/ü"
        saved = await call(
            path="/äpi/o ders/ü", raw_path=path.encode(), query_string=b"a=%20b", key="a",
            headers=[*forged, ("x-one", "1")], **live,
        )  # fmt: skip
        assert saved.status == 202
        await receipt(call, saved)
    first, later = shop.scopes
    for name, value in live.items():
        assert first[name] == value
    assert "user" not in later
    assert later["state"] == {"pool": "the pool"}
    for name in (
        "type", "scheme", "client", "server", "root_path", "path", "raw_path", "query_string",
        "method", "http_version",
    ):  # fmt: skip
        assert later[name] == first[name], name
    for scope in (first, later):
        names = [name for name, _ in scope["headers"]]
        assert b"unspool-scope" not in names
        assert b"unspool-principal" not in names
        assert b"via" not in names
        assert header(scope, b"x-one") == "1"
    assert shop.attempts() == ["1", "2"]
    assert header(later, b"content-length") == "2"


async def test_the_context_of_a_request_is_not_the_dispatchers() -> None:
    """Started by a first request (no lifespan), it must not carry that one's context variables
    into everybody's later attempts."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    shop = Shop()
    seen: list[str] = []

    async def look() -> int:
        seen.append(variable.get())
        return 500 if len(seen) == 1 else 201

    shop.usual = look
    app = Retry(shop, spool=SharedMemory(), **QUICK)
    call = Caller(app)
    variable.set("the first caller")
    saved = await call(key="a")
    assert saved.status == 202
    found = await receipt(call, saved)
    assert found["state"] == "delivered"
    assert seen == ["the first caller", "none"]
    await app._place.aclose()


async def test_the_state_of_a_request_is_not_the_dispatchers() -> None:
    """What the first request wrote into its state is its own."""
    shop = Shop()
    shop.next = [500]
    call = Caller(Retry(shop, spool=SharedMemory(), **QUICK))
    state = {"pool": "the pool"}

    async def writes() -> int:
        state["user"] = "anna"
        return 500

    shop.next = [writes]
    saved = await call(key="a", state=state)
    assert (await receipt(call, saved))["state"] == "delivered"
    assert shop.scopes[0]["state"] is state
    assert shop.scopes[1]["state"] == {"pool": "the pool"}
    await call.app._place.aclose()


async def test_what_only_looks_like_ours_is_the_applications() -> None:
    """Told by the target as it came, as the relay does: in another spelling it passes, with the
    server's scope."""
    shop = Shop()
    async with running(shop) as call:
        reply = await call(
            path="/_unspool/health", raw_path=b"/%5funspool/health", user="live", method="POST"
        )
        assert reply.status == 201
        assert shop.scopes[0]["user"] == "live"
        assert (await call("GET", "/_unspool/health")).status == 200
    assert len(shop.scopes) == 1


async def test_everything_else_passes() -> None:
    """WebSockets and unknown kinds are the application's; reads cost nothing of the spool."""
    shop = Shop()
    spool = SharedMemory()
    async with running(shop, spool) as call:
        await call(type="websocket")
        commits = spool.commits
        for method in ("GET", "HEAD", "OPTIONS"):
            assert (await call(method)).status == 201
        assert spool.commits == commits


async def test_a_large_body_streams_and_is_not_saved() -> None:
    """Beyond body_max_bytes there is no custody: the answer is passed back, whole body seen."""
    shop = Shop()
    async with running(shop, body_max_bytes=1000) as call:
        shop.next = [500]
        told = await call("PUT", body=[bytes(600)] * 10)
        assert told.status == 500
        assert "too large" in (told["proxy-status"] or "")
        assert shop.bodies == [bytes(6000)]


async def test_saved_first_where_the_sender_asks() -> None:
    """Prefer: respond-async (RFC 7240)."""
    shop = Shop()
    async with running(shop) as call:
        saved = await call(key="a", headers=[("prefer", "respond-async")])
        assert (saved.status, saved["preference-applied"]) == (202, "respond-async")
        assert (await receipt(call, saved))["status"] == 201


async def test_a_handler_that_takes_too_long_is_cancelled() -> None:
    """attempt_ms: then it is saved, for it may be repeated; one that raises TimeoutError by itself
    has only raised."""
    shop = Shop()
    cancelled: list[str] = []

    async def hangs() -> int:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise
        return 201

    shop.next = [hangs, TimeoutError("its own")]
    async with running(shop, attempt_ms=100) as call:
        saved = await call(key="a")
        assert saved.status == 202
        assert (await receipt(call, saved))["status"] == 201
    assert cancelled == ["yes"]


async def test_idempotency_within_retry_is_one_effect() -> None:
    """The same key through both. The handler that had its effect is not run again; one that is
    still running is waited for, and not taken for an answer."""
    shop = Shop()
    effects: list[str] = []
    go = asyncio.Event()

    async def slow() -> int:
        await go.wait()
        effects.append("charged")
        return 201

    shop.usual = slow
    spool = SharedMemory()
    inner = Idempotency(shop, spool=spool, scope=lambda _: "anna", survives="nothing", name="in")
    async with running(inner, SharedMemory()) as call:
        direct = asyncio.create_task(Caller(inner)(key="a"))  # from elsewhere, under the same key
        await shop.seen.wait()
        saved = await call(key="a")
        assert saved.status == 202
        await asyncio.sleep(0.1)
        go.set()
        assert (await receipt(call, saved))["status"] == 201
        await direct
    assert effects == ["charged"]


async def test_what_is_said_of_a_key_stands_once() -> None:
    """Both know the key, and the sender hears of it from the outer one alone: on a first answer, on
    one that the inner knew already, on a replay, and on one that was not remembered."""
    shop, spool = Shop(), SharedMemory()
    inner = Idempotency(
        shop, spool=spool, scope=lambda _: "anna", survives="nothing", name="in",
        key_ms=86_400_000, answer_ms=43_200_000,
    )  # fmt: skip
    async with running(inner, SharedMemory()) as call:
        first, again = await call(key="a"), await call(key="a")
        assert (await Caller(inner)(key="b")).status == 201
        known, replay = await call(key="b"), await call(key="b")
        spool.settles = False
        unsaid = await call(key="c")
    assert len(shop.scopes) == 3
    for reply in (first, again, known, replay, unsaid):
        names = [name.lower() for name, _ in reply.headers]
        assert [name for name in {*names} & MARKS if names.count(name) > 1] == []
        assert reply["idempotency-retention"] == "answer=86400, key=2592000"
    assert [one["idempotent-replayed"] for one in (first, again, known, replay)] == [
        None, "true", "true", "true",
    ]  # fmt: skip
    assert unsaid["idempotency-stored"] == "false"


async def test_callers_are_kept_apart() -> None:
    """I10: by credentials, or by a scope function, which survives a rotated token."""
    shop = Shop()
    async with running(shop) as call:
        for token in ("one", "two"):
            reply = await call(key="a", headers=[("authorization", token)])
            assert reply["idempotent-replayed"] is None
    shop = Shop()
    async with running(shop, scope=lambda scope: scope.get("user")) as call:
        for user, token, runs in (("anna", "1", 1), ("anna", "2", 1), ("bert", "2", 2)):
            await call(key="a", user=user, headers=[("authorization", token)])
            assert len(shop.scopes) == runs
        assert (await call(key="a")).status == 403


async def test_a_spool_that_is_down_takes_no_custody() -> None:
    """J7: keyed requests are refused, everything else goes on; and it comes back."""
    shop = Shop()
    spool = SharedMemory()
    spool.down = True
    app = Retry(shop, spool=spool, **QUICK)
    stop, _ = await lifespan(app)
    call = Caller(app)
    assert (await call(key="a")).status == 503
    assert (await call("PUT")).status == 201
    assert (await call("GET")).status == 201
    assert (await call("GET", "/_unspool/health")).status == 503
    assert (await call()).status == 201
    spool.down = False
    app._starts_at = 0
    shop.next = [500]
    saved = await call(key="a")
    assert saved.status == 202
    assert (await receipt(call, saved))["status"] == 201
    await stop()


async def test_the_end_of_the_application_drains(tmp_path: Path) -> None:
    """What is under way ends; what waits is in the spool, and the next start delivers it."""
    url = f"sqlite:///{tmp_path}/saved.db"
    shop = Shop()
    shop.usual = 500
    async with running(shop, url) as call:
        saved = await call(key="a")
        assert saved.status == 202
    before = len(shop.scopes)
    await asyncio.sleep(0.1)
    assert len(shop.scopes) == before, "it has stopped"
    shop.usual = 201
    async with running(shop, url) as call:
        assert (await receipt(call, saved))["status"] == 201


async def test_wrong_options_are_refused() -> None:
    for options in ({"attempt_s": 5}, {"attempt_ms": "5"}, {"scope_fields": "x-user"}):
        with pytest.raises(Misconfigured):
            Retry(Shop(), spool="memory:", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False])
async def test_commits(shared: bool) -> None:
    """A keyed POST that succeeds costs one commit on a private spool, two on a shared one."""
    shop = Shop()
    spool = SharedMemory(shared=shared)
    async with running(shop, spool) as call:
        before = spool.commits
        await call(key="a")
        assert spool.commits - before == (2 if shared else 1)
        assert [e.state for e in spool.entries.values()].count(State.DELIVERED) >= 1


async def test_a_handler_in_a_thread_that_outlasts_its_attempt_is_not_run_beside_itself() -> None:
    """Nobody can cancel a thread: the next attempt waits for the first, and takes its answer."""
    now = most = runs = 0
    may_end = threading.Event()

    def work() -> None:
        nonlocal now, most, runs
        runs += 1
        now += 1
        most = max(most, now)
        may_end.wait(60)
        now -= 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.get_running_loop().run_in_executor(None, work)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"made"})

    retry = Retry(
        app, spool="memory:", survives="nothing", scope=lambda scope: "ann", attempt_ms=500,
        backoff_least_ms=50, backoff_most_ms=100,
    )  # fmt: skip
    transport = httpx.ASGITransport(app=retry)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        first = await client.post("/o", headers={"Idempotency-Key": "k"})
        assert first.status_code == 202
        where = first.headers["location"]
        async with asyncio.timeout(60):
            while len((await client.get(where)).json()["attempts"]) < 2:
                await asyncio.sleep(0.02)
            may_end.set()
            while (await client.get(where)).json()["state"] != "delivered":
                await asyncio.sleep(0.02)
        answer = await client.get(where + "/response")
        assert (answer.status_code, answer.content) == (201, b"made")
    await retry._place.aclose()
    assert (most, runs) == (1, 1)


async def test_what_idempotency_within_calls_unknown_ends_as_unknown() -> None:
    """It had its effect and failed. Nobody knows, and the receipt says so, not that it is done."""
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        scope["unspool"].effect()
        raise RuntimeError("after the card was charged")

    within = Idempotency(app, spool="memory:", survives="nothing", scope=lambda scope: "ann")
    retry = Retry(
        within, spool="memory:", survives="nothing", scope=lambda scope: "ann",
        backoff_least_ms=50, backoff_most_ms=100,
    )  # fmt: skip
    transport = httpx.ASGITransport(app=retry)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        first = await client.post("/o", headers={"Idempotency-Key": "k"})
        assert first.status_code == 202
        async with asyncio.timeout(60):
            while True:
                receipt = (await client.get(first.headers["location"])).json()
                if receipt["state"] != "waiting":
                    break
                await asyncio.sleep(0.05)
        assert (receipt["state"], receipt["reason"]) == ("bounced", "unknown")
    await retry._place.aclose()
    await within._opening.aclose()
    assert runs == 1
