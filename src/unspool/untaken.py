"""Untaken: how much of what was written the other side has not taken yet, in bytes.

    untaken(transport)          what the event loop holds of it, and what the kernel does
    unacknowledged(transport)   what the kernel does

What the loop holds tells too little. A kernel asks for more only when about half of what it holds
has gone, which may be megabytes: at twenty kilobytes a second that takes longer than anybody may
take nothing. Where the loop holds nothing this is 0, whatever the kernel has.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
from typing import Final

_INT: Final = struct.Struct("i")


def untaken(transport: asyncio.WriteTransport) -> int:
    size = transport.get_write_buffer_size()
    return size + unacknowledged(transport) if size else 0


def unacknowledged(transport: asyncio.WriteTransport) -> int:
    shown = transport.get_extra_info("socket")
    if shown is not None:
        with contextlib.suppress(OSError, ValueError):  # closed; or a system without the question
            queued = fcntl.ioctl(shown.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
            return int(_INT.unpack(queued)[0])
    return 0
