"""The FastAPI shop of the examples under a real server: what fails is done later, whatever becomes
of the process meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serverkit import Served, served, volley

APP = "examples.shop.app:app"
KEYED = {"X-User": "anna", "Idempotency-Key": '"order-7"'}


async def orders(url: str, *, wanted: int, within_s: float = 60) -> list[str]:
    """The shop's orders, once there are so many."""
    until = time.monotonic() + within_s
    async with httpx2.AsyncClient(timeout=60) as client:
        while True:
            found: Any = (await client.get(url + "/orders")).json()
            if len(found) >= wanted or time.monotonic() > until:
                return list(found)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("server", ["uvicorn", "uvicorn without a lifespan"])
async def test_killed_and_started_anew_the_order_is_done_once(server: str, tmp_path: Path) -> None:
    """202 outlives kill -9 (I1). The next process does it, with the same child key, once; the
    receipt and a repeat tell the same answer."""
    down = tmp_path / "down"
    down.touch()
    with served(server, APP, folder=tmp_path) as shop:
        [saved] = await volley(shop.url + "/orders", 1, headers=KEYED, json={"item": "tea"})
        assert saved.status_code == 202
        [again] = await volley(shop.url + "/orders", 1, headers=KEYED, json={"item": "tea"})
        assert again.headers["location"] == saved.headers["location"]
        shop.kill()
        assert "ProviderDown" in shop.log.read_text()
    down.unlink()
    with served(server, APP, folder=tmp_path) as shop:
        assert await orders(shop.url, wanted=1) == ["tea"]
        async with httpx2.AsyncClient(timeout=60) as client:
            receipt = await client.get(shop.url + saved.headers["location"] + "?wait=50")
            assert receipt.json()["state"] == "delivered"
            answer = await client.get(shop.url + receipt.json()["response"])
        [replay] = await volley(shop.url + "/orders", 1, headers=KEYED, json={"item": "tea"})
        assert replay.headers["idempotent-replayed"] == "true"
        assert replay.text == answer.text
        await asyncio.sleep(0.3)
        assert await orders(shop.url, wanted=1) == ["tea"]
        assert shop.stop() in (0, -signal.SIGTERM)


async def test_several_workers_deliver_a_saved_order_once(tmp_path: Path) -> None:
    """Leases say who: many saved orders, two processes, each order once; then SIGTERM."""
    down = tmp_path / "down"
    down.touch()
    shop = Served("uvicorn", APP, folder=tmp_path, workers=2)
    try:
        shop.wait()
        items = [f"tea {number}" for number in range(12)]
        async with httpx2.AsyncClient(timeout=60) as client:
            for number, item in enumerate(items):
                headers = {"X-User": "anna", "Idempotency-Key": f'"{number}"'}
                saved = await client.post(
                    shop.url + "/orders", headers=headers, json={"item": item}
                )
                assert saved.status_code == 202
        down.unlink()
        assert sorted(await orders(shop.url, wanted=12)) == sorted(items)
        await asyncio.sleep(0.3)
        assert len(await orders(shop.url, wanted=12)) == 12
        assert shop.stop() == 0, shop.log.read_text()
    finally:
        shop.kill()
