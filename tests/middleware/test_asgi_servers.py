"""The FastAPI shop of the examples under real servers, with several worker processes."""

from __future__ import annotations

import json
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
        async with httpx2.AsyncClient() as client:
            found = await client.get(shop.url + "/orders")
            assert found.json() == ["tea 0", "tea 1", "tea 2"]
            other = {"X-User": "bert", "Idempotency-Key": '"order-0"'}
            bert = await client.post(shop.url + "/orders", headers=other, json={"item": "tea 0"})
            assert bert.json()["number"] == 4  # D1
        assert shop.stop() in (0, -15), shop.log.read_text()
        assert "Traceback" not in shop.log.read_text(), shop.log.read_text()
