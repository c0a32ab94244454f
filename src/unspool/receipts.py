"""Receipts: what the sender holds instead of the answer.

    token(nonce, key) / read_token(text)      the capability: whoever has it may ask
    board.post(key) · board.wait(key, …)      who waits here for what the dispatcher settles
    Receipts.serve(request)                   GET, GET …/response, DELETE under /_unspool/

A token is 128 random bits and the message's key. There is no listing, and an unknown token looks
like one that was forgotten. A stored answer is somebody else's bytes served from our origin: it is
sandboxed, never cached, and speaks for nothing but itself (design section 6).
"""

from __future__ import annotations

import asyncio
import re
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec

from .clock import Clock
from .core.fields import harmless
from .core.lifecycle import Keeping, Reason, State, bounced, ended_as, extended
from .core.message import NEVER, Attempt, Field, Instant, Key, Request, Response, Sent
from .core.parking import unpark
from .custody import Custody
from .problems import PREFIX, PROBLEMS, problem, proxy_status
from .spools.protocol import Entry

RECEIPTS: Final = PREFIX + "receipts/"
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_NAMES: Final = {state: state.name.lower() for state in State} | {State.CLAIMED: "waiting"}
_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]{22})([A-Za-z0-9_.-]{22})")
_TARGET: Final = re.compile(rb"/_unspool/receipts/([^/?]+)(/response)?(?:\?(.*))?")
_MOVED: Final = "The relay that has the service's messages now: it knows this receipt and its key."
_PROBLEM: Final = re.compile(rb"/_unspool/problems/([a-z-]+)")
SEIZE_MS: Final = 30_000
POLL_MS: Final = 500
"""How often a waiter looks for itself where others may settle too."""

_encode = msgspec.json.Encoder().encode


def token(nonce: bytes, key: Key) -> str:
    return b2a_base64(nonce, newline=False)[:22].translate(_URL_SAFE).decode() + key


def read_token(text: str) -> tuple[bytes, Key] | None:
    """Nonce and key; None where it is no token of ours."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        return None
    return urlsafe_b64decode(found[1] + "=="), Key(found[2])


@lru_cache(maxsize=1024)
def stamp(instant: Instant) -> str:
    """RFC 3339, UTC, to the millisecond."""
    # Under load many receipts share their milliseconds, and nearly all their second.
    second, ms = divmod(instant, 1000)
    return f"{_second(second)}.{ms:03d}+00:00"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Board:
    """Who waits for which message to settle, in this process."""

    def __init__(self, *, clock: Clock, alone: bool) -> None:
        self._clock = clock
        self._alone = alone
        self._waiting: dict[Key, list[asyncio.Future[None]]] = {}
        self._hurried = False

    def hurry(self) -> None:
        """Nobody waits any longer: we are shutting down, and a receipt is as good elsewhere."""
        self._hurried = True
        for key in list(self._waiting):
            self.post(key)

    def post(self, key: Key) -> None:
        """This message has a new verdict."""
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(None)

    async def settled(
        self, custody: Custody, key: Key, *, timeout_ms: int, nonce: bytes = b""
    ) -> Entry | None:
        """The entry once it is delivered or bounced, or as it is when the time is up; with `nonce`
        that of this receipt.

        Looks after it has put itself on the board, never before: what settles in between is seen.
        """
        until = self._clock.now() + timeout_ms
        while True:
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(key, []).append(future)
            try:
                entry = await (custody.receipt(key, nonce) if nonce else custody.find(key))
                left = until - self._clock.now()
                done = entry is None or entry.state is not State.WAITING
                if done or left <= 0 or self._hurried:
                    return entry
                pause_ms = left if self._alone else min(left, POLL_MS)
                await asyncio.wait([future], timeout=pause_ms / 1000)
            finally:
                self._forget(key, future)

    def _forget(self, key: Key, future: asyncio.Future[None]) -> None:
        row = self._waiting.get(key)
        if row is not None and future in row:
            row.remove(future)
            if not row:
                del self._waiting[key]


class Tried(msgspec.Struct, frozen=True):
    """An attempt as a receipt tells it."""

    number: int
    at: str
    status: int | None
    cause: str
    sent: str


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A receipt as its holder sees it. Readers ignore members they do not know."""

    receipt: str
    state: str
    survives: str
    accepted_at: str
    attempts: list[Tried]
    idempotency_key: str = ""
    expires_at: str = ""
    held: bool | None = None
    attempting: bool | None = None
    next_attempt_at: str | None = ""
    delivered_at: str = ""
    status: int = 0
    response: str = ""
    bounced_at: str = ""
    reason: str = ""
    where: str = ""


