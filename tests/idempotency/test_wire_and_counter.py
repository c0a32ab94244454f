"""What the suite stands on: its client, and the service that is counted."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from unspool.testing.counter.asgi import counter as over_asgi
from unspool.testing.counter.doing import Counts, caller_of, principal_of
from unspool.testing.counter.wsgi import counter as over_wsgi
from unspool.testing.idempotency.wire import Sending, Unanswered, Wire

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
POST = Sending("POST", "/x", [("Idempotency-Key", b"\xff\x01"), ("A", "1"), ("A", "2")], b"body")


@asynccontextmanager
async def saying(answer: bytes, *, hears: list[bytes] | None = None) -> AsyncIterator[str]:
    """A server that says this to everybody, and hangs up."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if hears is not None:
            hears.append(head)
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/"


async def test_a_request_is_sent_as_it_is() -> None:
    """Fields byte for byte, in order, repeated ones repeated, on the prefix of the URL."""
    heard: list[bytes] = []
    async with saying(b"HTTP/1.1 204 \r\n\r\n", hears=heard) as url:
        await Wire(url).ask(POST)
    lines = heard[0].split(b"\r\n")
    assert lines[0] == b"POST /base/x HTTP/1.1"
    assert lines[2:5] == [b"Idempotency-Key: \xff\x01", b"A: 1", b"A: 2"]


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", 200, b"to the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 \r\nContent-Length: 0\r\n\r\n", 201, b""),
        (CHUNKED + b"2;a=b\r\nok\r\n0\r\nT: x\r\n\r\n", 200, b"ok"),
    ],
)  # fmt: skip
async def test_an_answer_is_shown_as_it_is(answer: bytes, status: int, body: bytes) -> None:
    async with saying(answer) as url:
        reply = await Wire(url).ask(POST)
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
    ids=range(13),
)
async def test_what_is_no_whole_answer_is_none(answer: bytes) -> None:
    """Strict: an answer that two readers might read differently is not read."""
    async with saying(answer) as url:
        with pytest.raises(Unanswered):
            await Wire(url).ask(POST)


async def test_nobody_is_waited_for_without_end() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unanswered, match=r"within 0\.05 s"):
            await Wire(url, timeout_s=0.05).ask(POST)


# --- the counter service ----------------------------------------------------------------------


async def ask_asgi(app: Any, method: str, path: str, query: str = "") -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(),
        "headers": [(b"idempotency-key", b"k")],
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(event.get("body", b"") for event in sent[1:])


def ask_wsgi(app: Any, method: str, path: str, query: str = "") -> tuple[int, bytes]:
    import io

    statuses: list[str] = []
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
        "HTTP_IDEMPOTENCY_KEY": "k", "CONTENT_LENGTH": "2", "wsgi.input": io.BytesIO(b"{}"),
    }  # fmt: skip
    body = b"".join(app(environ, lambda status, fields: statuses.append(status)))
    return int(statuses[0][:3]), body


