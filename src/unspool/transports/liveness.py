"""What the kernel and TLS know of a connection and the event loop has not told us yet.

Probe(transport).quiet()        nothing to be read, no end, no error: fit for a request
said_goodbye(transport)         was the end of the stream meant by the server?
"""

from __future__ import annotations

import select
import ssl
from typing import Any


class Probe:
    """Asks the kernel, without reading. Costs a system call."""

    __slots__ = ("_poll",)

    def __init__(self, transport: Any) -> None:
        poller = select.poll()
        number = transport.get_extra_info("socket").fileno()
        poller.register(number, select.POLLIN | select.POLLHUP | select.POLLERR)
        self._poll = poller.poll

    def quiet(self) -> bool:
        return not self._poll(0)


def said_goodbye(transport: Any) -> bool:
    """Anybody on the way can end a TCP connection; only the server can end a TLS session.

    RFC 9112 §9.8: a body that ends with the connection is whole only after a close_notify. The
    TLS of asyncio reports both ends alike.
    """
    session = transport.get_extra_info("ssl_object")
    if session is None:
        return True
    try:
        return not session.read(1)
    except ssl.SSLError:
        return False
