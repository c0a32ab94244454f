"""What adapters for other HTTP libraries have in common; `unspool.httpx`, `.requests`, `.aiohttp`.

    asked = Asked(method, url, fields, body, deadline)     what the library wants sent
    request = asked.build(client, hops)                    as the client takes it
    response = stands(result, …)                           the answer; raises `Saved`
    trouble(error) -> Trouble                              which of the library's errors it is
    Origins(…)                                             the client of each origin
    Hops                                                   keys of requests that were redirected

An adapter is for code that is there already, and knows only responses and its library's errors:

    a server answered, also 4xx     the response, as ever; also the 503 of a request nobody took
    somebody has it                 `Saved`
    nobody has it, no answer came   the library's error: of connecting, where it was never sent; of
                                    reading, where it may have been applied
    it makes no sense               our own error: nothing was sent

`Saved` is none of the library's errors on purpose. Code that tries again does so at those, and what
is saved must not be sent again as another request; code that says "it failed" would be wrong.

In a request's fields, `Idempotency-Key` is its key, and for what no other library has words:
`Unspool-Order`, `Unspool-Lifetime` (seconds), `Unspool-Contended: ?1`. They are taken off.

A redirect that is followed with its body goes to another address under the same key, which for us
is another request: it gets a key that is made from the first one and the address, the same each
time.
"""

from __future__ import annotations

import enum
import re
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from ..core.fields import HOP_BY_HOP
from ..core.idempotency import KEY_CHARS_MAX, Unreadable, read_key
from ..core.message import SAFE_METHODS, Field, Value
from ..errors import Misconfigured, Saved, Unacceptable, Undelivered
from ..transports.head import Unsendable, render
from .blocking import Client
from .client import AsyncClient
from .request import Request
from .results import Accepted, Delivered, FellBack, Queued, Rejected, Response, Result, Try, Unknown

ORIGINS_MAX: Final = 64
HOPS_MAX: Final = 1_000

_FRAMING: Final = HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"unspool-attempt",
    b"unspool-deadline",
}
_WORDS: Final = frozenset(
    {b"idempotency-key", b"unspool-order", b"unspool-lifetime", b"unspool-contended"}
)
_NOT_SHOWN: Final = frozenset(name.decode() for name in HOP_BY_HOP) | {"unspool-body-kept"}
_NEED_SERVERS: Final = ("queues", "destination", "headers", "auth")
"""Options that belong to one service, and must not go to whoever else is asked."""

_PLAIN: Final = re.compile(r"/[A-Za-z0-9/%@!$&'()*+,;=~._?-]*")
"""A target that everybody writes the same way."""

C = TypeVar("C", bound=Client | AsyncClient)


def wrong(why: str) -> Unacceptable:
    return Unacceptable(f"This request cannot be sent: {why}. Nothing was sent; mend it.")


