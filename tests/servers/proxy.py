"""A network that fails: TCP between a client and a server, held up or cut when a test says so.

    async with Proxy(port) as proxy:            proxy.port is where the client connects
        proxy.stand_still = True                bytes are taken and go no further, either way
        proxy.stand_still_after = b"INSERT"     the same, once a client's bytes have gone through
        proxy.cut_after = b"COMMIT"             once a client has sent this, the answer is lost

What it holds up when it is closed is lost.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self


class Proxy:
    def __init__(self, to: int) -> None:
        self.to = to
        self.port = 0
        self.stand_still = False
        self.cut_after = b""
        self.stand_still_after = b""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self._server is None:  # it came as we closed
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, onwards = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        self._writers.append(onwards)
        lost = asyncio.Event()
        for way in (self._asked(reader, onwards, lost), self._answered(there, writer, lost)):
            self._tasks.add(asyncio.create_task(way))

    async def _asked(
        self, reader: asyncio.StreamReader, onwards: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._moves()
                if self.cut_after and self.cut_after in data:
                    lost.set()
                onwards.write(data)
                await onwards.drain()
                if self.stand_still_after and self.stand_still_after in data:
                    self.stand_still = True
        onwards.close()

    async def _answered(
        self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while (data := await there.read(65536)) and not lost.is_set():
                await self._moves()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _moves(self) -> None:
        while self.stand_still:
            await asyncio.sleep(0.005)
