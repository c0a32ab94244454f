"""Callers: raw sockets on the other side of a door, and loops to run them on.

async with opened(handler, head_ms=200) as door:      a real door on a free port
    async with call(door) as caller:                  a real connection to it
        await caller.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        answer = await caller.answer()

@on_both_loops                                        asyncio's and uvloop's
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from unspool.core.message import Request, Response
from unspool.ingress.http import Door, Limits
from unspool.ingress.listen import listener
from unspool.ingress.protocol import Caller as Peer
from unspool.ingress.protocol import Handler

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
PATIENCE_S = 20.0
"""By a clock. Less than the 30 s and more after which a door gives up by itself."""


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test under asyncio's own loop and under uvloop's."""

    @functools.wraps(test)
    def run(*args: Any, loop: str, **kwargs: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(4 * PATIENCE_S):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())

    signature = inspect.signature(test)
    of_loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), of_loop]
    )
    return pytest.mark.parametrize("loop", LOOPS)(run)


@dataclass
class Recorder:
    """A handler that remembers what it was asked, and answers `ok` or what it is told."""

    response: Response = field(default_factory=lambda: Response(200, b"", [], b"ok"))
    requests: list[Request] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    async def __call__(self, request: Request, caller: Peer, /) -> Response:
        self.requests.append(request)
        self.peers.append(caller)
        return self.response


@contextlib.asynccontextmanager
async def opened(
    handler: Handler, *, tls: ssl.SSLContext | None = None, **limits: int
) -> AsyncIterator[Door]:
    door = Door(handler, limits=Limits(**limits))
    await door.listen([listener("127.0.0.1:0", tls=tls)])
    try:
        yield door
    finally:
        await door.close(drain_ms=0)


def port_of(door: Door) -> int:
    return int(door.sockets[0].getsockname()[1])


@dataclass
class Answer:
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        found = [value for known, value in self.fields if known.lower() == name.lower()]
        assert len(found) == 1, (name, self.fields)
        return found[0]

    def __contains__(self, name: str) -> bool:
        return any(known.lower() == name.lower() for known, _ in self.fields)


class Broken(Exception):
    """An answer ended before it was whole."""


@dataclass
class Calling:
    """One connection to a door."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def _read(self, reading: Awaitable[bytes]) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await reading
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Broken from error

    async def until(self, end: bytes) -> bytes:
        return await self._read(self.reader.readuntil(end))

    async def head(self) -> Answer:
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        version, status, reason = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        fields = [tuple(line.split(": ", 1)) for line in lines[1:]]
        return Answer(int(status), reason, fields, b"")  # type: ignore[arg-type]

    async def answer(self, *, bodiless: bool = False) -> Answer:
        """The next answer, whole. Raises Broken if it is not."""
        answer = await self.head()
        if bodiless or answer.status in (100, 204, 304):
            return answer
        if "Content-Length" in answer:
            assert "Transfer-Encoding" not in answer
            answer.body = await self._read(self.reader.readexactly(int(answer["Content-Length"])))
        elif "Transfer-Encoding" in answer:
            assert answer["Transfer-Encoding"] == "chunked"
            while True:
                size = int(await self.until(b"\r\n"), 16)
                chunk = await self._read(self.reader.readexactly(size + 2))
                assert chunk[-2:] == b"\r\n"
                if not size:
                    break
                answer.body += chunk[:-2]
        else:
            assert answer["Connection"] == "close"
            answer.body = await self._read(self.reader.read())
        return answer

    async def rest(self) -> bytes:
        """Everything until the door closes. Raises Broken if it resets."""
        return await self._read(self.reader.read())

    def vanish(self) -> None:
        """End with a reset, as a machine does that has lost the connection."""
        socket_ = self.writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(socket_.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def call(door: Door, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Calling]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port_of(door), ssl=tls, server_hostname="localhost" if tls else None
    )
    try:
        yield Calling(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(Exception):
            await writer.wait_closed()


async def ask(door: Door, data: bytes) -> Answer:
    """One request on a connection of its own."""
    async with call(door) as caller:
        await caller.send(data)
        return await caller.answer(bodiless=data.startswith(b"HEAD "))


async def eventually(true: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Wait until it is so."""
    until = asyncio.get_running_loop().time() + within_s
    while not true():  # looked at once more where the machine stood still for so long
        late = asyncio.get_running_loop().time() > until
        await asyncio.sleep(0.005)
        if late and not true():
            raise AssertionError(f"not within {within_s} s")


class Parts:
    """A body that streams: these parts, then its end or an exception."""

    def __init__(self, *parts: bytes, end: Exception | None = None) -> None:
        self.parts = list(parts)
        self.end = end
        self.closed = 0

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self.parts:
            return self.parts.pop(0)
        if self.end is not None:
            raise self.end
        return b""

    def close(self) -> None:
        self.closed += 1