_UNTRIED: Final = _encode(
    Receipt("%s", _NAMES[State.WAITING], "%s", "%s", [], "", "%s", False, False, "%s")
).decode()
"""What `describe` tells of an entry without a name that was saved untried, as JSON: of nearly all
while a service is down."""


def _is_untried(entry: Entry) -> bool:
    touched = entry.attempt or entry.leased_until or entry.trail or entry.message.name
    due = entry.due_at <= entry.message.accepted_at
    return due and not touched and entry.state is State.WAITING


def describe(entry: Entry, *, now: Instant, survives: str) -> Receipt:
    """The receipt of this entry, as it is now."""
    message = entry.message
    mine = RECEIPTS + token(message.nonce, message.key)
    name, accepted_at = _NAMES[entry.state], stamp(message.accepted_at)
    trail = [Tried(a.number, stamp(a.at), a.status or None, a.cause, a.sent) for a in entry.trail]
    state = entry.state
    if state is State.DELIVERED:
        return Receipt(
            mine,
            name,
            survives,
            accepted_at,
            trail,
            message.name,
            delivered_at=stamp(entry.settled_at),
            status=entry.answer.status if entry.answer is not None else 0,
            response=mine + "/response",
        )
    if state is State.BOUNCED:
        moved = entry.reason == Reason.MOVED
        return Receipt(
            mine,
            "moved" if moved else name,
            survives,
            accepted_at,
            trail,
            message.name,
            bounced_at=stamp(entry.settled_at),
            reason=entry.reason,
            where=_MOVED if moved else "Responsibility has come back to you.",
        )
    next_at = None  # it is held
    if entry.due_at != NEVER:
        at_once = entry.due_at <= message.accepted_at
        next_at = accepted_at if at_once else stamp(entry.due_at)
    return Receipt(
        mine, name, survives, accepted_at, trail, message.name, stamp(message.expires_at),
        next_at is None, entry.leased_until > now, next_at,
    )  # fmt: skip


