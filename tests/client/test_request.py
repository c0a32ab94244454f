"""Bad input: each is refused with nothing sent, and a sentence that says what to mend."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unspool import AsyncClient, Client, Delivered, Queued, Undelivered
from unspool.client.request import Defaults, Request, compose
from unspool.errors import (
    CannotCreate,
    Misconfigured,
    Newer,
    Reused,
    Unacceptable,
    UnspoolError,
)

from .kit import DOWN, OK, World, value


def built(method: str = "POST", path: str = "/orders", **asked: Any) -> Request:
    return compose(method, path, defaults=Defaults(), mint=lambda: "minted", **asked)


def one_by_one() -> Iterator[bytes]:
    yield b"order"


async def later() -> Any:
    yield b"order"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"content": one_by_one()}, "its body is an iterator (generator), which can be read only once"),
    ({"content": later()}, "its body is an iterator (async_generator)"),
    ({"data": iter([b"a"])}, "its body is an iterator (list_iterator)"),
    ({"content": io.BytesIO(b"order")}, "its body is an open file (BytesIO)"),
    ({"content": 7}, "a body is bytes or text, not int"),
    ({"json": object()}, "its body is no JSON"),
    ({"json": float("nan"), "data": "x"}, "it has json and data; one of them is its body"),
    ({"json": {"sum": [1.5, float("nan")], "x": None}}, "NaN and Infinity are no numbers"),
    ({"content": bytes(1024 * 1024 + 1)}, "its body has 1048577 bytes"),
    ({"path": "https://a.example/orders"}, "is a whole address"),
    ({"path": "orders"}, "it begins with a slash"),
    ({"path": "/orders#top"}, "has a fragment"),
    ({"key": ""}, "the Idempotency-Key is empty"),
    ({"key": "ä"}, "a key is printable ASCII"),
    ({"key": 'a"b'}, "a key is printable ASCII"),
    ({"key": "k" * 256}, "the Idempotency-Key has 256 characters"),
    ({"key": 7}, "a key is text, not int"),
    ({"method": "GET", "key": "k"}, "a key is for what changes something"),
    ({"headers": {"Idempotency-Key": "k"}}, "is the client's to write; a key is `key=`"),
    ({"headers": {"X": "a\r\nY: b"}}, "CR, LF or NUL"),
    ({"headers": {"Transfer-Encoding": "chunked"}}, "may not be sent on"),
    ({"headers": {"X": "☃"}}, "characters outside Latin-1"),
    ({"headers": {"X": 7}}, "a field's name and value are text"),
    ({"method": "BAD METHOD"}, "the method is no token"),
    ({"method": "CONNECT"}, "CONNECT asks for a tunnel"),
    ({"deadline": "soon"}, "deadline is a number of seconds"),
    ({"deadline": float("nan")}, "deadline is a number of seconds"),
    ({"attempts": 0}, "attempts is at least 1"),
    ({"order": "ä"}, "an order key takes at most 255 printable ASCII"),
    ({"order": 7}, "an order key takes at most 255"),
    ({"attempts": "3"}, "attempts is at least 1, and a whole number"),
    ({"lifetime": 0}, "lifetime is more than 0 seconds"),
    ({"lifetime": -5}, "lifetime is more than 0 seconds, not -5"),
    ({"auth": "Bearer \u20ac"}, "the Authorization has characters outside Latin-1"),
    ({"auth": ("me",)}, "auth is (name, password)"),
    ({"params": 7}, "params is a mapping, or pairs"),
    ({"headers": 7}, "headers is a mapping, or pairs"),
    ({"headers": {"Unspool-Key": "another"}}, "is the client's to write"),
]


@pytest.mark.parametrize(("asked", "sentence"), WRONG, ids=[one[1][:40] for one in WRONG])
def test_what_cannot_be_sent_is_refused_with_a_sentence(
    asked: dict[str, Any], sentence: str
) -> None:
    asked = dict(asked)
    with pytest.raises(Unacceptable) as caught:
        built(asked.pop("method", "POST"), asked.pop("path", "/orders"), **asked)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("This request cannot be sent: ")
    assert str(caught.value).endswith("Nothing was sent; mend it.")


def test_what_may_be_said_of_a_request_is_on_the_wire() -> None:
    request = built(
        params={"q": "a b", "n": [1, 2]},
        headers={"X-Trace": "7", "content-type": "text/csv"},
        data="a;b",
        auth=("ann", "secret"),
    )
    wire = request.wire
    assert wire.target == b"/orders?q=a+b&n=1&n=2"
    assert wire.body == b"a;b"
    assert value(wire, "x-trace") == "7"
    assert value(wire, "content-type") == "text/csv"
    assert value(wire, "authorization") == "Basic YW5uOnNlY3JldA=="
    assert value(wire, "idempotency-key") == '"minted"'
    form = built(data={"item": "green tea"}, auth="Bearer t", path="/a?x=1", params={"y": 2}).wire
    assert form.body == b"item=green+tea"
    assert value(form, "content-type") == "application/x-www-form-urlencoded"
    assert value(form, "authorization") == "Bearer t"
    assert form.target == b"/a?x=1&y=2"
    assert built(path="/tür 1").wire.target == b"/t%C3%BCr%201"
    assert built(path="/100%25/a%2Fb").wire.target == b"/100%25/a%2Fb", "as it was written"


def test_what_the_client_says_for_all_goes_behind_what_a_request_says() -> None:
    defaults = Defaults(fields=((b"Accept", b"text/html"), (b"X-App", b"shop")))
    wire = compose(
        "GET", "/", defaults=defaults, mint=str, headers={"accept": "application/json"}
    ).wire
    assert value(wire, "accept") == "application/json"
    assert value(wire, "x-app") == "shop"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"servers": []}, "A client needs a server to send to."),
    ({"servers": ""}, "A client needs a server to send to."),
    (
        {"servers": "https://a.example/api"},
        "has a path. Nothing was opened. Give the origin, https",
    ),
    ({"servers": "a.example"}, "is no origin"),
    ({"servers": "https://user@a.example"}, "says more than an origin"),
    ({"queues": ["https://relay.example/x"]}, "has a path"),
    ({"durability": "always"}, 'durability is "on-error" or "before"'),
    ({"durability": "before"}, "writes every request to the outbox first, and there is none"),
    ({"outbox": "  "}, "The outbox has no name"),
    ({"outbx": "o.db"}, "has no option 'outbx'. Did you mean outbox?"),
    ({"deadline": 0}, "deadline must be more than 0"),
    ({"fallback": "print"}, "fallback is to be called"),
    ({"servers": None}, "A client needs a server to send to."),
    ({"servers": [7]}, "An origin is text, not 7"),
    ({"servers": "https://me:secret@a.example"}, "'https://me:...@a.example' says more than"),
    ({"servers": "https://me:secret@a.example/api"}, "Give the origin, https://a.example, and"),
    ({"queues": [None]}, "An origin is text, not None"),
    ({"headers": 7}, "headers is a mapping, or pairs"),
    ({"deadline": "10"}, "deadline is a number, not '10'"),
    ({"deadline": float("nan")}, "deadline is a number, not nan"),
    ({"drain_ms": -1}, "drain_ms must be more than 0"),
]


@pytest.mark.parametrize(("given", "sentence"), MISTAKES, ids=[one[1][:40] for one in MISTAKES])
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_client_that_makes_no_sense_is_refused_when_it_is_made(
    given: dict[str, Any], sentence: str, kind: Any
) -> None:
    given = dict(given)
    with pytest.raises(Misconfigured) as caught:
        kind(given.pop("servers", "https://a.example"), **given)
    assert sentence in str(caught.value)


async def fails(client: AsyncClient, kind: type[UnspoolError], *sentences: str) -> None:
    """A first request is refused with this, and nothing was sent."""
    with pytest.raises(kind) as caught:
        await client.post("/orders", json=1)
    for sentence in sentences:
        assert sentence in str(caught.value)
    await client.aclose()


async def test_a_disk_that_cannot_be_written_is_told_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    world = World(a=OK)
    missing = world.client(outbox=str(tmp_path / "none" / "o.db"))
    await fails(missing, CannotCreate, "its folder is missing", "mkdir -p")
    folder = tmp_path / "folder.db"
    folder.mkdir()
    await fails(world.client(outbox=str(folder)), CannotCreate, "cannot be opened for writing")
    # Nobody may make a file there, root neither: a read-only disk that every Linux has.
    shut = world.client(outbox="/sys/o.db")
    await fails(shut, CannotCreate, "cannot be opened for writing", "ls -ld")
    assert world.asked() == 0


async def test_an_outbox_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    world, file = World(a=OK), tmp_path / "o.db"
    async with world.client(outbox=str(file)):
        pass
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    client = world.client(outbox=str(file))
    await fails(client, Newer, "written by a newer unspool", "pip install -U unspool")
    assert world.asked() == 0


async def test_a_queue_that_nobody_knows_is_told_when_the_client_opens() -> None:
    world = World(a=OK)
    client = world.client(queues=["nsqq://10.0.0.5"])
    await fails(client, Misconfigured, "names no queue that is known here")


@pytest.mark.parametrize("durability", ["on-error", "before"])
async def test_a_key_of_another_request_is_refused_before_it_is_sent(
    durability: str, tmp_path: Path
) -> None:
    """By this client, and by the outbox after a restart; with the request attached."""
    world = World(a=DOWN)
    options: dict[str, Any] = {"outbox": str(tmp_path / "o.db"), "durability": durability}
    async with world.client(sends=False, **options) as client:
        assert isinstance(await client.post("/orders", json=1, key="k", deadline=0.3), Queued)
        asked = world.asked()
        with pytest.raises(Reused, match="was used for another request") as caught:
            await client.post("/orders", json=2, key="k")
        assert caught.value.request.key == "k"  # type: ignore[attr-defined]
    async with world.client(sends=False, **options) as client:
        with pytest.raises(Reused):
            await client.post("/orders", json=2, key="k")
    assert world.asked() == asked


async def test_a_deadline_that_has_passed_sends_nothing() -> None:
    world = World(a=OK)
    async with world.client(outbox="memory:") as client:
        for deadline in (0, -2.5):
            with pytest.raises(Undelivered, match="deadline had passed") as caught:
                await client.post("/orders", json=1, deadline=deadline)
            assert caught.value.request is not None
        assert client.statistics()["waiting"] == 0
    assert world.asked() == 0


async def test_a_fallback_plan_that_raises_is_told_with_the_request() -> None:
    """What failed first, what failed then, and what was to be sent."""

    def out_of_paper(_request: Any) -> None:
        raise OSError("out of paper")

    world = World(a=DOWN)
    async with world.client(fallback=out_of_paper) as client:
        with pytest.raises(Undelivered, match="fallback plan failed as well: OSError: out of") as c:
            await client.post("/orders", json=1, deadline=30)
    assert isinstance(c.value.__cause__, OSError)
    assert c.value.request is not None
    assert len(c.value.tries) == 3


def test_a_loop_that_has_closed_is_told() -> None:
    world = World(a=OK)
    client = world.client()

    async def one() -> Any:
        return await client.post("/orders", json=1)

    assert isinstance(asyncio.run(one()), Delivered)
    with pytest.raises(Misconfigured, match="the event loop that it belongs to has closed"):
        asyncio.run(one())


async def test_trouble_with_opening_is_told_to_everybody_who_waits_and_tried_again(
    tmp_path: Path,
) -> None:
    world = World(a=OK)
    client = world.client(outbox=str(tmp_path / "later" / "o.db"))
    calls = [client.post("/orders", json=1) for _ in range(3)]
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in told] == [CannotCreate] * 3
    (tmp_path / "later").mkdir()
    assert isinstance(await client.post("/orders", json=1), Delivered)
    await client.aclose()
