"""Where a RabbitMQ is, as a URL tells it, and how long it may take.

    amqp://user:password@host[:5672][/vhost][?queue=orders]

The path is the vhost, as in AMQP's own URIs, and percent-encoded: `/%2Fshop` is the vhost `/shop`,
and none is the vhost `/`.
"""

from __future__ import annotations

import re
import shlex
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ..core.message import Value
from ..core.urls import concealed
from ..errors import Misconfigured

QUEUE: Final = "unspool"

_is_queue: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}").fullmatch


class Limits(Value, frozen=True):
    """Milliseconds that a server may take."""

    connect_ms: int = 5_000
    """Until a connection and its channel are open and the queue is declared."""
    answer_ms: int = 10_000
    """Until it confirms a publish, or answers anything else."""


class Place(Value, frozen=True):
    """Where, and as whom."""

    host: str
    port: int
    user: str
    password: str
    vhost: str
    tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def look(self) -> str:
        """Is this very server there? For a shell, anywhere."""
        if self.tls:
            return shlex.join(["openssl", "s_client", "-connect", str(self)])
        return shlex.join(["nc", "-vz", self.host, str(self.port)])

    def ctl(self, verb: str, *arguments: str) -> str:
        """RabbitMQ's own command, which is given on the server's host."""
        within = [] if verb == "authenticate_user" else ["-p", self.vhost]
        return shlex.join(["rabbitmqctl", verb, *within, *arguments])


def place_of(url: str) -> tuple[Place, str]:
    """The place, and the queue there. Raises `Misconfigured`."""
    try:
        found = urlsplit(url)
        port = found.port or (5671 if found.scheme == "amqps" else 5672)
        options = dict(parse_qsl(found.query, True, strict_parsing=bool(found.query)))
    except ValueError:
        raise _misconfigured(url, "it cannot be read") from None
    queue = options.pop("queue", QUEUE)
    if not found.hostname:
        raise _misconfigured(url, "there is no host")
    if options or found.fragment:
        raise _misconfigured(url, "behind ? there is only queue=NAME")
    if not _is_queue(queue):
        raise _misconfigured(url, "a queue's name has letters, digits and . _ : - only")
    place = Place(
        host=found.hostname,
        port=port,
        user=unquote(found.username or "guest"),
        password=unquote(found.password or "guest"),
        vhost=unquote(found.path[1:]) or "/",
        tls=found.scheme == "amqps",
    )
    return place, queue


def _misconfigured(url: str, why: str) -> Misconfigured:
    return Misconfigured(
        f"{concealed(url)!r} names no queue of RabbitMQ: {why}. Nothing was opened. Write: "
        "amqp://user:password@127.0.0.1:5672/?queue=orders"
    )
