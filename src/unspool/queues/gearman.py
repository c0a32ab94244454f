"""gearmand as a queue: put = a background job, take = a worker's grab.

    gearman://host[:4730][,host2[:port]…][/function][?survives=power]      `unspool` unless named

`put` submits SUBMIT_JOB_BG under a unique of 32 characters, the BLAKE2b-128 of the payload:
gearmand makes one job of two with the same unique, so it must never be the same for bytes that
differ, and that of a key alone would be. It hands over once JOB_CREATED is back. With several
servers the first is used that answers; one that failed is asked last for a while.

`take` grabs from all servers (CAN_DO, GRAB_JOB_UNIQ), and sleeps where there is nothing (PRE_SLEEP)
until a server wakes it. `complete` is WORK_COMPLETE, and an echo behind it: when it returns, the
server has forgotten the job. There is no way to give one job back but to hang up (WORK_FAIL would
end it: gearmand runs a job again only where the worker has vanished), so `give_back` closes the
connection, and everything that was held on it is given to others.

`set_aside` submits the bytes to the function `<function>.aside` of the same server, and then ends
the job with WORK_FAIL: a sender who waits for its job in the foreground hears that it failed.

Promises: what a job survives depends on gearmand's queue module, which a client cannot ask. So
nothing, unless the operator says what he set up with `?survives=`: process, power, machine.

A payload beyond PAYLOAD_MAX_BYTES is not taken in: it is left on the connection, unanswered, logged
as an error, and back in its queue when the connection ends. Everything else goes on.

Bugs: no TLS and no passwords, for Debian's gearmand has no accounts: keep it on a trusted network,
or in a tunnel. A gearmand with `--job-retries` deletes what was given back so often. While one of
several servers does not answer, a take can last its deadline longer than `wait_ms`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

from ..core.urls import concealed
from ..errors import Full, Misconfigured, Unavailable
from .gearman_line import Limits, Line, Server, look
from .gearman_packets import Kind, Packet, pack
from .protocol import PAYLOAD_MAX_BYTES, Promises, Survives, Taken, too_large, unique

log: Final = logging.getLogger("unspool.queues")

FUNCTION: Final = "unspool"
SERVERS_MAX: Final = 16
LARGEST: Final = PAYLOAD_MAX_BYTES + 4096
"""A packet with the largest payload, and its other arguments."""
SUBMITS_AT_ONCE: Final = 32
"""Submitted before the first answer is read: its answers fit any buffer."""
TAKE_BYTES: Final = 32 * 1024 * 1024
"""A take that has so much asks for no more."""

_is_server: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,255}))(?::([0-9]{1,5}))?"
).fullmatch
_is_function: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}").fullmatch


class _Handle:
    """A job that we hold: gearmand's name for it, and the line on which it was given."""

    __slots__ = ("line", "name")

    def __init__(self, line: Line, name: bytes) -> None:
        self.line = line
        self.name = name


class _Post:
    """The way to one server: a line to put on, and one to take on."""

    def __init__(self, server: Server) -> None:
        self.server: Final = server
        self.turn: Final = asyncio.Lock()
        self.putting: Line | None = None
        self.taking: Line | None = None
        self.failed_at = -1e9
        self.asleep = False

    def lines(self) -> list[Line]:
        return [line for line in (self.putting, self.taking) if line is not None]


