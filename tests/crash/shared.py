"""Shared: which of the engines that relays share a test is run with; and the cable to their server.

    @pytest.mark.parametrize("name", engines("postgres"))

    async with Cable(server.port) as cable:
        cable.port; cable.cut(); cable.hang(); cable.mend()

The servers are those of `servers.table`.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from servers.table import SERVERS

from .processes import ROUNDS


def engines(usual: str) -> tuple[str, ...]:
    """All in a long run; in each run of the tests one for each test."""
    return tuple(SERVERS) if ROUNDS > 1 else (usual,)


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
