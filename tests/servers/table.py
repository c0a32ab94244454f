"""The servers that spools are kept in, by scheme, each set up so that what is accepted outlives a
power cut.

    with durable("postgres", folder) as server:     skips, or fails where CI is set, without it
        server.spool("orders")                      what `--spool` takes
        server.spool("orders", port=cable.port)     the same through something in between
        server.kill(); server.start()               kill -9 of all of it; up again on its data
        server.pause(); server.resume()             it takes connections and never answers

`folder`: one that is there, to keep its data in; without it, one that goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from .nats import nats
from .postgres import postgres
from .redis import redis


class Server(Protocol):
    @property
    def port(self) -> int: ...
    def spool(self, name: str, *, port: int = 0) -> str: ...
    def pids(self) -> list[int]: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


SERVERS: Final[Mapping[str, Callable[[Path | None], AbstractContextManager[Any]]]] = {
    "nats": lambda folder: nats(
        jetstream="sync_interval: always", query="sync_interval=always", folder=folder
    ),
    "postgres": lambda folder: postgres(
        durable=True, settings={"shared_buffers": "128MB"}, within=folder
    ),
    "redis": lambda folder: redis(folder=folder),
}


def durable(name: str, folder: Path | None = None) -> AbstractContextManager[Server]:
    return SERVERS[name](folder)
