"""Where the door opens: addresses, unix sockets, systemd's sockets, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from callers import (
    PATIENCE_S,
    Calling,
    Recorder,
    call,
    eventually,
    on_both_loops,
    opened,
    port_of,
)

from ports import free_port
from unspool.core.message import Request, Response
from unspool.errors import CannotCreate, Misconfigured
from unspool.ingress.http import Door
from unspool.ingress.listen import Listener, listener, open_listener
from unspool.ingress.protocol import Caller

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


# addresses as they are written


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8700", "127.0.0.1", 8700), ("[::1]:8700", "::1", 8700), (":8700", "", 8700),
        ("localhost:0", "localhost", 0), ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)  # fmt: skip
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    found = listener(text)
    assert (found.text, found.host, found.port, found.path) == (text, host, port, "")


@pytest.mark.parametrize(
    "text",
    [
        "", "8700", "127.0.0.1", "::1:8700", "[::1]", "a:b", "a:65536", "a:-1", "a:123456",
        "http://a:1", "unix:", "unix:/a\0b", "unix:/" + "a" * 107, "a/b:1", "a:1:2", "a: 1",
    ],
)  # fmt: skip
def test_a_bad_address_is_said_to_be_one(text: str) -> None:
    with pytest.raises(Misconfigured, match="Nothing was opened") as caught:
        listener(text)
    assert repr(text) in str(caught.value)
    assert "--listen" in str(caught.value)


def test_a_name_that_nobody_knows_is_a_bad_address() -> None:
    with pytest.raises(Misconfigured, match="not known"):
        open_listener(listener("no.such.name.invalid:0"))


# TCP


@on_both_loops
async def test_every_address_means_both_families() -> None:
    door = Door(Recorder())
    await door.listen([listener(":0")])
    try:
        port = door.sockets[0].getsockname()[1]
        hosts = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        for host in hosts:
            with contextlib.suppress(OSError) if host == "::1" else contextlib.nullcontext():
                reader, writer = await asyncio.open_connection(host, port)
                caller = Calling(reader, writer)
                await caller.send(GET)
                assert (await caller.answer()).status == 200
                writer.close()
    finally:
        await door.close(drain_ms=0)


@on_both_loops
async def test_a_port_in_use_is_a_sentence() -> None:
    async with opened(Recorder()) as door:
        port = door.sockets[0].getsockname()[1]
        with pytest.raises(CannotCreate) as caught:
            await Door(Recorder()).listen([listener(f"127.0.0.1:{port}")])
    message = str(caught.value)
    assert f"127.0.0.1:{port}" in message
    assert "in use" in message
    assert "Nothing was opened" in message
    assert f"ss -ltnp 'sport = :{port}'" in message


@on_both_loops
async def test_all_are_opened_or_none() -> None:
    async with opened(Recorder()) as door:
        taken = door.sockets[0].getsockname()[1]
        free = free_port()
        other = Door(Recorder())
        with pytest.raises(CannotCreate):
            await other.listen([listener(f"127.0.0.1:{free}"), listener(f"127.0.0.1:{taken}")])
        assert other.sockets == []
        with socket.socket() as again:
            again.bind(("127.0.0.1", free))


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(CannotCreate, match="does not have that address"):
        open_listener(listener("192.0.2.1:0"))


@on_both_loops
async def test_workers_may_share_a_port() -> None:
    port = free_port()
    one, two = Recorder(), Recorder()
    doors = [Door(one), Door(two)]
    try:
        for door in doors:
            await door.listen([listener(f"127.0.0.1:{port}", reuse_port=True)])
        for _ in range(64):
            async with call(doors[0]) as caller:
                await caller.send(GET)
                assert (await caller.answer()).status == 200
        assert one.requests
        assert two.requests
    finally:
        for door in doors:
            await door.close(drain_ms=0)


# unix sockets


@contextlib.asynccontextmanager
async def unix_call(path: Path) -> AsyncIterator[Calling]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield Calling(reader, writer)
    finally:
        writer.transport.abort()


@on_both_loops
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    handler = Recorder()
    door = Door(handler)
    await door.listen([listener(f"unix:{path}", mode=0o600)])
    assert door.addresses == [f"unix:{path}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with unix_call(path) as caller:
        await caller.send(GET)
        assert (await caller.answer()).body == b"ok"
    assert handler.peers == [Caller(peer="unix", scheme="http")]
    await door.close(drain_ms=0)
    assert not path.exists()


@on_both_loops
async def test_a_leftover_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(path))
        leftover.listen()
    assert path.exists()
    door = Door(Recorder())
    await door.listen([listener(f"unix:{path}")])
    async with unix_call(path) as caller:
        await caller.send(GET)
        assert (await caller.answer()).status == 200
    await door.close(drain_ms=0)


@on_both_loops
async def test_a_socket_file_that_somebody_answers_on_is_not(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    door = Door(Recorder())
    await door.listen([listener(f"unix:{path}")])
    with pytest.raises(CannotCreate, match="in use"):
        await Door(Recorder()).listen([listener(f"unix:{path}")])
    async with unix_call(path) as caller:
        await caller.send(GET)
        assert (await caller.answer()).status == 200
    await door.close(drain_ms=0)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotCreate, match="no socket"):
        open_listener(listener(f"unix:{path}"))
    assert path.read_text() == "data"


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotCreate, match="Is there a folder"):
        open_listener(listener(f"unix:{tmp_path}/none/door.sock"))


@on_both_loops
async def test_the_file_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    door = Door(Recorder())
    await door.listen([listener(f"unix:{path}")])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        await door.close(drain_ms=0)
        assert path.exists()


# systemd

WORKER = """
    import asyncio, os
    os.environ["LISTEN_PID"] = str(os.getpid())     # systemd writes it after fork
    from unspool.core.message import Response
    from unspool.ingress.http import Door
    from unspool.ingress.listen import listener

    async def handler(request, caller):
        return Response(200, b"", [], caller.peer.encode())

    async def main():
        door = Door(handler)
        await door.listen([listener("systemd")])
        print("\\n".join(door.addresses), flush=True)
        while door.statistics().requests_total < 2:
            await asyncio.sleep(0.01)
        print(os.get_inheritable(3), flush=True)
        await door.close()

    asyncio.run(main())
