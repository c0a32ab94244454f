"""What the conformance suite accepts, leases and settles: entries and verdicts of one shape.

waiting("a") · claimed("a") · settled("a")      entries in the three forms that accept takes
delivered() · deferred(at) · bounced()          verdicts
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from msgspec.structs import replace

from ...core.lifecycle import Bounced, Deferred, Delivered, Reason, State
from ...core.message import NEVER, Attempt, Destination, Instant, Key, Message, Request, Response
from ...spools.protocol import Entry, Lease, Spool

NOW: Final = Instant(1_800_000_000_000)
SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
DAY: Final = 24 * 60 * MINUTE

HERE: Final = Destination("http://here.example")
THERE: Final = Destination("http://there.example:8080")


def later(ms: int) -> Instant:
    return Instant(NOW + ms)


LEASED_UNTIL: Final = later(MINUTE)


def key(name: str) -> Key:
    """22 characters, as keys have."""
    return Key(f"{name:.<22}")


def request(name: str) -> Request:
    return Request(
        method=b"POST",
        target=b"/orders/" + name.encode(),
        fields=((b"Content-Type", b"text/plain"), (b"X-Twice", b"1"), (b"x-twice", b"2")),
        body=b"\x00\xff order " + name.encode(),
    )


def message(
    name: str,
    *,
    destination: Destination = HERE,
    fingerprint: bytes = b"one fingerprint.",
    at: Instant = NOW,
    order_key: str = "",
    repeat: bool = True,
    nonce: bytes = b"a receipt nonce.",
) -> Message:
    return Message(
        key=key(name),
        fingerprint=fingerprint,
        destination=destination,
        accepted_at=at,
        expires_at=Instant(at + 5 * DAY),
        nonce=nonce,
        name=f"name of {name}",
        order_key=order_key,
        repeat=repeat,
        request=request(name),
    )


def waiting(
    name: str,
    *,
    due_at: Instant = NOW,
    destination: Destination = HERE,
    fingerprint: bytes = b"one fingerprint.",
    at: Instant = NOW,
    order_key: str = "",
    repeat: bool = True,
    nonce: bytes = b"a receipt nonce.",
) -> Entry:
    return Entry(
        message=message(
            name,
            destination=destination,
            fingerprint=fingerprint,
            at=at,
            order_key=order_key,
            repeat=repeat,
            nonce=nonce,
        ),
        state=State.WAITING,
        due_at=due_at,
    )


def claimed(
    name: str,
    *,
    at: Instant = NOW,
    until: Instant = LEASED_UNTIL,
    keep_until: Instant = LEASED_UNTIL,
    fingerprint: bytes = b"one fingerprint.",
    order_key: str = "",
    nonce: bytes = b"a receipt nonce.",
) -> Entry:
    return Entry(
        message=message(name, at=at, fingerprint=fingerprint, order_key=order_key, nonce=nonce),
        state=State.CLAIMED,
        due_at=at,
        attempt=1,
        leased_until=until,
        keep_until=keep_until,
    )


def settled(name: str, *, at: Instant = NOW) -> Entry:
    return Entry(
        message=replace(message(name, at=at), request=None),
        state=State.DELIVERED,
        due_at=at,
        attempt=1,
        trail=(attempt(1),),
        answer=answer("kept at once"),
        settled_at=at,
        keep_until=later(30 * DAY),
        answer_until=later(DAY),
    )


def attempt(number: int, *, at: Instant = NOW) -> Attempt:
    return Attempt(number=number, at=at, status=200, cause="", sent="answered")


def answer(text: str = "done") -> Response:
    return Response(
        status=201,
        reason=b"Created",
        fields=((b"Content-Type", b"text/plain"),),
        body=b"\x00\xff " + text.encode(),
        length=-1,
    )


def delivered(
    text: str = "done", *, keep_ms: int = 30 * DAY, answer_ms: int = DAY, number: int = 1
) -> Delivered:
    return Delivered(
        answer=answer(text),
        keep_until=later(keep_ms),
        answer_until=later(answer_ms),
        trail=(attempt(number),),
    )


def deferred(due_at: Instant) -> Deferred:
    return Deferred(due_at=due_at, trail=(attempt(1),))


def held() -> Deferred:
    return Deferred(due_at=NEVER)


def bounced(*, keep_ms: int = 30 * DAY) -> Bounced:
    return Bounced(reason=Reason.EXPIRED, keep_until=later(keep_ms), trail=(attempt(1),))


def shown(entry: Entry) -> Entry:
    """As `find` shows it: without the request."""
    return replace(entry, message=replace(entry.message, request=None))


@pytest.mark.asyncio
class Suite:
    """What every group needs. `open` is the spool's author's to write."""

    async def open(self) -> Spool:
        raise NotImplementedError("open your spool here: the same store during one test")

    async def spoil(self, spool: Spool, key: Key) -> bool:
        """Damage the kept record of this key, behind the spool's back. False: that cannot be."""
        return False

    @pytest_asyncio.fixture
    async def spool(self) -> AsyncIterator[Spool]:
        spool = await self.open()
        yield spool
        await spool.aclose()


async def lease_all(
    spool: Spool,
    *,
    destination: Destination = HERE,
    now: Instant = NOW,
    until: Instant = LEASED_UNTIL,
    limit: int = 100,
) -> list[Lease]:
    return list(await spool.lease({destination: limit}, now=now, until=until))


async def lease_one(spool: Spool, *, now: Instant = NOW, until: Instant = LEASED_UNTIL) -> Lease:
    [lease] = await lease_all(spool, now=now, until=until)
    return lease


async def found(spool: Spool, name: str) -> Entry | None:
    [entry] = await spool.find([key(name)])
    return entry


def names_of(entries: list[Lease] | list[Entry]) -> list[str]:
    """The names these were made with, in their order."""
    messages = [x.entry.message if isinstance(x, Lease) else x.message for x in entries]
    return [message.key.rstrip(".") for message in messages]
