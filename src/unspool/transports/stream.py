"""The remainder of an answer that is too large or too slow to be kept: a Reader.

    data = await stream.read()      the next bytes, b"" at the end; raises message.Severed
    stream.close()                  no more is wanted: its connection is given up

Reading stops when `buffer_max_bytes` wait here, and goes on when they have been taken. What came
before an answer broke off can still be read; then comes `Severed`.

Known faults: a stream that is neither read nor closed holds its connection for ever once its
buffer is full, because a reader that is slow looks the same.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..core.message import Severed


class Source(Protocol):
    """The connection, as a stream sees it."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class Stream:
    """Bytes between a connection and one reader."""

    __slots__ = ("_broken", "_buffer_max", "_buffered", "_over", "_parts", "_source", "_waiter")

    def __init__(self, source: Source, *, buffer_max_bytes: int) -> None:
        self._source: Source | None = source
        self._buffer_max = buffer_max_bytes
        self._parts: list[bytes] = []
        self._buffered = 0
        self._over = False
        self._broken = ""
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = self._broken or ("over" if self._over else "open")
        return f"<Stream {state}, {self._buffered} bytes buffered>"

    async def read(self) -> bytes:
        """Everything that is here; waits where nothing is."""
        while not self._parts:
            if self._over:
                return b""
            if self._broken:
                raise Severed(self._broken)
            assert self._waiter is None, "one reader at a time"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._buffered = 0
        if self._source is not None:
            self._source.resume()
        return data

    def close(self) -> None:
        """Drop what is here, and the connection if more was to come."""
        source, self._source = self._source, None
        self._parts.clear()
        self._buffered = 0
        if not self._over and not self._broken:
            self._broken = "closed by its reader"
        self._wake()
        if source is not None:
            source.close()

    def feed(self, data: bytes) -> None:
        """From the connection: more."""
        self._parts.append(data)
        self._buffered += len(data)
        if self._buffered >= self._buffer_max and self._source is not None:
            self._source.pause()
        self._wake()

    def finish(self) -> None:
        """From the connection: that was all."""
        self._source = None
        self._over = True
        self._wake()

    def sever(self, detail: str) -> None:
        """From the connection: it broke off."""
        self._source = None
        self._broken = self._broken or detail
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
