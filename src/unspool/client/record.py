"""A request as the outbox keeps it, and what came of it as the outbox tells it.

    message(request, …) -> Message       sealed, with what only we need to know in fields of ours
    restored(wire, …) -> Request         the same request again, for the next pass
    result_of(entry, …) -> Result        what an entry says: Queued, or how it ended
    trail_of(tries, at=…) -> trail       the tries of a pass as an entry keeps them

The fields of ours are `Unspool-Key` (what it is called, also where no key is sent along),
`Unspool-Order` and `Unspool-Expires-At`. They stay in the outbox: `restored` takes them off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..core.fields import values
from ..core.lifecycle import Reason, State
from ..core.message import (
    IDEMPOTENT_METHODS,
    SAFE_METHODS,
    Attempt,
    Destination,
    Field,
    Instant,
    Key,
    Message,
    seal,
)
from ..core.message import Request as Wire
from ..core.message import Response as Answered
from ..spools.protocol import Entry
from .plan import Kind
from .receipt import Receipt
from .request import Request
from .results import Accepted, Bounced, Delivered, Fate, Queued, Rejected, Try, Unknown, response_of

KEY: Final = b"Unspool-Key"
ORDER: Final = b"Unspool-Order"
EXPIRES: Final = b"Unspool-Expires-At"
TAKEN_BY: Final = b"Unspool-Taken-By"
"""In a kept answer: who took it over."""
_OURS: Final = frozenset(
    {KEY.lower(), ORDER.lower(), EXPIRES.lower(), b"unspool-attempt", b"idempotency-key"}
)


def message(
    request: Request,
    *,
    key: Key,
    destination: Destination,
    now: Instant,
    lifetime_ms: int,
    nonce: bytes,
) -> Message:
    """The request in its envelope."""
    wire = request.wire
    expires_at = now + lifetime_ms
    ours: list[Field] = [
        (KEY, request.key.encode()),
        (EXPIRES, b"%d" % expires_at),
    ]
    if request.order:
        ours.append((ORDER, request.order.encode()))
    return seal(
        Wire(wire.method, wire.target, (*wire.fields, *ours), wire.body),
        key=key,
        name=request.key,
        destination=destination,
        now=now,
        lifetime_ms=lifetime_ms,
        nonce=nonce,
        repeat=request.kind.repeat,
        order_key=request.order,
    )


def size_of(message: Message) -> int:
    """Of its request, as it is kept, in bytes; a few more or less."""
    request = message.request
    assert request is not None
    fields = sum(len(name) + len(value) for name, value in request.fields)
    return len(request.method) + len(request.target) + fields + len(request.body)


def restored(wire: Wire, *, repeat: bool, now: Instant, deadline_ms: int) -> Request:
    """The request that was kept."""
    fields = tuple([field for field in wire.fields if field[0].lower() not in _OURS])
    name = (values(wire.fields, KEY.lower()) or [b""])[0].decode()
    order = (values(wire.fields, ORDER.lower()) or [b""])[0].decode()
    expires = (values(wire.fields, EXPIRES.lower()) or [b""])[0]
    left_ms = int(expires) - now if expires.isdigit() else 0
    return Request(
        method=wire.method.decode(),
        target=wire.target.decode("latin-1"),
        fields=fields,
        body=wire.body,
        key=name,
        keyed=bool(values(wire.fields, b"idempotency-key")),
        minted=False,
        kind=Kind(
            repeat=repeat or wire.method in IDEMPOTENT_METHODS, safe=wire.method in SAFE_METHODS
        ),
        deadline_ms=deadline_ms,
        lifetime_ms=max(1_000, left_ms),
        order=order,
    )


def number_of(wire: Wire) -> int:
    """Which attempt the dispatcher says this is."""
    found = values(wire.fields, b"unspool-attempt")
    return int(found[-1]) if found and found[-1].isdigit() else 1


def taken_by(answer: Answered, by: str) -> Answered:
    """The answer by which it was taken over, and by whom, to be kept."""
    fields = (*answer.fields, (TAKEN_BY, by.encode("latin-1", "replace")))
    return Answered(answer.status, answer.reason, fields, answer.body)


def tries_of(entry: Entry) -> tuple[Try, ...]:
    return tuple(Try("", one.status, one.cause, one.sent) for one in entry.trail)


def result_of(
    entry: Entry, *, survives: str, receipt_from: Callable[[str, str, Answered], Receipt]
) -> Fate | Queued:
    """What an entry says of its request."""
    name = entry.message.name or entry.message.key
    tries = tries_of(entry)
    if entry.state in (State.WAITING, State.CLAIMED):
        return Queued(name, survives, tries)
    if entry.state is State.BOUNCED:
        if entry.reason == Reason.UNKNOWN:
            why = "an attempt may have been applied, and it may not be repeated"
            return Unknown(None, why, name, tries)
        return Bounced(name, entry.reason, tries)
    answer = entry.answer
    if answer is None:  # the fact is known, the answer is no longer kept
        status = entry.trail[-1].status if entry.trail else 200
        return Delivered(response_of(Answered(status, b"", ()), whole=False), name, tries)
    by = values(answer.fields, TAKEN_BY.lower())
    if by:
        return Accepted(receipt_from(by[0].decode("latin-1"), name, answer), name, tries)
    response = response_of(answer, whole=entry.stored)
    kind = Rejected if response.status // 100 in (4, 5) else Delivered
    return kind(response, name, tries)


def trail_of(tries: Sequence[Try], *, at: Instant) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(number, at, one.status, f"{one.cause} ({one.where})"[:200], one.sent)
        for number, one in enumerate(tries, 1)
    )