def retry_after_s(entry: Entry, now: Instant) -> int:
    """How long the holder of a receipt may well wait before asking again."""
    if entry.state is not State.WAITING or entry.due_at == NEVER:
        return 60
    if entry.due_at <= now:
        return 1
    return max(1, min(3600, -(-(entry.due_at - now) // 1000) + 1))


def accepted(
    entry: Entry, *, now: Instant, survives: str, applied: bytes = b"", cause: str = ""
) -> Response:
    """202: we have it (RFC 9110 §15.3.3, with mail's meaning). Only after the spool has synced."""
    message = entry.message
    if _is_untried(entry):
        mine, at = RECEIPTS + token(message.nonce, message.key), stamp(message.accepted_at)
        body = (_UNTRIED % (mine, survives, at, stamp(message.expires_at), at)).encode()
    else:
        receipt = describe(entry, now=now, survives=survives)
        mine, body = receipt.receipt, _encode(receipt)
    fields: list[Field] = [
        (b"Location", mine.encode()),
        (b"Content-Type", b"application/json"),
        (b"Retry-After", b"%d" % retry_after_s(entry, now)),
        (b"Cache-Control", b"no-store"),
        proxy_status("", cause or "saved for delivery"),
    ]
    if applied:
        fields.append((b"Preference-Applied", applied))
    return Response(202, b"Accepted", fields, body)


class Receipts:
    """Serves what is under /_unspool/."""

    def __init__(
        self,
        *,
        custody: Custody,
        board: Board,
        clock: Clock,
        keeping: Keeping,
        wait_max_ms: int,
        ready: Callable[[], dict[str, object]],
    ) -> None:
        self._custody = custody
        self._board = board
        self._clock = clock
        self._keeping = keeping
        self._wait_max_ms = wait_max_ms
        self._ready = ready

    async def serve(self, request: Request) -> Response:
        if request.rest is not None:
            request.rest.close()
        if found := _TARGET.fullmatch(request.target):
            return await self._receipt(request, found)
        if request.method not in (b"GET", b"HEAD"):
            return problem("method", fields=[(b"Allow", b"GET, HEAD")])
        if found := _PROBLEM.fullmatch(request.target):
            return self._problem(found[1].decode())
        if request.target == b"/_unspool/health":
            return self._health()
        if request.target == b"/_unspool/retention":
            return self._retention()
        return problem("not-found")

    async def _receipt(self, request: Request, found: re.Match[bytes]) -> Response:
        read = read_token(found[1].decode("latin-1"))
        entry = await self._custody.receipt(read[1], read[0]) if read else None
        if read is None or entry is None:
            return problem("receipt-unknown")
        if not entry.message.nonce:
            return problem("receipt-unknown")
        if request.method == b"DELETE" and not found[2]:
            return await self._cancel(entry)
        if request.method not in (b"GET", b"HEAD"):
            allow = b"GET, HEAD" if found[2] else b"GET, HEAD, DELETE"
            return problem("method", fields=[(b"Allow", allow)])
        wait_ms = self._wait_ms(found[3] or b"")
        if wait_ms is None:
            return problem("field-malformed", "`wait` takes a number of seconds: ?wait=30")
        if wait_ms:
            settled = self._board.settled(self._custody, read[1], timeout_ms=wait_ms, nonce=read[0])
            entry = await settled or entry
        return self._answer(entry) if found[2] else self._state(entry)

    def _wait_ms(self, query: bytes) -> int | None:
        for part in query.split(b"&"):
            name, _, value = part.partition(b"=")
            if name == b"wait":
                if not value.isdigit() or len(value) > 9:
                    return None
                return min(int(value) * 1000, self._wait_max_ms)
        return 0

    def _state(self, entry: Entry) -> Response:
        now = self._clock.now()
        fields: list[Field] = [
            (b"Content-Type", b"application/json"),
            (b"Cache-Control", b"no-store"),
            (b"Referrer-Policy", b"no-referrer"),
            proxy_status(""),
        ]
        if entry.state is State.WAITING:
            fields.append((b"Retry-After", b"%d" % retry_after_s(entry, now)))
        body = _encode(describe(entry, now=now, survives=self._custody.grade(entry)))
        return Response(status=200, reason=b"", fields=fields, body=body)

    def _answer(self, entry: Entry) -> Response:
        """The upstream's answer itself, once there is one."""
        now = self._clock.now()
        if entry.state is State.BOUNCED:
            return problem(ended_as(entry.reason), f"it ended as {entry.reason}")
        if entry.state is not State.DELIVERED:
            return accepted(entry, now=now, survives=self._custody.grade(entry))
        answer = entry.answer
        if answer is None or now >= entry.answer_until:
            return problem("expired", "it was delivered; the answer is no longer kept")
        fields = [
            # A redirect kept for later would lead from our origin to wherever it says.
            *(
                field
                for field in harmless(answer.fields)
                if answer.status // 100 != 3 or field[0].lower() != b"location"
            ),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Content-Security-Policy", b"sandbox; default-src 'none'"),
            (b"Cache-Control", b"no-store"),
            (b"Referrer-Policy", b"no-referrer"),
            (b"Unspool-Answered-At", stamp(entry.settled_at).encode()),
        ]
        if not entry.stored:
            fields.append((b"Unspool-Body-Kept", b"?0"))
        return Response(answer.status, answer.reason, fields, answer.body)

    async def _cancel(self, entry: Entry) -> Response:
        """DELETE: no further attempt. What was tried before may have had its effect."""
        now = self._clock.now()
        if unpark(entry.trail):
            return problem("settled", "it is being moved here; its old relay may have it in hand")
        if entry.state is State.WAITING:
            key = entry.message.key
            until = Instant(now + SEIZE_MS)
            lease = await self._custody.seize(entry, now=now, until=until)
            if lease is not None:
                end = Attempt(lease.entry.attempt, now, 0, "cancelled by its sender", Sent.NEVER)
                verdict = bounced(
                    Reason.CANCELLED,
                    now=now,
                    keeping=self._keeping,
                    trail=extended(lease.entry.trail, end),
                )
                if await self._custody.settle(lease, verdict, now=now):
                    self._custody.backlog -= 1
                    self._board.post(key)
                    found = await self._custody.receipt(key, entry.message.nonce)
                    return self._state(found or entry)
            self._custody.not_blind()
        return problem("settled", f"it is {_NAMES[entry.state]}")

    def _problem(self, name: str) -> Response:
        row = PROBLEMS.get(name)
        if row is None:
            return problem("not-found")
        text = f"{name} ({row.status})\n\n{row.title}.\n{row.where}\n{row.advice}\n"
        fields = [(b"Content-Type", b"text/plain; charset=utf-8"), proxy_status("")]
        return Response(status=200, reason=b"", fields=fields, body=text.encode())

    def _retention(self) -> Response:
        """For how long anything is remembered, in seconds: what Idempotency-Retention says."""
        kept = {"answer": self._keeping.answer_ms // 1000, "key": self._keeping.key_ms // 1000}
        fields = [(b"Content-Type", b"application/json"), proxy_status("")]
        return Response(200, b"", fields, _encode(kept))

    def _health(self) -> Response:
        body = self._ready()
        fields = [
            (b"Content-Type", b"application/json"),
            (b"Cache-Control", b"no-store"),
            proxy_status(""),
        ]
        return Response(200 if body["ready"] else 503, b"", fields, _encode(body))
