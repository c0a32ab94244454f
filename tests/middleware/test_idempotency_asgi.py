"""Idempotency around an ASGI application, called as a server would."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from asgikit import Caller, SharedMemory, lifespan

from unspool.core.message import Instant
from unspool.errors import Corrupt, Misconfigured, Stale
from unspool.middleware.asgi import Idempotency, Running
from unspool.middleware.once import once


def who(scope: Any) -> str:
    """The caller, as an authentication before us would have it."""
    return str(scope.get("user", "anna"))


class Shop:
    """An application by hand: counts, and does what it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.status = 201
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", b"text/plain")]
        self.parts: list[bytes] = [b"made"]
        self.before: Any = None
        self.after: Any = None
        self.within: Any = None
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                break
        self.bodies.append(body)
        self.count += 1
        scope["route"] = "/orders"
        if self.before is not None:
            await self.before(scope)
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        for number, part in enumerate(self.parts):
            more = number < len(self.parts) - 1
            await send({"type": "http.response.body", "body": part, "more_body": more})
            if more and self.within is not None:
                await self.within(number)
        if self.after is not None:
            await self.after()
        if (await receive())["type"] == "http.disconnect":
            self.disconnected.set()


def shop_of(
    spool: SharedMemory | None = None, **options: Any
) -> tuple[Shop, Caller, SharedMemory, Idempotency]:
    shop = Shop()
    spool = spool or SharedMemory()
    app = Idempotency(shop, spool=spool, scope=who, survives="nothing", **options)
    return shop, Caller(app), spool, app


async def test_the_same_answer_again() -> None:
    """B1, B2, B3, B6: once, byte for byte, and marked."""
    shop, call, _, _ = shop_of()
    shop.headers += [(b"location", b"/orders/1"), (b"set-cookie", b"s=1"), (b"etag", b'"1"')]
    first = await call(key='"a"')
    again = await call(key="a")  # quoted and bare are one key (A2)
    assert shop.count == 1
    assert (first.status, first.body) == (again.status, again.body) == (201, b"made")
    assert first["idempotent-replayed"] is None
    assert first["set-cookie"] == "s=1"
    assert again["idempotent-replayed"] == "true"
    assert again["set-cookie"] is None
    assert again["location"] == "/orders/1"
    assert again["cache-control"] == "no-store"
    for reply in (first, again):
        assert reply["idempotency-retention"] == "answer=86400, key=2592000"


@pytest.mark.parametrize("shared", [True, False])
async def test_commits(shared: bool) -> None:
    """A keyed POST costs one commit on a private spool, two on a shared one; a replay none."""
    _, call, spool, _ = shop_of(SharedMemory(shared=shared))
    await call(key="warm")  # the spool's secret and the application's name are made once
    before = spool.commits
    await call(key="a")
    assert spool.commits - before == (2 if shared else 1)
    await call(key=None)
    assert spool.commits - before == (2 if shared else 1)


async def test_everything_else_passes_untouched() -> None:
    """A10, A11, A12: the application gets the server's own scope, receive and send."""
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append((scope, receive, send))

    wrapped = Idempotency(app, spool=SharedMemory(), scope=who, survives="nothing")

    async def receive() -> Any: ...
    async def send(event: Any) -> None: ...

    key = (b"idempotency-key", b"k")
    for scope in (
        {"type": "http", "method": "POST", "headers": []},
        {"type": "http", "method": "GET", "headers": [key]},
        {"type": "http", "method": "OPTIONS", "headers": [key]},
        {"type": "http", "method": "PUT", "headers": [key]},
        {"type": "websocket", "headers": [key]},
    ):
        await wrapped(scope, receive, send)
        assert got.pop() == (scope, receive, send)
    assert not got


async def test_the_key_is_found_whatever_its_case() -> None:
    """Some servers and test clients do not lower the names; HTTP/2 does."""
    shop, call, _, _ = shop_of()
    for name in (b"Idempotency-Key", b"IDEMPOTENCY-KEY", b"idempotency-key"):
        await call(headers_as_they_are=[(name, b"a")])
    assert shop.count == 1


