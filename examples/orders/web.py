"""Just enough HTTP/1.1 to be a service: read a request, write an answer, break a connection.

    while (request := await read(reader)) is not None:
        writer.write(Answer(201, b"…").encoded())

It takes bodies with a Content-Length and refuses chunked ones. A service for the world would stand
on a framework; this one shows all it does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

BODY_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    fields: dict[str, str]
    """By name in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        head += [f"{name}: {value}" for name, value in self.fields.items()]
        head += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(head).encode() + self.body


def said(status: int, document: dict[str, Any], **fields: str) -> Answer:
    """An answer in JSON. `Retry_After="2"` becomes the field Retry-After."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    body = json.dumps(document).encode() + b"\n"
    return Answer(status, body, {"Content-Type": "application/json", **named})


async def read(reader: asyncio.StreamReader) -> Request | None:
    """The next request on this connection; None at its end. ValueError: that is no request."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, path, _version = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    fields = {name.lower(): value.strip() for name, _colon, value in pairs}
    length = int(fields.get("content-length", "0"))
    if "transfer-encoding" in fields or not 0 <= length <= BODY_MAX_BYTES:
        raise ValueError("a body without a length, or too large a one")
    try:
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Request(method, path, fields, body)


def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection as a crash does: with RST, and what was not sent is gone."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