class Asked(Value, frozen=True):
    """What a library wants sent."""

    method: str
    url: str
    """As it goes on the wire: encoded, without a fragment."""
    fields: tuple[Field, ...]
    body: bytes = b""
    deadline: float | None = None
    """Seconds; None: as the client says."""

    @property
    def origin(self) -> str:
        return origin_of(self.url)

    @property
    def target(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _word(self, name: bytes) -> list[bytes]:
        return [value for one, value in self.fields if one.lower() == name]

    @property
    def key(self) -> str | None:
        """The caller's. Raises `Unacceptable`."""
        if self.method.encode("ascii", "replace") in SAFE_METHODS:
            return None  # a redirect from a POST to a GET carries the field along
        read = read_key(self._word(b"idempotency-key"))
        if isinstance(read, Unreadable):
            raise wrong(read.why)
        return read

    def build(self, client: Client | AsyncClient, hops: Hops) -> Request:
        """Raises `Unacceptable`."""
        if self._word(b"upgrade"):
            raise wrong("it asks for another protocol (Upgrade), and this carries requests")
        key = self.key
        lifetime = self._word(b"unspool-lifetime")
        if lifetime and not (lifetime[0].isdigit() and len(lifetime[0]) < 10):
            raise wrong("Unspool-Lifetime is a number of seconds")
        target = self.target
        plain = _PLAIN.fullmatch(target) is not None
        request = client.build(
            self.method,
            target if plain else "/",
            headers=[
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in self.fields
                if name.lower() not in _FRAMING and name.lower() not in _WORDS
                and not (name.lower() == b"host" and _is_host(value, self.url))
            ],
            content=self.body or None,
            key=hops.key(key, self.url) if key else None,
            deadline=self.deadline,
            lifetime=int(lifetime[0]) if lifetime else None,
            order=b"".join(self._word(b"unspool-order")).decode("latin-1"),
            contended=self._word(b"unspool-contended") == [b"?1"],
        )  # fmt: skip
        if plain:
            return request
        # Encoded already, by the library's own taste: it goes as it is.
        request = msgspec.structs.replace(request, target=target)
        try:
            render(request.wire, b"a.example")
        except (Unsendable, UnicodeEncodeError) as error:
            raise wrong(f"{error} ({target!r})") from error
        return request


def _is_host(value: bytes, url: str) -> bool:
    """The usual Host of its address is left to us: another server may get the request."""
    return value.decode("latin-1").lower() in (urlsplit(url).netloc.rpartition("@")[2].lower(), "")


def origin_of(url: str) -> str:
    """Scheme, host and port; without the port that goes without saying."""
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower()
    return f"{scheme}://{host.removesuffix({'http': ':80', 'https': ':443'}.get(scheme, ':'))}"


class Hops:
    """Where redirects have led requests with a key."""

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, key: str, url: str) -> str:
        return self._keys.get((key, url), key)

    def saw(self, asked: Asked, key: str, response: Response) -> None:
        """`key`: what the library's request carries, or will carry when it is redirected."""
        location = response.headers.get("location")
        if response.status // 100 != 3 or not location or not key:
            return
        url = urljoin(asked.url, location).partition("#")[0]
        mark = blake2b(url.encode(), digest_size=8, person=b"unspool hop").hexdigest()
        made = f"{key[: KEY_CHARS_MAX - 17]}-{mark}"
        with self._lock:
            self._keys[key, url] = made
            if len(self._keys) > HOPS_MAX:
                self._keys.popitem(last=False)


def bounded(parts: Iterable[bytes | str], max_bytes: int) -> bytes:
    """A body that comes in parts, read once and whole. Raises `Unacceptable`."""
    found = bytearray()
    for part in parts:
        found += part.encode() if isinstance(part, str) else part
        if len(found) > max_bytes:
            raise too_large(max_bytes)
    return bytes(found)


def too_large(max_bytes: int) -> Unacceptable:
    return wrong(
        f"its body has more than {max_bytes} bytes, and what may have to be kept has at most so"
        " many (`body_max_bytes`)"
    )


# --- how it ended ------------------------------------------------------------------------------


class Trouble(enum.Enum):
    """Why no answer came, as far as other libraries tell it apart."""

    CONNECT = "never sent"
    CONNECT_TIMEOUT = "never sent, in time"
    READ = "maybe applied"
    READ_TIMEOUT = "maybe applied, no answer in time"


def stands(result: Result, *, request: object = None) -> Response | None:
    """The answer; None where none came and nobody knows. Raises `Saved`."""
    match result:
        case Delivered() | Rejected() | Unknown():
            return result.response
        case Accepted():
            who = f"{result.receipt.where} has taken responsibility for it"
            tail = f" Ask: curl {shlex.quote(result.receipt.url)}" if result.receipt.url else ""
        case Queued():
            who = "it is in the outbox, and is sent from there"
            tail = " See what waits: unspool outbox list"
        case FellBack():
            who, tail = "the fallback plan has it", ""
    error = Saved(f"Saved under the key {result.key}: {who}. Do not send it again.{tail}")
    error.key, error.result, error.request = result.key, result, request
    error.receipt = result.receipt if isinstance(result, Accepted) else None
    raise error