async def test_the_handler_gets_a_running() -> None:
    """`scope["unspool"]`: the key, the attempt, and a key for each step that stays the same."""
    shop, call, _, _ = shop_of()
    await call(key="a")
    await call(key="b")
    one, other = (scope["unspool"] for scope in shop.scopes)
    assert isinstance(one, Running)
    assert (one.name, one.attempt) == ("a", 1)
    assert one.child_key("charge") == one.child_key("charge")
    assert len({one.child_key("charge"), one.child_key("mail"), other.child_key("charge")}) == 3


async def test_an_owner_that_was_overtaken_commits_nothing() -> None:
    """F4: a co-commit under a claim that is known to be lost is undone, rows and all."""
    shop, call, spool, app = shop_of(lease_ms=150)
    raised: list[str] = []
    database = sqlite3.connect(":memory:")
    once.create(database)
    database.execute("CREATE TABLE orders (number)")

    async def overtaken(scope: Any) -> None:
        if scope["unspool"].attempt > 1:
            return
        spool.renews = False
        await asyncio.sleep(0.25)
        assert (await Caller(other)(key="a")).status == 201
        spool.renews = True
        await asyncio.sleep(0.2)
        try:
            with scope["unspool"].commit(database):
                database.execute("INSERT INTO orders VALUES (1)")
        except Stale:
            raised.append("stale")

    other = Idempotency(shop, spool=spool, scope=who, survives="nothing", lease_ms=150)
    await Caller(other)(key="warm")
    shop.before = overtaken
    late = await call(key="a")
    assert late["idempotency-stored"] == "false"
    assert raised == ["stale"]
    assert not database.execute("SELECT * FROM orders").fetchall()
    database.close()
    await app._opening.aclose()


async def test_what_the_application_writes_into_its_scope_is_seen_outside() -> None:
    """Tracing and metrics read the route from the scope when the answer has gone."""
    _, call, _, _ = shop_of()
    await call(key="a")
    assert call.scope["route"] == "/orders"
    assert "unspool" not in call.scope


