"""TLS out: verified, or not at all. Certificates are made here, for names of the test."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme

from hostile import GOOD, Got, Hostile, Peer, Script, answers, both_loops, eventually, once
from unspool.core.message import Answer, Cause, Failure, Request, Response, Sent, Severed
from unspool.errors import Misconfigured
from unspool.transports.http import HttpTransport, Limits

GET = Request(b"GET", b"/", [(b"Host", b"h")])
CA = trustme.CA()
OTHER_CA = trustme.CA()


def serving(*names: str, ca: trustme.CA = CA, alpn: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    return context


def trusting(ca: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


async def ask(origin: str, *, tls: ssl.SSLContext | None = None, **limits: int) -> Answer:
    transport = HttpTransport(origin, limits=Limits(**limits), tls=tls or trusting())
    try:
        return await transport.attempt(GET)
    finally:
        await transport.aclose()


def named(server: Hostile, name: str) -> str:
    return f"https://{name}:{server.port}"


def bad(answer: Answer, cause: Cause, sent: Sent = Sent.NEVER) -> Failure:
    assert isinstance(answer, Failure), answer
    assert (answer.cause, answer.sent) == (cause, sent), answer
    return answer


@both_loops
async def test_a_good_certificate_and_a_kept_connection() -> None:
    async with Hostile(answers(GOOD), tls=serving("localhost")) as server:
        transport = HttpTransport(named(server, "localhost"), limits=Limits(), tls=trusting())
        for repeat in (True, False, True, False):
            response = await transport.attempt(GET, repeat=repeat)
            assert isinstance(response, Response), response
            assert response.body == b"ok"
            await asyncio.sleep(0.02)
        assert server.connections == 1
        await transport.aclose()
        await eventually(lambda: server.open == 0)


@both_loops
async def test_sni_and_alpn_are_sent() -> None:
    asked: list[object] = []
    context = serving("localhost", alpn=["h2", "http/1.1"])
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    chosen: list[str | None] = []

    async def script(peer: Peer) -> None:
        chosen.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await peer.request()
        await peer.send(GOOD)

    async with Hostile(script, tls=context) as server:
        assert isinstance(await ask(named(server, "localhost")), Response)
    assert asked == ["localhost"]
    assert chosen == ["http/1.1"]


@both_loops
async def test_an_address_as_a_name() -> None:
    async with Hostile(answers(GOOD), tls=serving("127.0.0.1")) as server:
        assert isinstance(await ask(named(server, "127.0.0.1")), Response)


@both_loops
async def test_a_certificate_of_somebody_else() -> None:
    async with Hostile(answers(GOOD), tls=serving("other.example")) as server:
        failure = bad(await ask(named(server, "localhost")), Cause.TLS_CERTIFICATE_ERROR)
        assert "localhost" in failure.detail
        assert server.requests == []


@both_loops
async def test_a_certificate_nobody_trusts() -> None:
    async with Hostile(answers(GOOD), tls=serving("localhost", ca=OTHER_CA)) as server:
        bad(await ask(named(server, "localhost")), Cause.TLS_CERTIFICATE_ERROR)
        assert server.requests == []


@both_loops
async def test_the_system_does_not_trust_the_test() -> None:
    async with Hostile(answers(GOOD), tls=serving("localhost")) as server:
        tls = ssl.create_default_context()
        bad(await ask(named(server, "localhost"), tls=tls), Cause.TLS_CERTIFICATE_ERROR)


@both_loops
async def test_a_server_without_tls() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1000)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Hostile(script) as server:
        bad(await ask(named(server, "localhost")), Cause.TLS_PROTOCOL_ERROR)


async def _closes(peer: Peer) -> None:
    await peer.reader.read(1000)


async def _resets(peer: Peer) -> None:
    await peer.reader.read(1000)
    peer.reset()


@pytest.mark.parametrize("script", [_closes, _resets], ids=["closes", "resets"])
@both_loops
async def test_broken_off_in_the_handshake(script: Script) -> None:
    async with Hostile(script) as server:
        bad(await ask(named(server, "localhost")), Cause.TLS_PROTOCOL_ERROR)


@both_loops
async def test_a_handshake_that_never_ends() -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async with Hostile(script) as server:
        answer = await ask(named(server, "localhost"), connect_ms=150)
        bad(answer, Cause.CONNECTION_TIMEOUT)
        await eventually(lambda: server.open == 0)


@both_loops
async def test_a_server_that_wants_a_certificate_from_us() -> None:
    context = serving("localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 tells only after the request was sent
    async with Hostile(answers(GOOD), tls=context) as server:
        bad(await ask(named(server, "localhost")), Cause.TLS_PROTOCOL_ERROR)
        tls = trusting()
        CA.issue_cert("client.example").configure_cert(tls)
        assert isinstance(await ask(named(server, "localhost"), tls=tls), Response)


@both_loops
async def test_only_old_protocols() -> None:
    context = serving("localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = trusting()
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    async with Hostile(answers(GOOD), tls=context) as server:
        bad(await ask(named(server, "localhost"), tls=tls), Cause.TLS_PROTOCOL_ERROR)


@both_loops
async def test_a_body_until_close_ends_with_the_goodbye_of_tls() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nall of it"
    async with Hostile(once(data), tls=serving("localhost")) as server:
        transport = HttpTransport(named(server, "localhost"), limits=Limits(), tls=trusting())
        response = await transport.attempt(GET)
        assert isinstance(response, Response)
        body = response.body
        while response.rest is not None and (more := await response.rest.read()):
            body += more
        assert body == b"all of it"
        await transport.aclose()


@both_loops
async def test_a_large_stream_under_back_pressure() -> None:
    body = bytes(range(256)) * 20_000
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with Hostile(answers(data), tls=serving("localhost")) as server:
        transport = HttpTransport(
            named(server, "localhost"), limits=Limits(keep_max_bytes=10), tls=trusting()
        )
        for _ in range(2):
            response = await transport.attempt(GET)
            assert isinstance(response, Response)
            assert response.rest is not None
            got = bytearray(response.body)
            await asyncio.sleep(0.05)
            while more := await response.rest.read():
                got += more
            assert got == body
        assert server.connections == 1
        await transport.aclose()


@both_loops
async def test_half_an_answer() -> None:
    async with Hostile(once(GOOD[:-1]), tls=serving("localhost")) as server:
        answer = await ask(named(server, "localhost"))
        bad(answer, Cause.HTTP_RESPONSE_INCOMPLETE, Sent.MAYBE)


@both_loops
async def test_a_large_body_out() -> None:
    got: list[Got] = []

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request is not None
        got.append(request)
        await peer.send(GOOD)

    body = bytes(range(256)) * 8000
    async with Hostile(script, tls=serving("localhost")) as server:
        transport = HttpTransport(named(server, "localhost"), limits=Limits(), tls=trusting())
        request = Request(b"POST", b"/", [(b"Host", b"h")], body)
        assert isinstance(await transport.attempt(request), Response)
        await transport.aclose()
    assert got[0].body == body


def test_a_context_that_does_not_verify_is_refused() -> None:
    careless = ssl.create_default_context()
    careless.check_hostname = False
    with pytest.raises(Misconfigured, match="verify"):
        HttpTransport("https://localhost", limits=Limits(), tls=careless)
    careless.verify_mode = ssl.CERT_NONE
    with pytest.raises(Misconfigured, match="verify"):
        HttpTransport("https://localhost", limits=Limits(), tls=careless)
    with pytest.raises(Misconfigured, match="TLS"):
        HttpTransport("http://localhost", limits=Limits(), tls=trusting())


@both_loops
async def test_a_body_until_close_without_the_goodbye_was_cut() -> None:
    """Whoever sits between can end a TCP connection; only the server can say goodbye in TLS."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nhalf of i")
        await asyncio.sleep(0.05)
        peer.writer.transport.abort()

    async with Hostile(script, tls=serving("localhost")) as server:
        transport = HttpTransport(named(server, "localhost"), limits=Limits(), tls=trusting())
        response = await transport.attempt(GET)
        assert isinstance(response, Response)
        assert response.rest is not None
        assert response.body == b"half of i"
        with pytest.raises(Severed):
            await response.rest.read()
        await transport.aclose()
