"""Link: one connection to NATS, and what a spool asks of JetStream over it.

    link = await Link.connect(address, names)
    await link.api("STREAM.INFO", …)          the JetStream API, as a dict
    await link.commit(mails) -> sequences     all of them or none, each under its expectation
    await link.last(subjects) -> Raw          the last message of each subject, from who knows it
    link.watch(…)                             see `nats_watch`

Every question has a deadline, and none is asked while there is no connection: who waits for a
server that is gone is told at once. nats-py reconnects by itself, for ever; `on_reconnect` is told.

Of what nats-py offers for JetStream nothing is used: atomic batches (server 2.12) it does not know,
and its pull subscriptions do not outlive a restart of the server (nats.py#504). Publishing and one
subscription for all answers are enough.

A batch of more than BATCH_MAX messages goes in pieces, each of which is atomic.

Foreign exceptions end here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from ..core.message import Value
from ..errors import Broken, Full, Missing, Unavailable
from .nats_address import Address, not_connected
from .nats_records import EXPECTED, Mail, Names

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log: Final = logging.getLogger("unspool.spool")

CONNECT_S: Final = 5.0
ANSWER_S: Final = 5.0
RECONNECT_S: Final[Any] = 0.25
BATCH_MAX: Final = 1_000
"""Messages in one atomic batch: the server's limit, unless it was told another."""
BATCH_BYTES: Final = 32 * 1024 * 1024
AT_ONCE: Final = 8
"""Commits of one connection on their ways: the server takes fifty of a stream."""
ASK_MAX: Final = 256
"""Subjects in one question."""
PENDING_BYTES: Final = 4 * 1024 * 1024

WRONG_LAST: Final = frozenset({10071, 10164})
NO_ROOM: Final = frozenset({10002, 10023, 10028, 10047, 10054, 10077})
"""Of account, server, memory, disk; too large a message; the stream is full."""
NOT_FOUND: Final = 10059


class Conflict(Exception):
    """Somebody else has written one of these subjects since."""