async def test_context_variables_reach_the_handler() -> None:
    """What an outer middleware has set is there inside."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[str] = []
    shop, call, _, _ = shop_of()

    async def look(_scope: Any) -> None:
        seen.append(variable.get())

    shop.before = look
    variable.set("outer")
    await call(key="a")
    assert seen == ["outer"]


@pytest.mark.parametrize("body", [b"", b"0", [b"", b"ab", b"", b"cd"], bytes(range(256))])
async def test_bodies_arrive_whole(body: Any) -> None:
    """In one event or in many, empty or binary; and the same body is the same request."""
    shop, call, _, _ = shop_of()
    whole = body if isinstance(body, bytes) else b"".join(body)
    await call(key="a", body=body)
    await call(key="a", body=[whole[:1], whole[1:]])
    assert shop.bodies == [whole]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
async def test_a_body_that_is_too_large_is_refused(told: bool, parts: int) -> None:
    """G7: 413 before anything runs, declared or not, in one event or in many; at the limit not."""
    shop, call, spool, _ = shop_of(body_max_bytes=30)
    for size, status in ((30, 201), (33, 413)):
        body = [b"x" * (size // parts)] * parts
        headers = [("content-length", str(size))] if told else []
        reply = await call(key=f"k{size}", body=body, headers=headers)
        assert reply.status == status
    assert shop.count == 1
    assert len([entry for entry in spool.entries.values() if entry.message.destination]) == 1


async def test_a_body_that_breaks_off_runs_nothing() -> None:
    """The caller went away within its request: nothing is run, nothing is answered."""
    shop, call, _, app = shop_of()
    events = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return events.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    await call(key="warm")
    await app({**call.scope, "headers": [(b"idempotency-key", b"z")]}, receive, send)
    assert shop.count == 1
    assert not sent


async def test_a_caller_that_goes_away_does_not_stop_the_handler() -> None:
    """F9: the server cancels, the handler goes on, its answer is stored, a repeat gets it."""
    shop, call, _, app = shop_of()
    started, go = asyncio.Event(), asyncio.Event()

    async def slow(_scope: Any) -> None:
        started.set()
        await go.wait()

    shop.before = slow
    calling = asyncio.create_task(call(key="a"))
    await started.wait()
    calling.cancel()
    await asyncio.wait([calling])
    assert (await call(key="a")).status == 409
    go.set()
    while app._running:
        await asyncio.sleep(0)
    assert (await call(key="a")).body == b"made"
    assert shop.count == 1


async def test_a_repeat_while_the_first_runs() -> None:
    """E3, E4: 409 with Retry-After; with Prefer: wait the answer itself."""
    shop, call, _, _ = shop_of()
    began, go = asyncio.Event(), asyncio.Event()

    async def slow(_scope: Any) -> None:
        began.set()
        await go.wait()

    shop.before = slow
    first = asyncio.create_task(call(key="a"))
    await began.wait()
    told = await call(key="a")
    assert (told.status, told["retry-after"]) == (409, "1")
    assert told["content-type"] == "application/problem+json"
    waits = asyncio.create_task(call(key="a", headers=[("prefer", "wait=50")]))
    await asyncio.sleep(0.01)
    go.set()
    assert (await waits)["idempotent-replayed"] == "true"
    await first
    assert shop.count == 1


@pytest.mark.parametrize(
    ("status", "runs"),
    [(200, 1), (302, 1), (402, 1), (404, 1), (409, 1), (422, 1), (501, 1),
     (401, 2), (403, 2), (408, 2), (425, 2), (429, 2), (500, 2), (503, 2)],
)  # fmt: skip
async def test_what_is_remembered(status: int, runs: int) -> None:
    """G1, G2, G5: the lasting answers."""
    shop, call, _, _ = shop_of()
    shop.status = status
    assert (await call(key="a")).status == status
    await call(key="a")
    assert shop.count == runs


async def test_errors_are_remembered_where_that_is_asked() -> None:
    """G5, policy store."""
    shop, call, _, _ = shop_of(store_errors=True)
    shop.status = 500
    await call(key="a")
    assert (await call(key="a"))["idempotent-replayed"] == "true"
    assert shop.count == 1


async def test_an_exception_reaches_the_server_and_frees_the_key() -> None:
    """F7: what is raised before the answer is raised to the server, as without us."""
    shop, call, _, _ = shop_of()

    async def fails(_scope: Any) -> None:
        raise ZeroDivisionError

    shop.before = fails
    with pytest.raises(ZeroDivisionError):
        await call(key="a")
    shop.before = None
    assert (await call(key="a")).status == 201


async def test_an_exception_after_an_effect_is_unknown() -> None:
    """F8: a handler that said that it may have had an effect is not run again."""
    shop, call, _, _ = shop_of()

    async def fails(scope: Any) -> None:
        scope["unspool"].effect()
        raise ZeroDivisionError

    shop.before = fails
    with pytest.raises(ZeroDivisionError):
        await call(key="a")
    shop.before = None
    told = await call(key="a")
    assert told.status == 409
    assert b"outcome-unknown" in told.body
    assert shop.count == 1


async def test_an_exception_after_the_answer_reaches_the_server_too() -> None:
    """Starlette answers 500 and raises; a background task may raise after a 201. The caller has
    its answer, the server its exception."""
    shop, call, _, _ = shop_of()

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    shop.after = fails
    for status in (500, 201):
        shop.status = status
        with pytest.raises(ZeroDivisionError):
            await call(key=f"k{status}")
        assert call.replies[-1].status == status
        assert call.replies[-1].whole
    shop.after = None
    assert (await call(key="k201"))["idempotent-replayed"] == "true"


async def test_background_work_lasts_as_long_as_the_servers_call() -> None:
    """The answer does not wait for background tasks; the server does, so that it knows of them
    when it shuts down. A repeat does not wait either."""
    shop, call, _, _ = shop_of()
    go = asyncio.Event()
    shop.after = go.wait
    calling = asyncio.create_task(call(key="a"))
    while not call.replies or not call.replies[0].whole:
        await asyncio.sleep(0)
    assert (await asyncio.wait_for(call_again(call), 30))["idempotent-replayed"] == "true"
    assert not calling.done()
    go.set()
    await calling


async def call_again(call: Caller) -> Any:
    return await Caller(call.app)(key="a")


async def test_a_caller_that_goes_during_background_work_disturbs_nothing(caplog: Any) -> None:
    """The server may cancel us by then; the work goes on, and what it raises is logged."""
    shop, call, _, app = shop_of()
    go = asyncio.Event()

    async def fails() -> None:
        await go.wait()
        raise ZeroDivisionError

    shop.after = fails
    calling = asyncio.create_task(call(key="a"))
    while not call.replies or not call.replies[0].whole:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    go.set()
    while app._running:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "ZeroDivisionError" in caplog.text


async def test_an_application_that_does_not_answer() -> None:
    """It returned and said nothing: an error, as for a server, and the key is free."""

    async def silent(scope: Any, receive: Any, send: Any) -> None: ...

    call = Caller(Idempotency(silent, spool=SharedMemory(), scope=who, survives="nothing"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="had not answered"):
            await call(key="a")


async def test_a_stream_is_passed_on_as_it_comes() -> None:
    """G6: of an answer that streams the fact is kept: the first caller has it all, in time."""
    shop, call, _, _ = shop_of()
    shop.headers = [(b"content-type", b"text/event-stream")]
    shop.parts = [b"1", b"2", b"3"]
    go = asyncio.Event()
    seen: list[bytes] = []

    async def within(_number: int) -> None:
        await go.wait()

    async def on_part(reply: Any) -> None:
        seen.append(reply.body)
        if reply.body == b"1":
            go.set()

    shop.within = within
    first = await call(key="a", on_part=on_part)
    assert first.body == b"123"
    assert seen[0] == b"1"
    again = await call(key="a")
    assert (again.status, again.body) == (201, b"")
    assert again["unspool-body-kept"] == "?0"
    assert shop.count == 1


async def test_a_large_answer_is_passed_on_and_its_fact_is_kept() -> None:
    """G6: over the limit the fact is kept, and the handler is held back by its caller."""
    shop, call, _, _ = shop_of(answer_max_bytes=1000)
    shop.parts = [bytes(500)] * 2000
    first = await call(key="a")
    assert len(first.body) == 1_000_000
    again = await call(key="a")
    assert again["unspool-body-kept"] == "?0"
    assert shop.count == 1


async def test_a_slow_caller_holds_the_application_back() -> None:
    """What is not taken is not piled up without an end."""
    shop, call, _, _ = shop_of(answer_max_bytes=1000)
    shop.parts = [bytes(65_536)] * 100
    made: list[int] = []
    go = asyncio.Event()

    async def within(number: int) -> None:
        made.append(number)

    async def on_part(_reply: Any) -> None:
        await go.wait()

    shop.within = within
    calling = asyncio.create_task(call(key="a", on_part=on_part))
    await asyncio.sleep(0.05)
    assert len(made) < 10
    go.set()
    assert len((await calling).body) == 6_553_600


async def test_an_exception_within_an_answer_reaches_the_server() -> None:
    """The application's own, on which servers cut the connection; the fact is kept."""
    shop, call, _, _ = shop_of()
    shop.headers = [(b"content-type", b"text/event-stream")]
    shop.parts = [b"1", b"2"]

    async def fails(_number: int) -> None:
        raise ZeroDivisionError

    shop.within = fails
    with pytest.raises(ZeroDivisionError):
        await call(key="a")
    assert not call.replies[-1].whole
    assert (await call(key="a"))["idempotent-replayed"] == "true"


