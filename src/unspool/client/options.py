"""Options of the client: each once, with its sentence. docs/reference/client.md is made from here.

    checked(servers, given) -> Options      raises `Misconfigured` with the nearest name

Given as keyword arguments to `Client` and `AsyncClient`. Nothing is opened or sent by making one.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from random import random
from typing import Any, Final, Literal, TypedDict

from ..clock import Clock, SystemClock
from ..core.message import Value
from ..core.urls import concealed
from ..errors import Misconfigured
from ..transports.http import parse
from ..transports.protocol import Transport
from .events import OnEvent
from .outbox import outbox_url
from .request import Auth, Fields
from .results import Settled

Durability = Literal["on-error", "before"]
OnSettled = Callable[[Settled], Any]


class ClientOptions(TypedDict, total=False):
    """The same names, for type checkers."""

    queues: Sequence[str]
    outbox: str | None
    fallback: Callable[..., Any] | None
    durability: Durability
    deadline: float
    lifetime: float
    attempts: int
    headers: Fields
    auth: Auth | None
    servers_know_keys: bool
    hedge: bool
    sends: bool
    destination: str
    outbox_max: int
    outbox_max_bytes: int
    body_max_bytes: int
    answer_max_bytes: int
    backoff_least_ms: int
    backoff_most_ms: int
    connect_ms: int
    connections_max: int
    queue_ms: int
    drain_ms: int
    tls: ssl.SSLContext | None
    on_event: OnEvent | None
    on_settled: OnSettled | None
    transport: Callable[[str], Transport] | None
    clock: Clock
    luck: Callable[[], float]


class Options(Value, frozen=True, kw_only=True):
    """How a client behaves."""

    servers: tuple[str, ...]
    """The origins of the service, all alike: a request goes to the one that does best, and to
    another if that fails. An origin is scheme, host and port; the path belongs to the request."""
    queues: tuple[str, ...] = ()
    """Who is asked to take over when no server answers, in this order: relays of unspool by their
    origin (`https://relay.example`), or queues (`gearman://10.0.0.5`, `s3://parked/orders`)."""
    outbox: str | None = None
    """Where requests are kept that nobody took: a path (a SQLite file) or the URL of any spool.
    `None`: nowhere; what nobody took is then an exception."""
    fallback: Callable[..., Any] | None = None
    """Called with the request when nobody has it; what it returns is the `FellBack`. Blocking or
    not. If it raises, `Undelivered` is raised from that. An attempt may have had its effect all the
    same: `request.key` tells whoever does it by hand whether it was done."""
    durability: Durability = "on-error"
    """`before`: a request is on the outbox's disk before its first byte is sent, and survives a
    crash of the sender at any moment. `on-error`: only what nobody took is; the usual costs no
    disk."""
    deadline: float = 10.0
    """Seconds that a call may take, all attempts and queues together."""
    lifetime: float = 5 * 24 * 3600.0
    """Seconds that a request may wait in the outbox, or with a relay, before it is given up. Never
    longer than the servers say that they know its key (`Idempotency-Retention`)."""
    attempts: int = 3
    """Direct attempts of one call at most, each at another server where there is one."""
    headers: tuple[tuple[str, str], ...] = ()
    """Fields of every request. One that a request has itself goes before."""
    auth: Auth | None = None
    """Of every request: `("name", "password")`, or the whole value of Authorization as text. What
    is kept in an outbox is kept with it, in a file that only its owner can read."""
    servers_know_keys: bool = True
    """The servers do each Idempotency-Key once. `False`: keys are sent along all the same, but a
    POST or PATCH that may have been applied is not sent again: `Unknown`."""
    hedge: bool = False
    """Ask a second server beside the first when that takes longer than 95 of 100 answers do; one
    request in a hundred at most, and only what may be repeated."""
    sends: bool = True
    """Send what waits in the outbox. Of several processes on one file one does. `False`: never this
    one; what it keeps is another's to send."""
    destination: str = ""
    """What the service is called in the outbox. Default: the first server. Name it where servers
    come and go, or where several services share one outbox."""
    outbox_max: int = 10_000
    """Requests that may wait in the outbox. One more is refused: `Undelivered`, or the fallback."""
    outbox_max_bytes: int = 1024 * 1024 * 1024
    """Bytes of requests that may wait in the outbox, of all processes on its file together. What
    would exceed it is refused likewise. For SQLite files; a server that keeps an outbox has limits
    of its own."""
    body_max_bytes: int = 1024 * 1024
    """A request with a larger body is refused: it could not be kept."""
    answer_max_bytes: int = 16 * 1024 * 1024
    """Of a larger answer only the fact and its head are given (`Response.whole` is false)."""
    backoff_least_ms: int = 1_000
    """The shortest pause before what waits in the outbox is tried again."""
    backoff_most_ms: int = 300_000
    """The longest pause between two attempts of what waits in the outbox."""
    connect_ms: int = 2_000
    """Until there is a connection: name, TCP and TLS."""
    connections_max: int = 100
    """Connections to one server at once."""
    queue_ms: int = 1_000
    """The most that the offer to one queue may take."""
    drain_ms: int = 2_000
    """How long `close` lets end what is being sent: calls, then what goes out from the outbox."""
    tls: ssl.SSLContext | None = None
    """For https: an own trust store, or a client certificate. It must verify."""
    on_event: OnEvent | None = None
    """Told of every attempt, offer and end (`unspool.client.events`). Must not block."""
    on_settled: OnSettled | None = None
    """Told what became of each request that had been queued: a `Settled`. Must not block."""
    transport: Callable[[str], Transport] | None = None
    """Makes the transport of an origin, for tests: HTTP/1.1 of our own else."""
    clock: Clock = SystemClock()
    """What time it is, for tests."""
    luck: Callable[[], float] = random
    """Where chance comes from, for tests: a number in [0, 1)."""


