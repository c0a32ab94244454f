"""The wire: a small strict HTTP/1.1 client that sends what it is told and shows what it got.

    reply = await ask(url, Sending(method="POST", target="/count", fields=[…], body=b"…"))
    await walk_away(url, sending, until=…)          send it all, and hang up before the answer
    await break_off(url, sending)                   hang up in the middle of the body

Fields are sent as they are, also malformed ones, each way byte for byte; a repeated field stays
repeated; nothing is followed, decoded or retried; each request has a connection of its own.
Everything is bounded: time, connections at once, the size of heads and bodies.

Raises `Unanswered` where no whole answer came: refused, cut, too slow, too large, or not HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Awaitable, Sequence
from typing import Final
from urllib.parse import urlsplit

from ...core.message import Value

TIMEOUT_S: Final = 30.0
CONNECTIONS_MAX: Final = 64
HEAD_MAX_BYTES: Final = 64 * 1024
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
INTERIM_MAX: Final = 8
PORTS: Final = {"http": 80, "https": 443}

Fields = Sequence[tuple[str, str | bytes]]

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [\t -\xff]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -\xff]*?)[ \t]*")


class Unanswered(Exception):
    """No whole answer came, and why."""


class Sending(Value, frozen=True):
    method: str
    target: str
    fields: Fields = ()
    body: bytes = b""


class Reply(Value, frozen=True):
    """An answer as it was on the wire."""

    status: int
    fields: Sequence[tuple[str, str]]
    body: bytes
    began_at: float
    """When the request began to be sent, in seconds since 1970."""
    ended_at: float

    def every(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def get(self, name: str) -> str:
        """The field's value; its lines joined; empty where there is none."""
        return ", ".join(self.every(name))

    @property
    def took_s(self) -> float:
        return self.ended_at - self.began_at

    def __str__(self) -> str:
        body = self.body[:60].decode("latin-1") + ("…" if len(self.body) > 60 else "")
        return f"{self.status} {body!r}" if body else str(self.status)


class Wire:
    """A way to one server, with room for so many connections at once."""

    def __init__(self, base: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Raises `ValueError` where `base` is no http:// or https:// URL."""
        url = urlsplit(base)
        if url.scheme not in PORTS or not url.hostname or url.query or url.fragment:
            raise ValueError(f"{base} is no http:// or https:// URL with a host and no query")
        self.base: Final = base.rstrip("/")
        self.prefix: Final = url.path.rstrip("/")
        self._host: Final = url.hostname
        self._authority: Final = url.netloc.rpartition("@")[2]
        self._port: Final = url.port or PORTS[url.scheme]
        self._tls: Final = ssl.create_default_context() if url.scheme == "https" else None
        self._timeout_s: Final = timeout_s
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)

    async def ask(self, sending: Sending) -> Reply:
        async with self._room:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._asked(sending)
            except TimeoutError:
                raise Unanswered(f"no whole answer within {self._timeout_s:g} s") from None
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                raise Unanswered(f"no whole answer: {error}") from error

    async def _asked(self, sending: Sending) -> Reply:
        began_at = time.time()
        reader, writer = await self._connect()
        try:
            writer.write(self._head(sending) + sending.body)
            with contextlib.suppress(ConnectionError):  # it may have answered before it had it all
                await writer.drain()
            status, fields = await _read_head(reader)
            for _ in range(INTERIM_MAX):
                if status >= 200:
                    break
                status, fields = await _read_head(reader)
            body = await _read_body(reader, sending.method, status, fields)
        finally:
            await _close(writer)
        return Reply(status, fields, body, began_at, time.time())

    async def walk_away(self, sending: Sending, *, until: Awaitable[None]) -> None:
        """Send it whole, and hang up after `until`, without having read anything."""
        async with asyncio.timeout(self._timeout_s), self._room:
            _reader, writer = await self._connect()
            try:
                writer.write(self._head(sending) + sending.body)
                await writer.drain()
                await until
            finally:
                await _close(writer)

    async def break_off(self, sending: Sending) -> None:
        """Hang up in the middle of the body."""
        assert len(sending.body) > 1, "there must be a middle"
        async with asyncio.timeout(self._timeout_s), self._room:
            _reader, writer = await self._connect()
            try:
                writer.write(self._head(sending) + sending.body[: len(sending.body) // 2])
                await writer.drain()
                await asyncio.sleep(0.05)
            finally:
                await _close(writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            self._host, self._port, ssl=self._tls, limit=HEAD_MAX_BYTES
        )

    def _head(self, sending: Sending) -> bytes:
        lines = [f"{sending.method} {self.prefix}{sending.target} HTTP/1.1".encode()]
        lines.append(b"Host: " + self._authority.encode())
        for name, value in sending.fields:
            raw = value if isinstance(value, bytes) else value.encode("latin-1")
            lines.append(name.encode() + b": " + raw)
        if sending.body or sending.method not in ("GET", "HEAD", "OPTIONS"):
            lines.append(b"Content-Length: %d" % len(sending.body))
        lines.append(b"Connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):  # what is not there any more is closed
        await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, list[tuple[str, str]]]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    found = _STATUS.fullmatch(first)
    if found is None:
        raise Unanswered(f"not HTTP/1.1: {first[:60]!r}")
    fields = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Unanswered(f"a field that is none: {line[:60]!r}")
        fields.append((field[1].decode("latin-1"), field[2].decode("latin-1")))
    return int(found[1]), fields


async def _read_body(
    reader: asyncio.StreamReader, method: str, status: int, fields: list[tuple[str, str]]
) -> bytes:
    if method == "HEAD" or status in (204, 304):
        return b""
    coded = [value for name, value in fields if name.lower() == "transfer-encoding"]
    lengths = {value for name, value in fields if name.lower() == "content-length"}
    if coded:
        if lengths or [value.lower() for value in coded] != ["chunked"]:
            raise Unanswered("a body whose end two fields tell differently")
        return await _read_chunks(reader)
    if len(lengths) > 1 or any(not value.isdecimal() for value in lengths):
        raise Unanswered("a Content-Length that is none")
    if lengths:
        length = int(lengths.pop())
        if length > BODY_MAX_BYTES:
            raise Unanswered(f"a body of {length} bytes; {BODY_MAX_BYTES} may be")
        return await reader.readexactly(length)
    return await _read_to_end(reader)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    room = BODY_MAX_BYTES
    while True:
        line = (await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
            raise Unanswered(f"a chunk without a size: {line[:20]!r}")
        size = int(line, 16)
        room -= size
        if room < 0:
            raise Unanswered(f"a body of more than {BODY_MAX_BYTES} bytes")
        if size == 0:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass  # trailers
            return b"".join(parts)
        parts.append(await reader.readexactly(size))
        if await reader.readexactly(2) != b"\r\n":
            raise Unanswered("a chunk that is longer than it says")


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while data := await reader.read(64 * 1024):
        parts.append(data)
        size += len(data)
        if size > BODY_MAX_BYTES:
            raise Unanswered(f"a body of more than {BODY_MAX_BYTES} bytes")
    return b"".join(parts)