async def test_events_for_nobody_end() -> None:
    """An endless stream whose caller has gone is told so: by a disconnect and by OSError."""
    shop, call, _, app = shop_of()
    shop.headers = [(b"content-type", b"text/event-stream")]
    shop.parts = [b"x"] * 1_000_000

    async def within(_number: int) -> None:
        await asyncio.sleep(0)

    async def on_part(_reply: Any) -> None:
        call.gone.set()

    shop.within = within
    with pytest.raises(OSError, match="gone"):
        await call(key="a", on_part=on_part)
    assert not app._running


async def test_other_streams_go_on_for_nobody() -> None:
    """There may be work in a generator: its rest is swallowed, not cut."""
    shop, call, _, app = shop_of(answer_max_bytes=10)
    shop.parts = [b"0123456789"] * 50

    async def within(_number: int) -> None:
        await asyncio.sleep(0)

    async def on_part(_reply: Any) -> None:
        call.gone.set()

    shop.within = within
    await call(key="a", on_part=on_part)
    assert shop.disconnected.is_set()
    assert not app._running


async def test_extensions_that_we_do_not_pass_on_are_not_offered() -> None:
    """An application that sent a file by its path would send nothing."""
    shop, call, _, _ = shop_of()
    call.extensions = {"http.response.pathsend": {}, "tls": {"version": 1}}
    await call(key="a")
    assert shop.scopes[0]["extensions"] == {"tls": {"version": 1}}
    assert "http.response.pathsend" in call.scope["extensions"]