"""


async def test_systemd_opens_and_we_listen(tmp_path: Path) -> None:
    """The child is given its sockets as descriptors 3 and 4, and LISTEN_FDS, as systemd does it."""
    path = tmp_path / "door.sock"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(path))
        unix.listen()
        port = tcp.getsockname()[1]
        given = [os.dup(tcp.fileno()), os.dup(unix.fileno())]
        shell = f'exec "$0" -c "$1" 3<&{given[0]} 4<&{given[1]}'
        child = await asyncio.create_subprocess_exec(
            "/bin/bash", "-c", shell, sys.executable, textwrap.dedent(WORKER),
            env={**os.environ, "LISTEN_FDS": "2"}, pass_fds=given, stdout=subprocess.PIPE,
        )  # fmt: skip
        for fd in given:
            os.close(fd)
        assert child.stdout is not None
        try:
            async with asyncio.timeout(3 * PATIENCE_S):
                first = await child.stdout.readline()
                second = await child.stdout.readline()
                assert first == f"http://127.0.0.1:{port}\n".encode()
                assert second == f"unix:{path}\n".encode()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                caller = Calling(reader, writer)
                await caller.send(GET)
                assert (await caller.answer()).body == b"127.0.0.1"
                writer.close()
                async with unix_call(path) as other:
                    await other.send(GET)
                    assert (await other.answer()).body == b"unix"
                assert await child.stdout.readline() == b"False\n"
                assert await child.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        assert path.exists()  # systemd's, not ours to remove


@pytest.mark.parametrize(
    ("pid", "count"), [("", ""), ("1", "1"), (None, "0"), (None, "x"), (None, "")]
)
def test_systemd_that_gives_nothing_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, count: str
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid is None else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(Misconfigured, match=r"\.socket unit"):
        open_listener(Listener(text="systemd", systemd=True))


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def calling(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@on_both_loops
async def test_tls(serving: ssl.SSLContext, calling: ssl.SSLContext) -> None:
    handler = Recorder()
    async with opened(handler, tls=serving) as door:
        assert door.addresses[0].startswith("https://127.0.0.1:")
        async with call(door, tls=calling) as caller:
            for _ in range(3):
                await caller.send(GET)
                assert (await caller.answer()).body == b"ok"
            await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await caller.answer()).body == b"ok"
            assert await caller.rest() == b""
    assert handler.peers[0] == Caller(peer="127.0.0.1", scheme="https")


@on_both_loops
async def test_bodies_stream_over_tls(serving: ssl.SSLContext, calling: ssl.SSLContext) -> None:
    async def handler(request: Request, caller: Caller, /) -> Response:
        return Response(200, b"", [], request.body, request.rest, request.length)

    size = 8 * 1024 * 1024
    data = bytes(range(256)) * (size // 256)
    async with opened(handler, tls=serving) as door, call(door, tls=calling) as caller:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        sending = asyncio.create_task(caller.send(head + data))
        answer = await caller.answer()
        await sending
    assert answer.body == data


@on_both_loops
async def test_a_refusal_arrives_over_tls(serving: ssl.SSLContext, calling: ssl.SSLContext) -> None:
    async with opened(Recorder(), tls=serving) as door, call(door, tls=calling) as caller:
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        assert (await caller.answer()).status == 400


def silent(port: int, calling: ssl.SSLContext, request: bytes) -> ssl.SSLSocket:
    """A caller who sends this, and reads when he is told to."""
    plain = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    caller = calling.wrap_socket(plain, server_hostname="localhost")
    caller.sendall(request)
    return caller


@pytest.mark.parametrize("how", ["idle", "closing"])
@on_both_loops
async def test_an_idle_caller_is_not_waited_for_over_tls(
    how: str, serving: ssl.SSLContext, calling: ssl.SSLContext
) -> None:
    """He says goodbye when he reads ours, and that may be never."""
    limits = {"keepalive_ms": 200} if how == "idle" else {}
    async with opened(Recorder(), tls=serving, **limits) as door:
        with await asyncio.to_thread(silent, port_of(door), calling, GET) as caller:
            await eventually(lambda: door.statistics().requests_total == 1)
            if how == "closing":
                assert await door.close(drain_ms=20_000) == 0
            else:
                await eventually(lambda: door.statistics().connections == 0)
            assert caller.recv(9) == b"HTTP/1.1 "


@on_both_loops
async def test_an_answer_comes_whole_over_tls_before_the_goodbye(
    serving: ssl.SSLContext, calling: ssl.SSLContext
) -> None:
    size = 12_000_000
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    handler = Recorder(Response(200, b"", [], b"x" * size))
    async with opened(handler, tls=serving, linger_ms=100) as door:
        with await asyncio.to_thread(silent, port_of(door), calling, last) as caller:
            await asyncio.sleep(0.4)
            came = 0
            while data := await asyncio.to_thread(caller.recv, 1_000_000):
                came += len(data)
            assert came > size


@on_both_loops
async def test_plain_http_to_a_tls_door_is_cut_off(serving: ssl.SSLContext) -> None:
    handler = Recorder()
    async with opened(handler, tls=serving) as door, call(door) as caller:
        await caller.send(GET)
        with contextlib.suppress(ConnectionError):
            assert b"200" not in await caller.reader.read()
        await eventually(lambda: door.statistics().connections == 0)
    assert handler.requests == []


@on_both_loops
async def test_tls_to_a_plain_door_is_told_so(calling: ssl.SSLContext) -> None:
    handler = Recorder()
    async with opened(handler) as door:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with call(door, tls=calling):
                pass
        await eventually(lambda: door.statistics().refused == {"malformed": 1})
    assert handler.requests == []
