"""Shared: engines that relays on several hosts share, as servers that can be lost; and the cable.

    with engine("postgres") as server:      skips, or fails where CI is set, without it
        server.url                          what `--spool` takes
        server.url_through(port)            the same through a cable
        server.kill(); server.start()       kill -9, with all its processes; up again on its data
        server.pause(); server.resume()     it takes connections and never answers

    async with Cable(server.port) as cable:
        cable.port; cable.cut(); cable.hang(); cable.mend()

Everything that is accepted is synced: under these settings the spool promises `power`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from servers import nats as nt
from servers import postgres as pg
from servers import redis as rd

from .processes import ROUNDS

SHARED = ("postgres", "redis", "nats")


def engines(usual: str) -> tuple[str, ...]:
    """All in a long run; in each run of the tests one for each test."""
    return SHARED if ROUNDS > 1 else (usual,)


class Server(Protocol):
    @property
    def port(self) -> int: ...
    @property
    def url(self) -> str: ...
    def url_through(self, port: int) -> str: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


def family(pid: int) -> list[int]:
    """A process and its children, the parent last."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [*map(int, children), pid]


class OfPostgres:
    def __init__(self, server: Any) -> None:
        self._server = server
        self.port: int = server.port

    @property
    def url(self) -> str:
        return self.url_through(self.port)

    def url_through(self, port: int) -> str:
        return f"postgres://unspool@127.0.0.1:{port}/postgres?schema=unspool"

    def start(self) -> None:
        self._server.start()

    def _each(self, number: int) -> None:
        for pid in family(self._server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        # The parent first stands still, so that it starts no other.
        self._server.process.send_signal(signal.SIGSTOP)
        self._each(signal.SIGKILL)
        self._server.process.wait()
        self._server.process = None

    def pause(self) -> None:
        self._each(signal.SIGSTOP)

    def resume(self) -> None:
        self._each(signal.SIGCONT)


class OfRedis:
    def __init__(self, server: Any) -> None:
        self._server = server
        self.port: int = server.port
        self.start = server.start
        self.kill = server.kill
        self.pause = server.pause
        self.resume = server.resume

    @property
    def url(self) -> str:
        return self.url_through(self.port)

    def url_through(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0?name=crash"


class OfNats:
    def __init__(self, server: Any) -> None:
        self._server = server
        self.port: int = server.port
        self.start = server.start

    @property
    def url(self) -> str:
        return self.url_through(self.port)

    def url_through(self, port: int) -> str:
        return f"nats://127.0.0.1:{port}/crash?sync_interval=always"

    def kill(self) -> None:
        self._server.stop(kill=True)

    def pause(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._server.pid, signal.SIGCONT)


@contextlib.contextmanager
def engine(name: str) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        if name == "postgres":
            yield OfPostgres(stack.enter_context(pg.postgres(durable=True)))
        elif name == "redis":
            yield OfRedis(stack.enter_context(rd.redis()))
        else:
            assert name == "nats"
            yield OfNats(stack.enter_context(nt.nats(jetstream="sync_interval: always")))


class Cable:
    """TCP between a relay and its engine, cut or held up when a test says so."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = 0
        self._server: asyncio.Server | None = None
        self._whole = True
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)

    def cut(self) -> None:
        """What is connected is reset, and nothing new comes through."""
        self._whole = False
        for end in [*self._ends]:
            end.transport.abort()

    def hang(self) -> None:
        """Connections are taken and stay open; nothing comes through in either direction."""
        self._flows.clear()

    def mend(self) -> None:
        self._whole = True
        self._flows.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._ends.add(writer)
        onwards: asyncio.StreamWriter | None = None
        try:
            if not self._whole:
                return
            there, onwards = await asyncio.open_connection("127.0.0.1", self.to)
            self._ends.add(onwards)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, onwards))
                both.create_task(self._carry(there, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, onwards):
                if end is not None:
                    self._ends.discard(end)
                    end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one end has gone: so does the other
