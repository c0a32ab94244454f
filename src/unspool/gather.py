"""Gather: a body that streams, made whole if it is small and quick.

    await gather(response, max_bytes=…, timeout_ms=…) -> Answer

What turns out too large or too slow goes on streaming, from the first byte: nothing is lost by
having looked. What breaks off is a Failure: no whole answer came.
"""

from __future__ import annotations

import asyncio

from .core.message import Answer, Cause, Failure, Reader, Response, Sent, Severed


class Chained:
    """A Reader that first gives what was read already."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: bytes, rest: Reader) -> None:
        self._first = first
        self._rest = rest

    async def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return await self._rest.read()

    def close(self) -> None:
        self._first = b""
        self._rest.close()


async def gather(response: Response, *, max_bytes: int, timeout_ms: int) -> Answer:
    """The response with its body whole; or, beyond the limits, as it streams."""
    rest = response.rest
    if rest is None:
        return response
    if response.length > max_bytes or _endless(response):
        return response
    parts = [response.body]
    size = len(response.body)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            while part := await rest.read():
                parts.append(part)
                size += len(part)
                if size > max_bytes:
                    return _streaming(response, b"".join(parts), rest)
    except TimeoutError:
        return _streaming(response, b"".join(parts), rest)
    except Severed as severed:
        return Failure(Cause.HTTP_RESPONSE_INCOMPLETE, str(severed), Sent.MAYBE)
    return Response(response.status, response.reason, response.fields, b"".join(parts))


def _endless(response: Response) -> bool:
    """Events come one by one, for as long as anybody listens: waiting for the end is no use."""
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in response.fields
    )


def _streaming(response: Response, first: bytes, rest: Reader) -> Response:
    return Response(response.status, response.reason, response.fields, first, rest, response.length)
