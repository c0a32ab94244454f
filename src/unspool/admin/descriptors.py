"""Descriptors: how many this process may have open, and what that leaves for callers.

    fitted(settings) -> Settings     the soft limit raised as far as it goes, the caps made to fit

Each caller, each connection to the service, and each file of the spool is a descriptor. Where they
run out, accept() fails, and nobody is told 503: the cap and the stress profile would never come to
bear. So the soft limit is raised to what the settings can need, as far as the hard one goes; where
that is not enough the caps are lowered, and that is said.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

import msgspec

from ..core.message import Value
from ..errors import Misconfigured
from ..settings import Settings

log = logging.getLogger("unspool.serve")

SPARE: Final = 64
"""The spool's three connections, listeners, the loop, the log, what Python opens now and then."""
CALLERS_MIN: Final = 8


class Caps(Value, frozen=True):
    """What may be open at once."""

    callers: int
    upstream: int
    """To each server."""


def needed(caps: Caps, *, servers: int) -> int:
    """Descriptors that these take; those who are being turned away at the cap included."""
    return SPARE + caps.callers + (caps.callers + 64) // 8 + caps.upstream * servers


def fit(caps: Caps, *, servers: int, limit: int) -> Caps:
    """These caps, or the largest below them that `limit` has room for. A quarter of it is for the
    way out, if so much is asked for: a caller whose request cannot go on is no use."""
    if needed(caps, servers=servers) <= limit:
        return caps
    upstream = max(1, min(caps.upstream, (limit - SPARE) // 4 // servers))
    callers = (limit - SPARE - 8 - upstream * servers) * 8 // 9
    return Caps(min(caps.callers, max(0, callers)), upstream)


def fitted(settings: Settings) -> Settings:
    """Raises `Misconfigured` where there is room for next to nobody."""
    servers = max(1, len(settings.to))
    wanted = Caps(settings.connections_max, settings.upstream_connections_max)
    limit = _raised(needed(wanted, servers=servers))
    caps = fit(wanted, servers=servers, limit=limit)
    if caps == wanted:
        return settings
    if caps.callers < min(CALLERS_MIN, wanted.callers):
        raise Misconfigured(
            f"A process may have {limit} files and sockets open here, which leaves room for"
            f" {caps.callers} callers. Nothing was started. Raise it: ulimit -Hn 8192, or"
            " LimitNOFILE=8192 in the unit"
        )
    log.warning(
        "a process may have %d files and sockets open here, and %d are needed: at most %d callers"
        " (connections_max) and %d connections to each server (upstream_connections_max) for now."
        " For all of them raise the hard limit: LimitNOFILE=%d in the unit, or ulimit -Hn",
        limit, needed(wanted, servers=servers), caps.callers, caps.upstream,
        needed(wanted, servers=servers),
    )  # fmt: skip
    return msgspec.structs.replace(
        settings, connections_max=caps.callers, upstream_connections_max=caps.upstream
    )


def _raised(count: int) -> int:
    """The soft limit, raised towards `count` as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return count if soft == resource.RLIM_INFINITY else soft
    aim = count if hard == resource.RLIM_INFINITY else min(count, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
    except (OSError, ValueError) as error:  # a kernel's own ceiling, or a sandbox
        log.warning("the limit of %d open files could not be raised to %d: %s", soft, aim, error)
        return soft
    return aim