@pytest.fixture(params=["asgi", "wsgi"])
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Ask either form."""
    file = str(tmp_path / "counts.db")
    app: Any = over_asgi(file) if request.param == "asgi" else over_wsgi(file)

    def call(method: str, path: str, query: str = "") -> tuple[int, bytes]:
        if request.param == "asgi":
            return asyncio.run(ask_asgi(app, method, path, query))
        return ask_wsgi(app, method, path, query)

    return call


def do(*steps: dict[str, Any]) -> str:
    return f"do={quote(json.dumps(steps))}"


def test_each_run_does_its_step_and_the_last_holds(ask: Any) -> None:
    query = do({"status": 503}, {"status": 409, "text": "no"}, {"size": 3})
    answers = [ask("POST", "/count/s", query) for _ in range(4)]
    assert [status for status, _ in answers] == [503, 409, 201, 201]
    assert [body for _, body in answers[1:]] == [b"no", b"xxx", b"xxx"]
    status, body = ask("GET", "/count/s")
    assert (status, json.loads(body)) == (
        200, {"count": 4, "most_at_once": 1, "live": 0, "keys": ["k", "k", "k", "k"]},
    )  # fmt: skip
    assert json.loads(ask("GET", "/short/count/s")[1])["count"] == 4, "a mount counts with the rest"
    assert json.loads(ask("GET", "/count/another")[1])["count"] == 0


async def test_a_run_that_lasts_ends_when_it_is_told(tmp_path: Path) -> None:
    """What is asked while a request runs is asked while it runs, whatever the machine does."""
    app: Any = over_asgi(str(tmp_path / "counts.db"))
    lasting = do({"delay_ms": 60_000, "lasts": True})
    running = asyncio.ensure_future(ask_asgi(app, "POST", "/count/s", lasting))
    while not json.loads((seen := await ask_asgi(app, "GET", "/count/s"))[1])["live"]:
        await asyncio.sleep(0.001)
    assert json.loads(seen[1])["count"] == 1
    assert (await ask_asgi(app, "PUT", "/count/another/ended"))[0] == 204
    assert not running.done()
    assert (await ask_asgi(app, "PUT", "/short/count/s/ended"))[0] == 204
    assert (await asyncio.wait_for(running, 60))[0] == 201
    assert json.loads((await ask_asgi(app, "GET", "/count/s"))[1])["live"] == 0


def test_a_run_that_blocks_ends_when_it_is_told(tmp_path: Path) -> None:
    app: Any = over_wsgi(str(tmp_path / "counts.db"))
    lasting = do({"delay_ms": 60_000, "lasts": True})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask_wsgi, app, "POST", "/count/s", lasting)
        while not json.loads(ask_wsgi(app, "GET", "/count/s")[1])["live"]:
            time.sleep(0.001)
        assert ask_wsgi(app, "PUT", "/count/s/ended")[0] == 204
        assert running.result(60)[0] == 201


@pytest.mark.parametrize(
    "query",
    [
        "do=nothing", do(), do(*[{}] * 17), do({"status": 99}), do({"status": 700}),
        do({"delay_ms": 60_001}), do({"delay_ms": -1}), do({"size": 2**30}), do({"chunks": 2**20}),
        do({"size": -1}), do({"what": 1}),
    ],
)  # fmt: skip
def test_an_instruction_that_makes_no_sense_is_400_and_counts_nothing(ask: Any, query: str) -> None:
    assert ask("POST", "/count/s", query)[0] == 400
    assert json.loads(ask("GET", "/count/s")[1])["count"] == 0


def test_there_is_nothing_else(ask: Any) -> None:
    assert ask("POST", "/counter")[0] == 404
    assert ask("POST", "/count/a/b")[0] == 404
    assert ask("TRACE", "/count/a")[0] == 404
    assert json.loads(ask("GET", "/counter")[1])["counter"] == 1


def test_what_runs_at_the_same_time_is_seen(tmp_path: Path) -> None:
    """The witness of E7 and of every race."""
    one, two = (Counts(str(tmp_path / "counts.db")) for _ in range(2))
    assert (one.arrive("s", "k1"), two.arrive("s", "k2")) == (1, 2)
    one.leave("s")
    assert two.arrive("s", "") == 3
    seen = one.seen("s")
    assert (seen.count, seen.most_at_once, list(seen.keys)) == (3, 2, ["k1", "k2", ""])
    one.close()
    two.close()


def test_callers_are_told_apart_by_their_names() -> None:
    assert caller_of("Bearer alice.7") == caller_of("Bearer alice") == "alice"
    assert caller_of("Basic YTpi") == caller_of("") == ""
    assert (principal_of("alice"), principal_of("nobody"), principal_of("")) == (
        "alice", None, "anonymous",
    )  # fmt: skip
    with pytest.raises(LookupError):
        principal_of("raise")
