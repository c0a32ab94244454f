"""A hostile network: what must never become a request, what must never be lost, what must end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
import tracemalloc

import pytest
from callers import (
    PATIENCE_S,
    Broken,
    Calling,
    Parts,
    Recorder,
    ask,
    call,
    eventually,
    on_both_loops,
    opened,
    port_of,
)

from hostile import undisturbed
from unspool.core.message import Request, Response, Severed
from unspool.ingress.connection import Connection
from unspool.ingress.http import Door
from unspool.ingress.protocol import Caller

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\r\n\r\nabcde"
CHUNKED = (
    b"POST /orders HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n"
    b"2\r\nab\r\n3;e=1\r\ncde\r\n0\r\nT: u\r\n\r\n"
)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n" + body


def get(line: bytes = b"GET / HTTP/1.1", fields: bytes = b"Host: a") -> bytes:
    return line + b"\r\n" + fields + b"\r\n\r\n"


CHUNKS = b"0\r\n\r\n" + SMUGGLED
TE = b"Transfer-Encoding: "

MALFORMED = {
    # framing: the ways to make two parsers disagree about where a request ends
    "CL.TE": (post(b"Content-Length: 5\r\n" + TE + b"chunked", CHUNKS), 400),
    "TE.CL": (post(TE + b"chunked\r\nContent-Length: 5", CHUNKS), 400),
    "TE.CL apart": (post(TE + b"chunked\r\nX: y\r\ncontent-length: 0", CHUNKS), 400),
    "CL.CL": (post(b"Content-Length: 5\r\nContent-Length: 0", b"abcde"), 400),
    "CL.CL equal": (post(b"Content-Length: 5\r\nContent-Length: 5", b"abcde"), 400),
    "CL list": (post(b"Content-Length: 5, 5", b"abcde"), 400),
    "CL plus": (post(b"Content-Length: +5", b"abcde"), 400),
    "CL minus": (post(b"Content-Length: -5", b"abcde"), 400),
    "CL hex": (post(b"Content-Length: 0x5", b"abcde"), 400),
    "CL empty": (post(b"Content-Length:", b"abcde"), 400),
    "CL space inside": (post(b"Content-Length: 5 0", b"abcde"), 400),
    "CL thousands of zeros": (post(b"Content-Length: " + b"0" * 5000 + b"5", b"abcde"), 400),
    "CL underscore": (post(b"Content-Length: 1_0", b"abcde"), 400),
    "CL float": (post(b"Content-Length: 5.0", b"abcde"), 400),
    "CL letters": (post(b"Content-Length: five", b"abcde"), 400),
    "CL quoted": (post(b'Content-Length: "5"', b"abcde"), 400),
    "CL overflow": (post(b"Content-Length: 18446744073709551621", b"abcde"), 400),
    "CL vertical tab": (post(b"Content-Length:\x0b5", b"abcde"), 400),
    "CL superscript": (post(b"Content-Length: \xb2", b"ab"), 400),
    "CL space before colon": (post(b"Content-Length : 5", b"abcde"), 400),
    "CL obs-fold": (post(b"Content-Length:\r\n 5", b"abcde"), 400),
    "TE twice": (post(TE + b"chunked\r\n" + TE + b"chunked", CHUNKS), 400),
    "TE twice, identity": (post(TE + b"chunked\r\n" + TE + b"identity", CHUNKS), 400),
    "TE twice, x first": (post(TE + b"x\r\n" + TE + b"chunked", CHUNKS), 501),
    "TE chunked, chunked": (post(TE + b"chunked, chunked", CHUNKS), 400),
    "TE chunked, identity": (post(TE + b"chunked, identity", CHUNKS), 400),
    "TE gzip, chunked": (post(TE + b"gzip, chunked", CHUNKS), 501),
    "TE identity": (post(TE + b"identity", CHUNKS), 501),
    "TE xchunked": (post(TE + b"xchunked", CHUNKS), 501),
    "TE chunkedx": (post(TE + b"chunkedx", CHUNKS), 501),
    "TE parameter": (post(TE + b"chunked;q=1", CHUNKS), 501),
    "TE quoted": (post(TE + b'"chunked"', CHUNKS), 501),
    "TE comma": (post(TE + b",chunked", CHUNKS), 501),
    "TE empty": (post(TE, CHUNKS), 400),
    "TE vertical tab": (post(TE + b"\x0bchunked", CHUNKS), 400),
    "TE form feed": (post(TE + b"\x0cchunked", CHUNKS), 400),
    "TE NUL": (post(TE + b"chunked\0", CHUNKS), 400),
    "TE nbsp": (post(TE + b"\xa0chunked", CHUNKS), 501),
    "TE space before colon": (post(b"Transfer-Encoding : chunked", CHUNKS), 400),
    "TE tab before colon": (post(b"Transfer-Encoding\t: chunked", CHUNKS), 400),
    "TE obs-fold": (post(b"Transfer-Encoding:\r\n chunked", CHUNKS), 400),
    "TE obs-fold after": (post(b"X: y\r\n Transfer-Encoding: chunked", CHUNKS), 400),
    "TE after bare LF": (post(b"X: y\nTransfer-Encoding: chunked", CHUNKS), 400),
    "TE after bare CR": (post(b"X: y\rTransfer-Encoding: chunked", CHUNKS), 400),
    "TE after LF CR": (post(b"X: y\n\rTransfer-Encoding: chunked", CHUNKS), 400),
    "TE in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, 400,
    ),
    # chunks
    "chunk size hex prefix": (post(TE + b"chunked", b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size plus": (post(TE + b"chunked", b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size minus": (post(TE + b"chunked", b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size space": (post(TE + b"chunked", b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size space after": (post(TE + b"chunked", b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size empty": (post(TE + b"chunked", b"\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size underscore": (post(TE + b"chunked", b"1_0\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size overflow": (post(TE + b"chunked", b"10000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk LF": (post(TE + b"chunked", b"3\nabc\r\n0\r\n\r\n"), 400),
    "chunk CR": (post(TE + b"chunked", b"3\rabc\r\n0\r\n\r\n"), 400),
    "chunk CR CR LF": (post(TE + b"chunked", b"3\r\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk data too long": (post(TE + b"chunked", b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "chunk data LF": (post(TE + b"chunked", b"3\r\nabc\n0\r\n\r\n"), 400),
    "chunk data unended": (post(TE + b"chunked", b"3\r\nabc0\r\n\r\n"), 400),
    "chunk extension LF": (post(TE + b"chunked", b"3;a\nb\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk extension CR": (post(TE + b"chunked", b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk extension NUL": (post(TE + b"chunked", b"3;\0\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk end LF": (post(TE + b"chunked", b"0\r\n\n"), 400),
    "chunk end CR X": (post(TE + b"chunked", b"0\r\n\rX"), 400),
    "trailer space before colon": (post(TE + b"chunked", b"0\r\nA : b\r\n\r\n"), 400),
    "trailer Content-Length": (post(TE + b"chunked", b"0\r\nContent-Length: 9\r\n\r\n"), 400),
    "trailer TE": (post(TE + b"chunked", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    # Host
    "no Host": (get(fields=b"X: y"), 400),
    "no fields": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (get(fields=b"Host: a\r\nHost: a"), 400),
    "two Hosts, HTTP/1.0": (get(b"GET / HTTP/1.0", b"Host: a\r\nHost: b"), 400),
    "Host empty": (get(fields=b"Host:"), 400),
    "Host with path": (get(fields=b"Host: a/b"), 400),
    "Host with user": (get(fields=b"Host: u@a"), 400),
    "Host with space": (get(fields=b"Host: a b"), 400),
    "Host list": (get(fields=b"Host: a, b"), 400),
    "Host port letters": (get(fields=b"Host: a:http"), 400),
    "Host port long": (get(fields=b"Host: a:123456"), 400),
    "Host brackets open": (get(fields=b"Host: [::1"), 400),
    "Host Latin-1": (get(fields=b"Host: \xe4"), 400),
    "Host long": (get(fields=b"Host: " + b"a" * 300), 400),
    "Host space before colon": (get(fields=b"Host : a"), 400),
    # fields
    "space before field": (get(fields=b" Host: a"), 400),
    "obs-fold": (get(fields=b"Host: a\r\nX: y\r\n z"), 400),
    "obs-fold tab": (get(fields=b"Host: a\r\nX: y\r\n\tz"), 400),
    "no colon": (get(fields=b"Host: a\r\nX"), 400),
    "empty name": (get(fields=b"Host: a\r\n: y"), 400),
    "name with parenthesis": (get(fields=b"Host: a\r\nX(: y"), 400),
    "name with Latin-1": (get(fields=b"Host: a\r\nX\xe4: y"), 400),
    "name with NUL": (get(fields=b"Host: a\r\nX\0: y"), 400),
    "value with NUL": (get(fields=b"Host: a\r\nX: y\0z"), 400),
    "value with bell": (get(fields=b"Host: a\r\nX: y\x07z"), 400),
    "value with DEL": (get(fields=b"Host: a\r\nX: y\x7fz"), 400),
    "value with CR": (get(fields=b"Host: a\r\nX: y\rz"), 400),
    "bare LF lines": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "CR CR LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", 400),
    # the request line
    "two spaces before target": (get(b"GET  / HTTP/1.1"), 400),
    "two spaces before version": (get(b"GET /  HTTP/1.1"), 400),
    "tab before target": (get(b"GET\t/ HTTP/1.1"), 400),
    "space after version": (get(b"GET / HTTP/1.1 "), 400),
    "space in target": (get(b"GET /a b HTTP/1.1"), 400),
    "fragment": (get(b"GET /#f HTTP/1.1"), 400),
    "fragment of absolute": (get(b"GET http://a/#f HTTP/1.1"), 400),
    "Latin-1 in target": (get(b"GET /\xe4 HTTP/1.1"), 400),
    "UTF-8 in target": (get("GET /ä HTTP/1.1".encode()), 400),
    "NUL in target": (get(b"GET /\0 HTTP/1.1"), 400),
    "control in target": (get(b"GET /\x01 HTTP/1.1"), 400),
    "DEL in target": (get(b"GET /\x7f HTTP/1.1"), 400),
    "relative target": (get(b"GET orders HTTP/1.1"), 400),
    "no target": (get(b"GET HTTP/1.1"), 400),
    "asterisk for GET": (get(b"GET * HTTP/1.1"), 400),
    "asterisk and more": (get(b"OPTIONS *a HTTP/1.1"), 400),
    "authority for GET": (get(b"GET a:80 HTTP/1.1"), 400),
    "foreign scheme": (get(b"GET ftp://a/ HTTP/1.1"), 400),
    "user in target": (get(b"GET http://u:p@a/ HTTP/1.1"), 400),
    "no authority": (get(b"GET http:///x HTTP/1.1"), 400),
    "backslash authority": (get(b"GET http://a\\b/ HTTP/1.1"), 400),
    "CONNECT": (get(b"CONNECT a:443 HTTP/1.1"), 501),
    "CONNECT to a path": (get(b"CONNECT / HTTP/1.1"), 501),
    "CONNECT with a body": (b"CONNECT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na", 501),
    "unknown method": (get(b"BREW / HTTP/1.1"), 501),
    "small letters": (get(b"get / HTTP/1.1"), 501),
    "an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    "byte order mark": (b"\xef\xbb\xbf" + GET, 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "nonsense": (b"\xff\xfe\xfd\xfc", 400),
    # Upgrade
    "WebSocket": (get(fields=b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket"), 501),
    "Upgrade list": (get(fields=b"Host: a\r\nConnection: upgrade\r\nUpgrade: h2c, websocket"), 501),
    # versions
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/2.0": (get(b"GET / HTTP/2.0"), 505),
    "HTTP/1.2": (get(b"GET / HTTP/1.2"), 505),
    "HTTP/3.0": (get(b"GET / HTTP/3.0"), 505),
    "HTTP/0.9": (get(b"GET / HTTP/0.9"), 505),
    "HTTP/0.9 simple": (b"GET /\r\n\r\n", 505),
    "HTTP/1.10": (get(b"GET / HTTP/1.10"), 400),
    "HTTP/01.1": (get(b"GET / HTTP/01.1"), 400),
    "http/1.1": (get(b"GET / http/1.1"), 400),
    "RTSP/1.0": (get(b"GET / RTSP/1.0"), 400),
    "ICE/1.0": (get(b"SOURCE / ICE/1.0"), 400),
}  # fmt: skip


UNSURE = {"unknown method", "small letters"}
"""501 only where the method is seen whole; llhttp gives up at the first letter that is wrong."""


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_malformed_never_becomes_a_request(name: str) -> None:
    """At once, behind a good request, and byte by byte: the same answer, and then the end."""
    data, status = MALFORMED[name]
    for before, slowly in ((b"", False), (GET, False), (b"", True)):
        handler = Recorder()
        async with opened(handler) as door, call(door) as caller:
            if slowly:
                for index in range(len(data)):
                    caller.writer.write(data[index : index + 1])
                    await asyncio.sleep(0)
            else:
                await caller.send(before + data)
            if before:
                assert (await caller.answer()).status == 200
            answer = await caller.answer()
            unsure = name in UNSURE and (before or slowly)
            assert answer.status == (400 if unsure else status), (before, slowly, answer)
            assert answer["Content-Type"] == "application/problem+json"
            assert answer["Connection"] == "close"
            assert json.loads(answer.body)["status"] == answer.status
            assert await caller.rest() == b""
        assert len(handler.requests) == (1 if before else 0)


GOOD = {
    "Content-Length padded": post(b"Content-Length:   5  ", b"abcde"),
    "Content-Length with zeros": post(b"Content-Length: 005", b"abcde"),
    "chunked": post(TE + b"chunked", b"5\r\nabcde\r\n0\r\n\r\n"),
    "Chunked": post(TE + b"ChUnKeD ", b"5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size with zeros": post(TE + b"chunked", b"0005\r\nabcde\r\n000\r\n\r\n"),
    "chunk extension": post(TE + b"chunked", b'5;a=b;c="d"\r\nabcde\r\n0;x\r\n\r\n'),
    "trailers": post(TE + b"chunked", b"5\r\nabcde\r\n0\r\nDigest: x\r\n\r\n"),
    "IPv6 Host": b"POST / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\n\r\nabcde",
    "underscore Host": b"POST / HTTP/1.1\r\nHost: my_service\r\nContent-Length: 5\r\n\r\nabcde",
    "odd but allowed target": b'POST /<"|{}^`\\>?<"[]> HTTP/1.1\r\nHost: a\r\nContent-Length: 5'
    b"\r\n\r\nabcde",
    "Upgrade unconnected": post(b"Upgrade: websocket\r\nContent-Length: 5", b"abcde"),
    "unknown expectation": post(b"Expect: miracles\r\nContent-Length: 5", b"abcde"),
    "underscored TE": post(b"Transfer_Encoding: chunked\r\nContent-Length: 5", b"abcde"),
}


@pytest.mark.parametrize("name", GOOD)
async def test_what_is_unusual_but_good_is_not_refused(name: str) -> None:
    for slowly in (False, True):
        handler = Recorder()
        async with opened(handler) as door, call(door) as caller:
            if slowly:
                await _slowly(caller, GOOD[name])
            else:
                await caller.send(GOOD[name] + GOOD[name])
                assert (await caller.answer()).status == 200
            assert (await caller.answer()).status == 200
            assert [request.body for request in handler.requests] == [b"abcde"] * (2 - slowly)


async def _slowly(caller: Calling, data: bytes) -> None:
    for index in range(len(data)):
        caller.writer.write(data[index : index + 1])
        await asyncio.sleep(0.0002)


@pytest.mark.parametrize("data", [POST, CHUNKED], ids=["counted", "chunked"])
@on_both_loops
async def test_byte_by_byte_is_as_good_as_at_once(data: bytes) -> None:
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        await _slowly(caller, data)
        assert (await caller.answer()).status == 200
    assert handler.requests[0].body == b"abcde"
    assert (b"X", b"y") in handler.requests[0].fields


@pytest.mark.parametrize("data", [POST, CHUNKED], ids=["counted", "chunked"])
@pytest.mark.parametrize("ending", ["close", "vanish", "half-close"])
@on_both_loops
async def test_a_request_broken_off_anywhere_never_reaches_the_handler(
    data: bytes, ending: str
) -> None:
    """And one that is whole reaches it once."""
    handler = Recorder()
    async with opened(handler) as door:
        for length in range(len(data) + 1):
            handler.requests.clear()
            async with call(door) as caller:
                await caller.send(data[:length])
                if ending == "half-close":
                    caller.writer.write_eof()
                    said = await caller.rest()
                    assert said.startswith(b"HTTP/1.1 200 OK") == (length == len(data))
                    assert said == b"" or length == len(data)
                elif ending == "close":
                    caller.writer.close()
                else:
                    await asyncio.sleep(0)
                    caller.vanish()
            await eventually(lambda: door.statistics().connections == 0)
            whole = length == len(data)
            if ending != "vanish":
                assert len(handler.requests) == whole, length
            assert len(handler.requests) <= whole, length


# sizes


@on_both_loops
async def test_a_large_head_is_431() -> None:
    async with opened(Recorder(), head_max_bytes=2000) as door:
        exact = 2000 - len(b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\n")
        fits = await ask(door, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * exact + b"\r\n\r\n")
        assert fits.status == 200
        exact += 10
        for filler in (b"X: " + b"x" * exact, b"x" * 3000 + b": y", b"X: " + b"x" * 100_000):
            answer = await ask(door, b"GET / HTTP/1.1\r\nHost: a\r\n" + filler + b"\r\n\r\n")
            assert answer.status == 431
        answer = await ask(door, b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.status == 431
        assert (await ask(door, POST + b"GET /" + b"x" * 1900)).status == 200


@pytest.mark.parametrize("filler", [b"GET /" + b"x" * 90_000, b"Y" * 90_000, b"X: y\r\n" * 15_000])
@on_both_loops
async def test_a_head_that_never_ends_is_431(filler: bytes) -> None:
    async with opened(Recorder()) as door, call(door) as caller:
        before = b"" if filler.startswith(b"GET") else b"GET / HTTP/1.1\r\n"
        data = before + filler
        for begin in range(0, len(data), 1000):
            with contextlib.suppress(ConnectionError):
                await caller.send(data[begin : begin + 1000])
        answer = await caller.answer()
        assert answer.status in (431, 501)
        assert answer.status == 431 or filler.startswith(b"Y")


@on_both_loops
async def test_too_many_fields_are_431() -> None:
    async with opened(Recorder(), fields_max=10) as door:
        assert (await ask(door, get(fields=b"Host: a" + b"\r\nX: y" * 9))).status == 200
        assert (await ask(door, get(fields=b"Host: a" + b"\r\nX: y" * 10))).status == 431


@on_both_loops
async def test_a_head_does_not_pay_for_the_one_before_it() -> None:
    """Pipelined: the second head begins in the data of the first request."""
    first = post(b"Content-Length: 12000", b"x" * 12_000)
    second = get(fields=b"Host: a\r\nX: " + b"y" * 25_000)
    async with opened(Recorder()) as door, call(door) as caller:
        await caller.send(first + second[:3000])
        assert (await caller.answer()).status == 200
        await caller.send(second[3000:])
        assert (await caller.answer()).status == 200


@pytest.mark.parametrize(
    "bomb",
    [
        b"1;" + b"x" * 200_000,
        b"0" * 200_000 + b"1\r\nx\r\n",
        b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n" * 5_000,
        b"0\r\n" + b"T: u\r\n" * 30_000,
        b"0\r\nT: " + b"u" * 200_000,
    ],
    ids=["extension", "zeros", "extensions", "trailers", "trailer"],
)
@on_both_loops
async def test_a_bomb_between_chunks_is_400(bomb: bytes) -> None:
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        with contextlib.suppress(ConnectionError):
            await caller.send(post(TE + b"chunked", bomb))
        answer = await caller.answer()
        assert answer.status == 400
        assert b"too long" in answer.body
    assert handler.requests == []


@on_both_loops
async def test_tiny_chunks_are_slow_but_good() -> None:
    """Their frames are free: a body of 1-byte chunks is a body."""
    handler = Recorder()
    async with opened(handler) as door, call(door) as caller:
        await caller.send(post(TE + b"chunked", b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"))
        assert (await caller.answer()).status == 200
    assert handler.requests[0].body == b"x" * 50_000


async def test_tiny_chunks_cost_no_more_memory_than_their_bytes() -> None:
    async with opened(Recorder()) as door, call(door) as caller:
        await caller.send(post(TE + b"chunked", b"2\r\nxy\r\n"))
        await eventually(lambda: door.ledger.held_bytes == 2)
        data = b"2\r\nxy\r\n" * 50_000
        tracemalloc.start()
        try:
            await caller.send(data)
            await eventually(lambda: door.ledger.held_bytes == 100_002)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 2_000_000  # a list of 50 000 pieces of 35 bytes each would have more


@on_both_loops
async def test_half_arrived_bodies_are_limited_together() -> None:
    handler = Recorder()
    limits = {"body_max_bytes": 100_000, "bodies_max_bytes": 250_000}
    async with opened(handler, **limits) as door, contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(call(door)) for _ in range(3)]
        for caller in callers[:2]:
            await caller.send(post(b"Content-Length: 100000", b"x" * 99_999))
        await eventually(lambda: door.ledger.held_bytes == 2 * 99_999)
        await callers[2].send(post(b"Content-Length: 100000", b"x" * 99_999))
        answer = await callers[2].answer()
        assert answer.status == 503
        assert answer["Retry-After"] == "1"
        for caller in callers[:2]:
            await caller.send(b"x")
            assert (await caller.answer()).status == 200
        assert door.ledger.held_bytes == 0
    assert len(handler.requests) == 2


@on_both_loops
async def test_the_ledger_forgets_who_has_gone() -> None:
    async with opened(Recorder()) as door:
        for ending in ("vanish", "half-close"):
            async with call(door) as caller:
                await caller.send(post(b"Content-Length: 100000", b"x" * 5000))
                await eventually(lambda: door.ledger.held_bytes == 5000)
                if ending == "vanish":
                    caller.vanish()
                else:
                    caller.writer.write_eof()
            await eventually(lambda: door.ledger.held_bytes == 0)


# time

SLOW = {
    "nothing": (b"", b""),
    "method": (b"GE", b"408"),
    "head": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"408"),
    "body": (post(b"Content-Length: 5", b"abc"), b"408"),
    "no body": (post(b"Content-Length: 5"), b"408"),
    "chunk": (post(TE + b"chunked", b"3\r\na"), b"408"),
    "last chunk": (post(TE + b"chunked", b"3\r\nabc\r\n0\r\n"), b"408"),
    "slow second": (GET + b"GET / HT", b"408"),
    "expected body": (post(b"Expect: 100-continue\r\nContent-Length: 5"), b"408"),
}


@pytest.mark.parametrize("name", SLOW)
@on_both_loops
async def test_what_does_not_come_in_time_is_408(name: str) -> None:
    data, expected = SLOW[name]
    async with opened(Recorder(), head_ms=150, body_ms=150) as door:
        started = time.monotonic()  # before its clock, which runs from the connection on
        async with call(door) as caller:
            await caller.send(data)
            said = await caller.rest()
        assert 0.14 < time.monotonic() - started < PATIENCE_S
        last = said.rpartition(b"HTTP/1.1 ")[2]
        assert last[:3] == expected
        assert door.statistics().refused == ({"timeout": 1} if expected else {})


@on_both_loops
async def test_a_head_may_not_drip() -> None:
    """A byte now and then does not start the clock anew (Slowloris)."""
    async with opened(Recorder(), head_ms=200) as door, call(door) as caller:
        started = time.monotonic()
        await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(ConnectionError):
            while not caller.reader.at_eof() and time.monotonic() - started < PATIENCE_S:
                await caller.send(b"X: y\r\n")
                await asyncio.sleep(0.02)
                if caller.reader._buffer:  # type: ignore[attr-defined]
                    break
        assert time.monotonic() - started < PATIENCE_S
        assert (await caller.answer()).status == 408


@on_both_loops
async def test_a_body_may_not_drip() -> None:
    """It always comes, but less than `body_rate_min_bytes` a second."""
    limits = {"body_ms": 2000, "body_rate_min_bytes": 1000, "body_grace_ms": 200, "head_ms": 400}
    async with opened(Recorder(), **limits) as door, call(door) as caller:
        started = time.monotonic()
        await caller.send(post(b"Content-Length: 5000"))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < PATIENCE_S:
                await caller.send(b"x")
                await asyncio.sleep(0.02)
                if caller.reader._buffer:  # type: ignore[attr-defined]
                    break
        assert 0.2 < time.monotonic() - started < PATIENCE_S
        assert (await caller.answer()).status == 408


@on_both_loops
async def test_a_body_that_is_fast_enough_is_left_alone() -> None:
    limits = {"body_ms": 100, "body_rate_min_bytes": 500, "body_grace_ms": 100}

    async def trial() -> None:
        async with opened(Recorder(), **limits) as door, call(door) as caller:
            await caller.send(post(b"Content-Length: 500"))
            began, sent = time.monotonic(), 0
            with contextlib.suppress(ConnectionError):
                while sent < 500:
                    await asyncio.sleep(0.02)
                    due = min(500, int(1000 * (time.monotonic() - began)))  # twice as fast
                    await caller.send(b"x" * (due - sent))
                    sent = due
            assert (await caller.answer()).status == 200

    await undisturbed(trial, less_than_s=0.03)


@on_both_loops
async def test_a_handler_that_is_slow_is_nobody_elses_fault() -> None:
    async def handler(request: Request, caller: Caller, /) -> Response:
        await asyncio.sleep(0.6)
        return Response(200, b"", [])

    async with (
        opened(handler, head_ms=250, body_ms=250, keepalive_ms=250) as door,
        call(door) as caller,
    ):
        await caller.send(POST)
        assert (await caller.answer()).status == 200


@on_both_loops
async def test_an_idle_connection_ends_quietly() -> None:
    async with opened(Recorder(), keepalive_ms=150) as door, call(door) as caller:
        started = time.monotonic()  # before its clock, which may run before we have the answer
        await caller.send(GET)
        await caller.answer()
        assert await caller.rest() == b""
        assert 0.1 < time.monotonic() - started < PATIENCE_S
        assert door.statistics().refused == {}


@on_both_loops
async def test_a_loop_that_was_held_up_closes_nobody_who_has_asked() -> None:
    """What it has not read by then is there all the same, though the sweep may come first."""
    async with opened(Recorder(), head_ms=200, keepalive_ms=200) as door, call(door) as caller:
        for _ in range(2):
            await eventually(lambda: door.statistics().connections == 1)
            shown = caller.writer.get_extra_info("socket")
            ours, theirs = socket.socketpair()
            held_up = asyncio.get_running_loop().create_future()

            def hold_up(raw: int = shown.fileno(), held: asyncio.Future[None] = held_up) -> None:
                os.write(raw, GET)
                time.sleep(0.5)  # this is the fault that is tried
                held.set_result(None)

            with ours, theirs:
                ours.setblocking(False)
                asyncio.get_running_loop().add_reader(ours, hold_up)
                theirs.send(b"x")
                await held_up
                asyncio.get_running_loop().remove_reader(ours)
            assert (await caller.answer()).status == 200


@on_both_loops
async def test_many_requests_one_after_the_other_are_not_one_slow_one() -> None:
    """The sweep may well find each in the middle of its head."""
    async with opened(Recorder(), head_ms=240, body_ms=240) as door, call(door) as caller:
        started = time.monotonic()
        while time.monotonic() - started < 0.8:
            await caller.send(POST[:20])
            await asyncio.sleep(0.015)
            await caller.send(POST[20:-2])
            await asyncio.sleep(0.015)
            await caller.send(POST[-2:])
            assert (await caller.answer()).status == 200


@on_both_loops
async def test_a_head_that_is_always_half_here_is_each_time_another() -> None:
    async with opened(Recorder(), head_ms=240) as door, call(door) as caller:
        started = time.monotonic()
        await caller.send(GET[:10])
        while time.monotonic() - started < 0.8:
            await asyncio.sleep(0.01)
            await caller.send(GET[10:] + GET[:10])
            assert (await caller.answer()).status == 200


@on_both_loops
async def test_who_takes_nothing_is_let_go() -> None:
    parts = Parts(*[b"x" * 65_536] * 400)
    handler = Recorder(Response(200, b"", [], b"", parts))
    async with opened(handler, write_ms=200) as door, call(door) as caller:
        caller.writer.transport.pause_reading()
        await caller.send(GET)
        await eventually(lambda: handler.requests)
        await eventually(lambda: door.statistics().connections == 0)
        await eventually(lambda: parts.closed == 1)
        assert parts.parts  # it was not read to its end either
        assert door.statistics().broken_off_total == 1


@on_both_loops
async def test_who_takes_something_all_the_time_is_not() -> None:
    """The kernel holds megabytes, and asks for more when one of them has gone."""

    async def trial() -> None:
        parts = Parts(*[b"x" * 65_536] * 400)
        handler = Recorder(Response(200, b"", [], b"", parts))
        async with opened(handler, write_ms=600) as door, call(door) as caller:
            await caller.send(GET)
            await caller.head()
            caller.writer.transport.pause_reading()
            await asyncio.sleep(0.1)  # until everything is full
            shown = caller.writer.get_extra_info("socket")
            with socket.socket(fileno=os.dup(shown.fileno())) as slow:
                began = time.monotonic()
                while time.monotonic() - began < 1.0:
                    with contextlib.suppress(BlockingIOError):
                        slow.recv(20_000)
                    await asyncio.sleep(0.04)
            assert door.statistics().broken_off_total == 0
            assert door.statistics().connections == 1

    await undisturbed(trial, less_than_s=0.3)


@on_both_loops
async def test_who_takes_a_drop_now_and_then_is_let_go() -> None:
    """He would hold a connection to the service, too, for as long as he likes."""
    parts = Parts(*[b"x" * 65_536] * 400)
    handler = Recorder(Response(200, b"", [], b"", parts))
    async with opened(handler, write_ms=300, body_rate_min_bytes=100_000) as door:
        door.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as there is
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", port_of(door)))
            await loop.sock_sendall(slow, GET)
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while parts.closed == 0 and await loop.sock_recv(slow, 500):
                    assert time.monotonic() - began < PATIENCE_S
                    await asyncio.sleep(0.02)
        assert door.statistics().broken_off_total == 1


# numbers


@on_both_loops
async def test_one_connection_too_many_is_503() -> None:
    limits = {"connections_max": 2, "stress_percent": 1000, "linger_ms": 200}
    async with opened(Recorder(), **limits) as door, call(door) as one, call(door) as two:
        for caller in (one, two):
            await caller.send(GET)
            assert (await caller.answer()).status == 200
        async with call(door) as three:
            await three.send(POST)
            answer = await three.answer()
            assert answer.status == 503
            assert answer["Retry-After"] == "1"
            assert answer["Connection"] == "close"
            assert await three.rest() == b""
        assert door.statistics().refused == {"busy": 1}
        await one.send(GET)
        assert (await one.answer()).status == 200
        two.vanish()
        await eventually(lambda: door.statistics().connections == 1)
        assert (await ask(door, GET)).status == 200


@on_both_loops
async def test_under_stress_the_idle_make_room() -> None:
    limits = {
        "connections_max": 10, "stress_keepalive_ms": 250, "stress_head_ms": 250,
        "linger_ms": 200, "head_ms": 60_000,
    }  # fmt: skip
    async with opened(Recorder(), **limits) as door, contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(call(door)) for _ in range(8)]
        for caller in callers:
            await caller.send(GET)
            await caller.answer()
        await asyncio.sleep(0.3)
        assert door.statistics().connections == 8
        assert not door.statistics().stressed
        stressed: list[bool] = []
        came = door.came

        def comes(connection: Connection) -> None:
            came(connection)
            stressed.append(door.statistics().stressed)

        door.came = comes  # type: ignore[method-assign]
        slow = await stack.enter_async_context(call(door))
        await slow.send(GET[:10])
        await eventually(lambda: stressed == [True])
        await eventually(lambda: door.statistics().connections < 9)
        assert not door.statistics().stressed


@on_both_loops
async def test_under_stress_half_heads_make_room() -> None:
    """Who has begun a request and does not go on has `stress_head_ms` for it then."""
    limits = {"connections_max": 10, "stress_head_ms": 100, "head_ms": 600_000, "linger_ms": 200}
    async with opened(Recorder(), **limits) as door, contextlib.AsyncExitStack() as stack:
        for _ in range(9):
            caller = await stack.enter_async_context(call(door))
            await caller.send(GET[:10])
        await eventually(lambda: door.statistics().refused.get("timeout"))


# after the answer


@on_both_loops
async def test_an_answer_given_early_is_not_destroyed_by_what_still_comes() -> None:
    """RFC 9112 §9.6: closing with unread bytes resets the connection, and the answer with it."""
    handler = Recorder(Response(413, b"", [], b"no"))
    async with opened(handler, body_max_bytes=1000) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 500000"))
        await eventually(lambda: handler.requests)
        await asyncio.sleep(0.02)
        for _ in range(50):
            await caller.send(b"x" * 10_000)
        answer = await caller.answer()
        assert (answer.status, answer.body) == (413, b"no")
        assert answer["Connection"] == "close"
        assert await caller.rest() == b""


@on_both_loops
async def test_nobody_lingers_forever() -> None:
    handler = Recorder(Response(413, b"", [], b"no"))
    limits = {"body_max_bytes": 1000, "linger_ms": 150}
    async with opened(handler, **limits) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 500000000"))
        assert (await caller.answer()).status == 413
        await eventually(lambda: door.statistics().connections == 0)


@on_both_loops
async def test_nobody_is_listened_to_forever_either() -> None:
    handler = Recorder(Response(413, b"", [], b"no"))
    limits = {"body_max_bytes": 1000, "linger_ms": 60_000, "linger_max_bytes": 100_000}
    async with opened(handler, **limits) as door, call(door) as caller:
        await caller.send(post(b"Content-Length: 500000000"))
        assert (await caller.answer()).status == 413

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await caller.send(b"x" * 100_000)
                    await asyncio.sleep(0.001)

        async with asyncio.timeout(PATIENCE_S):
            await flood()


async def test_many_at_once_and_many_breaking_off() -> None:
    """Two hundred callers, a third of which vanish in the middle: the others notice nothing."""
    handled = 0

    async def handler(request: Request, caller: Caller, /) -> Response:
        nonlocal handled
        await asyncio.sleep(0.001)
        handled += 1
        return Response(200, b"", [], request.body)

    async def one(door: Door, number: int) -> int:
        body = b"%05d" % number
        async with call(door) as caller:
            for turn in range(5):
                await caller.send(post(b"Content-Length: 5", body))
                if number % 3 == 0 and turn == 2:
                    caller.vanish()
                    return 0
                assert (await caller.answer()).body == body
        return 5

    async with opened(handler) as door:
        answered = sum(await asyncio.gather(*[one(door, number) for number in range(200)]))
        await eventually(lambda: door.statistics().connections == 0)
        assert answered == 5 * 133
        assert handled >= answered
        assert door.statistics().mistakes_total == 0


@on_both_loops
async def test_a_body_that_breaks_off_while_it_streams_is_severed() -> None:
    heard: list[object] = []

    async def handler(request: Request, caller: Caller, /) -> Response:
        assert request.rest is not None
        try:
            while data := await request.rest.read():
                heard.append(data)
        except Severed as severed:
            heard.append(severed)
        return Response(200, b"", [])

    async with opened(handler, body_max_bytes=10) as door:
        for ending in ("vanish", "half-close", "chunk"):
            heard.clear()
            async with call(door) as caller:
                if ending == "chunk":
                    await caller.send(post(TE + b"chunked", b"14\r\n" + b"x" * 20 + b"\r\n?!"))
                    assert (await caller.answer())["Connection"] == "close"
                    assert await caller.rest() == b""
                else:
                    await caller.send(post(b"Content-Length: 50", b"x" * 20))
                    await eventually(lambda: heard)
                    if ending == "vanish":
                        caller.vanish()
                    else:
                        caller.writer.write_eof()
                        with contextlib.suppress(Broken):
                            await caller.answer()
                await eventually(lambda: heard and isinstance(heard[-1], Severed))
