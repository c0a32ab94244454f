"""Ports of loopback that nobody has just now, for servers that tests start.

    free_port() · free_ports(3)

Not those that the kernel gives to whoever connects (from 32768 on): between finding such a port and
listening on it anybody's connection may have taken it. Nor those of other test processes, in this
run or another: each has a block of its own while it lives, so that a port is nobody else's also
before its server listens, while that is down to be started again, and where nobody is to listen at
all. Within its block a process gives them in turn: that of a server that has just gone is the last
to be given again.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from threading import Lock
from typing import Final

FIRST: Final = 15_000
LAST: Final = 20_000
"""Above are those from which the demonstration takes its own."""
BLOCK: Final = 100


@cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """What says that the block is ours, a name in the kernel that ends with us; and its ports."""
    firsts = [*range(FIRST, LAST, BLOCK)]
    random.SystemRandom().shuffle(firsts)
    for first in firsts:
        ours = socket.socket(socket.AF_UNIX)
        try:
            ours.bind(f"\0unspool-tests-ports-{first}")
        except OSError:
            ours.close()
            continue
        return ours, cycle(range(first, first + BLOCK))
    raise AssertionError("every block of ports is taken by test processes that live")


_ONE_AT_A_TIME: Final = Lock()
"""Servers are started by several threads at once: two that come first would take two blocks."""


def free_port() -> int:
    with _ONE_AT_A_TIME:
        _, ports = _block()
    for again in (False, True):  # at last also where a connection has ended a moment ago
        for _ in range(BLOCK):
            port = next(ports)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, again)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
    raise AssertionError("on each port of this test process a server listens")


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]
