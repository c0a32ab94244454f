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

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while await reader.read(65536):
                writer.write(say)
                if hang_up:
                    break
        except ConnectionError:
            pass
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in writers:
            writer.close()
        await listening.wait_closed()
