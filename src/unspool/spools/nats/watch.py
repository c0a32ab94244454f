"""Watch: feeds an index from a bucket, in order, and says up to where.

    watch = Watch(link, on_news)
    await watch.load()                  a whole index, as of now
    watch.index                         what is known
    await watch.reach(sequence)         it is known up to there
    await watch.current()               … up to where the stream is at this moment
    watch.told(…)                       our own writes, as they are acknowledged

An ordered push consumer of ours: no acknowledgements, headers only, kept in the server's memory,
with flow control and a heartbeat. It is made again behind what was seen last where a message is
missing, or nothing was heard for SILENCE_S. After a reconnection to a server that started anew, or
after an absence in which tombstones may have gone, nothing old is believed: a new index is filled
from the beginning beside the old one, which serves meanwhile (its writes are fenced by their
revisions) and is let go of when the new one is complete.

While there is no connection the index is as it was; `reach` waits, and gives up after REACH_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ...core.message import Key
from ...core.record import Spoilt
from ...errors import UnspoolError
from .index import Index
from .link import Link, Refusal
from .records import ASIDE, FACTS, OPERATION, TOMBSTONE_S, Change, Known, checked_facts, key_of
from .wire import ANSWER_S

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log: Final = logging.getLogger("unspool.spool")

HEARTBEAT_S: Final = 0.5
SILENCE_S: Final = 2.5
REACH_S: Final = ANSWER_S
LOAD_S: Final = 10.0
"""A load in which nothing comes for so long is given up."""
INACTIVE_S: Final = 30
AGAIN_S: Final = 0.25
PENDING_BYTES: Final = 256 * 1024 * 1024


class Watch:
    def __init__(self, link: Link, on_news: Callable[[], None]) -> None:
        self.index = Index()
        self.reloads = 0
        """How often everything was read again since it was opened."""
        self._link: Final = link
        self._on_news: Final = on_news
        self._loop: Final = asyncio.get_running_loop()
        self._loading: Index | None = None
        self._base = 0
        """Where the stream was when the consumer was made."""
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._next = 1
        """The consumer's number of the message that comes next."""
        self._count = 0
        """Of all messages that were ever shown."""
        self._heard_at = 0.0
        self._server = ""
        self._broken = asyncio.Event()
        self._progress: set[tuple[int, asyncio.Future[None]]] = set()
        self._loaded: asyncio.Future[None] | None = None
        self._minding: asyncio.Task[None] | None = None
        self._closed = False
        prefix = link.names.prefix
        self._messages, self._lines = f"{prefix}m.", f"{prefix}l."

    # -- beginning and end -----------------------------------------------------------------------

    async def load(self) -> None:
        """Raises `Unavailable`."""
        try:
            await self._begin(whole=True)
            self._minding = asyncio.create_task(self._mind(), name="unspool nats watch")
            await self._until_loaded()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        self._closed = True
        if self._minding is not None:
            self._minding.cancel()
            await asyncio.gather(self._minding, return_exceptions=True)
        await self._end()
        for _, future in self._progress:
            future.cancel()

    def disturbed(self) -> None:
        """The connection was lost and is there again: look whether it is still the same."""
        self._broken.set()

    # -- what others ask -------------------------------------------------------------------------

    def told(self, change: Change, revision: int) -> None:
        """A change of ours has this revision."""
        for index in (self.index, self._loading):
            if index is None:
                continue
            if change.facts is None:
                index.remove(revision, change.key)
            elif change.aside:
                index.spoil(revision, change.key)
            else:
                index.apply(revision, change.facts)

    def line_told(self, line: str, revision: int, expected: int | None) -> None:
        for index in (self.index, self._loading):
            if index is not None:
                index.line_written(line, revision, expected)

    def learned(self, known: Known) -> None:
        """Read from the server: it may be ahead of the watch, for which it is no news then."""
        for index in (self.index, self._loading):
            if index is not None and index.apply(known.revision, known.facts):
                self._on_news()

    def removed(self, key: Key, revision: int) -> None:
        """The server has its tombstone."""
        for index in (self.index, self._loading):
            if index is not None:
                index.remove(revision, key)

    def missing(self, key: Key, revision: int) -> None:
        """The server has nothing any more of what was known at this revision."""
        for index in (self.index, self._loading):
            if index is not None and (row := index.get(key)) and row[0] == revision:
                index.remove(revision + 1, key)

    def spoilt(self, key: Key, revision: int) -> None:
        for index in (self.index, self._loading):
            if index is not None and index.spoil(revision, key):
                log.error(
                    "a record in the spool %s failed its checksum and was set aside: %s",
                    self._link.shown, key,
                )  # fmt: skip

    async def reach(self, sequence: int) -> None:
        """Raises `Unavailable`: the news is late."""
        if self.index.position >= sequence:
            return
        future = asyncio.get_running_loop().create_future()
        waiter = (sequence, future)
        self._progress.add(waiter)
        try:
            async with asyncio.timeout(REACH_S):
                await future
        except TimeoutError as error:
            raise self._link.wire.gone("its news is late") from error
        finally:
            self._progress.discard(waiter)

    async def current(self) -> None:
        await self.reach(int((await self._link.info())["state"]["last_seq"]))

    # -- the consumer ----------------------------------------------------------------------------

    async def _begin(self, *, whole: bool) -> None:
        """A consumer from the beginning, or from behind what was seen last."""
        link = self._link
        await self._end()
        info = await link.info()
        self._base = int(info["state"]["last_seq"])
        self._server = link.wire.server_id
        if not whole and self._base < self.index.position:
            whole = True  # the stream has gone back: it is not the one that we knew
        self._loading = Index() if whole else None
        start = 1 if whole else self.index.position + 1
        inbox = link.wire.new_inbox()
        self._consumer, self._next = inbox[-22:], 1
        self._subscription = await link.wire.subscribe(
            inbox, partial(self._shown, self._consumer), pending_bytes=PENDING_BYTES
        )
        self._heard_at = self._now()
        self._broken.clear()
        config = {
            "name": self._consumer, "deliver_subject": inbox, "ack_policy": "none",
            "max_deliver": 1, "replay_policy": "instant", "headers_only": True,
            "flow_control": True, "idle_heartbeat": int(HEARTBEAT_S * 1e9), "mem_storage": True,
            "num_replicas": 1, "inactive_threshold": INACTIVE_S * 1_000_000_000,
            "deliver_policy": "by_start_sequence", "opt_start_seq": start,
        }  # fmt: skip
        try:
            made = await link.api(
                f"CONSUMER.CREATE.{link.names.stream}.{self._consumer}",
                {"stream_name": link.names.stream, "config": config},
            )
        except Refusal as error:
            raise link.wire.gone(f"it gives no news: {error}") from error
        if not made.get("num_pending"):
            self._caught_up()

    async def _end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        consumer, link = self._consumer, self._link
        with contextlib.suppress(Exception):  # it goes by itself, too, when nobody listens
            await subscription.unsubscribe()
            if link.wire.connected:
                await link.wire.send(f"$JS.API.CONSUMER.DELETE.{link.names.stream}.{consumer}")

    async def _until_loaded(self) -> None:
        while self._loading is not None:
            before = self._count
            self._loaded = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(LOAD_S):
                    await self._loaded
            except TimeoutError as error:
                if self._count == before:
                    raise self._link.wire.gone("it gives no news") from error

    async def _mind(self) -> None:
        """Begin again where it broke off, and as often as it takes."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._broken.wait()
            if not self._link.wire.connected:
                self._broken.clear()
                await self._reopen()
                continue
            silent_s = self._now() - self._heard_at
            if not self._broken.is_set() and silent_s < SILENCE_S:
                continue
            old = self._server != self._link.wire.server_id or silent_s > TOMBSTONE_S / 2
            try:
                if old:
                    self.reloads += 1
                    log.info("reading all of the spool %s again", self._link.shown)
                await self._begin(whole=old or self._loading is not None)
            except UnspoolError as error:
                log.warning("no news of the spool: %s", error)
                self._broken.set()
                await asyncio.sleep(AGAIN_S)
            except Exception:
                log.exception("the watch of the spool made a mistake; it begins again")
                self._broken.set()
                await asyncio.sleep(AGAIN_S)

    async def _reopen(self) -> None:
        """nats-py reconnects by itself, but not after everything that a server may say."""
        if self._link.wire.closed:
            try:
                await self._link.wire.reopen()
            except UnspoolError as error:
                log.warning("no connection to the spool: %s", error)
                await asyncio.sleep(AGAIN_S)

    # -- what is shown ---------------------------------------------------------------------------

    async def _shown(self, consumer: str, message: Msg) -> None:
        """One after the other: the next waits for this."""
        try:
            if consumer == self._consumer and self._subscription is not None:
                await self._show(message)
        except Exception:  # nats-py would keep it to itself
            log.exception("the watch of the spool made a mistake; it begins again")
            self._broken.set()

    async def _show(self, message: Msg) -> None:
        self._heard_at = self._now()
        headers = message.headers or {}
        if message.reply[:8] != "$JS.ACK.":
            await self._control(headers, message.reply)
            return
        tokens = message.reply.split(".")
        sequence, number, pending = (
            (tokens[5], tokens[6], tokens[8]) if len(tokens) == 9
            else (tokens[7], tokens[8], tokens[10])
        )  # fmt: skip
        if int(number) != self._next:
            self._broken.set()  # something did not come: begin again behind what did
            return
        self._next += 1
        self._count += 1
        index = self._loading if self._loading is not None else self.index
        self._take(index, int(sequence), message.subject, headers)
        if pending == "0":
            index.passed(int(sequence))
            self._caught_up()
        elif index is self.index:
            self._advance(int(sequence))

    async def _control(self, headers: dict[str, str], reply: str) -> None:
        if headers.get("Status") != "100":
            self._broken.set()  # the consumer is gone
            return
        answer_to = reply or headers.get("Nats-Consumer-Stalled", "")
        if answer_to:
            with contextlib.suppress(UnspoolError):
                await self._link.wire.send(answer_to)
        elif int(headers.get("Nats-Last-Consumer", self._next - 1)) != self._next - 1:
            self._broken.set()
        elif self._loading is not None or self.index.position < self._base:
            # Idle, and the last that there was has gone with age before it was shown?
            link = self._link
            info = await link.api(f"CONSUMER.INFO.{link.names.stream}.{self._consumer}")
            if not info["num_pending"] and info["delivered"]["consumer_seq"] == self._next - 1:
                self._caught_up()

    def _take(self, index: Index, revision: int, subject: str, headers: dict[str, str]) -> None:
        if subject.startswith(self._lines):
            index.line_seen(subject[len(self._lines) :], revision)
        if not subject.startswith(self._messages):
            return
        try:
            key = key_of(subject[len(self._messages) :])
        except ValueError:
            return  # nobody's: no key of ours is written so
        facts_header = headers.get(FACTS)
        if headers.get(OPERATION):
            news = index.remove(revision, key)
        elif facts_header is None or ASIDE in headers:
            news = index.spoil(revision, key)
        else:
            try:
                news = index.apply(revision, checked_facts(facts_header, key))
            except Spoilt as error:
                log.error(
                    "a record in the spool %s is set aside: %s (%s)",
                    self._link.shown, key, error,
                )  # fmt: skip
                news = index.spoil(revision, key)
        if news and index is self.index:
            self._on_news()

    def _caught_up(self) -> None:
        """Everything there was when the consumer was made has been shown."""
        if self._loading is not None:
            self.index, self._loading = self._loading, None
            self._on_news()
        self._advance(self._base)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)

    def _advance(self, sequence: int) -> None:
        index = self.index
        index.passed(sequence)
        for waiter in [waiter for waiter in self._progress if waiter[0] <= index.position]:
            self._progress.discard(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)

    def _now(self) -> float:
        return self._loop.time()
