"""unspool for httpx and httpx2: a transport that does not lose requests.

    import httpx, unspool.httpx                    # or httpx2, or both

    transport = unspool.httpx.Transport(["https://a.example", "https://b.example"], outbox="o.db")
    client = httpx.Client(base_url="https://a.example", transport=transport)
    try:
        response = client.post("/orders", json=order, headers={"Idempotency-Key": order.id})
    except unspool.httpx.Saved as saved:
        ...                                        # it will be delivered: saved.key, saved.receipt

`AsyncTransport` is the same for `AsyncClient`. A request to one of the servers goes to the one that
does best; one to any other origin goes there. Without servers each origin is on its own. All
options of `unspool.Client` may be given.

What it answers is a response of the package that asks: this file imports neither. Cookies, auth,
redirects, encodings stay httpx's work; `response.extensions["unspool"]` is our result, and where
nobody had it the `Undelivered`. httpx's read timeout is the deadline of the call, retries included;
with none, our `deadline`. `verify`, `cert` and proxies are httpx's own transport's: here it is
`tls=`, and there are no proxies. A body is read whole before it is sent, and an answer before it is
given; one that is too large raises `ReadError` when it is read.

The key under which a request went is in its `Idempotency-Key` afterwards: to send the same object
again (a transport that retries, `client.send`) is to repeat it, never to do it twice.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from .client.adapter import (
    TOO_LARGE,
    Asked,
    Hops,
    Origins,
    Trouble,
    bounded,
    shown_fields,
    stands,
    too_large,
    trouble,
    trouble_of,
    unknown_text,
)
from .client.blocking import Client
from .client.client import AsyncClient
from .client.options import ClientOptions
from .client.request import Request
from .client.results import Response, Result, Unknown
from .errors import Missing, Saved, Undelivered

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Sync(httpx.BaseTransport, httpx2.BaseTransport):
        def handle_request(self, request: Any) -> Any: ...

    class _Async(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any: ...

else:
    _Sync = _Async = object

__all__ = ["AsyncTransport", "Saved", "Transport"]

PACKAGES: Final = ("httpx", "httpx2")

Fails = Callable[[Exception], Iterator[bytes] | AsyncIterator[bytes]]
"""A body that raises this when it is read."""

if not any(map(find_spec, PACKAGES)):
    raise Missing(
        "unspool.httpx is for httpx2 or httpx, and neither is installed. Install one:"
        " pip install httpx2"
    )


class Transport(_Sync):
    def __init__(self, servers: str | Sequence[str] = (), **options: Unpack[ClientOptions]) -> None:
        """Raises `Misconfigured`. Nothing is opened before the first request."""
        self._origins: Final = Origins(Client, servers, options)
        self._hops: Final = Hops()

    @property
    def client(self) -> Client:
        """The client of the named servers: its outbox, its statistics."""
        return self._origins.named

    def handle_request(self, request: Any) -> Any:
        """Raises `Saved`; the package's `TransportError`s; `Unacceptable` with nothing sent."""
        package = package_of(request)
        head = asked_of(request)
        client = self._origins.borrow(head.origin)
        try:
            body = bounded(parts_of(request), client.options.body_max_bytes)
            request.stream = package.ByteStream(body)
            asked = whole(head, body)
            built = asked.build(client, self._hops)
            note_key(request, built)
            with translated(package, request, asked, self._hops, _fails) as told:
                told.result = client.send(built)
            return told.response(built)
        finally:
            for one in self._origins.give_back(head.origin):
                one.close()

    def close(self) -> None:
        for one in self._origins.close():
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTransport(_Async):
    """As `Transport`. Belongs to one event loop."""

    def __init__(self, servers: str | Sequence[str] = (), **options: Unpack[ClientOptions]) -> None:
        """Raises `Misconfigured`. Nothing is opened before the first request."""
        self._origins: Final = Origins(AsyncClient, servers, options)
        self._hops: Final = Hops()

    @property
    def client(self) -> AsyncClient:
        """The client of the named servers: its outbox, its statistics."""
        return self._origins.named

    async def handle_async_request(self, request: Any) -> Any:
        """Raises as `Transport.handle_request`."""
        package = package_of(request)
        head = asked_of(request)
        client = self._origins.borrow(head.origin)
        try:
            body = await self._body(request, client.options.body_max_bytes)
            request.stream = package.ByteStream(body)
            asked = whole(head, body)
            built = asked.build(client, self._hops)
            note_key(request, built)
            with translated(package, request, asked, self._hops, _fails_soon) as told:
                told.result = await client.send(built)
            return told.response(built)
        finally:
            for one in self._origins.give_back(head.origin):
                await one.aclose()

    async def _body(self, request: Any, max_bytes: int) -> bytes:
        if not hasattr(request.stream, "__aiter__"):
            return bounded(parts_of(request), max_bytes)
        found = bytearray()
        async for part in request.stream:
            found += part
            if len(found) > max_bytes:
                raise too_large(max_bytes)
        return bytes(found)

    async def aclose(self) -> None:
        for one in self._origins.close():
            await one.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


