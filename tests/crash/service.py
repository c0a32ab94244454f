"""Service: what stands behind the relay. It keeps its own ledger, and has weather on command.

    with Service() as service:
        service.weather = lambda key, body: "503"
        …
        service.handled                      every request that arrived whole, in order

It honours Idempotency-Key as a good service does: a known key gets its first answer again and has
no second effect. `honours_keys = False` makes it a plain one, which does what it is told each time.
Every effect's answer is unique, so that two effects can never be mistaken for one.

The weather says, for each request, what becomes of it:

    ok      done, answered 200
    4xx…    not done, answered with that status (503, 425, …)
    reset   not done, connection reset
    lost    done, and then the connection is reset: the answer never arrives
    hang    not done, nothing is ever answered
    hold    done; the answer waits for `release()`

    service.all_read()                   what a dead relay had sent has been read: no more will come

Runs in a thread with a loop of its own: neither the senders nor the relay can stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from ports import free_port

from .history import Handled, now_ns

Weather = Callable[[str, bytes], str]


def fair(_key: str, _body: bytes) -> str:
    return "ok"


class Service:
    def __init__(self, *, honours_keys: bool = True, up: bool = True, port: int = 0) -> None:
        self.port = port or free_port()
        self.weather: Weather = fair
        self.honours_keys = honours_keys
        self.handled: list[Handled] = []
        self.held = threading.Semaphore(0)
        """Released once for every request that is being held."""
        self._answers: dict[str, bytes] = {}
        self._number = 0
        self._up_at_start = up
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._talking: set[asyncio.StreamWriter] = set()
        self._stuck = 0
        """Of these, so many are not read from: they hang, or are held."""
        self._free = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        if self._up_at_start:
            self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release()
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def up(self) -> None:
        self._do(self._open())

    def down(self) -> None:
        """Nobody listens any more, and who was talking is cut off."""
        self._do(self._shut())

    def release(self) -> None:
        """Let the held answers go, and hold no further ones that are asked for now."""
        self._loop.call_soon_threadsafe(self._free.set)

    def hold(self) -> None:
        self._loop.call_soon_threadsafe(self._free.clear)

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def all_read(self) -> None:
        """Return when nobody is left whose next word could come: all who talked to us are dead."""
        self._do(self._all_read())

    def of(self, key: str) -> list[Handled]:
        return [one for one in self.handled if one.key == key]

    # in the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.05))  # what was cut off closes its sockets

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._talk, "127.0.0.1", self.port, backlog=1024
            )

    async def _all_read(self) -> None:
        if self._server is not None:  # behind everybody who waits to be accepted
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write_eof()
            await reader.read()
            writer.close()
        while len(self._talking) > self._stuck:
            await asyncio.sleep(0.002)

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._talking):
            _reset(writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it came as we went
            _reset(writer)
            return
        self._talking.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._talking.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = {}
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        key = fields.get("idempotency-key", "").strip('"')
        one = Handled(at=now_ns(), key=key, body=body, did=self.weather(key, body))
        self.handled.append(one)
        if one.did in ("ok", "lost", "hold"):
            self._act(one)
        if one.did == "hold":
            self.held.release()
            await self._stick(self._free.wait())
            one.did = "ok"
        if one.did == "hang":
            await self._stick(asyncio.sleep(3600))
        if one.did in ("reset", "lost"):
            _reset(writer)
            return False
        if one.did in ("ok", "again"):
            writer.write(_written(200, one.answer))
        else:
            writer.write(_written(int(one.did), b"not now"))
        await writer.drain()
        one.answered_at = now_ns()
        return True

    async def _stick(self, waiting: Awaitable[object]) -> None:
        self._stuck += 1
        try:
            await waiting
        finally:
            self._stuck -= 1

    def _act(self, one: Handled) -> None:
        known = self._answers.get(one.key) if one.key and self.honours_keys else None
        if known is not None:
            one.answer = known
            one.did = "again" if one.did == "ok" else one.did
            return
        self._number += 1
        one.effect = True
        one.answer = b"done %d %b" % (self._number, one.body[:64])
        if one.key:
            self._answers[one.key] = one.answer


def _written(status: int, body: bytes) -> bytes:
    return (
        b"HTTP/1.1 %d \r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(body), body)
    )  # fmt: skip


def _reset(writer: asyncio.StreamWriter) -> None:
    shown = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed already
        if shown is not None:
            shown.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
