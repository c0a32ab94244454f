"""The libraries that adapters are for, as one: what is asked the same way of each.

with LIBRARIES[name](url, servers, **options) as session:
    answer = session.ask("POST", "/orders", json=…)        status, fields, body, ours
    session.connect_error, session.read_error              what it raises where nobody has it
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, Self

import aiohttp
import httpx
import httpx2
import requests

import unspool.aiohttp
import unspool.httpx
import unspool.requests

DRAIN_S = 60.0


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes
    url: str
    ours: Any = None


class Requests:
    connect_error = requests.ConnectionError
    late_error = requests.ReadTimeout
    read_error = requests.ConnectionError
    large_error = requests.exceptions.ChunkedEncodingError
    every_error = requests.RequestException

    def __init__(self, url: str, servers: Any = (), **options: Any) -> None:
        self._url = url
        self.adapter = unspool.requests.Adapter(servers, **options)
        self.session = requests.Session()
        self.session.mount("http://", self.adapter)

    def ask(self, method: str, path: str, **asked: Any) -> Answer:
        if asked.pop("digest", False):
            asked["auth"] = requests.auth.HTTPDigestAuth("u", "p")
        if (parts := asked.pop("content", None)) is not None:
            asked["data"] = parts
        path = asked.pop("url") if "url" in asked else self._url + path
        asked.setdefault("allow_redirects", True)
        got = self.session.request(method, path, **asked)
        ours = got.unspool  # type: ignore[attr-defined]
        return Answer(got.status_code, dict(got.headers), got.content, str(got.url), ours)

    def client(self) -> Any:
        return self.adapter.client

    def drain(self) -> Any:
        return self.adapter.client.drain(DRAIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def _of(package: ModuleType, library: Any) -> None:
    """httpx or httpx2, blocking or not: what they raise."""
    library.package = package
    library.connect_error = package.ConnectError
    library.read_error = library.large_error = package.ReadError
    library.late_error = package.ReadTimeout
    library.every_error = package.HTTPError


def _asked(package: ModuleType, path: str, asked: dict[str, Any]) -> str:
    """What is asked, as they have it; where."""
    if asked.pop("digest", False):
        asked["auth"] = package.DigestAuth("u", "p")
    return str(asked.pop("url", path))


def _answered(got: Any) -> Answer:
    ours = got.extensions["unspool"]
    return Answer(got.status_code, dict(got.headers), got.content, str(got.url), ours)


class Httpx:
    package: ModuleType

    def __init__(self, package: ModuleType, url: str, servers: Any = (), **options: Any) -> None:
        _of(package, self)
        self.transport = unspool.httpx.Transport(servers, **options)
        self.session = package.Client(
            base_url=url, transport=self.transport, follow_redirects=True, timeout=None
        )

    def ask(self, method: str, path: str, **asked: Any) -> Answer:
        path = _asked(self.package, path, asked)
        return _answered(self.session.request(method, path, **asked))

    def drain(self) -> Any:
        return self.transport.client.drain(DRAIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


class Looped:
    """An async library, asked from code that blocks."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._runner.get_loop()

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    async def _close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._runner.close()


class AsyncHttpx(Looped):
    package: ModuleType

    def __init__(self, package: ModuleType, url: str, servers: Any = (), **options: Any) -> None:
        super().__init__()
        _of(package, self)
        self.transport = unspool.httpx.AsyncTransport(servers, **options)
        self.session = package.AsyncClient(
            base_url=url, transport=self.transport, follow_redirects=True, timeout=None
        )

    def ask(self, method: str, path: str, **asked: Any) -> Answer:
        path = _asked(self.package, path, asked)
        if isinstance(asked.get("content"), Iterator):
            asked["content"] = _soon(asked["content"])
        return _answered(self.run(self.session.request(method, path, **asked)))

    def drain(self) -> Any:
        return self.run(self.transport.client.drain(DRAIN_S))

    async def _close(self) -> None:
        await self.session.aclose()


class Aiohttp(Looped):
    connect_error = aiohttp.ClientConnectionError
    read_error = aiohttp.ClientConnectionError
    late_error = aiohttp.ServerTimeoutError
    large_error = aiohttp.ClientPayloadError
    every_error = aiohttp.ClientError

    def __init__(self, url: str, servers: Any = (), **options: Any) -> None:
        super().__init__()
        self._url = url
        self.run(self._open(servers, options))

    async def _open(self, servers: Any, options: dict[str, Any]) -> None:
        self.connector = unspool.aiohttp.Connector(servers, **options)
        jar = aiohttp.CookieJar(unsafe=True)
        self.session = aiohttp.ClientSession(self._url, connector=self.connector, cookie_jar=jar)

    def ask(self, method: str, path: str, **asked: Any) -> Answer:
        asked.pop("digest", None)
        path = asked.pop("url", path)
        if (content := asked.pop("content", None)) is not None:
            asked["data"] = _soon(content) if isinstance(content, Iterator) else content
        if (files := asked.pop("files", None)) is not None:
            asked["data"] = {name: io.BytesIO(data) for name, (_, data) in files.items()}
        if "timeout" in asked:
            asked["timeout"] = aiohttp.ClientTimeout(total=asked["timeout"])

        async def there() -> Answer:
            async with self.session.request(method, path, **asked) as got:
                body = await got.read()
                return Answer(got.status, dict(got.headers), body, str(got.url))

        return self.run(there())

    def drain(self) -> Any:
        return self.run(self.connector.client.drain(DRAIN_S))

    async def _close(self) -> None:
        await self.session.close()


async def _soon(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


LIBRARIES: dict[str, Callable[..., Any]] = {
    "httpx": lambda *a, **o: Httpx(httpx, *a, **o),
    "httpx2": lambda *a, **o: Httpx(httpx2, *a, **o),
    "httpx async": lambda *a, **o: AsyncHttpx(httpx, *a, **o),
    "httpx2 async": lambda *a, **o: AsyncHttpx(httpx2, *a, **o),
    "requests": Requests,
    "aiohttp": Aiohttp,
}
