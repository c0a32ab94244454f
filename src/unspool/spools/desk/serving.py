"""The desk: a spool of one process, served to operators on this machine while its relay runs.

    desk = await open_desk(spool, path)      a unix socket in the spool's folder
    await desk.close()

LevelDB and the log file can be open in one process. That one has them open for everybody: whoever
is the same user (or root) connects to `<folder>/desk`, and has all the verbs of `protocol`. What an
operator leases is leased as by anybody else: fenced, and free again when the term runs out,
whatever became of the operator.

It must not be felt by the relay, so it has limits: VISITORS_MAX at a time, one verb of one visitor
at a time, pages of PAGE_MAX rows (WHOLE_MAX where requests come along), frames of FRAME_MAX_BYTES,
FRAME_S for one that has begun to come or to go, and after each verb a pause as long as the verb
took. A visitor who does not read or does not write is hung up on, and what he leased runs out.

Only the same user: the file is 0600 in a folder of 0700, and the kernel is asked who called.

Bugs: one look at a spool of millions (`browse` by name, `tally`) is one verb, and shares the
interpreter with the relay until it is done: a request may wait some milliseconds more for its turn.
Where the kernel does not tell who called (not Linux), the file's mode is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...errors import TooMuch, Unavailable, UnspoolError
from ..protocol import Spool
from . import wire

log: Final = logging.getLogger("unspool.desk")

NAME: Final = "desk"
VISITORS_MAX: Final = 8
PAGE_MAX: Final = 512
WHOLE_MAX: Final = 32
"""Messages with their requests, or answers, in one verb."""
SMALL_BYTES: Final = 1024 * 1024
"""A larger frame comes in one at a time."""
FRAME_S: Final = 20.0
IDLE_S: Final = 300.0
PAUSE_MAX_S: Final = 1.0
_CREDENTIALS: Final = struct.Struct("iII")


@contextlib.contextmanager
def address(folder: Path) -> Iterator[str]:
    """The socket's name, however deep the folder is: the kernel takes 107 bytes of one."""
    direct = str(folder / NAME)
    if len(os.fsencode(direct)) < 100 or not os.path.isdir("/proc/self/fd"):
        yield direct
        return
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{held}/{NAME}"
    finally:
        os.close(held)