# --- the spool ----------------------------------------------------------------------------------


async def test_a_spool_that_is_down_runs_nothing_and_comes_back() -> None:
    """J7: 503 with Retry-After for keys; everything else goes on."""
    shop, call, spool, _ = shop_of()
    spool.down = True
    told = await call(key="a")
    assert (told.status, told["retry-after"]) == (503, "1")
    assert told["idempotency-retention"]
    assert b"memory-down" in told.body
    assert shop.count == 0
    assert (await call(key=None)).status == 201
    spool.down = False
    assert (await call(key="a")).status == 201


async def test_a_spool_that_cannot_be_opened_comes_back(tmp_path: Path) -> None:
    """The same where it is not there at the first request."""
    shop = Shop()
    url = f"sqlite:///{tmp_path}/later/idem.db"
    app = Idempotency(shop, spool=url, scope=who, survives="nothing")
    call = Caller(app)
    for _ in range(2):
        assert (await call(key="a")).status == 503
    assert shop.count == 0
    (tmp_path / "later").mkdir()
    assert (await call(key="a")).status == 201
    await app._opening.aclose()


async def test_an_answer_that_cannot_be_stored_is_given() -> None:
    """F10: and says so; the repeat does not run."""
    shop, call, spool, _ = shop_of()

    async def breaks(_scope: Any) -> None:
        spool.down = True

    shop.before = breaks
    first = await call(key="a")
    assert (first.status, first["idempotency-stored"]) == (201, "false")
    assert (await call(key="a")).status == 409
    spool.down = False
    shop.before = None
    async with asyncio.timeout(20):  # it is stored within a second
        while (again := await call(key="a")).status == 409:
            await asyncio.sleep(0.05)
    assert again["idempotent-replayed"] == "true"
    assert shop.count == 1


async def test_a_spoilt_record_runs_nothing() -> None:
    """D9: 503, and not tried again at once."""
    shop, call, spool, _ = shop_of()
    await call(key="warm")
    spool.corrupt = Corrupt("A record is spoilt.")
    told = await call(key="a")
    assert (told.status, told["retry-after"]) == (503, "60")
    spool.corrupt = ValueError("a foreign error of a foreign spool")  # type: ignore[assignment]
    assert (await call(key="a")).status == 503
    assert shop.count == 1


# --- who is asking ------------------------------------------------------------------------------


async def test_callers_are_kept_apart() -> None:
    """D1: another caller's key is another key; 7 and "7" are two callers."""
    shop, call, _, app = shop_of()
    app._asker._scope_of = lambda scope: scope["user"]  # type: ignore[misc]
    for user in ("anna", "bert", 7, "7", b"7"):
        assert (await call(key="a", user=user))["idempotent-replayed"] is None
    assert shop.count == 5


@pytest.mark.parametrize("nobody", [None, "", b""])
async def test_nobody_has_no_keys(nobody: Any) -> None:
    """D4: 403, and without a key it passes."""
    shop = Shop()
    call = Caller(
        Idempotency(shop, spool=SharedMemory(), scope=lambda _: nobody, survives="nothing")
    )
    assert (await call(key="a")).status == 403
    assert (await call()).status == 201
    assert shop.count == 1


@pytest.mark.parametrize(
    "broken", [lambda _: object(), lambda _: repr(object()), lambda _: 1 / 0, lambda _: True,
               lambda _: ["anna"], lambda _: "x" * 1001, lambda _: 1.5],
)  # fmt: skip
async def test_a_broken_scope_function_runs_nothing(broken: Any) -> None:
    """D4: 500, and the log says why."""
    shop = Shop()
    call = Caller(Idempotency(shop, spool=SharedMemory(), scope=broken, survives="nothing"))
    assert (await call(key="a")).status == 500
    assert shop.count == 0


