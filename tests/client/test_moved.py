"""A receipt whose relay says `moved` is followed to another relay that the client was given."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crash.processes import Relay
from crash.service import Service
from unspool import Accepted, AsyncClient, Bounced, Delivered
from unspool.client.receipt import receipt_path
from unspool.core.message import Answer, Cause, Failure, Request, Response, Sent
from unspool.errors import Unavailable
from unspool.testing.clock import virtually

from .kit import DOWN, OK, TAKEN, World, has, says

PATH = "/_unspool/receipts/" + "n" * 22 + "k" * 22
SILENT = Failure(Cause.HTTP_RESPONSE_TIMEOUT, "no answer in time", Sent.MAYBE)
OURS = "unspool"


def tells(state: str, *, ours: bool = True, receipt: str = PATH, **more: Any) -> Response:
    body = json.dumps({"receipt": receipt, "state": state, "attempts": [], **more}).encode()
    return says(200, body, **({"Proxy_Status": OURS} if ours else {}))


def relay(answer: Answer, response: Answer = OK) -> Any:
    """It takes what it is given, and says this of it."""

    def answers(request: Request) -> Answer:
        if not request.target.startswith(b"/_unspool/"):
            return TAKEN
        if request.target.endswith(b"/response"):
            return response
        if request.method == b"DELETE":
            settled = isinstance(answer, Failure) or b'"waiting"' not in answer.body
            return says(409 if settled else 200, b"{}", Proxy_Status=OURS)
        return answer

    return answers


def scene(**relays: Any) -> tuple[World, AsyncClient]:
    world = World(a=DOWN, **relays)
    return world, world.client("a", queues=[f"https://{name}" for name in relays])


async def taken(client: AsyncClient) -> Any:
    result = await client.post("/orders", json=1, auth="Bearer mine", deadline=30)
    assert isinstance(result, Accepted)
    assert result.receipt.where == "https://relay1"
    return result.receipt


@pytest.mark.parametrize("there", ["delivered", "waiting", "bounced"])
async def test_it_is_asked_for_where_it_is_now(there: str) -> None:
    """And from then on only there; with its address, and nothing else of ours."""
    world, client = scene(
        relay1=relay(tells("moved")), relay2=relay(says(404, Proxy_Status=OURS)),
        relay3=relay(tells(there, reason="expired")),
    )  # fmt: skip
    async with client:
        receipt = await taken(client)
        assert (await receipt.status()).state == there
        assert receipt.where == "https://relay3"
        before = world.asked("relay1", "relay2")
        fate = await receipt.wait(0.05)
        kind = {"delivered": Delivered, "waiting": Accepted, "bounced": Bounced}[there]
        assert isinstance(fate, kind)
        assert await receipt.cancel() == (there == "waiting")
        assert world.asked("relay1", "relay2") == before
    for name in ("relay2", "relay3"):
        asked = [one for one in world.servers[name].asked if one.target.startswith(b"/_unspool")]
        assert not any(has(one, "authorization") or one.fields for one in asked)


async def test_to_cancel_it_is_followed_too() -> None:
    _, client = scene(relay1=relay(tells("moved")), relay2=relay(tells("waiting", held=True)))
    async with client:
        assert await (await taken(client)).cancel()


async def test_two_that_each_say_the_other_has_it_are_not_asked_for_ever() -> None:
    turn = iter(range(1_000))

    def flips(request: Request) -> Answer:
        if not request.target.startswith(b"/_unspool/"):
            return TAKEN
        if request.method == b"DELETE":
            return says(409, b"{}", Proxy_Status=OURS)
        return tells("waiting" if next(turn) % 2 else "moved")

    world, client = scene(relay1=flips, relay2=flips)
    async with client:
        assert not await (await taken(client)).cancel()
    assert world.asked() < 50


@pytest.mark.parametrize("way", ["../../admin", "..", "x/../../y", "x?y=1", "%2e%2e/z", "x\\..\\y"])
def test_a_receipt_leads_nowhere_else(way: str) -> None:
    """Others are asked for it than who named it."""
    location = f"/_unspool/receipts/{way}".encode()
    taken_so = says(202, b"", Proxy_Status=OURS, Location=location.decode())
    assert receipt_path(taken_so) == ""
    assert receipt_path(TAKEN) == PATH


@pytest.mark.parametrize(
    "other",
    [
        tells("delivered", ours=False), tells("delivered", receipt=PATH[:-1] + "x"),
        tells("moved"), says(200, b"<html>", Proxy_Status=OURS), says(503), DOWN, SILENT,
    ],
)  # fmt: skip
async def test_who_does_not_show_this_receipt_is_not_believed(other: Answer) -> None:
    _, client = scene(relay1=relay(tells("moved")), relay2=relay(other))
    async with client:
        receipt = await taken(client)
        assert (await receipt.status()).state == "moved"
        assert isinstance(await receipt.wait(0.05), Accepted)
        assert receipt.where == "https://relay1"


async def test_from_a_relay_that_is_silent_a_copy_that_is_held_is_not_believed() -> None:
    """A move may be under way: until its old place lets it go, that one may deliver it."""
    for held in (True, False):
        relay2 = relay(tells("waiting", held=held))
        _, client = scene(relay1=relay(SILENT), relay2=relay2)
        async with client:
            receipt = await taken(client)
            if held:
                with pytest.raises(Unavailable, match="https://relay1"):
                    await receipt.status()
            else:
                assert (await receipt.status()).state == "waiting"
                assert receipt.where == "https://relay2"


@pytest.mark.parametrize("here", [SILENT, tells("moved")])
@virtually
async def test_the_others_are_asked_less_and_less_often(here: Answer) -> None:
    """While one is away, a thousand that wait for it must be no load for the others."""
    world, client = scene(relay1=relay(here), relay2=relay(says(404, Proxy_Status=OURS)))
    async with client:
        assert isinstance(await (await taken(client)).wait(100), Accepted)
    assert 10 <= world.asked("relay2") < 20


async def test_what_came_over_tls_is_not_asked_for_without() -> None:
    world = World(a=DOWN, relay1=relay(tells("moved")), relay2=relay(tells("delivered")))
    world.servers["http://relay2"] = world.servers["relay2"]
    async with world.client("a", queues=["https://relay1", "http://relay2"]) as client:
        receipt = await taken(client)
        assert (await receipt.status()).state == "moved"
    assert world.asked("relay2") == 0


@pytest.mark.slow
async def test_moved_from_one_relay_to_another_and_delivered_there(tmp_path: Path) -> None:
    """Two real relays, and the real `unspool move` between their spools."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with Service(up=False) as service:
        relays = [
            Relay(tmp_path, to=service.url, spool=path, name=path.stem) for path in (old, new)
        ]
        first, second = (f"http://127.0.0.1:{one.port}" for one in relays)
        try:
            await relays[0].start()
            async with AsyncClient(
                service.url, queues=[first, second], deadline=60, queue_ms=30_000
            ) as client:
                result = await client.post("/orders", content=b"tea", key="order-7")
                assert isinstance(result, Accepted)
                receipt: Any = result.receipt
                assert receipt.where == first
                command = ["move", "--from", f"sqlite:///{old}", "--to", f"sqlite:///{new}"]
                done = await asyncio.to_thread(
                    subprocess.run, [sys.executable, "-m", "unspool", *command], check=True,
                    capture_output=True,
                )  # fmt: skip
                assert b"moved 1" in done.stdout + done.stderr
                assert (await receipt.status()).state == "moved", "nobody has it who can be asked"
                service.up()
                await relays[1].start()
                fate = await receipt.wait(60)
                assert isinstance(fate, Delivered)
                assert receipt.where == second
                assert (await receipt.status()).state == "delivered"
        finally:
            for one in relays:
                one.end()
    assert [one.effect for one in service.of("order-7")] == [True]
