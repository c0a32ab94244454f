"""SIGTERM while the spool hangs: the relay ends in its time, and nobody is left without a word.

A server is stopped (SIGSTOP: it takes connections and never answers); the disk of a file hangs in
its syncs (strace holds them up).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ports import free_port
from servers import process
from servers.gearmand import gearmand
from servers.table import durable
from unspool import Accepted, AsyncClient
from unspool.spools.open import open_spool
from unspool.spools.protocol import Query

from .processes import ROUNDS, Relay, eventually, heard
from .service import Service
from .wire import Severed, Told, ask

pytestmark = pytest.mark.slow

DRAIN_S = 1.0
MARGIN_S = 10.0
"""A sync that hangs takes a minute."""
KINDS: dict[str, dict[str, str]] = {
    "plain": {},
    "keyed": {"Idempotency-Key": "keyed"},
    "async": {"Idempotency-Key": "async", "Prefer": "respond-async"},
    "wait": {"Idempotency-Key": "wait", "Prefer": "wait=50"},
}
ENGINES = ("sqlite", "redis", "postgres", "nats") if ROUNDS > 1 else ("sqlite",)


class Stuck:
    """A disk that hangs from now on, for one process: each sync takes so long."""

    def __init__(self, relay: Relay, *, sync_s: float = 60) -> None:
        self._relay = relay
        self._sync_us = round(sync_s * 1e6)
        self._strace: subprocess.Popen[bytes] | None = None

    def pause(self) -> None:
        calls = "fsync,fdatasync"
        self._strace = subprocess.Popen(
            ["strace", "-f", "-p", str(self._relay.pid), "-e", f"trace={calls}",
             "-e", f"inject={calls}:delay_enter={self._sync_us}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._strace.stderr is not None
        self._strace.stderr.readline()  # it has attached

    def resume(self) -> None:
        if self._strace is not None:
            assert self._strace.stderr is not None
            self._strace.kill()
            self._strace.wait()
            self._strace.stderr.close()
            self._strace = None


@asynccontextmanager
async def started(
    engine: str, folder: Path, service: Service
) -> AsyncIterator[tuple[Relay, Stuck]]:
    """A relay, and what makes its spool hang."""
    arguments = ("--drain-ms", f"{int(DRAIN_S * 1000)}")
    with contextlib.ExitStack() as stack:
        server = None if engine == "sqlite" else stack.enter_context(durable(engine))
        spools = () if server is None else (server.spool("hung"),)
        relay = Relay(folder, to=service.url, spools=spools, arguments=arguments)
        hanging = Stuck(relay) if server is None else server
        try:
            await relay.start()
            yield relay, hanging  # type: ignore[misc]
        finally:
            hanging.resume()
            relay.end()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_spool_that_hangs_keeps_nobody(tmp_path: Path, engine: str) -> None:
    """Exit 75 within the time to drain and a margin; each sender is told something true; the log
    says where everything is; the next one goes on from there."""
    if engine == "sqlite" and shutil.which("strace") is None:
        pytest.skip("there is no strace")
    with Service() as service:
        async with started(engine, tmp_path, service) as (relay, spool):
            service.weather = lambda _key, _body: "hold"
            fields = KINDS["async"] | {"Idempotency-Key": "early"}
            early = await ask(relay.port, "POST", "/", fields=fields, body=b"early")
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            spool.pause()
            service.weather = lambda _key, _body: "ok"
            service.release()
            asking = {
                name: asyncio.create_task(
                    ask(relay.port, "POST", "/", fields=fields, body=name.encode(), timeout=60)
                )
                for name, fields in KINDS.items()
            }
            await eventually(lambda: asking["plain"].done(), "what asks nothing of the spool")
            at_service = {b"plain", b"keyed"}
            await eventually(
                lambda: at_service <= {one.body for one in service.handled}, "they were tried"
            )
            await heard(relay.port, len(asking) - 1)
            relay.signal(signal.SIGTERM)
            within_s = DRAIN_S + MARGIN_S
            await eventually(lambda: "does not answer" in relay.tail(), "it", seconds=within_s)
            if isinstance(spool, Stuck):
                spool.resume()  # no process ends while it is traced
            code = await relay.ended(seconds=MARGIN_S)
            told = {name: await one for name, one in asking.items()}
            said = relay.tail()
            spool.resume()
            await relay.start()
            fields = {"Idempotency-Key": "later"}
            later = await ask(relay.port, "POST", "/", fields=fields, body=b"later")
    effects = [one.body for one in service.handled if one.effect]
    assert (early.status, later.status) == (202, 200)
    assert code == 75, said
    _each_was_told(told)
    assert "does not answer" in said
    assert "1 message(s) whose verdict is not written" in said
    assert "unspool queue --spool" in said
    assert sorted(set(effects)) == sorted(effects), "nothing under a key has a second effect"


def _each_was_told(told: dict[str, Told]) -> None:
    assert told["plain"].status == 200, "it asks nothing of the spool"
    for name in ("async", "wait"):
        assert told[name].status in (200, 503), (name, told[name])


@pytest.mark.skipif(ROUNDS == 1, reason="as above, of another command: 6 s each")
@pytest.mark.parametrize("command", ["collect", "serve"])
async def test_a_collector_gives_back_what_a_spool_that_hangs_does_not_take(
    tmp_path: Path, command: str
) -> None:
    """Exit 75 in time; all is at the queue still, and once in the spool in the end."""
    with Service(up=False) as service, gearmand() as queue, durable("redis") as spool:
        url, where = f"gearman://127.0.0.1:{queue.port}/orders", spool.spool("hung")
        more = ("--drain-ms", f"{int(DRAIN_S * 1000)}", "--spool", where, "--log-format", "text")
        to = ("--to", service.url)
        collecting = ("collect", url, *to, *more)
        serving = ("serve", *to, "--collect", url, "--listen", f"127.0.0.1:{free_port()}", *more)
        log = tmp_path / "log"
        first = started_process(collecting if command == "collect" else serving, log)
        try:
            await eventually(lambda: "collect" in log.read_text(), "it collects")
        except BaseException:
            first.kill()
            first.wait()
            raise
        spool.pause()
        async with AsyncClient("http://127.0.0.1:1", queues=[url], deadline=2) as client:
            for number in range(3):
                assert isinstance(await client.post("/", content=b"%d" % number), Accepted)
        await asyncio.sleep(0.3)
        first.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(first.wait, DRAIN_S + MARGIN_S)
        spool.resume()
        assert code == 75, log.read_text()
        assert "does not answer" in log.read_text()
        again = started_process(("collect", url, "--once", *to, *more), log)
        assert await asyncio.to_thread(again.wait, 60) == 0
        looking = await open_spool(where)
        found = await looking.browse(Query(), after=None, limit=9, requests=True)
        await looking.aclose()
    bodies = [one.message.request.body for one in found if one.message.request is not None]
    assert sorted(bodies) == [b"0", b"1", b"2"]


def started_process(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("UNSPOOL_")}
    return process.started([sys.executable, "-m", "unspool", *words], log=log, env=env)


async def test_a_disk_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    """However short the time to drain: it is none that hangs, and the exit code does not say so."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    with Service(up=False) as service:
        relay = Relay(tmp_path, to=service.url, arguments=("--drain-ms", "50"))
        disk = Stuck(relay, sync_s=0.1)
        told: list[int] = []

        async def load(name: str) -> None:
            with contextlib.suppress(Severed):
                for number in range(1000):
                    fields = {"Idempotency-Key": f"{name}-{number}", "Prefer": "respond-async"}
                    told.append((await ask(relay.port, "POST", "/", fields=fields)).status)

        try:
            await relay.start()
            disk.pause()
            asking = [asyncio.create_task(load(name)) for name in "abcdef"]
            await eventually(lambda: len(told) > 6, "some are saved")
            relay.signal(signal.SIGTERM)
            code = await relay.ended()
            await asyncio.gather(*asking)
            said = relay.tail()
        finally:
            disk.resume()
            relay.end()
    assert code == 0, said
    assert set(told) == {202}
