"""RabbitMQ as a queue: put = a persistent message, confirmed; take = deliveries, acknowledged late.

    amqp://user:password@host[:5672][/vhost][?queue=orders]     `unspool` unless named
    amqps://…                                                   with TLS

Needs aio-pika: pip install 'unspool[rabbitmq]'.

`put` publishes to a durable queue, persistent and mandatory, and hands over once RabbitMQ confirms,
which it does when the message is on disk (or, of a quorum queue, on most disks). The queue is made
if there is none; one that is there is used as it is, whatever its type and limits, but must be
durable. Full is what a queue with `x-overflow: reject-publish` says.

`take` consumes with a prefetch until something has come, and stops: between takes nothing is sent
to us, so that nobody hoards what others could have. RabbitMQ counts a prefetch in messages alone;
so it is what of the last ones would fit TAKE_BYTES, at most `limit`, and grows slowly. `complete`
acknowledges, and asks something behind it: when it returns RabbitMQ has dealt with that. It does
not sync it: what was completed just before a kill -9 of RabbitMQ is given again, and is known by
its key. `set_aside` publishes to `<queue>.aside`.

The connections are aio-pika's plain ones. The robust kind keeps a publish waiting for as long as
the server is away and then sends it, after its caller has gone elsewhere: not for custody. Two of
them: a server that is short of memory stops reading from publishers, and must hear acknowledgements
all the same.

Bugs: where large messages follow many small ones a take is larger once. Does not see that a server
refuses to publish before its deadline has passed (no confirm comes). A delivery that RabbitMQ gives
again and again, because something kills the collector each time, is not counted; a quorum queue
with a delivery limit drops it or moves it to its dead letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import Full, Misconfigured, Missing, PromiseBroken, Unavailable
from .protocol import PAYLOAD_MAX_BYTES, Promises, Survives, Taken, too_large
from .rabbitmq_place import QUEUE, Limits, Place, place_of

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

CONFIRMS_AT_ONCE: Final = 64
"""Published before the first confirm is back."""
TAKE_BYTES: Final = 32 * 1024 * 1024
"""A take is to have no more."""
FIRST: Final = 8
AT_ONCE_MAX: Final = 1024
"""Messages that are sent to us unasked: at first, and at most."""
MORE_S: Final = 0.002
"""How long after the first delivery others that are on their way are waited for."""


class _Handle:
    """A delivery that we hold."""

    __slots__ = ("channel", "message")

    def __init__(self, channel: AbstractChannel, message: AbstractIncomingMessage) -> None:
        self.channel = channel
        self.message = message


class RabbitQueue:
    def __init__(self, place: Place, *, queue: str = QUEUE, limits: Limits | None = None) -> None:
        self._place: Final = place
        self._queue: Final = queue
        self._limits: Final = limits or Limits()
        self._putting: AbstractChannel | None = None
        self._taking: AbstractChannel | None = None
        self._connections: Final[dict[AbstractChannel, AbstractConnection]] = {}
        self._turn: Final = asyncio.Lock()
        self._room: Final = asyncio.Semaphore(CONFIRMS_AT_ONCE)
        self._arrived: Final[deque[AbstractIncomingMessage]] = deque()
        self._bell: Final = asyncio.Event()
        self._held: Final[set[_Handle]] = set()
        self._undoing: asyncio.Task[None] | None = None
        self._at_once = FIRST
        self._declared: Final[set[tuple[AbstractChannel, str]]] = set()
        self._failed_at = -1.0
        self._closed = False
        self.promises: Final = Promises(
            survives=Survives.POWER,
            exclusive=True,
            payload_max_bytes=PAYLOAD_MAX_BYTES,
            aside=f"{queue}.aside",
            detail=f"RabbitMQ, durable queue {queue}: confirmed once on disk, as RabbitMQ says",
        )

    # --- handing over -----------------------------------------------------------------------

    async def put(self, payloads: Sequence[bytes], /) -> None:
        self._must_be_open()
        for payload in payloads:
            if len(payload) > self.promises.payload_max_bytes:
                raise too_large(payload, self.promises)
        if payloads:
            await self._publish(self._queue, payloads)

    async def _publish(self, queue: str, payloads: Sequence[bytes]) -> None:
        began = asyncio.get_running_loop().time()
        async with self._turn:
            self._must_be_open()
            if self._failed_at >= began:  # who waits behind a failure has no deadline of his own
                raise self._trouble("failed a moment ago, and was not asked again")
            try:
                channel = self._putting = await self._live(self._putting)
                await self._declare(channel, queue)
            except Unavailable:
                self._failed_at = asyncio.get_running_loop().time()
                raise
        # No TaskGroup: until Python 3.11.4 one that failed leaves its task half cancelled, and the
        # next `asyncio.timeout` there raises CancelledError.
        tasks = [asyncio.create_task(self._publish_one(channel, queue, one)) for one in payloads]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _publish_one(self, channel: AbstractChannel, queue: str, payload: bytes) -> None:
        from aio_pika import DeliveryMode, Message
        from aio_pika.exceptions import DeliveryError, PublishError

        place = self._place
        async with self._room:
            message = Message(payload, delivery_mode=DeliveryMode.PERSISTENT)
            try:
                async with self._translated("confirmed nothing", self._limits.answer_ms):
                    await channel.default_exchange.publish(message, queue, mandatory=True)
            except PublishError as error:  # returned: nobody knows the queue any more
                self._declared.discard((channel, queue))
                raise self._trouble(f"has no queue {queue} any more") from error
            except DeliveryError as error:  # a negative confirm
                raise Full(
                    f"RabbitMQ at {place} takes no more into {queue}. It was not handed over."
                    f" Try there: {place.ctl('list_queues', 'name', 'messages', 'arguments')}"
                ) from error
            except (Unavailable, Misconfigured):
                await self._let_go(channel)
                raise

    # --- bringing back ----------------------------------------------------------------------

    async def take(self, *, limit: int, wait_ms: int) -> Sequence[Taken]:
        self._must_be_open()
        if self._undoing is not None:
            await self._undoing
        if limit <= 0:
            return []
        if self._taking is None or self._taking.is_closed:
            self._arrived.clear()
            self._held.clear()
        channel = self._taking = await self._live(self._taking)
        await self._declare(channel, self._queue)
        try:
            await self._consume(channel, min(limit, self._at_once), wait_ms)
            taken: list[Taken] = []
            while len(taken) < limit and self._arrived:
                taken.append(self._hold(channel, self._arrived.popleft()))
        except BaseException:
            self._undoing = asyncio.create_task(self._let_go(channel))
            raise
        self._at_once = next_at_once(self._at_once, [len(one.payload) for one in taken])
        return taken

    async def _consume(self, channel: AbstractChannel, limit: int, wait_ms: int) -> None:
        """Have up to `limit` sent to us; a straggler is there for the next take."""
        if not self._arrived:
            self._bell.clear()
        async with self._translated("sends nothing", self._limits.answer_ms):
            await channel.set_qos(prefetch_count=max(1, limit - len(self._arrived)))
            queue = await channel.get_queue(self._queue, ensure=False)
            tag = await queue.consume(self._arrives)
        deaf = asyncio.ensure_future(_closed(channel))
        first = asyncio.ensure_future(self._bell.wait())
        try:
            await asyncio.wait([first, deaf], timeout=wait_ms / 1000, return_when="FIRST_COMPLETED")
        finally:
            first.cancel()
            deaf.cancel()
        if channel.is_closed:
            raise self._trouble("closed the connection")
        if self._arrived:
            await asyncio.sleep(MORE_S)
        async with self._translated("does not stop sending", self._limits.answer_ms):
            await queue.cancel(tag)
        await asyncio.sleep(0)

    async def _arrives(self, message: AbstractIncomingMessage) -> None:
        self._arrived.append(message)
        self._bell.set()

    def _hold(self, channel: AbstractChannel, message: AbstractIncomingMessage) -> Taken:
        handle = _Handle(channel, message)
        self._held.add(handle)
        return Taken(message.body, message.message_id or str(message.delivery_tag), handle)

    async def complete(self, taken: Sequence[Taken], /) -> None:
        await self._end(self._let_go_of(taken), give_back=False)

    async def give_back(self, taken: Sequence[Taken], /) -> None:
        with contextlib.suppress(Unavailable):
            await self._end(self._let_go_of(taken), give_back=True)

    async def set_aside(self, taken: Sequence[Taken], /) -> None:
        if held := [one for one in taken if one.handle in self._held]:
            await self._publish(self.promises.aside, [one.payload for one in held])
            await self.complete(held)

    def _let_go_of(self, taken: Sequence[Taken]) -> list[_Handle]:
        """Those of them that we hold, and hold no longer: a word said twice ends the channel."""
        handles = [one.handle for one in taken if isinstance(one.handle, _Handle)]
        held = [handle for handle in handles if handle in self._held]
        self._held.difference_update(held)
        return [handle for handle in held if not handle.channel.is_closed]

    async def _end(self, handles: Sequence[_Handle], *, give_back: bool) -> None:
        if not handles:
            return
        channel = handles[0].channel
        try:
            async with self._translated("does not hear what was done", self._limits.answer_ms):
                for handle in handles:
                    if give_back:
                        await handle.message.nack(requeue=True)
                    else:
                        await handle.message.ack()
                await channel.set_qos(prefetch_count=1)  # an answer to this is behind all of them
        except BaseException:
            self._undoing = asyncio.create_task(self._let_go(channel))
            raise

    async def aclose(self) -> None:
        self._closed = True
        if self._undoing is not None:
            await self._undoing
        for channel in [*self._connections]:
            await self._let_go(channel)

    # --- connections ------------------------------------------------------------------------

    async def _live(self, channel: AbstractChannel | None) -> AbstractChannel:
        """This one, or a new one where it has ended."""
        if channel is not None and not channel.is_closed:
            return channel
        if channel is not None:
            await self._let_go(channel)
        return await self._connect()

    async def _connect(self) -> AbstractChannel:
        import aio_pika
        from aio_pika.exceptions import AuthenticationError, ProbableAuthenticationError

        place = self._place
        connection: AbstractConnection | None = None
        try:
            async with self._translated("cannot be reached", self._limits.connect_ms):
                connection = await aio_pika.connect(
                    host=place.host, port=place.port, login=place.user, password=place.password,
                    virtualhost=place.vhost, ssl=place.tls, timeout=None,
                    ssl_context=ssl.create_default_context() if place.tls else None,
                )  # fmt: skip
                channel = await connection.channel(on_return_raises=True)
        except (AuthenticationError, ProbableAuthenticationError) as error:
            raise Misconfigured(
                f"RabbitMQ at {place} does not know the user {place.user}, or not with this "
                "password. Nothing was handed over. Try there: "
                f"{place.ctl('authenticate_user', place.user)}"
            ) from error
        except BaseException as error:
            if connection is not None:
                await self._shut(connection)
            if "OpenOk" in str(error.__cause__):  # let in, and then shown the door
                raise Misconfigured(
                    f"RabbitMQ at {place} has no vhost {place.vhost} for the user {place.user}. "
                    f"Nothing was handed over. Try there: {place.ctl('list_permissions')}"
                ) from error
            raise
        self._connections[channel] = connection
        return channel

    async def _declare(self, channel: AbstractChannel, queue: str) -> None:
        """The queue is there, and durable."""
        from aio_pika.exceptions import ChannelPreconditionFailed

        if (channel, queue) in self._declared:
            return
        try:
            await self._ask(channel, queue)
        except Misconfigured:
            # Who may not make queues may use one: whoever made it has seen to it.
            await self._ask(channel, queue, passive=True)
        except ChannelPreconditionFailed as error:
            if "'durable'" in str(error):
                raise PromiseBroken(
                    f"the queue {queue} of RabbitMQ at {self._place} is not durable: a restart "
                    "would lose what it has. Nothing was handed over. Delete it, or name another: "
                    f"{self._place.ctl('delete_queue', queue)}"
                ) from error
        except BaseException:
            await self._let_go(channel)
            raise
        self._declared.add((channel, queue))

    async def _ask(self, channel: AbstractChannel, queue: str, *, passive: bool = False) -> None:
        """On a channel of its own: RabbitMQ closes the one on which it says no."""
        connection = self._connections[channel]
        async with self._translated("does not declare a queue", self._limits.connect_ms):
            asking = await connection.channel()
            await asking.declare_queue(queue, durable=True, passive=passive)
            await asking.close()

    async def _let_go(self, channel: AbstractChannel) -> None:
        """Hang up: what was held on it is given to others."""
        connection = self._connections.pop(channel, None)
        self._declared.difference_update([one for one in self._declared if one[0] is channel])
        if connection is not None:
            await self._shut(connection)

    async def _shut(self, connection: AbstractConnection) -> None:
        with contextlib.suppress(*_foreign()):
            async with asyncio.timeout(1):
                await connection.close()

    @contextlib.asynccontextmanager
    async def _translated(self, what: str, within_ms: int) -> AsyncIterator[None]:
        """aio-pika's errors in our words; those that mean more than trouble go through."""
        from aio_pika import exceptions

        telling = (
            exceptions.DeliveryError, exceptions.PublishError, exceptions.AuthenticationError,
            exceptions.ProbableAuthenticationError, exceptions.ChannelPreconditionFailed,
        )  # fmt: skip
        try:
            async with asyncio.timeout(within_ms / 1000):
                yield
        except telling:
            raise
        except TimeoutError as error:
            raise self._trouble(f"{what} within {within_ms} ms") from error
        except _foreign() as error:
            if any(word in str(error) for word in ("ACCESS_REFUSED", "NOT_FOUND")):
                raise Misconfigured(
                    f"RabbitMQ at {self._place} does not let the user {self._place.user} do that: "
                    f"{error}. Nothing was handed over. Try there: "
                    f"{self._place.ctl('list_permissions')}"
                ) from error
            raise self._trouble(f"{what}: {error}") from error

    def _trouble(self, what: str) -> Unavailable:
        return Unavailable(
            f"RabbitMQ at {self._place} {what}. What it has confirmed, it keeps; what was under way"
            f" may or may not be there, and is safe to hand over again. Try: {self._place.look}"
        )

    def _must_be_open(self) -> None:
        if self._closed:
            raise Unavailable("the queue was closed. Nothing was handed over. Open another.")


def next_at_once(at_once: int, sizes: Sequence[int]) -> int:
    """How many may be sent to us next, when these have come."""
    size = sum(sizes)
    if len(sizes) < at_once and size <= TAKE_BYTES:
        return at_once
    return max(1, min(2 * at_once, AT_ONCE_MAX, TAKE_BYTES * len(sizes) // max(1, size)))


async def _closed(channel: AbstractChannel) -> None:
    """Until the channel has ended, for whatever reason."""
    with contextlib.suppress(*_foreign()):
        await channel.closed()


def _foreign() -> tuple[type[Exception], ...]:
    from aio_pika.exceptions import AMQPError

    # RuntimeError: a channel that was closed meanwhile is "not opened".
    return (AMQPError, OSError, TimeoutError, RuntimeError)


def open_rabbitmq(url: str) -> RabbitQueue:
    """Raises `Misconfigured`, `Missing`."""
    try:
        import aio_pika  # noqa: F401
    except ImportError as error:
        raise Missing(
            "RabbitMQ needs aio-pika, which is not installed. Nothing was opened. Install it: "
            "pip install 'unspool[rabbitmq]'"
        ) from error
    place, queue = place_of(url)
    return RabbitQueue(place, queue=queue)
