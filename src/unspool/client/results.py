"""Results: what became of a request, as the caller sees it.

    match client.post("/orders", json=order, key=order.id):
        case Delivered(response): …     a server answered: 2xx or 3xx
        case Rejected(response): …      a server answered 4xx: the sender must mend it
        case Accepted(receipt): …       a relay or a queue has taken responsibility
        case Queued(key): …             it is in our outbox, on disk, and goes out, come what may
        case Unknown(): …               it may have been applied, and may not be repeated
        case FellBack(value): …         nobody has it, and the fallback plan did something

    Bounced(key)                        of what had been queued: it was given up
    Settled(key, result)                the news of one that had been queued

What nobody owns is no result but an exception: `errors.Undelivered`, with the request attached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.fields import values
from ..core.message import Field, Value
from ..core.message import Response as Answered

if TYPE_CHECKING:
    from .receipt import BlockingReceipt, Receipt
    from .request import Request


class Headers(Value, frozen=True):
    """Header fields: as they came, and by name whatever its case."""

    fields: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str | None = None) -> str | None:
        """All values of this name, joined with a comma (RFC 9110 §5.3)."""
        found = self.get_all(name)
        return ", ".join(found) if found else default

    def get_all(self, name: str) -> list[str]:
        wanted = name.lower()
        return [value for one, value in self.fields if one.lower() == wanted]

    def __getitem__(self, name: str) -> str:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get_all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _ in self.fields))

    def __len__(self) -> int:
        return len(dict.fromkeys(name.lower() for name, _ in self.fields))

    def items(self) -> Iterator[tuple[str, str]]:
        return iter(self.fields)


def headers(fields: Sequence[Field]) -> Headers:
    return Headers(tuple([(n.decode("latin-1"), v.decode("latin-1")) for n, v in fields]))


class Response(Value, frozen=True):
    """What a server answered."""

    status: int
    headers: Headers = Headers()
    body: bytes = b""
    reason: str = ""
    whole: bool = True
    """False: the body was too large to keep, and is not here."""

    def json(self) -> Any:
        """The body as JSON. Raises `ValueError` where it is none."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text, in the charset it says, else UTF-8; what cannot be read is replaced."""
        kind = self.headers.get("content-type") or ""
        _, found, charset = kind.lower().partition("charset=")
        try:
            return self.body.decode(
                charset.split(";")[0].strip(" \"'") if found else "utf-8", "replace"
            )
        except LookupError:
            return self.body.decode("utf-8", "replace")

    @property
    def replayed(self) -> bool:
        """The server had answered this key before, and gave the same answer again."""
        return self.headers.get("idempotent-replayed") == "true"


def response_of(answer: Answered, *, whole: bool = True) -> Response:
    """An answer of the core as callers see it."""
    fields = answer.fields
    if answer.length >= 0:  # which a transport keeps apart from the fields
        fields = (*fields, (b"Content-Length", b"%d" % answer.length))
    return Response(
        answer.status,
        headers(fields),
        answer.body,
        answer.reason.decode("latin-1"),
        whole and answer.rest is None and not values(answer.fields, b"unspool-body-kept"),
    )


class Try(Value, frozen=True):
    """One attempt, or one offer to a queue."""

    where: str
    """The server's origin, or the queue without its password."""
    status: int
    """Of the answer; 0 where none came."""
    cause: str
    sent: str
    """never sent · maybe applied · not processed · answered"""
    took_ms: int = 0


class Delivered(Value, frozen=True):
    """A server answered, and the answer stands."""

    response: Response
    key: str = ""
    tries: tuple[Try, ...] = ()


class Rejected(Value, frozen=True):
    """A server says that the request is wrong: tell the user what. Repeating it is useless."""

    response: Response
    key: str = ""
    tries: tuple[Try, ...] = ()


class Accepted(Value, frozen=True):
    """A relay or a queue has taken responsibility: it will be delivered, and not by us."""

    receipt: Receipt | BlockingReceipt
    key: str = ""
    tries: tuple[Try, ...] = ()


class Queued(Value, frozen=True):
    """It is in our outbox, and stays there until it is delivered or expires."""

    key: str
    survives: str = "power"
    """What it outlives there: nothing, process, power, machine."""
    tries: tuple[Try, ...] = ()


class Unknown(Value, frozen=True):
    """It may or may not have been applied, and may not be repeated. Find out at the server."""

    request: Request | None
    why: str
    key: str = ""
    tries: tuple[Try, ...] = ()
    response: Response | None = None
    """The last one, where there was one: a 500, say."""


class FellBack(Value, frozen=True):
    """Nobody has it; the fallback plan was called, and this is what it gave."""

    value: Any
    key: str = ""
    tries: tuple[Try, ...] = ()


class Bounced(Value, frozen=True):
    """It had been queued, and was given up: responsibility has come back to you."""

    key: str
    reason: str
    """expired · cancelled · dropped"""
    tries: tuple[Try, ...] = ()


Result = Delivered | Rejected | Accepted | Queued | Unknown | FellBack
Fate = Delivered | Rejected | Accepted | Unknown | Bounced
"""What may become of a request that was queued."""


class Settled(Value, frozen=True):
    """The news of a request that had been queued."""

    key: str
    result: Fate
    ours: bool = True
    """This client queued it. False: another process, or this one before it was started again."""


class Progress(Value, frozen=True):
    """How far draining has come."""

    waiting: int
    settled: int
    """Since draining began."""
