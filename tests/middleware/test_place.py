"""Processes, loops and forks: an application is imported in one place and runs in others."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asgikit import Caller, SharedMemory

from unspool.errors import Misconfigured
from unspool.middleware import options, retry
from unspool.middleware.asgi import Idempotency
from unspool.middleware.gate import Rules
from unspool.middleware.options import KEEPING, RULES, TENURE, Options
from unspool.middleware.principal import owner_of


class Shop:
    def __init__(self) -> None:
        self.count = 0
        self.hangs = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.count += 1
        if self.hangs:
            await asyncio.sleep(60)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"made"})


def who(scope: Any) -> str:
    return "anna"


def in_module(module: str, function: Callable[..., Any] = who) -> Callable[..., Any]:
    """The function as if it stood in that module."""
    made = types.FunctionType(function.__code__, {}, "scope_of")
    made.__module__ = module
    return made


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder}/idem.db"


def test_loops_come_and_go(tmp_path: Path) -> None:
    """A loop for each request, as some test clients have it: one spool, and nothing piles up."""
    shop = Shop()
    app = Idempotency(shop, spool=url_in(tmp_path), scope=who, survives="nothing")

    async def once() -> Any:
        return await Caller(app)(key="a")

    assert asyncio.run(once())["idempotent-replayed"] is None
    for _ in range(5):
        assert asyncio.run(once())["idempotent-replayed"] == "true"
    place = app._opening._place
    assert len(place._things) == 1
    assert not place._opening
    asyncio.run(close(app))


async def close(app: Idempotency) -> None:
    await Caller(app)(key="last")
    await app._opening.aclose()


def test_a_key_whose_loop_died_is_free(tmp_path: Path) -> None:
    """The loop ended in the middle of a handler: cancelled, and nothing came of it."""
    shop = Shop()
    app = Idempotency(shop, spool=url_in(tmp_path), scope=who, survives="nothing")

    async def cut() -> None:
        shop.hangs = True
        task = asyncio.create_task(Caller(app)(key="a"))
        while not shop.count:
            await asyncio.sleep(0.001)
        assert not task.done()

    async def again() -> Any:
        shop.hangs = False
        return await Caller(app)(key="a")

    asyncio.run(cut())
    assert asyncio.run(again()).status == 201
    assert shop.count == 2
    asyncio.run(close(app))


FORKS = """
import asyncio, os, sys
sys.path.insert(0, {here!r})
from test_place import Shop, who
from asgikit import Caller, SharedMemory
from unspool.middleware.asgi import Idempotency

shop = Shop()
app = Idempotency(shop, spool={spool}, scope=who, survives="nothing")

async def call(key):
    reply = await asyncio.wait_for(Caller(app)(key=key), 40)
    return reply.status, reply["idempotent-replayed"]

print(asyncio.run(call("a")), flush=True)
if os.fork() == 0:
    print(asyncio.run(call("a")), asyncio.run(call("b")), flush=True)
    os._exit(0)
os.wait()
print(asyncio.run(call("a")), asyncio.run(call("b")), flush=True)
"""


def forked(spool: str) -> list[str]:
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FORKS.format(here=here, spool=spool)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_fork_opens_its_own(tmp_path: Path) -> None:
    """gunicorn may load, and even use, the application before it forks: parent and child know each
    other's keys, and neither touches the other's connections."""
    assert forked(repr(url_in(tmp_path))) == [
        "(201, None)", "(201, 'true') (201, None)", "(201, 'true') (201, 'true')"
    ]  # fmt: skip


def test_an_open_spool_does_not_go_through_a_fork() -> None:
    """Its threads and connections are the parent's: refused, not hung."""
    assert forked("SharedMemory()") == [
        "(201, None)", "(503, None) (503, None)", "(201, 'true') (201, None)"
    ]  # fmt: skip


async def test_who_says_that_he_is_alone_is(tmp_path: Path) -> None:
    """A second process that says so too is refused, for without claims both would run a key; once
    the first has gone the second may."""
    one, other = (
        Idempotency(Shop(), spool=url_in(tmp_path), scope=who, survives="nothing", alone=True)
        for _ in range(2)
    )
    assert (await Caller(one)(key="a")).status == 201
    assert (await Caller(other)(key="a")).status == 503
    named = Idempotency(
        Shop(), spool=url_in(tmp_path), scope=who, survives="nothing", alone=True, name="other"
    )
    assert (await Caller(named)(key="a")).status == 201
    await named._opening.aclose()
    await one._opening.aclose()
    assert (await Caller(other)(key="a"))["idempotent-replayed"] == "true"
    await other._opening.aclose()


async def test_two_applications_that_share_a_spool_have_two_names(caplog: Any) -> None:
    """Without names the second is refused, and told how to go on either way: with the same keys,
    if it is the same application, or with its own."""
    spool = SharedMemory()

    def app(module: str, **given: Any) -> Caller:
        scope = in_module(module)
        return Caller(Idempotency(Shop(), spool=spool, scope=scope, survives="nothing", **given))

    assert (await app("shop.api")(key="a")).status == 201
    assert (await app("shop.auth.principals")(key="a"))["idempotent-replayed"] == "true"
    assert (await app("billing.api")(key="a")).status == 503
    assert 'name="app"' in caplog.text
    assert 'name="billing"' in caplog.text
    assert (await app("store.api", name="app")(key="a"))["idempotent-replayed"] == "true"
    assert (await app("billing.api", name="billing")(key="a"))["idempotent-replayed"] is None


def test_whose_scope_function_it_is() -> None:
    """The package, however the function is dressed."""

    class Asks:
        def __call__(self, scope: Any) -> str:
            return "anna"

        def method(self, scope: Any) -> str:
            return "anna"

    ours = __name__.partition(".")[0]
    for function in (who, partial(who), Asks(), Asks().method, lambda scope: "anna"):
        assert owner_of(function) == ours
    assert owner_of(in_module("shop.api.deep")) == "shop"


# --- options ------------------------------------------------------------------------------------


def test_the_lists_of_options_hold_together() -> None:
    """Each option is a field of one of the three, and has its sentence there."""
    assert set(Options.__annotations__) == RULES | TENURE | KEEPING | {"survives"}
    habits = frozenset(retry.Habits.__struct_fields__)
    assert set(retry.RetryOptions.__annotations__) == habits | KEEPING | {"survives"}


@pytest.mark.parametrize(
    "wrong",
    [{"leese_ms": 1}, {"lease_ms": 1}, {"lease_ms": "30"}, {"lease_ms": 30.0}, {"required": 1},
     {"methods": "POST"}, {"methods": [b"POST"]}, {"methods": 7}, {"name": ""}, {"name": 7},
     {"key_ms": -1}, {"answer_ms": 2, "key_ms": 1}, {"survives": "fire"}, {"abandoned": "rerun"},
     {"unstored": True}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """When the application is made, not when a request comes."""
    with pytest.raises(Misconfigured):
        options.read(wrong)  # type: ignore[arg-type]


def test_a_misspelt_option_is_told_its_name() -> None:
    with pytest.raises(Misconfigured, match="Did you mean lease_ms"):
        options.read({"leese_ms": 1})  # type: ignore[typeddict-unknown-key]


def test_options_are_read() -> None:
    rules, tenure, survives = options.read(
        {"methods": ["post", "put"], "key_ms": 1000, "abandoned": "unknown"}
    )
    assert rules == Rules(methods=frozenset({"POST", "PUT"}))
    assert (tenure.keeping.answer_ms, tenure.keeping.key_ms) == (1000, 1000)
    assert survives.name == "POWER"
