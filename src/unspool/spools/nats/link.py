"""Link: what a spool asks of JetStream.

    link = Link(await Wire.connect(address, names))
    await link.api("STREAM.INFO", …)          the JetStream API, as a dict
    await link.commit(mails) -> sequences     all of them or none, each under its expectation
    await link.last(subjects) -> Raw          the last message of each subject, from who knows it

A commit has at most BATCH_MAX messages. Who has more cuts them, and knows where (`commits`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...core.message import Value
from ...errors import Broken
from .records import EXPECTED, Mail
from .wire import ANSWER_S, Wire

if TYPE_CHECKING:
    pass

log: Final = logging.getLogger("unspool.spool")

AT_ONCE: Final = 8
"""Commits of one connection on their ways: the server takes fifty of a stream."""
BATCH_MAX: Final = 1_000
"""Messages in one atomic batch: the server's limit, unless it was told another."""
ASK_MAX: Final = 256
"""Subjects in one question."""

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


class Link:
    def __init__(self, wire: Wire) -> None:
        self.wire: Final = wire
        self.names: Final = wire.names
        self.shown: Final = wire.address.shown
        self.cli: Final = wire.address.cli
        self.replicated = False
        """Then not every server knows the last of everything: its leader is asked."""
        self._at_once: Final = asyncio.Semaphore(AT_ONCE)

    async def api(self, name: str, body: Any = None) -> dict[str, Any]:
        """Raises `Refusal`, `Unavailable`."""
        payload = b"" if body is None else json.dumps(body).encode()
        [answer] = await self.wire.ask(f"$JS.API.{name}", payload)
        found = _decoded(answer.data)
        if error := found.get("error"):
            raise Refusal(int(error.get("err_code", 0)), str(error.get("description", "")))
        return found

    # -- writing ---------------------------------------------------------------------------------

    async def commit(self, mails: Sequence[Mail]) -> list[int]:
        """The sequences they got. Raises `Conflict`, `Full`, `Unavailable`."""
        if len(mails) > BATCH_MAX:
            raise self.wire.full(f"a batch of {len(mails)} messages; the server takes {BATCH_MAX}")
        async with self._at_once:
            last = await self._commit(mails)
        return [*range(last - len(mails) + 1, last + 1)]

    async def _commit(self, mails: Sequence[Mail]) -> int:
        batch = self.wire.new_inbox()[-22:]
        until = asyncio.get_running_loop().time() + ANSWER_S
        for number, mail in enumerate(mails, 1):
            headers = mail.headers
            if len(mails) > 1:
                headers = {**headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            size = len(mail.payload) + sum(len(k) + len(v) + 4 for k, v in headers.items()) + 32
            if size > self.wire.max_payload:
                raise self.wire.too_large(size)
            if asyncio.get_running_loop().time() > until:
                # Looked at, for nats-py keeps a cancellation to itself while its buffer is full.
                raise self.wire.gone("it takes nothing any more", begun=False)
            if number < len(mails):
                await self.wire.send(mail.subject, mail.payload, headers=headers)
                continue
            if len(mails) > 1:
                headers = {**headers, "Nats-Batch-Commit": "1"}
            [answer] = await self.wire.ask(mail.subject, mail.payload, headers=headers)
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
            raise self.wire.full(text)
        raise self.wire.gone(text)

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
        *messages, end = await self.wire.ask(
            f"$JS.API.DIRECT.GET.{self.names.stream}", body, more=True
        )
        headers = end.headers or {}
        if headers.get("Status") == "404":
            return {}, False
        if headers.get("Status") != "204":
            raise self.wire.gone(f"it answered a look-up with {headers.get('Status')}")
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
            raise self.wire.gone(str(error)) from error
        message = answer["message"]
        headers = _header_lines(b64decode(message.get("hdrs", "")))
        return Raw(int(message["seq"]), headers, b64decode(message.get("data", "")))

    async def info(self) -> dict[str, Any]:
        """Of the stream. Raises `Unavailable`."""
        try:
            return await self.api(f"STREAM.INFO.{self.names.stream}")
        except Refusal as error:
            raise self.wire.gone(str(error)) from error

    async def account(self) -> dict[str, Any]:
        """How it stands with JetStream. Raises `Unavailable`."""
        try:
            return await self.api("INFO")
        except Refusal as error:
            raise self.wire.gone(str(error)) from error

    async def may_write(self) -> None:
        """Publish what cannot be taken: who is refused as too late is heard. Raises as `ask`."""
        impossible = {EXPECTED: str(2**63)}
        [answer] = await self.wire.ask(f"{self.names.prefix}m.=check", b"", headers=impossible)
        found = _decoded(answer.data)
        if not found.get("error"):
            raise Broken(
                f"Something other than JetStream answers for {self.names.prefix}> at"
                f" {self.shown}. Nothing was opened. See who: {self.cli} stream info"
                f" {self.names.stream}"
            )


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