class Refusal(Exception):
    """The JetStream API said no."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Raw(Value, frozen=True):
    """A message as it lies in the stream."""

    sequence: int
    headers: Mapping[str, str]
    payload: bytes


class _Call:
    """Who waits for answers. `more`: there may be several, until an end is told."""

    def __init__(self, *, more: bool) -> None:
        self.more: Final = more
        self.answers: Final[list[Msg]] = []
        self.done: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    def take(self, message: Msg) -> None:
        self.answers.append(message)
        if not self.done.done() and (not self.more or "Status" in (message.headers or {})):
            self.done.set_result(None)


class Link:
    def __init__(
        self, client: Client, address: Address, names: Names, on_reconnect: Callable[[], None]
    ) -> None:
        self.client: Final = client
        self.address: Final = address
        self.names: Final = names
        self.replicated = False
        """Then not every server knows the last of everything: its leader is asked."""
        self.complaint = ""
        """What the server last said unasked, as of permissions."""
        self._on_reconnect: Final = on_reconnect
        self._calls: Final[dict[str, _Call]] = {}
        self._numbers: Final = count(1)
        self._inbox: Final = client.new_inbox()
        self._at_once: Final = asyncio.Semaphore(AT_ONCE)

    # -- the connection --------------------------------------------------------------------------

    @classmethod
    async def connect(
        cls, address: Address, names: Names, *, on_reconnect: Callable[[], None] = lambda: None
    ) -> Link:
        """Raises `Missing`, `Unavailable`, `Misconfigured`."""
        try:
            import nats.errors
            from nats.aio.client import Client
        except ImportError as error:
            raise Missing(
                f"The spool {address.shown} needs the NATS client, which is not installed. Nothing"
                " was opened. Install it: pip install 'unspool[nats]'"
            ) from error
        link = cls(Client(), address, names, on_reconnect)
        try:
            await link._connect(Client())
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await link.aclose()
            raise not_connected(address, error, link.complaint) from error
        except BaseException:
            await link.aclose()
            raise
        return link

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
            options["tls"] = ssl.create_default_context()
        async with asyncio.timeout(CONNECT_S):
            try:  # first without reconnects: then a refusal is told as what it is
                await probe.connect(**options, allow_reconnect=False)
            finally:
                await _give_up(probe)
            await self.client.connect(
                **options, reconnected_cb=self._reconnected, allow_reconnect=True,
                max_reconnect_attempts=-1, reconnect_time_wait=RECONNECT_S, ping_interval=20,
                max_outstanding_pings=2,
            )  # fmt: skip
            await self.client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def _reconnected(self) -> None:
        self._on_reconnect()

    async def _complained(self, error: Exception) -> None:
        self.complaint = str(error)
        log.debug("NATS at %s: %s", self.address.shown, error)

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    @property
    def server_id(self) -> str:
        """Of the process that answers: another one may have forgotten something."""
        found = self.client._server_info.get("server_id", "")
        return str(found)

    @property
    def version(self) -> str:
        return str(self.client._server_info.get("version", ""))

    async def aclose(self) -> None:
        await _give_up(self.client)

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

        if not self.client.is_connected:
            raise self.gone("there is no connection to it just now")
        try:
            await self.client.publish(
                subject, payload, reply, headers=dict(headers) if headers else None
            )
        except nats.errors.MaxPayloadError as error:
            raise self._too_large(len(payload)) from error
        except (nats.errors.Error, OSError) as error:
            raise self.gone(str(error)) from error

    async def ask(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None,
        more: bool = False,
    ) -> Sequence[Msg]:  # fmt: skip
        """Raises `Unavailable`: it may or may not have been heard."""
        token = str(next(self._numbers))
        call = self._calls[token] = _Call(more=more)
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

    async def api(self, name: str, body: Any = None) -> dict[str, Any]:
        """Raises `Refusal`, `Unavailable`."""
        payload = b"" if body is None else json.dumps(body).encode()
        [answer] = await self.ask(f"$JS.API.{name}", payload)
        found = _decoded(answer.data)
        if error := found.get("error"):
            raise Refusal(int(error.get("err_code", 0)), str(error.get("description", "")))
        return found

    # -- writing ---------------------------------------------------------------------------------

    async def commit(self, mails: Sequence[Mail]) -> list[int]:
        """The sequences they got. Raises `Conflict`, `Full`, `Unavailable`."""
        sequences: list[int] = []
        async with self._at_once:
            for piece in _pieces(mails):
                last = await self._commit(piece)
                sequences += range(last - len(piece) + 1, last + 1)
        return sequences

    async def _commit(self, mails: Sequence[Mail]) -> int:
        batch = self.client.new_inbox()[-22:]
        for number, mail in enumerate(mails, 1):
            headers = mail.headers
            if len(mails) > 1:
                headers = {**headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            size = len(mail.payload) + sum(len(k) + len(v) + 4 for k, v in headers.items()) + 32
            if size > self.client.max_payload:
                raise self._too_large(size)
            if number < len(mails):
                await self.send(mail.subject, mail.payload, headers=headers)
                continue
            if len(mails) > 1:
                headers = {**headers, "Nats-Batch-Commit": "1"}
            [answer] = await self.ask(mail.subject, mail.payload, headers=headers)
            return self._acked(_decoded(answer.data))
        raise AssertionError("a batch of nothing")

    def _acked(self, answer: Mapping[str, Any]) -> int:
        error = answer.get("error")
        if not error:
            return int(answer["seq"])
        code, text = int(error.get("err_code", 0)), str(error.get("description", ""))
        if code in WRONG_LAST:
            raise Conflict(text)
        if code in NO_ROOM:
            raise self.full(text)
        raise self.gone(text)

    # -- reading ---------------------------------------------------------------------------------

    async def last(self, subjects: Sequence[str]) -> dict[str, Raw]:
        """The last message of each of them that has one. Raises `Unavailable`."""
        found: dict[str, Raw] = {}
        if self.replicated:
            # Any replica answers a direct get, and may be behind; only the leader knows.
            for start in range(0, len(subjects), ASK_MAX):
                some = subjects[start : start + ASK_MAX]
                told = await asyncio.gather(*(self._of_leader(subject) for subject in some))
                found.update({s: raw for s, raw in zip(some, told, strict=True) if raw})
            return found
        asked = list(dict.fromkeys(subjects))
        while asked:
            some, asked = asked[:ASK_MAX], asked[ASK_MAX:]
            raws, cut_short = await self._directly(some)
            found.update(raws)
            if cut_short:
                asked = [subject for subject in some if subject not in raws] + asked
        return found

    async def _directly(self, subjects: Sequence[str]) -> tuple[dict[str, Raw], bool]:
        body = json.dumps({"multi_last": [*subjects]}).encode()
        *messages, end = await self.ask(f"$JS.API.DIRECT.GET.{self.names.stream}", body, more=True)
        headers = end.headers or {}
        if headers.get("Status") == "404":
            return {}, False
        if headers.get("Status") != "204":
            raise self.gone(f"it answered a look-up with {headers.get('Status')}")
        raws: dict[str, Raw] = {}
        for message in messages:
            fields = message.headers or {}
            subject = fields["Nats-Subject"]
            raws[subject] = Raw(int(fields["Nats-Sequence"]), fields, message.data)
        return raws, bool(raws) and headers.get("Nats-Num-Pending", "0") != "0"

    async def _of_leader(self, subject: str) -> Raw | None:
        try:
            answer = await self.api(
                f"STREAM.MSG.GET.{self.names.stream}", {"last_by_subj": subject}
            )
        except Refusal as error:
            if error.code == 10037:
                return None
            raise self.gone(str(error)) from error
        message = answer["message"]
        headers = _header_lines(b64decode(message.get("hdrs", "")))
        return Raw(int(message["seq"]), headers, b64decode(message.get("data", "")))

    async def info(self) -> dict[str, Any]:
        """Of the stream. Raises `Unavailable`."""
        try:
            return await self.api(f"STREAM.INFO.{self.names.stream}")
        except Refusal as error:
            raise self.gone(str(error)) from error

    async def account(self) -> dict[str, Any]:
        """How it stands with JetStream. Raises `Unavailable`."""
        try:
            return await self.api("INFO")
        except Refusal as error:
            raise self.gone(str(error)) from error

    async def may_write(self) -> None:
        """Publish what cannot be taken: who is refused as too late is heard. Raises as `ask`."""
        impossible = {EXPECTED: str(2**63)}
        [answer] = await self.ask(f"{self.names.prefix}m.=check", b"", headers=impossible)
        found = _decoded(answer.data)
        if not found.get("error"):
            raise Broken(
                f"Something other than JetStream answers for {self.names.prefix}> at"
                f" {self.address.shown}. Nothing was opened. See who: nats stream info"
                f" {self.names.stream}"
            )

    # -- what went wrong -------------------------------------------------------------------------

    def gone(self, why: str) -> Unavailable:
        return Unavailable(
            f"The spool {self.address.shown} did not do this ({why}); it may or may not have"
            " happened. What was accepted before is kept there. It is asked again by itself; see"
            f" how it is: nats stream info {self.names.stream}"
        )

    def full(self, why: str) -> Full:
        return Full(
            f"The spool {self.address.shown} has no more room ({why}). Nothing of this was done,"
            " and everything accepted before is kept. See what takes it:"
            f" nats stream info {self.names.stream}"
        )

    def _too_large(self, size: int) -> Full:
        return Full(
            f"A message of {size} bytes is more than the NATS server of {self.address.shown} takes"
            f" ({self.client.max_payload}). Nothing of this was done. Let it take more (max_payload"
            " in its configuration), or keep requests smaller: unspool serve --body-max-bytes 64KiB"
        )


async def _give_up(client: Client) -> None:
    try:
        async with asyncio.timeout(1.0):
            await client.close()
    except Exception as error:  # it is being let go of
        log.debug("closing a NATS connection: %s", error)


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return {"error": {"err_code": 0, "description": "an answer that is none of JetStream's"}}
    return found


def _header_lines(data: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in data.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode()] = value.strip().decode()
    return headers


def _pieces(mails: Sequence[Mail]) -> list[Sequence[Mail]]:
    pieces: list[Sequence[Mail]] = []
    start = held = 0
    for at, mail in enumerate(mails):
        held += len(mail.payload)
        if at > start and (at - start == BATCH_MAX or held > BATCH_BYTES):
            pieces.append(mails[start:at])
            start, held = at, len(mail.payload)
    pieces.append(mails[start:])
    return pieces