async def test_an_unsteady_scope_function_is_found_out() -> None:
    """One that says something else each time would make every repeat new."""
    shop = Shop()
    count = iter(range(100))
    app = Idempotency(shop, spool=SharedMemory(), scope=lambda _: next(count), survives="nothing")
    assert (await Caller(app)(key="a")).status == 500
    assert shop.count == 0


async def test_a_scope_function_may_be_async() -> None:
    async def scope(_scope: Any) -> str:
        await asyncio.sleep(0)
        return "anna"

    shop = Shop()
    call = Caller(Idempotency(shop, spool=SharedMemory(), scope=scope, survives="nothing"))
    await call(key="a")
    assert (await call(key="a"))["idempotent-replayed"] == "true"


def test_there_is_no_default_scope() -> None:
    """D3."""
    with pytest.raises(TypeError):
        Idempotency(Shop(), spool="memory:")  # type: ignore[call-arg]
    with pytest.raises(Misconfigured):
        Idempotency(Shop(), spool="memory:", scope="user")  # type: ignore[arg-type]


async def test_twice_around_one_application_is_once() -> None:
    """Added by hand and by add_middleware: the inner one sees that it runs under a key."""
    shop = Shop()
    spool = SharedMemory()
    inner = Idempotency(shop, spool=spool, scope=who, survives="nothing")
    call = Caller(Idempotency(inner, spool=spool, scope=who, survives="nothing"))
    assert (await call(key="a")).status == 201
    assert (await call(key="a"))["idempotent-replayed"] == "true"


# --- keys and time ------------------------------------------------------------------------------


async def test_a_key_may_be_required() -> None:
    """A9: 400 with a link to the docs; nothing runs."""
    shop, call, _, _ = shop_of(required=True, docs="https://shop.example/keys")
    told = await call()
    assert told.status == 400
    assert told["link"] == '<https://shop.example/keys>; rel="describedby"; type="text/html"'
    assert (await call("GET")).status == 201
    assert shop.count == 1


@pytest.mark.parametrize("key", ["", " ", '"a', "a,b", '"' + "k" * 256 + '"'])
async def test_a_malformed_key_is_refused(key: str) -> None:
    """A3, A5 to A7: 400, and nothing runs."""
    shop, call, _, _ = shop_of()
    assert (await call(key=key)).status == 400
    assert shop.count == 0


def uuid7(ms: int) -> str:
    text = f"{ms:012x}"
    return f"{text[:8]}-{text[8:]}-7abc-8abc-0123456789ab"


async def test_keys_that_tell_their_age() -> None:
    """J3, J4: a key older than keys are remembered is refused, not run again; one from the future
    is a mistake."""
    shop, call, spool, app = shop_of()
    now = app._opening.clock.now()
    day = 24 * 3_600_000
    for age, status in ((0, 201), (29 * day, 201), (30 * day + 1_000, 410), (-600_000, 400)):
        reply = await call(key=uuid7(now - age))
        assert reply.status == status, age
        assert reply["idempotency-retention"]
    assert shop.count == 2
    assert len([entry for entry in spool.entries.values() if entry.message.destination]) == 2


async def test_a_tombstone_says_where_it_was_made() -> None:
    """J2: the answer is no longer kept, the fact is, and so is its Location."""
    shop, call, spool, app = shop_of(answer_ms=20)
    shop.headers.append((b"location", b"/orders/1"))
    await call(key="a")
    await asyncio.sleep(0.03)
    for swept in (False, True):
        if swept:
            await spool.sweep(now=Instant(app._opening.clock.now() + 1_000), limit=10)
        told = await call(key="a")
        assert (told.status, told["location"]) == (410, "/orders/1")
    assert shop.count == 1


async def test_forget() -> None:
    """The handler may say that its answer is about the moment."""
    shop, call, _, _ = shop_of()

    async def forget(scope: Any) -> None:
        scope["unspool"].forget()

    shop.before = forget
    await call(key="a")
    await call(key="a")
    assert shop.count == 2


# --- the lifespan -------------------------------------------------------------------------------


