"""Real servers in processes of their own, and a client for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

from ports import free_port

ROOT = Path(__file__).parent.parent.parent
START_S = 60.0
ENDS_S = 60.0
"""Only guards: a machine that does ten other things takes its time to start and to end."""

COMMANDS = {
    "uvicorn": ["uvicorn", "{app}", "--port", "{port}", "--workers", "{workers}",
                "--timeout-worker-healthcheck", "60"],
    "hypercorn": ["hypercorn", "{app}", "--bind", "127.0.0.1:{port}", "--workers", "{workers}"],
    "gunicorn": ["gunicorn", "{app}", "--bind", "127.0.0.1:{port}", "--preload",
                 "--workers", "{workers}", "--worker-class", "uvicorn_worker.UvicornWorker"],
    "uvicorn without a lifespan": ["uvicorn", "{app}", "--port", "{port}", "--lifespan", "off",
                                   "--workers", "{workers}",
                                   "--timeout-worker-healthcheck", "60"],
}  # fmt: skip
"""Uvicorn kills a worker that says nothing for 5 s, also one that has not had the processor."""


class Served:
    def __init__(
        self, server: str, app: str, *, folder: Path, workers: int = 1, port: int = 0
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            part.format(app=app, port=self.port, workers=workers) for part in COMMANDS[server]
        ]
        self.log = folder / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={
                    **os.environ,
                    "SHOP_FOLDER": str(folder),
                    "PYTHONPATH": f"{ROOT}:{ROOT}/tests/middleware",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, path: str = "/orders") -> None:
        until = time.monotonic() + START_S
        with httpx2.Client() as client:
            while time.monotonic() < until:
                assert self.process.poll() is None, self.log.read_text()
                with contextlib.suppress(httpx2.TransportError):
                    if client.get(self.url + path, timeout=5).status_code < 500:
                        return
                time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        """All of it, at once, as kill -9 of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(ENDS_S)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(ENDS_S)
        finally:
            self.kill()


@contextlib.contextmanager
def served(
    server: str, app: str, *, folder: Path, workers: int = 1, path: str = "/orders"
) -> Iterator[Served]:
    running = Served(server, app, folder=folder, workers=workers)
    try:
        running.wait(path)
        yield running
    finally:
        running.kill()


async def volley(
    url: str, count: int, *, headers: dict[str, str], json: Any
) -> Sequence[httpx2.Response]:
    """The same request so many times at once, each on a connection of its own."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:
        return await asyncio.gather(
            *(client.post(url, headers=headers, json=json) for _ in range(count))
        )
