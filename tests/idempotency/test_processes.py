"""E2: one key, one execution, over several processes of each target."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest
from targets import Target, process, relay, uvicorn

from ports import free_ports
from unspool.testing.idempotency import Came, Service, check
from unspool.testing.idempotency.service import Orders, discovered

WORKERS = 3
SEVERAL = ("--workers", str(WORKERS), "--timeout-worker-healthcheck", "60")
"""Uvicorn kills a worker that says nothing for 5 s, also one that has not had the processor."""
ROWS = {"E1", "E4", "E5", "E7"}


@contextlib.contextmanager
def asgi(folder: Path) -> Iterator[Target]:
    with uvicorn(folder, "asgi", *SEVERAL, factory=True) as url:
        yield Target(Service(url=url), folder)


@contextlib.contextmanager
def retry(folder: Path) -> Iterator[Target]:
    with uvicorn(folder, "retry", *SEVERAL, factory=True) as url:
        yield Target(Service(url=url), folder)


@contextlib.contextmanager
def gunicorn(folder: Path, app: str) -> Iterator[Target]:
    [port] = free_ports(1)
    with process(
        folder, app, port, "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS),
        "--threads", "64", "--backlog", "512", f"served:{app}()",
    ) as url:  # fmt: skip
        yield Target(Service(url=url), folder)


def wsgi(folder: Path) -> AbstractContextManager[Target]:
    return gunicorn(folder, "wsgi")


def django(folder: Path) -> AbstractContextManager[Target]:
    return gunicorn(folder, "django")


@contextlib.contextmanager
def relays(folder: Path) -> Iterator[Target]:
    """One relay of several workers."""
    with relay(folder, "--workers", str(WORKERS)) as target:
        yield target


TARGETS: Mapping[str, Callable[[Path], AbstractContextManager[Target]]] = {
    "relay": relays,
    "Retry": retry,
    "ASGI": asgi,
    "WSGI": wsgi,
    "Django": django,
}


async def several(service: Service) -> bool:
    """Do several processes answer, by the counter service's own word? They take time to start."""
    orders = Orders(await discovered(service))
    order = await orders.make()
    seen: set[int] = set()
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        replies = await asyncio.gather(*(order.post() for _ in range(20)))
        seen |= {json.loads(reply.body)["process"] for reply in replies}
        if len(seen) > 1:
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.parametrize("target", TARGETS)
def test_one_key_over_several_processes(target: str, tmp_path: Path) -> None:
    """50 at once, some close together, some that wait, some whose first raises: one execution."""
    with TARGETS[target](tmp_path) as running:
        service = msgspec.structs.replace(running.service, parks=False)
        if target != "relay":  # whose own processes are not seen by the service behind it
            assert asyncio.run(several(service))
        results = asyncio.run(check(service, rows=ROWS))
    assert {result.row for result in results} == ROWS
    for result in results:
        assert result.came is Came.PASSED, f"{result.row}: {result.seen}"
