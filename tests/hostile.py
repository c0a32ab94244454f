"""A server that breaks every rule, as it is told, connection by connection.

    async with Hostile(answers(GOOD), half) as server:
        server.origin                   http://127.0.0.1:<a free port>
        server.requests                 every request that came, in order
        server.connections              how many were accepted

A script is an `async def script(peer)`: the first connection gets the first script, the second the
second, and the last script serves all that follow. When a script returns, its connection closes.

    await peer.request()                the next request, whole; None where the other side closed
    await peer.head()                   only its head
    await peer.send(data)               bytes as they are; `slowly` sends them one by one
    await peer.gone()                   wait until the other side closes
    peer.reset()                        RST instead of FIN

`both_loops` makes two tests of an async one: on plain asyncio and on uvloop. Real sockets only.
`undisturbed` tries what depends on real time, where the machine did not stand still meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

PATIENCE_S = 3.0
"""Less than the 4 s after which a transport closes what is idle: not for that we wait. Counted in
turns of the loop, of which one passes while a machine stands still."""
IN_TIME_S = 20.0
"""By a clock, for what ends by itself; less than the 30 s of a transport's own deadlines."""
TRIALS_MAX = 8

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Good: yes\r\n\r\nok"


@dataclass
class Got:
    """A request as it came: its head byte for byte."""

    head: bytes
    body: bytes
    connection: int
    chunks: list[bytes] = field(default_factory=list)

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def fields(self) -> list[bytes]:
        return self.head.split(b"\r\n")[1:-2]


class Peer:
    """One connection, from the server's side."""

    def __init__(
        self,
        server: Hostile,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self._server = server

    async def head(self) -> bytes | None:
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def request(self) -> Got | None:
        head = await self.head()
        if head is None:
            return None
        got = Got(head, b"", self.number)
        try:
            await self._body(got)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self._server.requests.append(got)
        return got

    async def _body(self, got: Got) -> None:
        for line in got.fields:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                got.body = await self.reader.readexactly(int(value))
            if name.lower() == b"transfer-encoding":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    got.chunks.append((await self.reader.readexactly(size + 2))[:-2])
                assert await self.reader.readexactly(2) == b"\r\n"
                got.body = b"".join(got.chunks)

    async def send(self, data: bytes) -> None:
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (ConnectionError, RuntimeError):
            pass  # the other side is gone; uvloop says so by a RuntimeError

    async def slowly(self, data: bytes, pause: float = 0.0) -> None:
        for i in range(len(data)):
            await self.send(data[i : i + 1])
            await asyncio.sleep(pause)

    async def gone(self) -> None:
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[object]]


class Hostile:
    """See the head of this file."""

    def __init__(self, *scripts: Script, tls: Any = None) -> None:
        self._scripts = scripts
        self._tls = tls
        self._tasks: set[asyncio.Task[Any]] = set()
        self._faults: list[BaseException] = []
        self.requests: list[Got] = []
        self.connections = 0
        self.open = 0

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Hostile:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._faults:
            raise self._faults[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number = self.connections
        self.connections += 1
        self.open += 1
        try:
            await self._scripts[min(number, len(self._scripts) - 1)](
                Peer(self, number, reader, writer)
            )
            writer.close()
            await writer.wait_closed()
        except asyncio.CancelledError:
            pass  # the end of the test; a cancelled handler would be reported by the loop
        except ConnectionError:
            pass
        except BaseException as error:
            self._faults.append(error)
        finally:
            self.open -= 1
            writer.transport.abort()


def answers(*each: bytes, then: Script | None = None) -> Script:
    """Reads a request and sends the next of these, the last one for ever."""

    async def script(peer: Peer) -> None:
        count = 0
        while await peer.request():
            await peer.send(each[min(count, len(each) - 1)])
            count += 1
            if then is not None and count == len(each):
                await then(peer)
                return

    return script


def once(data: bytes) -> Script:
    """Reads a request, sends this and closes."""

    async def script(peer: Peer) -> None:
        if await peer.request():
            await peer.send(data)

    return script


async def silent(peer: Peer) -> None:
    """Reads and says nothing."""
    await peer.gone()


async def reset_at_once(peer: Peer) -> None:
    """Reads a request, and resets."""
    await peer.request()
    peer.reset()


async def eventually(true: Callable[[], object], within: float = PATIENCE_S) -> None:
    """Wait for something that happens by itself, with an end."""
    for _ in range(int(within / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {within} s")


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[Callable[[], float]]:
    """The longest time for which this loop did not come to what was due, in seconds."""
    step_s, longest_s = 0.01, 0.0
    loop = asyncio.get_running_loop()
    looked_at = loop.time()

    def look() -> float:
        nonlocal longest_s, looked_at
        now = loop.time()
        longest_s, looked_at = max(longest_s, now - looked_at - step_s), now
        return longest_s

    async def watch() -> None:
        while True:
            await asyncio.sleep(step_s)
            look()

    watching = asyncio.create_task(watch())
    try:
        yield look
    finally:
        watching.cancel()


async def undisturbed(trial: Callable[[], Awaitable[None]], *, less_than_s: float) -> None:
    """Try it. Where it fails, and this loop stood still for so long meanwhile, nothing was shown:
    both sides of the connections stood still, and deadlines did not. Then it is tried anew."""
    for _ in range(TRIALS_MAX - 1):
        async with standstill() as stood_still_s:
            try:
                await trial()
                return
            except AssertionError:
                if stood_still_s() < less_than_s:
                    raise
    await trial()


def both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The same test on plain asyncio and on uvloop. Below every other decorator."""

    def run(loop: str, **values: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(4 * IN_TIME_S):
                await test(**values)

        (uvloop.run if loop == "uvloop" else asyncio.run)(bounded())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    run.__module__ = test.__module__
    own = list(inspect.signature(test).parameters.values())
    loop = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([loop, *own])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", ["asyncio", "uvloop"])(run)
