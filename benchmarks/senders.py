"""Senders: programs that send as fast as answers come, each through one HTTP library.

    python -m benchmarks.senders KIND PORT SECONDS WIDE FOLDER      prints JSON

One process, one thread for what is sent, WIDE requests at once (one, for libraries that block). A
POST of 1 KiB; what is measured is this process's own: requests, how long each took, processor time,
and the bytes that it had written to disk (`/proc/self/io`, after the first request).

    aiohttp · httpx2 · requests                       bare
    unspool · unspool, outbox · unspool, before       `AsyncClient`: alone, with an outbox, `before`
    httpx2 on unspool · aiohttp on unspool            the adapters, without an outbox
    unspool, blocking · requests on unspool           `Client`; the adapter

Closed loop: at this load each caller waits for its answer before it asks again.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final

WARM: Final = 0.2
"""Of the time, before anything counts."""
BODY: Final = b"x" * 1024

Ask = Callable[[], Awaitable[int]]


async def aiohttp_(stack: AsyncExitStack, url: str, connector: Any = None) -> Ask:
    import aiohttp

    made = connector or aiohttp.TCPConnector(limit=0)
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=made))

    async def ask() -> int:
        async with session.post(f"{url}/orders", data=BODY) as response:
            await response.read()
            return response.status

    return ask


async def httpx2_(stack: AsyncExitStack, url: str, transport: Any = None) -> Ask:
    import httpx2

    client = await stack.enter_async_context(httpx2.AsyncClient(transport=transport))

    async def ask() -> int:
        response = await client.post(f"{url}/orders", content=BODY)
        return int(response.status_code)

    return ask


async def unspool_(stack: AsyncExitStack, url: str, **options: Any) -> Ask:
    from unspool import AsyncClient, Delivered

    client = await stack.enter_async_context(AsyncClient(url, **options))

    async def ask() -> int:
        result = await client.post("/orders", content=BODY)
        return result.response.status if isinstance(result, Delivered) else 0

    return ask


async def make(kind: str, stack: AsyncExitStack, url: str, folder: Path) -> Ask:
    outbox = str(folder / "outbox.db")
    match kind:
        case "aiohttp":
            return await aiohttp_(stack, url)
        case "httpx2":
            return await httpx2_(stack, url)
        case "unspool":
            return await unspool_(stack, url)
        case "unspool, outbox":
            return await unspool_(stack, url, outbox=outbox)
        case "unspool, before":
            return await unspool_(stack, url, outbox=outbox, durability="before")
        case "httpx2 on unspool":
            import unspool.httpx

            return await httpx2_(stack, url, unspool.httpx.AsyncTransport(url))
        case "aiohttp on unspool":
            import unspool.aiohttp

            return await aiohttp_(stack, url, unspool.aiohttp.Connector(url))
    raise SystemExit(f"no such kind: {kind}")


def blocking(kind: str, stack: ExitStack, url: str) -> Callable[[], int]:
    if kind == "unspool, blocking":
        from unspool import Client

        client = stack.enter_context(Client(url))
        return lambda: client.post("/orders", content=BODY).response.status  # type: ignore[union-attr]
    import requests

    session = stack.enter_context(requests.Session())
    session.trust_env = False
    if kind == "requests on unspool":
        import unspool.requests

        session.mount("http://", unspool.requests.Adapter(url))
    return lambda: session.post(f"{url}/orders", data=BODY).status_code


class Count:
    """What happened after the warm-up."""

    def __init__(self, seconds: float) -> None:
        self.took: list[float] = []
        self.bad = 0
        self._began = time.perf_counter()
        self._counts_at = self._began + WARM * seconds
        self.ends_at = self._counts_at + seconds
        self._cpu = 0.0
        self._bytes = _written()
        self._first = 0.0

    def one(self, began: float, status: int) -> bool:
        """False: it is over."""
        now = time.perf_counter()
        if began >= self._counts_at:
            if not self.took:
                self._cpu, self._bytes, self._first = _cpu(), _written(), now
            self.took.append(now - began)
        self.bad += status not in (200, 201)
        return now < self.ends_at

    def told(self) -> dict[str, float]:
        passed = time.perf_counter() - self._first
        took, count = sorted(self.took), len(self.took)
        return {
            "per_s": count / passed,
            "p50_ms": took[count // 2] * 1000,
            "p99_ms": took[count * 99 // 100] * 1000,
            "cpu_us": (_cpu() - self._cpu) / count * 1e6,
            "written": _written() - self._bytes,
            "requests": count,
            "bad": self.bad,
        }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    return 0


async def together(kind: str, url: str, seconds: float, wide: int, folder: Path) -> Count:
    async with AsyncExitStack() as stack:
        ask = await make(kind, stack, url, folder)
        count = Count(seconds)

        async def caller() -> None:
            while True:
                began = time.perf_counter()
                if not count.one(began, await ask()):
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(wide):
                group.create_task(caller())
        print(json.dumps(count.told()))
        return count


def one_by_one(kind: str, url: str, seconds: float) -> None:
    with ExitStack() as stack:
        ask = blocking(kind, stack, url)
        count = Count(seconds)
        while True:
            began = time.perf_counter()
            if not count.one(began, ask()):
                break
        print(json.dumps(count.told()))


def main(kind: str, port: str, seconds: str, wide: str, folder: str) -> None:
    url = f"http://127.0.0.1:{port}"
    if "requests" in kind or "blocking" in kind:
        one_by_one(kind, url, float(seconds))
    else:
        asyncio.run(together(kind, url, float(seconds), int(wide), Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
