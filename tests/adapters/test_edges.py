"""Adapters where it gets narrow: threads, retries around them, cancellation, TLS, closing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

import unspool.aiohttp
import unspool.httpx
import unspool.requests
from ports import free_port
from unspool import FellBack, Queued
from unspool.client.adapter import ORIGINS_MAX, Asked, Hops, Origins, origin_of
from unspool.client.blocking import Client
from unspool.errors import Misconfigured, Saved, Unacceptable

from .service import Service, service

NOBODY = f"http://127.0.0.1:{free_port()}"
IN_TIME = 20.0
"""A deadline for what ends by itself."""


@pytest.fixture
def one() -> Iterator[Service]:
    with service() as found:
        yield found


def test_threads_share_one_httpx_client(one: Service, tmp_path: Path) -> None:
    """Each its own answer, over the one transport."""
    transport = unspool.httpx.Transport(one.url, outbox=str(tmp_path / "o.db"))
    bodies: dict[int, str] = {}
    with httpx2.Client(base_url=one.url, transport=transport) as client:

        def work(number: int) -> None:
            for part in range(5):
                sent = 10 * number + part
                bodies[sent] = client.post("/orders", content=str(sent)).json()["body"]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bodies == {sent: str(sent) for sent in bodies}
    assert len(bodies) == 30


class Stubborn(httpx.BaseTransport):
    """What packages for retries do: the same request again, at the library's errors."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner
        self.times = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        while True:
            self.times += 1
            try:
                return self._inner.handle_request(request)
            except httpx.TransportError:
                if self.times == 3:
                    raise

    def close(self) -> None:
        self._inner.close()


def test_who_tries_again_around_it_repeats_one_request(one: Service) -> None:
    """The key that was made for a request stays with it."""
    stubborn = Stubborn(unspool.httpx.Transport(one.url, attempts=1))
    with (
        httpx.Client(base_url=one.url, transport=stubborn) as client,
        pytest.raises(httpx.ReadError),
    ):
        client.post("/gone", content=iter([b"once"]), timeout=IN_TIME)
    assert stubborn.times == 3
    assert len(one.asked) == 3
    assert len(set(one.keys())) == 1
    assert {asked.body for asked in one.asked} == {b"once"}, "also a body that came in parts"


def test_who_tries_again_does_not_at_saved(tmp_path: Path) -> None:
    """Nothing that is saved is sent once more by a retry that waits for the library's errors."""
    stubborn = Stubborn(unspool.httpx.Transport(NOBODY, outbox=str(tmp_path / "o.db")))
    with httpx.Client(base_url=NOBODY, transport=stubborn) as client, pytest.raises(Saved) as told:
        client.post("/orders", json=1, timeout=IN_TIME)
    assert stubborn.times == 1
    assert isinstance(told.value.request, httpx.Request)
    assert told.value.request.headers["idempotency-key"] == f'"{told.value.key}"'


def test_a_prepared_request_sent_again_is_a_repeat(one: Service, tmp_path: Path) -> None:
    """Also one whose body is a file, or came in parts."""
    session = requests.Session()
    adapter = unspool.requests.Adapter(one.url)
    session.mount("http://", adapter)
    path = tmp_path / "tea"
    path.write_bytes(b"from a file")
    with path.open("rb") as file, session:
        for body in (file, iter([b"in ", b"parts"])):
            one.asked.clear()
            prepared = session.prepare_request(requests.Request("POST", one.url + "/o", data=body))
            for _ in range(2):
                assert session.send(prepared).status_code == 201
            assert len(set(one.keys())) == 1
            assert len({asked.body for asked in one.asked}) == 1
    assert one.asked[0].body == b"in parts"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_one_transport_serves_both_packages(package: Any, one: Service) -> None:
    """What it answers is the asker's."""
    with unspool.httpx.Transport(one.url) as transport:
        request = package.Request("GET", one.url + "/echo")
        response = transport.handle_request(request)
        assert isinstance(response, package.Response)
        assert isinstance(response.stream, package.SyncByteStream)


def test_a_fallback_plan_is_said_to_have_it() -> None:
    told: list[str] = []
    transport = unspool.httpx.Transport(NOBODY, fallback=lambda r: told.append(r.target))
    with (
        httpx.Client(base_url=NOBODY, transport=transport) as client,
        pytest.raises(Saved, match="the fallback plan has it") as caught,
    ):
        client.post("/o", json=1, timeout=IN_TIME)
    assert isinstance(caught.value.result, FellBack)
    assert told == ["/o"]


def test_what_may_have_been_applied_and_not_be_repeated_is_a_read_error(one: Service) -> None:
    """As without an adapter, and sent once."""
    transport = unspool.httpx.Transport(one.url, servers_know_keys=False)
    with (
        httpx.Client(base_url=one.url, transport=transport) as client,
        pytest.raises(httpx.ReadError, match="may or may not have been applied"),
    ):
        client.post("/gone", json=1, timeout=IN_TIME)
    assert len(one.asked) == 1


def test_a_streamed_answer_is_read_in_parts(one: Service) -> None:
    with (
        httpx.Client(transport=unspool.httpx.Transport(one.url)) as client,
        client.stream("GET", one.url + "/large") as response,
    ):
        assert sum(map(len, response.iter_bytes(65536))) == 3_000_000


