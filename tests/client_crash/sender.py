"""Sender: a program with a client, for killing. Run, not imported, by `scene`.

    python -m client_crash.sender      one plan a line on stdin (JSON), one answer a line

It has everything imported and forks for each plan, as `zygote` says. What a child does and
hears goes into the file `told`, a line each (O_APPEND: in the kernel before anything else happens,
so that kill -9 does not take it back):

    asked KEY DURABILITY        before the client is asked
    told KEY RESULT             what the call gave: Delivered, Accepted, Queued, Unknown, …
    news KEY RESULT             what became of one that had been queued

A plan: servers, queues, outbox, told, name (keys begin with it), durability, blocking, drain.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from unspool.client import AsyncClient, Client, Settled
from unspool.errors import UnspoolError
from zygote import logged, say, zygote

SENDERS = 6
PAUSE_S = 0.02
OPTIONS: dict[str, Any] = {
    "deadline": 2.0,
    "connect_ms": 300,
    "queue_ms": 1_000,
    "backoff_most_ms": 2_000,
    "headers": {"X-Do": "buy"},
    "destination": "shop",
}


class Log:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, *words: str) -> None:
        line = (" ".join(words) + "\n").encode()
        assert os.write(self._fd, line) == len(line)


def options(plan: dict[str, Any], log: Log) -> dict[str, Any]:
    def news(settled: Settled) -> None:
        log.note("news", settled.key, type(settled.result).__name__)

    return {
        **OPTIONS, "queues": plan["queues"], "outbox": plan["outbox"],
        "durability": plan["durability"], "on_settled": news,
    }  # fmt: skip


def body_of(key: str) -> bytes:
    return f"order {key}".encode()


async def send(plan: dict[str, Any]) -> None:
    log = Log(plan["told"])
    client = AsyncClient(plan["servers"], **options(plan, log))
    say(f"ready {os.getpid()}")
    if plan.get("drain"):
        await client.drain(timeout=1_000)
        await client.aclose()
        return

    async def one(number: int) -> None:
        count = 0
        while True:
            key = f"{plan['name']}-{number}-{count}"
            log.note("asked", key, plan["durability"])
            try:
                result = await client.post("/pay", content=body_of(key), key=key)
                log.note("told", key, type(result).__name__)
            except UnspoolError as error:
                log.note("told", key, type(error).__name__)
            count += 1
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one(number) for number in range(SENDERS)))


def send_blocking(plan: dict[str, Any]) -> None:
    log = Log(plan["told"])
    client = Client(plan["servers"], **options(plan, log))
    say(f"ready {os.getpid()}")

    def one(number: int) -> None:
        count = 0
        while True:
            key = f"{plan['name']}-{number}-{count}"
            log.note("asked", key, plan["durability"])
            try:
                result = client.post("/pay", content=body_of(key), key=key)
                log.note("told", key, type(result).__name__)
            except UnspoolError as error:
                log.note("told", key, type(error).__name__)
            count += 1
            time.sleep(PAUSE_S)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def child(plan: dict[str, Any]) -> None:
    logged(plan)
    if plan.get("blocking"):
        send_blocking(plan)
    else:
        asyncio.run(send(plan))


if __name__ == "__main__":
    zygote(child)
