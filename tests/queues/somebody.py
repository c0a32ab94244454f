"""Servers that are not the one that was expected.

async with somebody(b"HTTP/1.1 400 …") as port:     answers everything with these bytes
async with somebody(b"") as port:                   accepts connections and never answers
async with somebody(b"", hang_up=True) as port:     hangs up at the first word
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def somebody(say: bytes, *, hang_up: bool = False) -> AsyncIterator[int]:
    writers = []
    over = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while not over and await reader.read(65536):
                writer.write(say)
                if hang_up:
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        over = True
        listening.close()
        for _ in range(10):  # who came as we closed is let in, and out again
            await asyncio.sleep(0)
        for writer in writers:
            writer.transport.abort()
        await listening.wait_closed()
        await asyncio.sleep(0)
