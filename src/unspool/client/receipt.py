"""Receipts: what is held of a request that a relay or a queue has taken over.

    await receipt.status()           where it is now: Status
    await receipt.wait(timeout=30)   what became of it: Delivered, Rejected, Unknown, Bounced; or
                                     the Accepted again, when the time is up
    await receipt.cancel()           no further attempt; False: one is under way, or it has ended
    receipt.url                      the address of the receipt; empty where the queue has none

A relay's receipt is followed over HTTP at the relay that gave it (design section 6). A queue that
is not a relay cannot be asked: its receipt says `handed over`, and that is all there is to know
here.

That the relay does not answer changes nothing: it has the request. `wait` goes on asking.

Where a relay says that the request was moved to another one (`unspool move`), or says nothing, or
does not know it any longer, the other relays that this client was given are asked, at most
PLACES_MAX of them, once each time, and by `wait` less and less often; none else, for the receipt's
address is all that is needed to read the answer. Nothing but that address is sent, and never
unencrypted where it came over TLS. One that has it, and not as a copy that is held until it is
moved, is asked from then on.

Bugs: a relay that this client was not given is not found; the state then stays `moved`.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ..core.fields import values
from ..core.lifecycle import Reason
from ..core.message import Answer, Failure, Value
from ..core.message import Request as Wire
from ..core.message import Response as Answered
from ..errors import Unavailable
from .results import (
    Accepted,
    Bounced,
    Delivered,
    Fate,
    Rejected,
    Response,
    Try,
    Unknown,
    response_of,
)

_RECEIPT: Final = re.compile(r"/_unspool/receipts/[^./?#%\\][^/?#%\\]*")
"""No way to anywhere else: others than who named it may be asked for it."""
WAIT_S: Final = 20
"""How long the relay is asked to wait before it answers: below the transport's patience."""
FORGOTTEN: Final = "forgotten"
MOVED: Final = "moved"
PLACES_MAX: Final = 8
PAUSE_S: Final = 1.0
PAUSE_MAX_S: Final = 10.0
ASKED_MS: Final = 5_000

T = TypeVar("T")


def is_ours(answer: Answered) -> bool:
    """Does a relay of ours speak here? Its Proxy-Status says so (RFC 9209)."""
    return any(value.startswith(b"unspool") for value in values(answer.fields, b"proxy-status"))


def receipt_path(answer: Answer) -> str:
    """Where the receipt is, of an answer by which a relay of ours takes responsibility; else empty.
    A 202 alone promises nothing (RFC 9110 §15.3.3)."""
    if isinstance(answer, Failure) or answer.status != 202 or not is_ours(answer):
        return ""
    for value in values(answer.fields, b"location"):
        if value.isascii() and _RECEIPT.fullmatch(value.decode()):
            return value.decode()
    return ""


class Status(Value, frozen=True):
    """Where it is now, as whoever has it says."""

    state: str
    """waiting · delivered · bounced · handed over · forgotten: it has ended, nobody knows how ·
    moved: another relay has it, and this client was not given that one"""
    attempts: int = 0
    last: str = ""
    """What came of the last attempt."""
    reason: str = ""
    """Why it bounced."""
    next_attempt_at: str = ""
    expires_at: str = ""


class Asks(Protocol):
    """One question to the relay that gave the receipt."""

    async def __call__(self, request: Wire, *, timeout_ms: int) -> Answer: ...


class Place(Value, frozen=True):
    """A relay that may have a request by now."""

    where: str
    ask: Asks


