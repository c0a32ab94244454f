"""The FastAPI shop of the examples under real servers, with several worker processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
from serverkit import COMMANDS, served, volley

APP = "examples.shop.app:app"


@pytest.mark.parametrize("server", COMMANDS)
async def test_several_workers_run_each_key_once(server: str, tmp_path: Path) -> None:
    """E2: repeats over several processes of one application are one order for each key, and all
    who get an order get the same one; then the server stops as it should."""
    with served(server, APP, folder=tmp_path, workers=2) as shop:
        workers: set[int] = set()
        for number in range(3):
            headers = {"X-User": "anna", "Idempotency-Key": f'"order-{number}"'}
            answers = await volley(
                shop.url + "/orders", 12, headers=headers, json={"item": f"tea {number}"}
            )
            assert {answer.status_code for answer in answers} <= {201, 409}
            made = {answer.text for answer in answers if answer.status_code == 201}
            [again] = await volley(
                shop.url + "/orders", 1, headers=headers, json={"item": f"tea {number}"}
            )
            assert again.headers["idempotent-replayed"] == "true"
            assert made <= {again.text}
            workers.add(json.loads(again.text)["worker"])
        async with httpx2.AsyncClient(timeout=60) as client:
            found = await client.get(shop.url + "/orders")
            assert found.json() == ["tea 0", "tea 1", "tea 2"]
            other = {"X-User": "bert", "Idempotency-Key": '"order-0"'}
            bert = await client.post(shop.url + "/orders", headers=other, json={"item": "tea 0"})
            assert bert.json()["number"] == 4  # D1
        assert shop.stop() in (0, -15), shop.log.read_text()
        assert "Traceback" not in shop.log.read_text(), shop.log.read_text()


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
async def test_callers_go_away(server: str, tmp_path: Path) -> None:
    """F9: one who goes away while the handler runs does not stop it; the repeat gets its answer.
    One who goes away within a stream of events ends it. An exception within an answer cuts the
    connection, so that nobody takes a part for the whole."""
    with served(server, "slowshop:app", folder=tmp_path, path="/told") as shop:
        async with httpx2.AsyncClient(timeout=60) as client:

            async def tell() -> dict[str, int]:
                found: dict[str, int] = (await client.get(shop.url + "/told")).json()
                return found

            async def begun() -> None:
                while (await tell())["begun"] == 0:
                    await asyncio.sleep(0.02)

            await give_up(shop.port, b"/slow", b"a", until=begun)
            await asyncio.sleep(0.1)  # the server has heard of it
            found = await tell()
            assert (found["begun"], found["done"]) == (1, 0)
            await client.put(shop.url + "/may-end")
            while (await tell())["done"] == 0:
                assert (await tell())["begun"] <= 1
            again = {"Idempotency-Key": "a", "Prefer": "wait=30"}
            replay = await client.post(shop.url + "/slow", headers=again)
            assert replay.headers["idempotent-replayed"] == "true"
            assert replay.json() == {"begun": 1}

            await give_up(shop.port, b"/events", b"b")
            while (await tell())["ended"] == 0:
                await asyncio.sleep(0.02)
            kept = await client.post(shop.url + "/events", headers={"Idempotency-Key": "b"})
            assert kept.headers["unspool-body-kept"] == "?0"
            assert (await tell())["streams"] == 1

            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):  # FIN, or RST
                await client.post(shop.url + "/breaks", headers={"Idempotency-Key": "c"})
        assert shop.stop() in (0, -15)
        assert "ZeroDivisionError" in shop.log.read_text()


async def give_up(
    port: int, path: bytes, key: bytes, *, until: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Ask, and go away: then, or having read the first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: %b\r\nContent-Length: 0\r\n\r\n"
        % (path, key)
    )
    await writer.drain()
    if until is not None:
        await until()
    else:
        await reader.readuntil(b"tick")
    writer.transport.abort()
