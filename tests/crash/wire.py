"""Wire: the smallest HTTP client that can tell a whole answer from a broken one.

    wire = await Wire.open(port)
    told = await wire.ask(b"POST", "/orders", fields={…}, body=…)
    wire.close()
    told = await ask(port, …)              on a connection of its own

Raises `Severed` when no whole answer came, whatever the reason. Kept apart from the product's own
client and parser on purpose: a witness does not share the mistakes of the accused.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

LIMIT = 1 << 20


class Severed(Exception):
    """No whole answer: nobody knows what happened to the request."""


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    fields: dict[str, str]
    """Names in lower case; of repeated fields the last."""
    body: bytes


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.alive = True

    @classmethod
    async def open(cls, port: int, *, timeout: float = 30) -> Wire:
        try:
            async with asyncio.timeout(timeout):
                return cls(*await asyncio.open_connection("127.0.0.1", port, limit=LIMIT))
        except (OSError, TimeoutError) as error:
            raise Severed(f"no connection: {type(error).__name__}") from error

    async def ask(
        self,
        method: str,
        target: str,
        *,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 60,
    ) -> Told:
        head = [f"{method} {target} HTTP/1.1", "Host: relay"]
        head += [f"{name}: {value}" for name, value in (fields or {}).items()]
        if method not in ("GET", "HEAD"):
            head.append(f"Content-Length: {len(body)}")
        try:
            async with asyncio.timeout(timeout):
                self._writer.write("\r\n".join([*head, "", ""]).encode() + body)
                return await self._answer()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            self.close()
            raise Severed(f"{type(error).__name__}: {error}") from error

    async def _answer(self) -> Told:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        fields = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        status = int(first.split(" ")[1])
        body = b""
        if "content-length" in fields:
            body = await self._reader.readexactly(int(fields["content-length"]))
        elif status not in (204, 304):
            raise EOFError("an answer without a length")
        if fields.get("connection", "").lower() == "close":
            self.close()
        return Told(status, fields, body)

    def close(self) -> None:
        self.alive = False
        self._writer.close()

    def abort(self) -> None:
        """Vanish: a reset, as from a sender who lost its power."""
        self.alive = False
        shown = self._writer.get_extra_info("socket")
        if shown is not None:
            shown.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


async def ask(
    port: int,
    method: str,
    target: str,
    *,
    fields: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout: float = 60,
) -> Told:
    wire = await Wire.open(port)
    try:
        return await wire.ask(method, target, fields=fields, body=body, timeout=timeout)
    finally:
        wire.close()
