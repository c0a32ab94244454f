"""What the relay says when it does not simply pass an answer on.

    replayed(entry)              the same answer again (conformance B1 to B8)
    why_not_saved(request, …)    the reason, or nothing: it may be saved
    passed_back(answer, why)     the service's own 5xx, or a problem in its place, and why not saved
    settled(entry)               the real answer, for one who waited for it
    by_age(name, …)              why a key that nobody knows may not run, by what it says of itself
    retention(keeping)           for how long anything is remembered, as a field

A status is never invented for the service: what it answered is passed back as it is, and what is
ours is a problem document. Either way Proxy-Status says what happened (RFC 9209).

Where one of us is behind another (a relay, `Retry`, a middleware), what is said of the key stands
once: as it is where the sender asks, which is the outermost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .core.idempotency import Unreadable, minted
from .core.kinds import Kinds, name_of
from .core.lifecycle import Keeping, State, ended_as
from .core.message import SAFE_METHODS, Answer, Cause, Field, Instant, Request, Response, Sent
from .core.outcome import Judgement, judge, repeatable
from .problems import problem, proxy_status
from .receipts import stamp
from .spools.protocol import Entry

REPLAYED: Final[Field] = (b"Idempotent-Replayed", b"true")
NO_STORE: Final[Field] = (b"Cache-Control", b"no-store")
MARKS: Final = frozenset(
    {
        b"idempotency-retention",
        b"idempotency-stored",
        b"idempotent-replayed",
        b"unspool-answered-at",
    }
)
"""What we say of a key beside an answer: one of us behind another says it, too."""
_is_mark: Final = Kinds(lambda name: name in MARKS).__getitem__
_GOES_AGAIN: Final = Kinds(lambda name: name != NO_STORE[0].lower() and name not in MARKS)
TIMEOUTS: Final = frozenset(
    {Cause.HTTP_RESPONSE_TIMEOUT, Cause.CONNECTION_READ_TIMEOUT, Cause.CONNECTION_WRITE_TIMEOUT}
)

WHY_SAFE: Final = "it asks for nothing to be changed, so it is not saved"
WHY_UNKEYED: Final = "it may have been applied and may not be repeated: send an Idempotency-Key"
WHY_CONTENDED: Final = "it is worth nothing late, as its sender says, so it is not saved"
WHY_LARGE: Final = "its body is too large to keep"


def replayed(entry: Entry, *more: Field) -> Response:
    """The kept answer, byte for byte. Fields of the one exchange it came in are not in it."""
    answer = entry.answer
    assert answer is not None, "I6: a replay of nothing"
    fields = [field for field in answer.fields if _GOES_AGAIN[field[0]]]
    fields += (REPLAYED, NO_STORE, (b"Unspool-Answered-At", stamp(entry.settled_at).encode()))
    if not entry.stored:
        fields = [*without(fields, b"unspool-body-kept"), (b"Unspool-Body-Kept", b"?0")]
    fields += more
    return Response(answer.status, answer.reason, fields, answer.body)


def settled(entry: Entry) -> Response:
    """What became of a message, for the sender who waited."""
    answer = entry.answer
    if answer is not None:
        fields = [*answer.fields]
        if not entry.stored:
            fields.append((b"Unspool-Body-Kept", b"?0"))
        return Response(answer.status, answer.reason, fields, answer.body)
    if entry.state is State.DELIVERED:
        return problem("expired", "it was delivered; the answer is no longer kept")
    return problem(ended_as(entry.reason), f"it ended as {entry.reason}")


def why_not_saved(
    request: Request, judgement: Judgement, *, repeat: bool, contended: bool = False
) -> str:
    """Why a request without an answer that stands is not saved; empty: it may be."""
    if request.rest is not None:
        return WHY_LARGE
    if request.method in SAFE_METHODS:
        return WHY_SAFE
    if contended:
        return WHY_CONTENDED
    return "" if repeatable(judgement, repeat=repeat) else WHY_UNKEYED


def passed_back(answer: Answer, why: str, *, retry_after_s: int | None = None) -> Response:
    """Responsibility stays with the sender: the answer as it is, and why it was not saved."""
    told = f"not saved: {why}"
    if isinstance(answer, Response):
        status = proxy_status("", told, received=answer.status)
        fields = [*answer.fields, status]
        return Response(
            answer.status, answer.reason, fields, answer.body, answer.rest, answer.length
        )
    if answer.cause is Cause.CLOSING:
        # A repeat of what may have been applied is not ours to ask for, so no Retry-After with it.
        if judge(answer).sent is Sent.NEVER or why is WHY_SAFE:
            return problem("closing", told, retry_after_s=1)
        return problem("cut-short", told)
    if judge(answer).sent is Sent.NEVER:
        name, retry_after_s = "unreachable", retry_after_s or 1
    else:
        name = "slow" if answer.cause in TIMEOUTS else "no-answer"
    return problem(
        name,
        f"{answer.detail or answer.cause}; {told}",
        error=answer.cause.value,
        retry_after_s=retry_after_s,
    )


def by_age(name: str, *, now: Instant, keeping: Keeping) -> Response | None:
    """A refusal for a key that nobody knows and that tells how old it is; None: it may run
    (conformance J3, J4)."""
    found = minted(name, now=now, key_ms=keeping.key_ms)
    if found is None:
        return None
    if isinstance(found, Unreadable):
        return problem("key-malformed", found.why)
    return problem("expired", "it was made longer ago than keys are remembered")


def retention(keeping: Keeping) -> Field:
    """For how long, in seconds, so that a client may stop in time (conformance J1). A dictionary
    (RFC 9651 §3.2)."""
    kept = f"answer={keeping.answer_ms // 1000}, key={keeping.key_ms // 1000}"
    return b"Idempotency-Retention", kept.encode()


def with_fields(response: Response, *fields: Field) -> Response:
    """The answer with more fields. Of our marks those that are said anew stand once."""
    r = response
    before = r.fields
    if any(map(_is_mark, map(name_of, before))):
        before = without(before, *(name.lower() for name, _ in fields))
    return Response(r.status, r.reason, [*before, *fields], r.body, r.rest, r.length)


def without(fields: Sequence[Field], *names: bytes) -> list[Field]:
    return [field for field in fields if field[0].lower() not in names]


def closed(request: Request, response: Response) -> Response:
    """An answer given before the body was read: no more of it is wanted."""
    if request.rest is not None:
        request.rest.close()
    return response