# --- requests in -------------------------------------------------------------------------------


def package_of(request: Any) -> Any:
    """Whose request it is: httpx's or httpx2's."""
    for kind in type(request).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in PACKAGES:
            return sys.modules[name]
    raise TypeError(f"a request of httpx or httpx2 is wanted, not {type(request).__name__}")


def asked_of(request: Any) -> Asked:
    """Without its body."""
    url = request.url
    origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
    timeout = request.extensions.get("timeout") or {}
    return Asked(
        method=request.method,
        url=origin + url.raw_path.decode("ascii"),
        fields=tuple(request.headers.raw),
        deadline=timeout.get("read"),
    )


def parts_of(request: Any) -> Iterator[bytes]:
    stream: Iterator[bytes] = iter(request.stream)
    return stream


def whole(head: Asked, body: bytes) -> Asked:
    return Asked(head.method, head.url, head.fields, body, head.deadline)


def note_key(request: Any, built: Request) -> None:
    if built.minted and built.keyed:
        request.headers["Idempotency-Key"] = f'"{built.key}"'


# --- answers out -------------------------------------------------------------------------------


class Told:
    """What became of it, in the words of the package that asked."""

    def __init__(self, package: Any, request: Any, asked: Asked, hops: Hops, fails: Fails) -> None:
        self._fails = fails
        self._package = package
        self._request = request
        self._asked = asked
        self._hops = hops
        self.result: Result | None = None
        self.undelivered: Undelivered | None = None

    def response(self, built: Request) -> Any:
        if self.undelivered is not None:
            answer = self.undelivered.response
            assert isinstance(answer, Response)
            return self._made(answer, self.undelivered)
        assert self.result is not None
        found = stands(self.result, request=self._request)
        if found is None:
            assert isinstance(self.result, Unknown)
            kind = trouble(self.result.tries, maybe=True)
            raise self.error(kind, unknown_text(self.result))
        self._hops.saw(self._asked, self._asked.key or built.key, found)
        return self._made(found, self.result)

    def error(self, kind: Trouble, text: str) -> Exception:
        package = self._package
        found: type[Exception] = {
            Trouble.CONNECT: package.ConnectError,
            Trouble.CONNECT_TIMEOUT: package.ConnectTimeout,
            Trouble.READ: package.ReadError,
            Trouble.READ_TIMEOUT: package.ReadTimeout,
        }[kind]
        return found(text, request=self._request)  # type: ignore[call-arg]

    def _made(self, answer: Response, ours: object) -> Any:
        package = self._package
        extensions = {
            "http_version": b"HTTP/1.1",
            "reason_phrase": answer.reason.encode("latin-1"),
            "unspool": ours,
        }
        fields = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in shown_fields(answer)]
        if answer.whole or self._request.method == "HEAD":
            return package.Response(
                answer.status, headers=fields, stream=package.ByteStream(answer.body),
                extensions=extensions,
            )  # fmt: skip
        error = package.ReadError(TOO_LARGE, request=self._request)
        return package.Response(
            answer.status, headers=fields, content=self._fails(error), extensions=extensions
        )


def _fails(error: Exception) -> Iterator[bytes]:
    yield from ()
    raise error


async def _fails_soon(error: Exception) -> AsyncIterator[bytes]:
    if error is None:  # an iterator has to have a yield
        yield b""
    raise error


@contextlib.contextmanager
def translated(
    package: Any, request: Any, asked: Asked, hops: Hops, fails: Fails
) -> Iterator[Told]:
    told = Told(package, request, asked, hops, fails)
    try:
        yield told
    except Undelivered as error:
        if error.response is None:
            raise told.error(trouble_of(error), str(error)) from error
        told.undelivered = error