def test_cancelled_by_aiohttp_it_ends(one: Service) -> None:
    """Its timeout leaves room for the outbox, a second (here of no disk, which may take longer); a
    task that is cancelled leaves nothing running."""

    async def asked() -> None:
        connector = unspool.aiohttp.Connector(one.url, outbox="memory:")
        async with aiohttp.ClientSession(one.url, connector=connector) as session:
            with pytest.raises(Saved) as caught:
                await session.post("/slow", json=1, timeout=aiohttp.ClientTimeout(total=5))
            assert isinstance(caught.value.result, Queued)
            before = len(one.asked)
            asking = asyncio.create_task(session.get("/slow"))
            while len(one.asked) == before:
                await asyncio.sleep(0.01)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
        async with asyncio.timeout(IN_TIME):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)

    asyncio.run(asked())


def test_aiohttp_itself_sends_nothing_once_more(one: Service) -> None:
    """It would, at errors that mean a connection that had gone stale."""

    async def asked() -> None:
        connector = unspool.aiohttp.Connector(one.url, attempts=1)
        async with aiohttp.ClientSession(one.url, connector=connector) as session:
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get("/gone")

    asyncio.run(asked())
    assert len(one.asked) == 1


def test_middlewares_of_aiohttp_see_it(one: Service) -> None:
    async def asked() -> list[int]:
        seen: list[int] = []

        async def middleware(req: Any, handler: Any) -> Any:
            response = await handler(req)
            seen.append(response.status)
            return response

        connector = unspool.aiohttp.Connector(one.url)
        async with (
            aiohttp.ClientSession(connector=connector, middlewares=[middleware]) as session,
            session.post(one.url + "/orders", data=b"x" * 200_000) as response,
        ):
            assert len((await response.json())["body"]) == 200_000
        return seen

    assert asyncio.run(asked()) == [201]


@pytest.mark.parametrize("asked", [{"verify": False}, {"verify": "/ca.pem"}, {"cert": "/me.pem"}])
def test_requests_tls_words_are_refused_and_not_ignored(asked: dict[str, Any]) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", unspool.requests.Adapter("https://a.example"))
        with pytest.raises(Misconfigured, match="Nothing was sent"):
            session.get("https://a.example/", **asked)


def test_proxies_are_refused_and_not_ignored() -> None:
    with requests.Session() as session:
        session.mount("http://", unspool.requests.Adapter(NOBODY))
        with pytest.raises(Misconfigured, match="proxy"):
            session.get(NOBODY, proxies={"http": "http://127.0.0.1:3128"})

    async def asked() -> None:
        connector = unspool.aiohttp.Connector(NOBODY)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(Misconfigured, match="proxy"):
                await session.get(NOBODY, proxy="http://127.0.0.1:3128")
            with pytest.raises(Misconfigured, match="SSLContext"):
                await session.get("https://a.example/", ssl=ssl.create_default_context())

    asyncio.run(asked())


def test_another_protocol_is_refused() -> None:
    async def asked() -> None:
        connector = unspool.aiohttp.Connector(NOBODY)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(Unacceptable, match="another protocol"):
                await session.ws_connect(NOBODY)

    asyncio.run(asked())


def test_after_closing_nothing_goes(one: Service) -> None:
    transport = unspool.httpx.Transport(one.url)
    client = httpx.Client(base_url=one.url, transport=transport)
    client.get("/echo")
    client.close()
    transport.close()
    with pytest.raises(RuntimeError), client:
        client.get("/echo")
    with pytest.raises(Misconfigured, match="it is closed"):
        transport.handle_request(httpx.Request("GET", one.url))


def test_strangers_are_let_go_when_there_are_too_many() -> None:
    origins = Origins(Client, (), {})
    closed = []
    for number in range(ORIGINS_MAX + 3):
        origins.borrow(f"http://h{number}.example")
        if number:  # the first stays in use
            closed += origins.give_back(f"http://h{number}.example")
    assert [one.options.servers for one in closed] == [
        (f"http://h{number}.example",) for number in (1, 2, 3)
    ]
    assert len(origins.close()) == ORIGINS_MAX


@pytest.mark.parametrize("target", ["/a%2Fb//c?x=[1]|2", "/go/http://b.example/?u=http://c", "/"])
def test_a_target_goes_as_the_library_wrote_it(target: str) -> None:
    """Signed addresses depend on it."""
    asked = Asked("GET", f"http://a.example{target}", ())
    assert asked.build(Client("http://a.example"), Hops()).target == target


def test_origins_are_told_apart() -> None:
    assert origin_of("HTTP://A.example:80/x?y") == "http://a.example"
    assert origin_of("https://u:p@a.example:8443/") == "https://a.example:8443"
    assert origin_of("http://[::1]:443/") == "http://[::1]:443"


@pytest.mark.parametrize(
    "fields",
    [
        ((b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")),
        ((b"Idempotency-Key", b""),),
        ((b"Bad Name", b"x"),),
        ((b"Host", b"a"), (b"Host", b"b")),
        ((b"X", b"a\r\nb"),),
        ((b"Upgrade", b"websocket"),),
    ],
)
def test_what_cannot_be_sent_is_said_before(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    client = Client("http://a.example")
    asked = Asked("POST", "http://a.example/o", fields)
    with pytest.raises(Unacceptable, match="Nothing was sent"):
        asked.build(client, Hops())