class GearmanQueue:
    def __init__(
        self,
        servers: Sequence[Server],
        *,
        function: str = FUNCTION,
        survives: Survives = Survives.NOTHING,
        limits: Limits | None = None,
    ) -> None:
        assert servers
        self._function: Final = function.encode()
        self._limits: Final = limits or Limits()
        self._posts: Final = [_Post(server) for server in servers]
        self._closed = False
        self._turns = 0
        told = "as its operator says" if survives else "what its queue module keeps is not known"
        self.promises: Final = Promises(
            survives=survives,
            exclusive=True,
            payload_max_bytes=PAYLOAD_MAX_BYTES,
            aside=f"{function}.aside",
            detail=f"gearmand, function {function}: {told}",
        )

    # --- handing over -----------------------------------------------------------------------

    async def put(self, payloads: Sequence[bytes], /) -> None:
        self._must_be_open()
        for payload in payloads:
            if len(payload) > self.promises.payload_max_bytes:
                raise too_large(payload, self.promises)
        left = [*payloads]
        began = self._now()
        troubles: list[Unavailable | Full] = []
        for post in sorted(self._posts, key=self._lately_failed):
            if not left:
                return
            try:
                await self._submit(post, self._function, left, began=began)
            except (Unavailable, Full) as error:
                troubles.append(error)
        if left:
            # One that does not answer may have room: only all together are full.
            raise next((e for e in troubles if isinstance(e, Unavailable)), troubles[0])

    async def _submit(
        self, post: _Post, function: bytes, left: list[bytes], *, began: float
    ) -> None:
        """Hand over what is `left`; what was taken is taken out of it."""
        async with post.turn:
            self._must_be_open()
            if post.failed_at >= began:
                raise Unavailable(
                    f"gearmand at {post.server} failed a moment ago. It was not asked again, and "
                    f"nothing was handed over. Try: {look(post.server)}"
                )
            try:
                if post.putting is None or post.putting.broken:
                    post.putting = await self._connect(post)
                while left:
                    await _submit_some(post.putting, function, left)
            except Unavailable:
                post.failed_at = self._now()
                raise

    # --- bringing back ----------------------------------------------------------------------

    async def take(self, *, limit: int, wait_ms: int) -> Sequence[Taken]:
        self._must_be_open()
        until = self._now() + wait_ms / 1000
        taken: list[Taken] = []
        while limit > 0:
            await self._grab(taken, limit)
            left_s = until - self._now()
            if taken or left_s <= 0:
                break
            await self._sleep(left_s)
        return taken

    async def _grab(self, taken: list[Taken], limit: int) -> None:
        """From each server in turn, beginning with another each time, until there is something."""
        self._turns += 1
        troubles: list[Unavailable | Full] = []
        for at in range(len(self._posts)):
            post = self._posts[(self._turns + at) % len(self._posts)]
            if self._lately_failed(post) and len(self._posts) > 1:
                continue
            try:
                if post.taking is None or post.taking.broken:
                    post.taking = await self._connect(post, able=True)
                post.asleep = False
                await _grab_from(post.taking, self._function, taken, limit)
            except (Unavailable, Full) as error:
                self._failed(post, error)
                troubles.append(error)
                # What was held on that line is given to others: it is not ours to give on.
                taken[:] = [one for one in taken if not _handle(one).line.broken]
            if taken:
                return
        if not any(post.taking and not post.taking.broken for post in self._posts):
            raise (
                troubles[0]
                if troubles
                else Unavailable(
                    "no gearmand of these answers, and none is asked again for a moment: "
                    + ", ".join(str(post.server) for post in self._posts)
                    + ". What they have, they keep. "
                    + f"Try: {look(self._posts[0].server)}"
                )
            )

    async def _sleep(self, left_s: float) -> None:
        """Until a server wakes us, time is up, or it is time to try one that failed."""
        for post in self._posts:
            if post.taking is None or post.taking.broken:
                again_s = post.failed_at + self._limits.again_ms / 1000 - self._now()
                left_s = min(left_s, max(again_s, 0.01))
            elif not post.asleep:
                try:
                    await post.taking.send(pack(Kind.PRE_SLEEP))
                    post.asleep = True
                except Unavailable as error:
                    self._failed(post, error)
                    return
        stirs = [
            asyncio.ensure_future(self._stir(post))
            for post in self._posts
            if post.taking and not post.taking.broken
        ]
        try:
            await asyncio.wait(stirs, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for stir in stirs:
                stir.cancel()
            await asyncio.gather(*stirs, return_exceptions=True)

    async def _stir(self, post: _Post) -> None:
        assert post.taking is not None
        try:
            await post.taking.stir()
        except Unavailable as error:
            self._failed(post, error)

    async def complete(self, taken: Sequence[Taken], /) -> None:
        for line, names in _by_line(taken):
            if not line.broken:
                await line.send(b"".join(pack(Kind.COMPLETE, name, b"") for name in names))
                await line.echo()

    async def give_back(self, taken: Sequence[Taken], /) -> None:
        for line, _ in _by_line(taken):
            line.hang_up()
            await line.aclose()

    async def set_aside(self, taken: Sequence[Taken], /) -> None:
        for line, names in _by_line(taken):
            if line.broken:
                continue
            [post] = [post for post in self._posts if post.server == line.server]
            these = [one.payload for one in taken if _handle(one).line is line]
            aside = self.promises.aside.encode()
            await self._submit(post, aside, these, began=self._now())
            await line.send(b"".join(pack(Kind.FAIL, name) for name in names))
            await line.echo()

    async def aclose(self) -> None:
        self._closed = True
        for post in self._posts:
            for line in post.lines():
                await line.aclose()

    # --- lines ------------------------------------------------------------------------------

    async def _connect(self, post: _Post, *, able: bool = False) -> Line:
        line = await Line.open(post.server, self._limits, largest=LARGEST)
        try:
            await line.send(pack(Kind.SET_CLIENT_ID, b"unspool-%d" % os.getpid()))
            if able:
                await line.send(pack(Kind.CAN_DO, self._function))
                await line.echo()  # before the first grab: who answers here, and does he speak it?
        except BaseException:
            line.hang_up()
            await line.aclose()
            raise
        return line

    def _failed(self, post: _Post, error: Exception) -> None:
        post.failed_at = self._now()
        if len(self._posts) > 1:
            log.warning("%s", error)

    def _lately_failed(self, post: _Post) -> bool:
        return self._now() - post.failed_at < self._limits.again_ms / 1000

    def _must_be_open(self) -> None:
        if self._closed:
            raise Unavailable("the queue was closed. Nothing was handed over. Open another.")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _submit_some(line: Line, function: bytes, left: list[bytes]) -> None:
    some = left[:SUBMITS_AT_ONCE]
    try:
        for payload in some:
            await line.send(pack(Kind.SUBMIT_BG, function, unique(payload).encode(), payload))
        for payload in some:
            packet = await line.receive()
            if packet.kind is not Kind.CREATED:
                raise Unavailable(
                    f"gearmand at {line.server} answered with a packet of kind {packet.kind}. It is"
                    f" not known to have been handed over. Try: {look(line.server)}"
                )
            left.remove(payload)
    except BaseException:
        line.hang_up()  # answers that are still to come are nobody's
        raise


async def _grab_from(line: Line, function: bytes, taken: list[Taken], limit: int) -> None:
    """Ask for more and more at once, until there is none or it is enough."""
    asked, size, none = 1, 0, False
    while not none and len(taken) < limit and size < TAKE_BYTES:
        asked = min(asked, limit - len(taken))
        await line.send(pack(Kind.GRAB_UNIQ) * asked)
        answers = 0
        while answers < asked:
            packet = await line.receive()
            if packet.kind is Kind.NONE:
                none = True
            elif packet.kind is Kind.ASSIGN_UNIQ:
                if (one := _taken(line, packet)) is not None:
                    taken.append(one)
                    size += len(one.payload)
            else:
                answers -= 1  # NOOP: it meant to wake us, and we are awake
            answers += 1
        asked = min(asked * 2, SUBMITS_AT_ONCE)


def _taken(line: Line, packet: Packet) -> Taken | None:
    handle, function, _, payload = packet.arguments
    name = handle.decode("utf-8", "replace")
    if packet.whole and len(payload) <= PAYLOAD_MAX_BYTES:
        return Taken(payload, name, _Handle(line, handle))
    log.error(
        "%s at %s has more than %d bytes, and is not taken in. It is left with gearmand, and in "
        "its queue again when this collector ends; the rest goes on. Take it out: "
        "gearman -w -h %s -p %d -f %s -c 1",
        name, line.server, PAYLOAD_MAX_BYTES, line.server.host, line.server.port,
        function.decode("utf-8", "replace"),
    )  # fmt: skip
    return None


def _handle(one: Taken) -> _Handle:
    assert isinstance(one.handle, _Handle)
    return one.handle


def _by_line(taken: Sequence[Taken]) -> list[tuple[Line, list[bytes]]]:
    lines: dict[Line, list[bytes]] = {}
    for one in taken:
        handle = _handle(one)
        lines.setdefault(handle.line, []).append(handle.name)
    return list(lines.items())


def open_gearman(url: str) -> GearmanQueue:
    """Raises `Misconfigured`."""
    rest = url.partition("://")[2]
    places, _, path = rest.partition("?")[0].partition("/")
    servers = [_server(url, place) for place in places.split(",")]
    if len(servers) > SERVERS_MAX:
        raise _misconfigured(url, f"at most {SERVERS_MAX} servers")
    if path and not _is_function(path):
        raise _misconfigured(url, "a function's name has letters, digits and . _ : - only")
    survives = Survives.NOTHING
    for name, value in parse_qsl(rest.partition("?")[2], keep_blank_values=True):
        if name != "survives" or value.upper() not in Survives.__members__:
            raise _misconfigured(url, "behind ? there is only survives=process, power or machine")
        survives = Survives[value.upper()]
    return GearmanQueue(servers, function=path or FUNCTION, survives=survives)


def _server(url: str, place: str) -> Server:
    found = _is_server(place)
    port = int(found[3] or 4730) if found else 0
    if found is None or not 0 < port < 65536:
        raise _misconfigured(url, "there is a server that is no host with an optional port")
    return Server(found[1] or found[2], port)


def _misconfigured(url: str, why: str) -> Misconfigured:
    return Misconfigured(
        f"{concealed(url)!r} names no gearmand: {why}. Nothing was opened. Write: "
        "gearman://127.0.0.1:4730/unspool"
    )
