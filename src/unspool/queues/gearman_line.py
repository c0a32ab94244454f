"""A line to one gearmand: packets over TCP, each with a deadline, errors in our words.

    line = await Line.open(server, limits)      raises Unavailable
    await line.send(bytes)                      raises Unavailable; the line is then gone
    await line.receive() -> Packet              Unavailable too: at the deadline, at its end; Full
    await line.stir()                           until the server wakes us, however long that takes
    await line.echo()                           everything sent so far has been dealt with
    line.hang_up(); await line.aclose()

One user at a time, for answers come in the order of the questions. After any trouble a line has
hung up: gearmand then gives what we held to others, and nobody reads another's answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from typing import Final

from ..core.message import Value
from ..errors import Full, Unavailable
from .gearman_packets import Decoder, Garbage, Kind, Packet, pack

READ_BYTES: Final = 256 * 1024
PIECE_BYTES: Final = 256 * 1024
"""Of a large packet: one that takes no piece off our hands does not take the rest."""
ENDED: Final = b"JOB_NOT_FOUND"
"""What gearmand says to the end of a job that it no longer has."""


class Server(Value, frozen=True):
    host: str
    port: int = 4730

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Limits(Value, frozen=True):
    """Milliseconds that a server may take."""

    connect_ms: int = 3_000
    """Until it has accepted a connection."""
    answer_ms: int = 10_000
    """Until the next bytes of an answer come, or are taken off our hands."""
    packet_ms: int = 60_000
    """For one packet, however large."""
    again_ms: int = 5_000
    """A server that failed is asked last for so long."""


class Line:
    def __init__(
        self,
        server: Server,
        limits: Limits,
        *,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        largest: int,
    ) -> None:
        self.server: Final = server
        self.broken = False
        self._limits = limits
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(largest=largest)

    @classmethod
    async def open(cls, server: Server, limits: Limits, *, largest: int) -> Line:
        """Connect. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(limits.connect_ms / 1000):
                reader, writer = await asyncio.open_connection(server.host, server.port)
        except TimeoutError as error:
            raise trouble(server, f"did not answer within {limits.connect_ms} ms") from error
        except OSError as error:
            what = error.strerror or str(error)
            raise trouble(server, f"cannot be reached: {what}") from error
        return cls(server, limits, reader=reader, writer=writer, largest=largest)

    async def send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.packet_ms / 1000):
                for start in range(0, len(data), PIECE_BYTES):
                    self._writer.write(data[start : start + PIECE_BYTES])
                    async with asyncio.timeout(self._limits.answer_ms / 1000):
                        await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise self._lost("took nothing more off our hands") from error
        except asyncio.CancelledError:
            self.hang_up()
            raise

    async def receive(self) -> Packet:
        """The next packet, which we asked for. Raises `Unavailable`, `Full`."""
        packet = await self._receive()
        if packet.kind is Kind.ERROR:
            raise self._complaint(packet)
        return packet

    async def _receive(self) -> Packet:
        try:
            async with asyncio.timeout(self._limits.packet_ms / 1000):
                while (packet := self._next()) is None:
                    async with asyncio.timeout(self._limits.answer_ms / 1000):
                        await self._read()
        except TimeoutError as error:
            raise self._lost(f"did not answer within {self._limits.answer_ms} ms") from error
        except asyncio.CancelledError:
            self.hang_up()
            raise
        return packet

    async def stir(self) -> None:
        """Until a packet has come that nobody asked for: the server wakes us. No deadline; may be
        cancelled at any time, and nothing that has come is lost by it."""
        while (packet := self._next()) is None:
            await self._read()
        if packet.kind is not Kind.NOOP:
            raise self._lost(f"sent a packet of kind {packet.kind}, and none was due")

    async def echo(self) -> None:
        """The server has dealt with all that was sent before; what was the end of a job that had
        ended already was no mistake. Raises `Unavailable`."""
        await self.send(pack(Kind.ECHO, b"unspool"))
        while (packet := await self._receive()).kind is not Kind.ECHOED:
            if packet.kind is Kind.ERROR and packet.arguments[0] != ENDED:
                raise self._complaint(packet)
            if packet.kind not in (Kind.NOOP, Kind.ERROR):
                raise self._lost(f"sent a packet of kind {packet.kind}, and none was due")

    def _next(self) -> Packet | None:
        try:
            return self._decoder.next()
        except Garbage as error:
            raise self._lost(f"does not speak Gearman's protocol: {error}") from error

    async def _read(self) -> None:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise self._lost(f"broke the connection off: {error.strerror or error}") from error
        if not data:
            raise self._lost("hung up")
        self._decoder.feed(data)

    def _lost(self, what: str) -> Unavailable:
        self.hang_up()
        return trouble(self.server, what)

    def _complaint(self, packet: Packet) -> Unavailable | Full:
        self.hang_up()
        code, text = (one.decode("utf-8", "replace") for one in packet.arguments)
        if "FULL" in code.upper() or "full" in text:
            return Full(
                f"gearmand at {self.server} takes no more: {text}. It was not handed over. Try: "
                f"{look(self.server)}"
            )
        return trouble(self.server, f"says {code}: {text}")

    def hang_up(self) -> None:
        """Now, whatever is under way."""
        self.broken = True
        self._writer.transport.abort()

    async def aclose(self) -> None:
        self.broken = True
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._limits.connect_ms / 1000):
                await self._writer.wait_closed()


def look(server: Server) -> str:
    return f"gearadmin --status -h {shlex.quote(server.host)} -p {server.port}"


def trouble(server: Server, what: str) -> Unavailable:
    return Unavailable(
        f"gearmand at {server} {what}. What it has, it keeps; what was under way may or may not be"
        f" there, and is safe to hand over again. Try: {look(server)}"
    )