def caller(connection: socket.socket) -> int | None:
    """The user at the other end, as the kernel knows it; None where it does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(fileno=os.dup(connection.fileno())) as asked:  # uvloop's is none
        told = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(told)[1]
    return user


def is_ours(user: int | None) -> bool:
    return user is None or user in (0, os.geteuid())


def listening(folder: Path) -> socket.socket:
    """Whoever has the folder's lock may do this: a socket that is there is a dead process's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / NAME)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(folder) as name:
            listener.bind(name)
        os.chmod(folder / NAME, 0o600)  # nobody could connect yet: it does not listen
        listener.listen(VISITORS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def open_desk(spool: Spool, folder: Path) -> Desk | None:
    """None, and a word in the log, where it cannot be: the relay does without."""
    try:
        listener = listening(folder)
    except OSError as error:
        log.warning("operators cannot look at %s while this runs: %s", folder, error)
        return None
    desk = Desk(spool, folder)
    desk.server = await asyncio.start_unix_server(desk.visit, sock=listener)
    return desk


class Desk:
    def __init__(self, spool: Spool, folder: Path) -> None:
        self.server: asyncio.Server | None = None
        self.frame_max_bytes = wire.FRAME_MAX_BYTES
        self._spool: Final = spool
        self._folder: Final = folder
        self._visits: set[asyncio.Task[Any]] = set()
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Hang up on everybody. What was begun may have happened, as everywhere."""
        if self.server is None:
            return
        self.server.close()
        for visit in list(self._visits):
            visit.cancel()
        if self._visits:
            await asyncio.wait(self._visits, timeout=FRAME_S)
        await self.server.wait_closed()
        self.server = None
        with contextlib.suppress(OSError):
            os.unlink(self._folder / NAME)

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        try:
            if is_ours(caller(writer.get_extra_info("socket"))):
                await self._serve(reader, writer)
            else:
                log.warning("another user tried to look at %s, and was sent away", self._folder)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            log.debug("a visitor left: %r", error)
        except asyncio.CancelledError:
            pass  # we close; asyncio's own callback would make a fuss of it
        except Exception:
            log.exception("a visitor at the desk met a mistake of ours; the relay goes on")
        finally:
            self._visits.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._visits) > VISITORS_MAX:
            why_not = (
                f"{VISITORS_MAX} commands look at the spool {self._folder} already. Nothing of this"
                " one was done; repeat it when one of them has ended: unspool queue"
            )
            await self._say(writer, wire.hello(None, why_not))
            writer.close()  # and not abort: it is to be heard
            async with asyncio.timeout(FRAME_S):
                await writer.wait_closed()
            return
        await self._say(writer, wire.hello(self._spool.promises))
        while True:
            async with asyncio.timeout(IDLE_S):
                head = await reader.readexactly(wire.LENGTH_BYTES)
            length = int.from_bytes(head, "big")
            if length > wire.FRAME_MAX_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            if length <= SMALL_BYTES:
                async with asyncio.timeout(FRAME_S):
                    data = await reader.readexactly(length)
                async with self._turn:
                    await self._answer(data, writer)
            else:
                async with self._turn:
                    async with asyncio.timeout(FRAME_S):
                        data = await reader.readexactly(length)
                    await self._answer(data, writer)

    async def _answer(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """One verb, and a pause as long as it took: at most half of anything is an operator's."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = wire.decode_call(data)
        try:
            answer = wire.answered(call, await self._do(call))
        except UnspoolError as error:
            answer = wire.failed(error)
        except Exception:
            log.exception("an operator's %s met a mistake of ours", type(call).__name__)
            answer = wire.failed(Unavailable())
        if len(answer) > self.frame_max_bytes:
            answer = wire.failed(TooMuch(_TOO_MUCH.format(folder=self._folder)))
        took_s = loop.time() - began
        await self._say(writer, answer)
        await asyncio.sleep(min(PAUSE_MAX_S, took_s))

    async def _say(self, writer: asyncio.StreamWriter, payload: bytes) -> None:
        writer.write(wire.frame(payload))
        async with asyncio.timeout(FRAME_S):
            await writer.drain()

    async def _do(self, call: wire.Call) -> Any:
        spool = self._spool
        match call:
            case wire.Accept():
                return await spool.accept(call.entries)
            case wire.Survey():
                return await spool.survey(after=call.after, limit=min(call.limit, PAGE_MAX))
            case wire.Take():
                return await spool.lease(_fewer(call.wants), now=call.now, until=call.until)
            case wire.Settle():
                return await spool.settle(call.settlements)
            case wire.Renew():
                return await spool.renew(call.leases, until=call.until)
            case wire.Find():
                return await spool.find(call.keys[:WHOLE_MAX])
            case wire.Browse():
                limit = min(call.limit, WHOLE_MAX if call.requests else PAGE_MAX)
                return await spool.browse(
                    call.query, after=call.after, limit=limit, requests=call.requests
                )
            case wire.Count():
                return await spool.tally(call.edges)
            case wire.Seize():
                return await spool.seize(call.keys[:WHOLE_MAX], now=call.now, until=call.until)
            case wire.Expire():
                limit = min(call.limit, PAGE_MAX)
                return await spool.expire(now=call.now, until=call.until, limit=limit)
            case wire.Sweep():
                return await spool.sweep(now=call.now, limit=min(call.limit, PAGE_MAX))
            case wire.ListDamaged():
                return await spool.damaged(after=call.after, limit=min(call.limit, PAGE_MAX))
            case wire.Discard():
                return await spool.discard(call.marks[:PAGE_MAX])


def _fewer(wants: dict[Any, int]) -> dict[Any, int]:
    """Of the first destinations, so many that WHOLE_MAX come in all."""
    left = WHOLE_MAX
    fewer: dict[Any, int] = {}
    for destination, count in wants.items():
        if left and count:
            fewer[destination] = min(left, count)
            left -= fewer[destination]
    return fewer


_TOO_MUCH: Final = (
    "What was asked of the spool {folder} is larger than its desk passes on at once. What was"
    " leased for it is free again when its term runs out. Ask for less, or stop the relay and ask"
    " again: unspool show KEY"
)
