"""The HTTP transport against a real nginx: what the world really speaks.

Needs `nginx`. At home a missing one skips these tests; where CI is set they fail.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hostile import both_loops, eventually
from ports import free_port
from unspool.core.message import Cause, Failure, Request, Response, Severed
from unspool.transports.http import HttpTransport, Limits

START_S = 60.0
"""And to end. A process of its own may stand still while we do not, and so it may be slow."""
SLOW_S = 30.0
LARGE = bytes(range(256)) * 16_384
CONF = """
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log; default_type text/plain;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi; client_max_body_size 100k; client_body_buffer_size 1m;
  keepalive_timeout 30; keepalive_requests 20;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {folder}/files; gzip on; gzip_min_length 1; gzip_proxied any;
                  gzip_types text/plain; }}
    location = /echo {{ add_header X-Method $request_method; add_header X-Length $content_length;
                        add_header X-Host $http_host; add_header X-Via "$http_via";
                        return 200 "hi"; }}
    location = /moved {{ return 301 /elsewhere; }}
    location = /empty {{ return 204; }}
    location = /gone {{ return 444; }}
    location = /slow {{ root {folder}/files; limit_rate 200k; rewrite ^ /large.bin break; }}
    location = /down {{ proxy_pass http://127.0.0.1:{nobody}; }}
  }}
  server {{ listen 127.0.0.1:{impatient}; keepalive_timeout 100ms;
            location / {{ return 200 "ok"; }} }}
}}
"""


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Nginx:
    def __init__(self, port: int, impatient: int, folder: Path) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.impatient = f"http://127.0.0.1:{impatient}"
        self.log = folder / "access.log"


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        assert not os.environ.get("CI"), "nginx is missing, and CI promises it"
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "files").mkdir()
    (folder / "files" / "large.bin").write_bytes(LARGE)
    (folder / "files" / "small.txt").write_bytes(b"small\n" * 100)
    port, impatient = free_port(), free_port()
    conf = folder / "nginx.conf"
    conf.write_text(CONF.format(folder=folder, port=port, impatient=impatient, nobody=free_port()))
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(conf)], stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + START_S
        while not (_listens(port) and _listens(impatient)):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < until, "it does not start"
            time.sleep(0.02)
        yield Nginx(port, impatient, folder)
    finally:
        process.terminate()
        process.communicate(timeout=START_S)


def request(
    method: bytes, target: bytes, body: bytes = b"", *fields: tuple[bytes, bytes]
) -> Request:
    return Request(method, target, [(b"Host", b"api.example"), *fields], body)


@asynccontextmanager
async def to(origin: str, **limits: int) -> AsyncIterator[HttpTransport]:
    """It lets no connection go: whichever ends, nginx has ended it."""
    transport = HttpTransport(origin, limits=Limits(**{"idle_ms": 60_000, **limits}))
    try:
        yield transport
    finally:
        await transport.aclose()


async def whole(response: Response) -> bytes:
    data = response.body
    while response.rest is not None and (more := await response.rest.read()):
        data += more
    return data


@both_loops
async def test_get_head_post_and_the_same_connection(nginx: Nginx) -> None:
    async with to(nginx.origin) as transport:
        for method, body in (
            (b"GET", b""),
            (b"HEAD", b""),
            (b"POST", b"abc"),
            (b"PUT", b""),
            (b"GET", b""),
        ):
            answer = await transport.attempt(request(method, b"/echo", body, (b"Via", b"1.1 us")))
            assert isinstance(answer, Response), answer
            fields = dict(answer.fields)
            assert fields[b"X-Method"] == method
            assert fields[b"X-Host"] == b"api.example"
            assert fields[b"X-Via"] == b"1.1 us"
            assert fields.get(b"X-Length") == (
                None if method in (b"GET", b"HEAD") else b"%d" % len(body)
            )
            assert (answer.status, answer.reason, answer.length) == (200, b"OK", 2)
            assert answer.body == (b"" if method == b"HEAD" else b"hi")
            assert b"Connection" not in fields
            assert b"Content-Length" not in fields
        assert (transport.statistics().opened, transport.statistics().reused) == (1, 4)


@both_loops
async def test_statuses_are_passed_on_and_redirects_not_followed(nginx: Nginx) -> None:
    async with to(nginx.origin) as transport:
        for target, status in (
            (b"/moved", 301),
            (b"/empty", 204),
            (b"/none", 404),
            (b"/down", 502),
        ):
            answer = await transport.attempt(request(b"GET", target))
            assert isinstance(answer, Response), answer
            assert answer.status == status


@both_loops
async def test_chunks_and_codings_are_not_decoded(nginx: Nginx) -> None:
    async with to(nginx.origin, hold_ms=60_000) as transport:
        answer = await transport.attempt(
            request(b"GET", b"/small.txt", b"", (b"Accept-Encoding", b"gzip"))
        )
        assert isinstance(answer, Response)
        assert (b"Content-Encoding", b"gzip") in answer.fields
        assert answer.body.startswith(b"\x1f\x8b")
        assert (answer.length, answer.rest) == (-1, None)


@both_loops
async def test_not_modified(nginx: Nginx) -> None:
    async with to(nginx.origin) as transport:
        first = await transport.attempt(request(b"GET", b"/large.bin"))
        assert isinstance(first, Response)
        assert await whole(first) == LARGE
        tag = dict(first.fields)[b"ETag"]
        second = await transport.attempt(
            request(b"GET", b"/large.bin", b"", (b"If-None-Match", tag))
        )
        assert isinstance(second, Response)
        assert (second.status, second.body, second.rest) == (304, b"", None)
        third = await transport.attempt(
            request(b"GET", b"/large.bin", b"", (b"Range", b"bytes=256-511"))
        )
        assert isinstance(third, Response)
        assert (third.status, third.body) == (206, bytes(range(256)))
        assert transport.statistics().opened == 1


@both_loops
async def test_a_large_file_streams_while_others_go_on(nginx: Nginx) -> None:
    async with to(nginx.origin, keep_max_bytes=10_000) as transport:
        large = await transport.attempt(request(b"GET", b"/large.bin"))
        assert isinstance(large, Response)
        assert large.rest is not None
        assert large.length == len(LARGE)
        for _ in range(10):
            answer = await transport.attempt(request(b"GET", b"/echo"))
            assert isinstance(answer, Response)
            assert answer.body == b"hi"
        assert await whole(large) == LARGE
        assert transport.statistics().busy == 0


@both_loops
async def test_a_stream_may_be_given_up(nginx: Nginx) -> None:
    async with to(nginx.origin, keep_max_bytes=10_000) as transport:
        slow = await transport.attempt(request(b"GET", b"/slow"))
        assert isinstance(slow, Response)
        assert slow.rest is not None
        slow.rest.close()
        with pytest.raises(Severed):
            await slow.rest.read()
        assert (transport.statistics().busy, transport.statistics().idle) == (0, 0)


@both_loops
async def test_too_large_is_told_before_the_body_was_read(nginx: Nginx) -> None:
    """nginx answers 413 by the head alone, and closes."""

    class Endless:
        async def read(self) -> bytes:
            await asyncio.sleep(0.005)
            return b"x" * 1000

        def close(self) -> None: ...

    async with to(nginx.origin) as transport:
        streamed = Request(b"POST", b"/echo", [(b"Host", b"h")], b"", Endless(), 10_000_000)
        answer = await transport.attempt(streamed)
        assert isinstance(answer, Response), answer
        assert answer.status == 413
        assert transport.statistics().idle == 0
        again = await transport.attempt(request(b"GET", b"/echo"))
        assert isinstance(again, Response)
        assert again.status == 200


@both_loops
async def test_a_body_in_chunks(nginx: Nginx) -> None:
    class Three:
        left = 3

        async def read(self) -> bytes:
            self.left -= 1
            return b"abc" if self.left >= 0 else b""

        def close(self) -> None: ...

    async with to(nginx.origin) as transport:
        for _ in range(2):
            streamed = Request(b"PUT", b"/echo", [(b"Host", b"h")], b"0", Three(), -1)
            answer = await transport.attempt(streamed)
            assert isinstance(answer, Response), answer
            assert answer.status == 200


@both_loops
async def test_closed_without_an_answer(nginx: Nginx) -> None:
    async with to(nginx.origin) as transport:
        answer = await transport.attempt(request(b"GET", b"/gone"))
        assert isinstance(answer, Failure)
        assert answer.cause is Cause.CONNECTION_TERMINATED


@both_loops
async def test_a_server_that_closes_idle_connections_early(nginx: Nginx) -> None:
    async with to(nginx.impatient) as transport:
        for repeat in (True, False):
            answer = await transport.attempt(request(b"GET", b"/"), repeat=repeat)
            assert isinstance(answer, Response), answer
            await eventually(lambda: transport.statistics().idle == 0, SLOW_S)
        assert transport.statistics().opened == 2


@both_loops
async def test_nothing_is_lost_when_nginx_ends_connections_after_20_requests(nginx: Nginx) -> None:
    async with to(nginx.origin, connections_max=8) as transport:

        async def worker(number: int) -> None:
            for turn in range(40):
                body = b"x" * (number * 10 + turn)
                answer = await transport.attempt(request(b"POST", b"/echo", body), repeat=False)
                assert isinstance(answer, Response), answer
                assert dict(answer.fields)[b"X-Length"] == b"%d" % len(body)

        before = nginx.log.read_bytes().count(b"POST /echo")
        await asyncio.gather(*[worker(number) for number in range(32)])
        assert 32 * 40 // 20 <= transport.statistics().opened <= 32 * 40 // 20 + 16
        done = before + 32 * 40
        await eventually(lambda: nginx.log.read_bytes().count(b"POST /echo") == done, SLOW_S)
