"""Metrics: what a client does, as Prometheus reads it."""

from __future__ import annotations

import re

from unspool.client.metrics import HELP, Metrics

from .kit import DOWN, OK, TAKEN, World

LINE = re.compile(r'(\w+)(?:\{(\w+="[^"]*"(?:,\w+="[^"]*")*)\})? (\S+)')


async def test_everything_that_happens_is_counted() -> None:
    """A line for each series, with help and type before the first of a name."""
    metrics, world = Metrics(), World(a=OK, relay=TAKEN)
    client = world.client("a", queues=["https://relay"], outbox="memory:", on_event=metrics)
    async with client:
        for _ in range(3):
            await client.post("/orders", json=1)
        world.servers["a"].then(DOWN)
        await client.post("/orders", json=1, deadline=30)
        world.servers["relay"].then(DOWN)
        await client.post("/orders", json=1, key="k", deadline=0.5)
        world.servers["a"].then(OK)
        await client.wait("k", timeout=60)
        page = metrics.page(client.statistics())
    found = {}
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        row = LINE.fullmatch(line)
        assert row is not None, line
        found[row[1], row[2]] = float(row[3])
    assert found["unspool_client_calls_total", 'result="Delivered"'] == 3
    assert found["unspool_client_calls_total", 'result="Accepted"'] == 1
    assert found["unspool_client_calls_total", 'result="Queued"'] == 1
    assert {name for name, _ in found} <= set(HELP)
    assert page.count("# HELP") == page.count("# TYPE") == len({name for name, _ in found})
    assert found["unspool_client_budget_tokens", None] <= 500


def test_nothing_counted_is_an_empty_page() -> None:
    assert Metrics().page() == ""
