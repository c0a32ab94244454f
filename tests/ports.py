"""Ports of loopback that nobody has just now, for servers that tests start.

    free_port() · free_ports(3)

Not those that the kernel gives to whoever connects (from 32768 on): between finding such a port and
listening on it anybody's connection may have taken it, and several tests run at once.
"""

from __future__ import annotations

import random
import socket
from typing import Final

FIRST: Final = 15_000
LAST: Final = 32_000
_CHANCE: Final = random.SystemRandom()


def free_port() -> int:
    while True:
        port = _CHANCE.randrange(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return sorted(found, key=lambda _: _CHANCE.random())
