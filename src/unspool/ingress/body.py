"""StreamedBody: the part of a request's body that is still on its way.

The connection feeds it, the handler reads it. What waits here unread is bounded: over
`body_buffer_bytes` the connection stops reading from its socket until the handler has caught up
(one read of the socket, at most 256 KiB, may come on top). A piece counts for what it occupies, not
for what it says: a body in chunks of two bytes would be twenty times its size.

There is no limit on chunks as such: a byte of a body in chunks of one costs 50 ns, a byte of tiny
requests three times that before anybody has handled them.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from ..core.message import Severed

PIECE_BYTES: Final = 48
"""What CPython keeps beside the bytes of a small object, and its place in the list."""


class Source(Protocol):
    """What a body comes from."""

    def wanted(self) -> None:
        """The body is being waited for."""

    def regulate(self) -> None:
        """There is room again, or no more of it."""


class StreamedBody:
    """A `Reader` (core/message.py) for one request."""

    __slots__ = (
        "_chunks", "_closed", "_ended", "_room_bytes", "_severed", "_source", "_waiter",
        "_waiting_bytes",
    )  # fmt: skip

    def __init__(self, source: Source, room_bytes: int) -> None:
        self._source = source
        self._room_bytes = room_bytes
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._severed = ""
        self._closed = False
        self._waiting_bytes = 0

    def __repr__(self) -> str:
        state = self._severed or ("ended" if self._ended else "open")
        return f"<StreamedBody {state}, {self._waiting_bytes} bytes waiting>"

    @property
    def ended(self) -> bool:
        """Has all of it come, read or not?"""
        return self._ended

    @property
    def full(self) -> bool:
        """Is enough waiting, or is nothing wanted any more?"""
        return self._closed or self._waiting_bytes > self._room_bytes

    # the connection's side

    def feed(self, chunk: bytes) -> None:
        if not self._closed:
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk) + PIECE_BYTES
            self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def sever(self, why: str) -> None:
        if not self._ended and not self._severed:
            self._severed = why
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # the handler's side

    async def read(self) -> bytes:
        """All that has come, at least one byte; `b""` at the end. One reader at a time."""
        while not self._chunks:
            if self._severed or self._closed:
                raise Severed(self._severed or "It was closed by its reader.")
            if self._ended:
                return b""
            self._source.wanted()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        self._source.regulate()
        return data

    def close(self) -> None:
        """No more is wanted."""
        if not self._closed:
            self._closed = True
            self._chunks.clear()
            self._waiting_bytes = 0
            self._wake()
            self._source.regulate()
