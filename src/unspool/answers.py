"""What the relay says when it does not simply pass an answer on.

    replayed(entry)              the same answer again (conformance B1 to B8)
    passed_back(answer, why)     the service's own 5xx, or a problem in its place, and why not saved
    settled(entry)               the real answer, for one who waited for it

A status is never invented for the service: what it answered is passed back as it is, and what is
ours is a problem document. Either way Proxy-Status says what happened (RFC 9209).
"""

from __future__ import annotations

from typing import Final

from .core.lifecycle import Reason, State
from .core.message import Answer, Cause, Field, Request, Response, Sent
from .core.outcome import judge
from .problems import problem, proxy_status
from .receipts import stamp
from .spools.protocol import Entry

REPLAYED: Final[Field] = (b"Idempotent-Replayed", b"true")
TIMEOUTS: Final = frozenset(
    {Cause.HTTP_RESPONSE_TIMEOUT, Cause.CONNECTION_READ_TIMEOUT, Cause.CONNECTION_WRITE_TIMEOUT}
)

WHY_SAFE: Final = "it asks for nothing to be changed, so it is not saved"
WHY_UNKEYED: Final = "it may have been applied and may not be repeated: send an Idempotency-Key"
WHY_LARGE: Final = "its body is too large to keep"


def replayed(entry: Entry) -> Response:
    """The kept answer, byte for byte. Fields of the one exchange it came in are not in it."""
    answer = entry.answer
    assert answer is not None, "I6: a replay of nothing"
    fields = [field for field in answer.fields if field[0].lower() != b"cache-control"]
    fields.append(REPLAYED)
    fields.append((b"Cache-Control", b"no-store"))
    fields.append((b"Unspool-Answered-At", stamp(entry.settled_at).encode()))
    if not entry.stored:
        fields.append((b"Unspool-Body-Kept", b"?0"))
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
    name = "unknown" if entry.reason == Reason.UNKNOWN else "bounced"
    return problem(name, f"it ended as {entry.reason}")


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


def closed(request: Request, response: Response) -> Response:
    """An answer given before the body was read: no more of it is wanted."""
    if request.rest is not None:
        request.rest.close()
    return response