class Receipt:
    """See the head of this file."""

    __slots__ = ("_ask", "_elsewhere", "key", "path", "survives", "where")

    def __init__(
        self,
        *,
        where: str,
        key: str,
        path: str = "",
        survives: str = "",
        ask: Asks | None = None,
        elsewhere: Sequence[Place] = (),
    ) -> None:
        """`elsewhere`: where it may have been moved."""
        self.where = where
        """Who has it, as far as is known: the relay's origin, or the queue."""
        self.key: Final = key
        self.path: Final = path
        self.survives: Final = survives
        """What it outlives there, as far as is known."""
        self._ask = ask
        self._elsewhere: Final = tuple(elsewhere)[:PLACES_MAX]

    def __repr__(self) -> str:
        return f"<Receipt of {self.key!r} at {self.where}>"

    @property
    def url(self) -> str:
        return self.where + self.path if self.path else ""

    async def status(self) -> Status:
        """Raises `Unavailable` where the relay does not answer: it has the request all the same."""
        if self._ask is None or not self.path:
            return Status("handed over")
        told = await self._told("")
        trail: list[dict[str, Any]] = told.get("attempts") or []
        return Status(
            state=str(told.get("state", "")),
            attempts=len(trail),
            last=str(trail[-1].get("cause", "")) if trail else "",
            reason=str(told.get("reason", "")),
            next_attempt_at=str(told.get("next_attempt_at") or ""),
            expires_at=str(told.get("expires_at") or ""),
        )

    async def wait(self, timeout: float = 30.0) -> Fate:
        """What became of it, or what is known when `timeout` seconds are over: `Accepted`."""
        if self._ask is None or not self.path:
            return Accepted(self, self.key)
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        pause_s = PAUSE_S
        while True:
            left = max(0.0, until - loop.time())
            began = loop.time()
            state = ""
            try:
                told = await self._told(f"?wait={int(min(WAIT_S, left))}", wait_s=min(WAIT_S, left))
                if (fate := await self._fate(told)) is not None:
                    return fate
                state = str(told.get("state"))
            except Unavailable:
                pass  # it has it all the same
            left = until - loop.time()
            if left <= 0:
                return Accepted(self, self.key)
            if loop.time() - began < pause_s:
                await asyncio.sleep(min(pause_s, left))
            # All who might have it were asked: with a thousand that wait, in an outage, a load.
            lost = state in ("", MOVED)
            pause_s = min(2 * pause_s, PAUSE_MAX_S) if lost else PAUSE_S

    async def _fate(self, told: dict[str, Any]) -> Fate | None:
        tries = tuple(
            Try(
                self.where,
                one.get("status") or 0,
                str(one.get("cause", "")),
                str(one.get("sent", "")),
            )
            for one in told.get("attempts") or ()
        )
        if told.get("state") == "bounced":
            if told.get("reason") == Reason.UNKNOWN:
                why = "the relay's attempt may have been applied, and it may not be repeated"
                return Unknown(None, why, self.key, tries)
            return Bounced(self.key, str(told.get("reason", "")), tries)
        if told.get("state") == FORGOTTEN:
            why = "it has ended, and the relay no longer knows how"
            return Unknown(None, why, self.key, tries)
        if told.get("state") != "delivered":
            return None
        answer = await self._asked(b"GET", "/response", ASKED_MS)
        if isinstance(answer, Failure):
            raise self._silent(answer)
        if is_ours(answer):  # the answer is no longer kept: the fact is
            response = Response(int(told.get("status") or 200), whole=False)
        else:
            response = response_of(answer)
        kind = Rejected if response.status // 100 in (4, 5) else Delivered
        return kind(response, self.key, tries)

    async def cancel(self) -> bool:
        """True: it will not be tried any more. What was tried before may have had its effect.
        False: it is being tried just now (ask again), or has ended."""
        if self._ask is None or not self.path:
            return False
        for _ in range(PLACES_MAX):
            answer = await self._asked(b"DELETE", "", ASKED_MS)
            if isinstance(answer, Failure):
                raise self._silent(answer)
            if answer.status == 200 or not is_ours(answer):
                return answer.status == 200
            if not await self._followed(await self._here("")):
                return False
        return False  # each says that the other has it

    async def _told(self, query: str, *, wait_s: float = 0) -> dict[str, Any]:
        """What is said of it where it is; or elsewhere, where it has been moved."""
        try:
            told = await self._here(query, wait_s=wait_s)
        except Unavailable:
            if found := await self._followed({}):
                return found
            raise
        return await self._followed(told) or told

    async def _here(self, query: str, *, wait_s: float = 0) -> dict[str, Any]:
        answer = await self._asked(b"GET", query, ASKED_MS + round(wait_s * 1000))
        if isinstance(answer, Failure):
            raise self._silent(answer)
        if answer.status == 404 and is_ours(answer):  # and not somebody's on the way to it
            return {"state": FORGOTTEN}
        told = _receipt_in(answer)
        if not told:
            raise Unavailable(
                f"{self.where} answered {answer.status} when it was asked for a receipt. It has the"
                f" request all the same. Ask again: curl {shlex.quote(self.url)}"
            )
        return told

    async def _followed(self, told: dict[str, Any]) -> dict[str, Any]:
        """What another relay says of it, which is asked from now on; nothing, where there is none.
        `told`: what was said here."""
        state = told.get("state")
        if state not in (None, MOVED, FORGOTTEN):
            return {}
        places = [one for one in self._elsewhere if _may_follow(self.where, one.where)]
        wire = Wire(b"GET", self.path.encode(), ())
        answers = await asyncio.gather(*(one.ask(wire, timeout_ms=ASKED_MS) for one in places))
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Failure) or not is_ours(answer):
                continue
            found = _receipt_in(answer)
            if found.get("receipt") != self.path or found.get("state") in (None, MOVED):
                continue
            if found.get("held") and state != MOVED:
                continue  # a copy, perhaps, until its old place has let it go
            self.where, self._ask = place.where, place.ask
            return found
        return {}

    async def _asked(self, method: bytes, tail: str, timeout_ms: int) -> Answer:
        assert self._ask is not None
        return await self._ask(Wire(method, (self.path + tail).encode(), ()), timeout_ms=timeout_ms)

    def _silent(self, failure: Failure) -> Unavailable:
        return Unavailable(
            f"{self.where} did not answer ({failure.detail or failure.cause}). It has the request"
            f" all the same. Ask again: curl {shlex.quote(self.url)}"
        )


def _receipt_in(answer: Answered) -> dict[str, Any]:
    """The receipt that this answer is; nothing, where it is none."""
    if answer.status != 200:
        return {}
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _may_follow(here: str, there: str) -> bool:
    """Not to where it is already, and not from TLS to where everybody reads along."""
    return here != there and (there.startswith("https://") or not here.startswith("https://"))


class BlockingReceipt:
    """The same for callers who block."""

    __slots__ = ("_call", "_receipt")

    def __init__(
        self, receipt: Receipt, call: Callable[[Callable[[], Awaitable[Any]]], Any]
    ) -> None:
        self._receipt = receipt
        self._call = call

    def __repr__(self) -> str:
        return repr(self._receipt)

    @property
    def where(self) -> str:
        return self._receipt.where

    @property
    def key(self) -> str:
        return self._receipt.key

    @property
    def url(self) -> str:
        return self._receipt.url

    @property
    def survives(self) -> str:
        return self._receipt.survives

    def status(self) -> Status:
        told: Status = self._call(self._receipt.status)
        return told

    def wait(self, timeout: float = 30.0) -> Fate:
        receipt = self._receipt

        async def waited() -> Fate:
            return await receipt.wait(timeout)

        fate: Fate = self._call(waited)
        return msgspec.structs.replace(fate, receipt=self) if isinstance(fate, Accepted) else fate

    def cancel(self) -> bool:
        told: bool = self._call(self._receipt.cancel)
        return told
