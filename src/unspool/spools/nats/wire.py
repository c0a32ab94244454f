"""Wire: one connection to NATS, its questions and answers.

    wire = await Wire.connect(address, names, on_reconnect=…)
    await wire.ask(subject, payload, headers=…)      one answer, or several (`more`)
    await wire.send(subject, …)                      none
    await wire.reopen()                              where it is closed for good
    raise wire.gone(why) · wire.full(why)            what is told of trouble

Every question has a deadline, and none is asked while there is no connection: who waits for a
server that is gone is told at once. nats-py reconnects by itself, for ever; `on_reconnect` is told.
With TLS nothing is said to a server that does not speak it, or whose certificate is not trusted; a
client certificate cannot be shown. After some of the server's errors it gives up instead: `closed`
says so, and whoever minds the connection (`watch`) opens it again.

Of what nats-py offers for JetStream nothing is used: atomic batches (server 2.12) it does not know,
and its pull subscriptions do not outlive a restart of the server (nats.py#504). Publishing and one
subscription for all answers are enough. Foreign exceptions end here.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from ...errors import Full, Misconfigured, Missing, Unavailable
from .address import Address, not_connected
from .records import Names

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log: Final = logging.getLogger("unspool.spool")

CONNECT_S: Final = 5.0
ANSWER_S: Final = 5.0
RECONNECT_S: Final[Any] = 0.25
PENDING_BYTES: Final = 4 * 1024 * 1024


Take = Callable[["Msg"], Awaitable[None]]


class Forbidden(Unavailable):
    """The server does not let this user do that."""


class _Call:
    """Who waits for answers. `more`: there may be several, until an end is told."""

    def __init__(self, subject: str, *, more: bool) -> None:
        self.subject: Final = subject
        self.more: Final = more
        self.answers: Final[list[Msg]] = []
        self.done: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    def take(self, message: Msg) -> None:
        self.answers.append(message)
        if not self.done.done() and (not self.more or "Status" in (message.headers or {})):
            self.done.set_result(None)


class Wire:
    def __init__(
        self, address: Address, names: Names, on_reconnect: Callable[[], None], client: Client
    ) -> None:
        self.address: Final = address
        self.names: Final = names
        self.complaint = ""
        """What the server last said unasked, as of permissions."""
        self._client = client
        self._on_reconnect: Final = on_reconnect
        self._calls: Final[dict[str, _Call]] = {}
        self._numbers: Final = count(1)
        self._inbox: Final = client.new_inbox()

    @classmethod
    async def connect(
        cls, address: Address, names: Names, *, on_reconnect: Callable[[], None] = lambda: None
    ) -> Wire:
        """Raises `Missing`, `Unavailable`, `Misconfigured`."""
        try:
            import nats.errors
            from nats.aio.client import Client
        except ImportError as error:
            raise Missing(
                f"The spool {address.shown} needs the NATS client, which is not installed. Nothing"
                " was opened. Install it: pip install 'unspool[nats]'"
            ) from error
        wire = cls(address, names, on_reconnect, Client())
        try:
            await wire._connect(Client())
        except (nats.errors.Error, OSError, TimeoutError, ValueError, ImportError) as error:
            await wire.aclose()
            raise not_connected(address, error, wire.complaint) from error
        except BaseException:
            await wire.aclose()
            raise
        return wire

    async def _connect(self, probe: Client) -> None:
        address = self.address
        options: dict[str, Any] = {
            "servers": [f"nats://{server}" for server in address.servers],
            "user": address.user, "password": address.password, "token": address.token,
            "user_credentials": address.credentials, "name": "unspool",
            "connect_timeout": CONNECT_S, "error_cb": self._complained,
            "pending_size": PENDING_BYTES, "flush_timeout": ANSWER_S,
        }  # fmt: skip
        if address.tls:
            options["tls"] = _trusting(address)
            _insist(probe)
            _insist(self._client)
        async with asyncio.timeout(CONNECT_S):
            try:  # first without reconnects: then a refusal is told as what it is
                await probe.connect(
                    **options, allow_reconnect=False, max_reconnect_attempts=1,
                    reconnect_time_wait=RECONNECT_S,
                )  # fmt: skip
            finally:
                await _give_up(probe)
            await self._client.connect(
                **options, disconnected_cb=self._severed, reconnected_cb=self._reconnected,
                allow_reconnect=True,
                max_reconnect_attempts=-1, reconnect_time_wait=RECONNECT_S, ping_interval=20,
                max_outstanding_pings=2,
            )  # fmt: skip
            await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def _severed(self) -> None:
        """Who still waits for an answer gets none."""
        for call in self._calls.values():
            if not call.done.done():
                call.done.set_exception(self.gone("the connection to it broke"))

    async def _reconnected(self) -> None:
        self._on_reconnect()

    async def _complained(self, error: Exception) -> None:
        self.complaint = str(error)
        log.debug("NATS at %s: %s", self.address.shown, error)
        if "permissions violation" in self.complaint:
            for call in self._calls.values():
                if f'"{call.subject.lower()}"' in self.complaint and not call.done.done():
                    call.done.set_exception(Forbidden(self.complaint))

    async def reopen(self) -> None:
        """Raises `Unavailable`, `Misconfigured`."""
        import nats.errors
        from nats.aio.client import Client

        self._client = Client()
        try:
            await self._connect(Client())
        except (nats.errors.Error, OSError, TimeoutError, ValueError, ImportError) as error:
            await self.aclose()
            raise not_connected(self.address, error, self.complaint) from error
        self._on_reconnect()

    @property
    def closed(self) -> bool:
        """For good, whatever becomes of the server."""
        return self._client.is_closed

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def subscribe(self, subject: str, take: Take, *, pending_bytes: int) -> Subscription:
        return await self._client.subscribe(
            subject, cb=take, pending_msgs_limit=0, pending_bytes_limit=pending_bytes
        )

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def server_id(self) -> str:
        """Of the process that answers: another one may have forgotten something."""
        found = self._client._server_info.get("server_id", "")
        return str(found)

    @property
    def version(self) -> str:
        return str(self._client._server_info.get("version", ""))

    async def aclose(self) -> None:
        await _give_up(self._client)

    # -- questions -------------------------------------------------------------------------------

    async def _answered(self, message: Msg) -> None:
        call = self._calls.get(message.subject[len(self._inbox) + 1 :])
        if call is not None:
            call.take(message)

    async def send(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:  # fmt: skip
        """Raises `Unavailable`, `Full`."""
        import nats.errors

        if not self._client.is_connected:
            raise self.gone("there is no connection to it just now", begun=False)
        try:
            await self._client.publish(
                subject, payload, reply, headers=dict(headers) if headers else None
            )
        except nats.errors.MaxPayloadError as error:
            raise self.too_large(len(payload)) from error
        except (nats.errors.Error, OSError) as error:
            raise self.gone(str(error)) from error

    async def ask(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None,
        more: bool = False,
    ) -> Sequence[Msg]:  # fmt: skip
        """Raises `Unavailable`: it may or may not have been heard."""
        token = str(next(self._numbers))
        call = self._calls[token] = _Call(subject, more=more)
        try:
            async with asyncio.timeout(ANSWER_S):
                await self.send(subject, payload, headers=headers, reply=f"{self._inbox}.{token}")
                await call.done
        except TimeoutError as error:
            said = f"; it said: {self.complaint}" if self.complaint else ""
            raise self.gone(f"no answer within {ANSWER_S:.0f} s{said}") from error
        finally:
            del self._calls[token]
        if (call.answers[-1].headers or {}).get("Status") == "503":
            raise self.gone("nobody there answers for its JetStream")
        return call.answers

    # -- what went wrong -------------------------------------------------------------------------

    def gone(self, why: str, *, begun: bool = True) -> Unavailable:
        """`begun`: it may have been heard."""
        done = "it may or may not have happened" if begun else "nothing of it was done"
        return Unavailable(
            f"The spool {self.address.shown} did not do this ({why}); {done}. What was accepted"
            " before is kept there. It is asked again by itself; see how it is:"
            f" {self.address.cli} stream info {self.names.stream}"
        )

    def full(self, why: str) -> Full:
        return Full(
            f"The spool {self.address.shown} has no more room ({why}). Nothing of this was done,"
            " and everything accepted before is kept. See what takes it:"
            f" {self.address.cli} stream info {self.names.stream}"
        )

    def too_large(self, size: int) -> Full:
        return Full(
            f"A message of {size} bytes is more than the NATS server of {self.address.shown} takes"
            f" ({self._client.max_payload}). Nothing of this was done. Let it take more"
            " (max_payload in its configuration), or keep requests smaller: unspool serve"
            " --body-max-bytes 64KiB"
        )


def _trusting(address: Address) -> ssl.SSLContext:
    """Raises `Misconfigured`."""
    try:
        return ssl.create_default_context(cafile=address.ca)
    except OSError as error:
        raise Misconfigured(
            f"The certificates in {address.ca} for {address.shown} cannot be read ({error})."
            f" Nothing was opened. Give a file in PEM form: ls -l {shlex.quote(address.ca or '')}"
        ) from error


def _insist(client: Client) -> None:
    """nats-py speaks TLS only to a server that asks for it, and would tell its password in the
    clear to one that does not, or for which somebody in between has taken that word out."""
    read = client._process_info

    async def insisting(info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise ssl.SSLError(1, "it does not speak TLS, which the URL asks for")
        await read(info, initial_connection)

    vars(client)["_process_info"] = insisting


async def _give_up(client: Client) -> None:
    try:
        async with asyncio.timeout(1.0):
            await client.close()
    except asyncio.CancelledError:  # of the transport, where it was lost at that moment
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
    except Exception as error:  # it is being let go of
        log.debug("closing a NATS connection: %s", error)
