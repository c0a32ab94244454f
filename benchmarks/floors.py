"""Floors: the parts of the relay alone, with nothing decided between them.

    bare                httptools on both sides, heads written anew: nothing is looked at, limited,
                        timed or recovered. Any relay in Python costs at least this
    door                a constant answer from the door
    door, transport     each request goes on as it came, each answer comes back as it came
    door, spool         each request's body goes into the SQLite spool as an entry made beforehand,
                        synced, and a constant 202 comes back

What the relay costs above these is its own work: fields, keys, fingerprints, envelopes, receipts,
the destination's weather. What it costs up to these is parsing, sockets and the disk; no relay on
the same parts is quicker.

    python -m benchmarks.floors PART PORT [SERVICE-PORT] [FILE]      one of them, until SIGTERM
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop
from httptools import HttpRequestParser, HttpResponseParser

from unspool.core.lifecycle import State
from unspool.core.message import Answer, Destination, Instant, Request, Response, mint, seal
from unspool.ingress.http import Door
from unspool.ingress.listen import listener
from unspool.ingress.protocol import Caller
from unspool.spools.committer import Committer
from unspool.spools.open import open_spool
from unspool.spools.protocol import Acceptance, Entry, New
from unspool.transports.http import HttpTransport

from .bench import Bench, Row
from .load import WARM_S, good, load
from .nginx import ANSWER, upstream
from .process import Process, free_port

PARTS: Final = {
    "bare": "floor: httptools and uvloop, nothing checked",
    "door": "floor: the door, a constant answer",
    "forward": "floor: door and transport, nothing decided",
    "accept": "floor: door and spool, nothing decided",
}
BARE_CONNECTIONS: Final = 96
"""To the service: more than there are callers, of two runs that overlap."""
NOW: Final = Instant(1_790_000_000_000)
GC_THRESHOLD: Final = 20_000

_Done = Callable[[Response], None]


class Part:
    """A handler that has only the express road."""

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        self.begin(request, caller, future.set_result)
        return await future

    def begin(self, request: Request, caller: Caller, done: _Done, /) -> bool:
        done(Response(200, b"OK", [(b"Content-Type", b"text/plain")], ANSWER))
        return True


class Forward(Part):
    """What came goes on, less its length; what comes back is the answer."""

    def __init__(self, transport: HttpTransport) -> None:
        self.transport = transport

    async def __call__(self, request: Request, caller: Caller, /) -> Response:
        answer = await self.transport.attempt(_onwards(request))
        assert isinstance(answer, Response), answer
        return answer

    def begin(self, request: Request, caller: Caller, done: _Done, /) -> bool:
        def told(answer: Answer) -> None:
            assert isinstance(answer, Response), answer
            done(answer)

        return self.transport.begin(_onwards(request), told, repeat=True) is not None


def _onwards(request: Request) -> Request:
    fields = [field for field in request.fields if field[0] != b"Content-Length"]
    return Request(request.method, request.target, fields, request.body)


class Accept(Part):
    """One entry for each request; they differ in their keys, and in nothing else."""

    def __init__(self, accepts: Committer[Entry, Acceptance]) -> None:
        self.accepts = accepts
        self.count = 0

    def begin(self, request: Request, caller: Caller, done: _Done, /) -> bool:
        self.count += 1
        chance = self.count.to_bytes(8, "big") + b"key"  # the first eight make it: keys in order
        message = seal(
            request, key=mint(now=NOW, chance=chance), name="", nonce=chance, now=NOW,
            destination=Destination("http://127.0.0.1"), lifetime_ms=1_000, repeat=True, print_=b"",
        )  # fmt: skip
        self.accepts.submit_for(_Took(done), Entry(message, State.WAITING, NOW))
        return True


class _Took:
    def __init__(self, done: _Done) -> None:
        self._done = done
        self._heard = False

    def done(self) -> bool:
        return self._heard

    def set_result(self, result: object) -> None:
        assert isinstance(result, New), "a key was there already: nothing was written"
        self._heard = True
        self._done(Response(202, b"Accepted", [(b"Content-Type", b"text/plain")], ANSWER))

    def set_exception(self, error: Exception) -> None:
        raise error

    def cancel(self) -> None:
        self._heard = True


class BareService(asyncio.Protocol):
    """A connection to the service."""

    def __init__(self, idle: list[BareService]) -> None:
        self.idle = idle
        self.parser = HttpResponseParser(self)
        self.fields: list[bytes] = []
        self.body = b""
        self.caller: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.idle.append(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append(b"%b: %b" % (name, value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        line = b"HTTP/1.1 %d OK" % self.parser.get_status_code()
        head = b"\r\n".join((line, *self.fields, b"\r\n"))
        if not self.caller.is_closing():
            self.caller.write(head + self.body)
        self.fields, self.body = [], b""
        self.idle.append(self)


class BareCaller(asyncio.Protocol):
    """A caller's connection."""

    def __init__(self, idle: list[BareService]) -> None:
        self.idle = idle
        self.parser = HttpRequestParser(self)
        self.fields: list[bytes] = []
        self.body = self.target = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append(b"%b: %b" % (name, value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        line = b"%b %b HTTP/1.1" % (self.parser.get_method(), self.target)
        head = b"\r\n".join((line, *self.fields, b"\r\n"))
        service = self.idle.pop()
        service.caller = self.transport
        service.transport.write(head + self.body)
        self.fields, self.body = [], b""


async def bare(port: int, service: int) -> None:
    loop = asyncio.get_running_loop()
    idle: list[BareService] = []
    for _ in range(BARE_CONNECTIONS):
        await loop.create_connection(lambda: BareService(idle), "127.0.0.1", service)
    await loop.create_server(lambda: BareCaller(idle), "127.0.0.1", port, backlog=1024)
    _quiet()
    await _told()


def _quiet() -> None:
    """As `unspool serve` does."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)


async def _told() -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()


async def serve(part: str, port: int, more: list[str]) -> None:
    if part == "bare":
        await bare(port, int(more[0]))
        return
    handler: Any
    spool = transport = None
    if part == "forward":
        handler = Forward(transport := HttpTransport(f"http://127.0.0.1:{more[0]}"))
    elif part == "accept":
        spool = await open_spool(f"sqlite:///{more[0]}")
        handler = Accept(Committer(spool.accept, batch_max=512, waiting_max=20_000, patient=True))
    else:
        handler = Part()
    door = Door(handler)
    await door.listen([listener(f"127.0.0.1:{port}")])
    _quiet()
    await _told()
    await door.close(drain_ms=1_000)
    if transport is not None:
        await transport.aclose()
    if spool is not None:
        await spool.aclose()


def _run(bench: Bench, part: str, service: int) -> tuple[float, float]:
    port, folder = free_port(), bench.new_folder(f"floor-{part}")
    more = [str(folder / "spool.db") if part == "accept" else str(service)]
    bench.settle()
    with Process(
        [sys.executable, "-m", "benchmarks.floors", part, str(port), *more],
        cores={bench.measured_core},
        log=folder / "output.log",
        folder=Path.cwd(),
    ) as server:
        server.wait_listening(port)
        load(bench, port, "plain", seconds=WARM_S)
        found = good(load(bench, port, "plain", server=server), part)
    return found.per_s, found.cpu_us


def floors(bench: Bench) -> list[Row]:
    rates: dict[str, list[float]] = {part: [] for part in PARTS}
    cpu: dict[str, list[float]] = {part: [] for part in PARTS}
    with upstream(bench) as service:
        for _ in range(bench.runs):
            for part in PARTS:
                per_s, cpu_us = _run(bench, part, service.port)
                rates[part].append(per_s)
                cpu[part].append(cpu_us)
    return [
        Row(
            what=what,
            ours=median(rates[part]),
            note=f"{median(cpu[part]):.0f} µs of processor a request",
            runs={"unspool": rates[part]},
        )
        for part, what in PARTS.items()
    ]


if __name__ == "__main__":
    os.umask(0o077)
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
