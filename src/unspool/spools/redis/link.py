"""Link: one Redis or Valkey, asked by script, with a deadline for everything.

    link = Link(read_url(url))
    await link.open()                                  measures the server; makes or finds the spool
    answer = await link.call("accept", items=…, durable=True)
    await link.close()

A connection is lent out for one exchange and comes back only when that was whole: whatever breaks
off, be it the server, the deadline or the caller, no reply is left on it for the next. A caller who
is cancelled does not break it off: what was sent is read to its end, and nobody waits.

What the server promises is measured again on every new connection and every ten seconds: one that
has come to promise less than when the spool was opened is not written to any more.

Does not: repeat anything by itself. After `Unavailable` a call may or may not have happened (12).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Final

import redis.exceptions as trouble
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ...core.message import Value
from ...errors import (
    Full,
    Misconfigured,
    Newer,
    NoSpool,
    NotDone,
    Refused,
    Unavailable,
    UnspoolError,
)
from .rows import FORM, Rows, strings, word
from .server import SETTINGS, Measured, honest, judge, lowered, parse_info
from .trouble import Stage, translate
from .url import Place

CONNECTIONS_MAX: Final = 8
IDLE_S: Final = 30.0
"""A connection that rested for longer may have been closed by the server: it is made anew."""
BATCH_MAX_BYTES: Final = 256 * 1024 * 1024
"""Redis closes connections that send more than 1 GiB at once, and is busy with it for long."""

LOOKS: Final = frozenset({"find"})
"""Verbs that write nothing, and may show what has to be synced first."""

SCRIPT: Final = files(__package__).joinpath("redis.lua").read_bytes()
SHA: Final = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()


class Patience(Value, frozen=True):
    """How long everything may take."""

    connect_s: float = 3.0
    answer_s: float = 5.0
    """For each reply, and for each request to be taken."""
    call_s: float = 10.0
    """For all of a call, from waiting for a connection to the last reply."""
    sync_ms: int = 4_000
    """How long the server may take to sync what it was told to."""
    measure_s: float = 10.0
    """How long what was measured is believed."""


class _Asked(Value, frozen=True):
    verb: str
    args: bytes
    items: Sequence[bytes]
    durable: bool | Callable[[bytes], bool]

    def binds(self, answer: bytes) -> bool:
        return self.durable(answer) if callable(self.durable) else self.durable


class Link:
    def __init__(self, place: Place, patience: Patience | None = None) -> None:
        self._patience: Final = patience or Patience()
        self.place: Final = place
        self.about: Final = f"{{{place.name}}}:about".encode()
        self.bell: Final = f"{{{place.name}}}:bell".encode()
        self.corrupt = 0
        """Records set aside."""
        self.rings = 0
        self.measured: Measured | None = None
        self._pool: Final[Any] = _pool(place.url, self._patience)
        self._id = b""
        self._idle: list[tuple[float, Any]] = []
        self._places: Final = asyncio.Semaphore(CONNECTIONS_MAX)
        self._order: Final = asyncio.Lock()
        self._busy: set[asyncio.Task[bytes]] = set()
        self._measured_at = 0.0
        self._tried = ""
        """The run of the server in which its WAITAOF was tried last."""
        self._honest = False
        self._closed = False

    async def open(self, *, create: bool = True) -> None:
        """Raises `Misconfigured`, `PromiseBroken`, `Newer`, `Unavailable`, `NoSpool`."""
        new = os.urandom(8).hex().encode() if create else b""
        try:
            answer = await self.call("open", args=strings(FORM, new))
        except BaseException:
            await self.close()
            raise
        if answer[:1] != b"O":
            await self.close()
            raise self._not_ours(answer[:1], word(answer[1:]))
        found = Rows(answer[1:])
        self._id = found.string()
        self.rings, self.corrupt = found.number(), found.number()

    def _not_ours(self, kind: bytes, what: str) -> UnspoolError:
        if kind == b"V":
            return Newer(
                f"The spool at {self.place.shown} has the form {what}, and this unspool reads"
                f" {FORM.decode()}. Nothing was changed. Install the newer one: pip install -U"
                " unspool"
            )
        if kind == b"N":
            return NoSpool(
                f"There is no spool {word(self.about[1:-7])!r} in {self.place.shown}: nothing was"
                " ever accepted there, and looking makes none. Name the one that the relay has:"
                " --spool redis://HOST/0?name=orders"
            )
        return Misconfigured(
            f"At {self.place.shown} the key {what} belongs to another program. Nothing was"
            " changed. Give the spool a name of its own: unspool serve --spool redis://HOST/0?name=orders"
        )

    # -- calls -----------------------------------------------------------------------------------

    async def call(
        self,
        verb: str,
        *,
        args: bytes = b"",
        items: Sequence[bytes] = (),
        durable: bool | Callable[[bytes], bool] = False,
    ) -> bytes:
        """`durable`: synced when it returns; or whether to, told from the answer."""
        if self._closed:
            raise NotDone(f"The spool at {self.place.shown} is closed. Nothing was done.")
        if sum(map(len, items)) > BATCH_MAX_BYTES:
            raise Full(
                f"{len(items)} requests are more than {BATCH_MAX_BYTES >> 20} MiB in one batch."
                " Nothing of it was done; send them again, fewer at a time."
            )
        task = asyncio.create_task(self._call(_Asked(verb, args, items, durable)))
        self._busy.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: asyncio.Task[bytes]) -> None:
        self._busy.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have gone

    async def _call(self, asked: _Asked) -> bytes:
        try:
            async with asyncio.timeout(self._patience.call_s):
                return await self._lend(asked)
        except Refused:
            raise
        except UnspoolError as error:
            if not self._id:
                raise
            raise NotDone(str(error)) from error  # whoever sends is not to blame
        except (trouble.RedisError, OSError, TimeoutError) as error:
            if not isinstance(error, trouble.ResponseError):
                await self._drop_idle()
            found = translate(error, self.place, at=Stage.ASKED)
            if self._id and not isinstance(found, Refused):
                found = Unavailable(str(found))
            raise found from error

    async def _lend(self, asked: _Asked) -> bytes:
        """Accepts are sent in the order of their calls: that is the order of acceptance (10)."""
        ordered = asked.verb == "accept"
        if ordered:
            await self._order.acquire()
        try:
            async with self._places:
                connection = await self._connection()
                whole = False
                try:
                    answer = await self._ask(connection, asked)
                    if ordered:
                        self._order.release()  # the next may go while this one waits for the disk
                        ordered = False
                    if self.measured is not None and self.measured.waits and asked.binds(answer):
                        await self._sync(connection, asked)
                    whole = True
                except trouble.ResponseError:
                    whole = True  # it said no, and that was all of it
                    raise
                finally:
                    if whole and not self._closed:
                        self._idle.append((asyncio.get_running_loop().time(), connection))
                    else:
                        await connection.disconnect(nowait=True)
                return answer
        finally:
            if ordered:
                self._order.release()

    async def _ask(self, connection: Any, asked: _Asked) -> bytes:
        rest = (1, self.about, asked.verb, self._id, asked.args, *asked.items)
        try:
            found: bytes = await _exchange(connection, "EVALSHA", SHA, *rest)
        except trouble.NoScriptError:  # a new server, or its scripts were flushed
            found = await _exchange(connection, "EVAL", SCRIPT, *rest)
        return found

    async def _sync(self, connection: Any, asked: _Asked) -> None:
        """Raises `Unavailable` where what was done may not be on the server's disk."""
        try:
            if asked.verb in LOOKS:  # WAITAOF waits for one's own writes alone
                await self._touch(connection)
            synced = await self._synced(connection)
        except (trouble.RedisError, OSError) as error:
            await self._drop_idle()
            raise translate(error, self.place, at=Stage.TAKEN) from error
        if not synced:
            raise Unavailable(
                f"{self.place.shown} took the batch and has not synced it within"
                f" {self._patience.sync_ms} ms: it may or may not be kept. Repeat it under its key."
                f" See what the disk does: {self.place.cli} INFO persistence"
            )

    async def _synced(self, connection: Any) -> bool:
        """Wait until what this connection wrote last is on the server's disk."""
        local, _ = await _exchange(connection, "WAITAOF", 1, 0, self._patience.sync_ms)
        return bool(local)

    # -- connections -----------------------------------------------------------------------------

    async def _connection(self) -> Any:
        loop = asyncio.get_running_loop()
        connection = None
        while self._idle and connection is None:
            rested_at, connection = self._idle.pop()
            if loop.time() - rested_at > IDLE_S:
                await connection.disconnect(nowait=True)
                connection = None
        try:
            if connection is None:
                connection = self._pool.make_connection()
                await connection.connect()
                await self._measure(connection)
            elif loop.time() - self._measured_at > self._patience.measure_s:
                await self._measure(connection)
        except BaseException as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(error, trouble.RedisError | OSError):
                await self._drop_idle()
                raise translate(error, self.place, at=Stage.CONNECTING) from error
            raise
        return connection

    async def _measure(self, connection: Any) -> None:
        info = parse_info(await _exchange(connection, "INFO"))
        config: dict[str, str] = {}
        for name in SETTINGS:
            try:
                pairs = await _exchange(connection, "CONFIG", "GET", name)
            except trouble.ResponseError:  # hosted ones hide it
                break
            config |= {word(pairs[0]): word(pairs[1])} if pairs else {}
        before, tried = self.measured, self._tried
        now = judge(info, config, self.place, before=before)
        if now.waits:
            if now.run != tried:
                self._honest = await self._waits_for_the_disk(connection)
                tried = now.run
            now = now if self._honest else lowered(now, self.place)
        if before is not None and now.survives < before.survives:
            raise NotDone(
                f"{self.place.shown} promised more when the spool was opened ({before.detail}) than"
                f" now ({now.detail}). Nothing was done; start unspool again where that is meant."
            )
        self.measured, self._tried = now, tried
        self._measured_at = asyncio.get_running_loop().time()

    async def _waits_for_the_disk(self, connection: Any) -> bool:
        """Two writes, one behind the other: takes a second or two where it does."""
        loop = asyncio.get_running_loop()
        for _ in "12":
            began = loop.time()
            await self._touch(connection)
            if not await self._synced(connection):
                raise NotDone(
                    f"{self.place.shown} does not sync within {self._patience.sync_ms} ms. Nothing"
                    f" was done. See what the disk does: {self.place.cli} INFO persistence"
                )
        return honest((loop.time() - began) * 1000)

    async def _touch(self, connection: Any) -> None:
        """By script: a SET of its own would be refused for want of memory."""
        await self._ask(connection, _Asked("touch", b"", (), durable=False))

    async def subscriber(self) -> Any:
        """A connection of one's own; nothing is measured on it."""
        connection = self._pool.make_connection()
        await connection.connect()
        return connection

    async def _drop_idle(self) -> None:
        """The server was not there: what rests was cut off as well."""
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """What was begun is read to its end, within its deadline."""
        self._closed = True
        if self._busy:
            await asyncio.wait(self._busy)
        await self._drop_idle()


async def _exchange(connection: Any, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response(disable_decoding=True)


def _pool(url: str, patience: Patience) -> ConnectionPool:
    """Only makes connections; which are free is told here."""
    # Older libraries look at the name in a certificate only where they are told to.
    named = {"ssl_check_hostname": True} if _verified(url) else {}
    return ConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=patience.answer_s,
        socket_connect_timeout=patience.connect_s,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        client_name="unspool",
        **named,
    )


def _verified(url: str) -> bool:
    return url.startswith("rediss:") and "ssl_cert_reqs=none" not in url
