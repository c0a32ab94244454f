"""A plain HTTP client on asyncio and httptools: keep-alive, one request at a time on a connection.

    pool = Pool(port)
    answer = await pool.exchange(request("POST", "/orders", body), patience_s=3)

Raises `Broken` in words for people: connection refused, connection broken, no answer in 3 s. It
never sends anything twice: that is for its caller to decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools

HOST = "127.0.0.1"


class Broken(Exception):
    """No whole answer came. What was asked may have been done all the same."""


@dataclass(slots=True)
class Reply:
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    """By name in lower case."""
    body: bytes = b""


def request(
    method: str, path: str, body: bytes = b"", fields: Sequence[tuple[str, str]] = ()
) -> bytes:
    head = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*head, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One connection. httptools calls the methods on_…, asyncio the others."""

    def __init__(self) -> None:
        self.alive = False
        self._reply = Reply()
        self._waiter: asyncio.Future[Reply] | None = None

    async def exchange(self, data: bytes) -> Reply:
        self._reply = Reply()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._waiter

    def close(self) -> None:
        self.alive = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Broken("connection broken"))

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._waiter.set_exception(Broken("an answer that is not HTTP"))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._reply.body += body

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        self.alive = self.alive and self._parser.should_keep_alive()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._reply)


class Pool:
    """Connections to one port of this machine, kept and used again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[Connection] = []

    async def exchange(self, data: bytes, *, patience_s: float) -> Reply:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(patience_s):
                connection = self._kept() or await self._new()
                reply = await connection.exchange(data)
        except TimeoutError:
            raise Broken(f"no answer in {patience_s:g} s") from None
        except ConnectionRefusedError:
            raise Broken("connection refused") from None
        except OSError:
            raise Broken("connection broken") from None
        else:
            if connection.alive:
                self._idle.append(connection)
                connection = None
            return reply
        finally:
            if connection is not None:
                connection.close()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                return connection
        return None

    async def _new(self) -> Connection:
        loop = asyncio.get_running_loop()
        _transport, connection = await loop.create_connection(Connection, HOST, self.port)
        return connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