def trouble(tries: Iterable[object], *, maybe: bool) -> Trouble:
    seen = [one for one in tries if isinstance(one, Try)]
    late = not seen or "timeout" in seen[-1].cause or "within" in seen[-1].cause
    if maybe:
        return Trouble.READ_TIMEOUT if late else Trouble.READ
    return Trouble.CONNECT_TIMEOUT if late else Trouble.CONNECT


def trouble_of(error: Undelivered) -> Trouble:
    return trouble(error.tries, maybe=error.maybe_applied)


def unknown_text(result: Unknown) -> str:
    return (
        f"It may or may not have been applied, and may not be repeated: {result.why} (key"
        f" {result.key}). Nothing was saved. Find out at the server before it is sent again."
    )


def shown_fields(response: Response) -> list[tuple[str, str]]:
    """The fields of an answer, less what belonged to the connection it came by."""
    return [(n, v) for n, v in response.headers.items() if n.lower() not in _NOT_SHOWN]


TOO_LARGE: Final = (
    "the server answered, and its answer is too large to be held whole or comes without end; give"
    " the adapter a larger `answer_max_bytes`, or read it without the adapter"
)


# --- the client of each origin -----------------------------------------------------------------


class Origins(Generic[C]):
    """One client for the named servers, and one for each other origin that is asked.

    Others are asked where no servers are named, or where a redirect leads elsewhere. They get
    neither the queues nor the fields nor the credentials that are the named servers' alone. Beyond
    ORIGINS_MAX the one that was not asked for longest is closed; what waits in its outbox stays
    there, and is sent when it is asked again.
    """

    def __init__(self, make: Callable[..., C], servers: Any, options: Mapping[str, Any]) -> None:
        self._make = make
        self._options = dict(options)
        self._named: C | None = make(servers, **options) if servers else None
        self._servers = frozenset(
            map(origin_of, self._named.options.servers if self._named else ())
        )
        self._others: OrderedDict[str, C] = OrderedDict()
        self._busy: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        for name in _NEED_SERVERS:
            if self._named is None and options.get(name):
                raise Misconfigured(
                    f"{name} belongs to one service, and no servers are named. Nothing was opened."
                    ' Name them: servers=["https://a.example"]'
                )
            self._options.pop(name, None)
        if self._named is None:
            make("http://a.example", **options)  # what is wrong with an option is said now

    @property
    def named(self) -> C:
        if self._named is None:
            raise Misconfigured(
                "No servers are named: each origin has a client of its own. Name them:"
                ' servers=["https://a.example"]'
            )
        return self._named

    def borrow(self, origin: str) -> C:
        """Its client. Give it back. Raises `Misconfigured` when all is closed."""
        if self._closed:
            raise Misconfigured(
                "This adapter cannot be used: it is closed. Nothing was sent. Make another"
            )
        if self._named is not None and origin in self._servers:
            return self._named
        with self._lock:
            found = self._others.get(origin)
            if found is None:
                found = self._others[origin] = self._make(origin, **self._options)
            self._others.move_to_end(origin)
            self._busy[origin] = self._busy.get(origin, 0) + 1
        return found

    def give_back(self, origin: str) -> list[C]:
        """Those that are to be closed now."""
        with self._lock:
            if origin not in self._busy:
                return []
            self._busy[origin] -= 1
            if not self._busy[origin]:
                del self._busy[origin]
            many = len(self._others) - ORIGINS_MAX
            idle = [name for name in self._others if name not in self._busy]
            return [self._others.pop(name) for name in idle[: max(0, many)]]

    def close(self) -> list[C]:
        """All of them, to be closed."""
        with self._lock:
            self._closed = True
            others = list(self._others.values())
            self._others.clear()
        return [*([self._named] if self._named is not None else []), *others]
