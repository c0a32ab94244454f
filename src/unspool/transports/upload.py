"""A request whose body is still coming in: sent on piece by piece, with back-pressure.

    answer = await upload(connection, head, request)

An answer that comes before the body was sent ends the sending: the answer is given, and the
connection closed, because what was left of the request would be read as the next one
(RFC 9112 §9.3). A sender who breaks off, or who sends more or less than it declared, takes the
connection with it; nothing that was declared is ever padded or cut.

The sender's body is neither read to its end nor closed here: whoever opened it does that.
"""

from __future__ import annotations

import asyncio

from ..core.message import Answer, Cause, Request, Severed
from .connection import Connection


async def upload(connection: Connection, head: bytes, request: Request) -> Answer:
    """Send the request; the answer as soon as it is here."""
    first = request.body
    if first and request.length < 0:
        first = _chunk(first)
    future = connection.send(head, first, request.method == b"HEAD", True)
    pump = asyncio.ensure_future(_pump(connection, request))
    try:
        return await future
    except asyncio.CancelledError:
        connection.abandon(future)
        raise
    finally:
        # Nobody reads the sender's body any more when the answer is given.
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _pump(connection: Connection, request: Request) -> None:
    rest = request.rest
    assert rest is not None
    declared = request.length >= 0
    left = request.length - len(request.body)
    try:
        while left >= 0 or not declared:
            data = await rest.read()
            if not data or connection.dead:
                break
            left -= len(data)
            if not declared:
                await connection.more(_chunk(data))
            elif left >= 0:
                await connection.more(data)
    except Severed:
        connection.give_up(Cause.CONNECTION_TERMINATED, "the sender broke off")
        return
    except Exception as error:
        connection.give_up(Cause.PROXY_INTERNAL_ERROR, f"reading the request failed: {error!r}")
        raise
    if connection.dead:
        return
    if declared and left:
        how = "less" if left > 0 else "more"
        connection.give_up(Cause.CONNECTION_TERMINATED, f"the sender sent {how} than it declared")
        return
    if not declared:
        await connection.more(b"0\r\n\r\n")
    connection.sent_all()