class Living(Shop):
    def __init__(self) -> None:
        super().__init__()
        self.fails = ""
        self.told: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            return await super().__call__(scope, receive, send)
        if self.fails == "unsupported":
            raise RuntimeError("no lifespan here")
        while True:
            event = await receive()
            self.told.append(event["type"])
            if self.fails == event["type"]:
                await send({"type": event["type"] + ".failed", "message": "no"})
                return None
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return None


async def test_with_a_lifespan_the_spool_opens_and_closes_with_it(tmp_path: Path) -> None:
    shop = Living()
    path = tmp_path / "idem.db"
    app = Idempotency(shop, spool=f"sqlite:///{path}", scope=who, survives="nothing")
    stop, told = await lifespan(app)
    assert "idem.db" in os.listdir(tmp_path)
    assert (await Caller(app)(key="a")).status == 201
    await stop()
    assert [event["type"] for event in told] == [
        "lifespan.startup.complete", "lifespan.shutdown.complete"
    ]  # fmt: skip
    assert "idem.db-wal" not in os.listdir(tmp_path), "it is closed"
    assert (await Caller(app)(key="a"))["idempotent-replayed"] == "true"  # and opens again
    await app._opening.aclose()


async def test_a_wrong_setting_stops_the_start(tmp_path: Path) -> None:
    """Told as a start that failed, not raised: servers would go on without a lifespan."""
    shop = Living()
    app = Idempotency(shop, spool="memory:", scope=who)  # survives nothing
    _, told = await lifespan(app)
    assert told[0]["type"] == "lifespan.startup.failed"
    assert "survives" in told[0]["message"]
    assert not shop.told, "the application was not started"


async def test_a_spool_that_is_down_does_not_stop_the_start() -> None:
    """It may come back; the rest of the application works without."""
    spool = SharedMemory()
    spool.down = True
    shop = Living()
    app = Idempotency(shop, spool=spool, scope=who, survives="nothing")
    stop, told = await lifespan(app)
    assert told[0]["type"] == "lifespan.startup.complete"
    spool.down = False
    assert (await Caller(app)(key="a")).status == 201
    await stop()


@pytest.mark.parametrize("fails", ["unsupported", "lifespan.startup", "lifespan.shutdown"])
async def test_a_lifespan_that_fails_is_the_applications(fails: str, tmp_path: Path) -> None:
    """What it says or raises goes to the server, and the spool is closed all the same."""
    shop = Living()
    shop.fails = fails
    path = tmp_path / "idem.db"
    app = Idempotency(shop, spool=f"sqlite:///{path}", scope=who, survives="nothing")
    if fails == "unsupported":
        with pytest.raises(RuntimeError, match="no lifespan here"):
            await (await lifespan(app))[0]()
    else:
        stop, told = await lifespan(app)
        if fails == "lifespan.shutdown":
            await stop()
        assert told[-1]["type"] == fails + ".failed"
    async with asyncio.timeout(20):
        while "idem.db-wal" in os.listdir(tmp_path):
            await asyncio.sleep(0.005)


async def test_the_end_waits_for_what_runs(tmp_path: Path) -> None:
    """A handler whose caller has gone still gets its answer stored before the spool closes."""
    shop = Living()
    url = f"sqlite:///{tmp_path}/idem.db"
    app = Idempotency(shop, spool=url, scope=who, survives="nothing")
    stop, _ = await lifespan(app)

    async def slow(_scope: Any) -> None:
        await asyncio.sleep(0.1)

    shop.before = slow
    calling = asyncio.create_task(Caller(app)(key="a"))
    while not shop.count:
        await asyncio.sleep(0.001)
    calling.cancel()
    await stop()
    shop.before = None
    assert (await Caller(app)(key="a"))["idempotent-replayed"] == "true"
    await app._opening.aclose()


async def test_nothing_of_a_key_is_in_the_log(caplog: Any) -> None:
    """D6: a key may be a secret of its sender's."""
    caplog.set_level(logging.DEBUG, logger="unspool")
    shop, call, spool, _ = shop_of()

    async def breaks(_scope: Any) -> None:
        spool.down = True

    shop.before = breaks
    await call(key="hunter2")
    await call(key="hunter2-")
    assert caplog.text
    assert "hunter2" not in caplog.text