RELAYS: Final = ("http://", "https://")
MORE_THAN_0: Final = (
    "deadline", "lifetime", "attempts", "outbox_max", "outbox_max_bytes", "body_max_bytes",
    "answer_max_bytes",
    "backoff_least_ms", "backoff_most_ms", "connect_ms", "connections_max", "queue_ms",
)  # fmt: skip


def checked(servers: str | Sequence[str], given: Mapping[str, Any]) -> Options:
    """The options, or what is wrong with them."""
    for name in given:
        if name not in Options.__struct_fields__ or name == "servers":
            near = get_close_matches(name, Options.__struct_fields__, n=1)
            advice = f" Did you mean {near[0]}?" if near else ""
            raise Misconfigured(f"A client has no option {name!r}.{advice} Nothing was opened.")
    origins = (servers,) if isinstance(servers, str) else tuple(servers or ())
    if not origins or not any(origins):
        raise Misconfigured(
            "A client needs a server to send to. Nothing was opened. Name one or more:"
            ' Client(servers=["https://a.example"])'
        )
    told = {**given, "servers": tuple(_origin(one) for one in origins)}
    queues = told.get("queues", ())
    told["queues"] = (queues,) if isinstance(queues, str) else tuple(queues)
    told["queues"] = tuple(_queue(one) for one in told["queues"])
    fields = told.get("headers", ())
    if not isinstance(fields, Mapping | Sequence):
        raise Misconfigured(f"headers is a mapping, or pairs, not {fields!r}. Nothing was opened.")
    told["headers"] = tuple(fields.items() if isinstance(fields, Mapping) else fields)
    if told.get("outbox") is not None:
        told["outbox"] = outbox_url(str(told["outbox"]))
    if "outbox_max_bytes" in told and not str(told.get("outbox")).startswith("sqlite:"):
        raise Misconfigured(
            "outbox_max_bytes is for an outbox in an SQLite file, and this client has none. Nothing"
            ' was opened. Name one, outbox="sqlite:///outbox.db", or leave outbox_max_bytes out.'
        )
    options = Options(**told)
    _check(options)
    return options


def _origin(url: Any) -> str:
    """A server's origin, without a slash at its end."""
    if not isinstance(url, str):
        raise Misconfigured(f"An origin is text, not {url!r}. Nothing was opened.")
    bare = url[:-1] if url.endswith("/") and url.count("/") == 3 else url
    scheme, found, rest = bare.partition("://")
    if found and "/" in rest:
        origin, _, path = rest.partition("/")
        raise Misconfigured(
            f"The server {concealed(url)} has a path. Nothing was opened. Give the origin,"
            f" {scheme}://{origin.rpartition('@')[2]}, and the path with each request:"
            f' client.post("/{path}/…")'
        )
    parse(bare, tls=None)
    return bare


def _queue(url: Any) -> str:
    return url if isinstance(url, str) and not url.startswith(RELAYS) else _origin(url)


def _check(options: Options) -> None:
    if options.durability not in ("on-error", "before"):
        raise Misconfigured(
            f'durability is "on-error" or "before", not {options.durability!r}. Nothing was opened.'
        )
    if options.durability == "before" and options.outbox is None:
        raise Misconfigured(
            'durability="before" writes every request to the outbox first, and there is none.'
            ' Nothing was opened. Name one: outbox="sqlite:///outbox.db"'
        )
    for name in (*MORE_THAN_0, "drain_ms"):
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise Misconfigured(f"{name} is a number, not {value!r}. Nothing was opened.")
        if value < 0 or (value == 0 and name in MORE_THAN_0):
            raise Misconfigured(f"{name} must be more than 0, not {value}. Nothing was opened.")
    for name in ("fallback", "on_event", "on_settled"):
        if getattr(options, name) is not None and not callable(getattr(options, name)):
            raise Misconfigured(
                f"{name} is to be called, and {getattr(options, name)!r} cannot be."
            )
