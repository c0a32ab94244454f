"""Untaken: what the other side has not taken yet, by the word of the loop and of the kernel."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from callers import eventually, on_both_loops

from unspool.untaken import unacknowledged, untaken


class Closed(asyncio.WriteTransport):
    """A transport that still holds something, and whose socket is gone: TLS has such a moment."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket()
        self._socket.close()

    def get_write_buffer_size(self) -> int:
        return 7

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket


def test_a_socket_that_is_gone_is_no_mistake() -> None:
    """One would end the sweep, and with it all deadlines."""
    assert unacknowledged(Closed()) == 0
    assert untaken(Closed()) == 7


@on_both_loops
async def test_what_the_kernel_holds_counts() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, sock=ours
        )
        assert (untaken(transport), unacknowledged(transport)) == (0, 0)
        transport.write(b"x" * 10_000_000)
        await eventually(lambda: unacknowledged(transport) > 0)
        before = untaken(transport)
        assert before > transport.get_write_buffer_size() > 0
        theirs.recv(100_000)
        await eventually(lambda: untaken(transport) < before)
        transport.abort()
        await asyncio.sleep(0)
