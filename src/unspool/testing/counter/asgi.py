"""The counter service as an ASGI application.

    app = counter("counts.db")
    app = guarded(Idempotency(counter("counts.db", offers=("effect", "revoke")), …,
                              scope=principal))
    uvicorn --factory unspool.testing.counter.asgi:from_environ      COUNTER_FILE names the file

`guarded` stands outside the middleware, as authentication does: it says who is asking in
`scope["caller"]`, refuses whose rights were taken away, and takes rights away when told.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from .doing import (
    CHUNK,
    SIZE_MAX_BYTES,
    STREAM_PAUSE_MS,
    Answer,
    Count,
    Counts,
    Ending,
    Look,
    Revoking,
    Step,
    caller_of,
    offered,
    pauses,
    principal_of,
    read,
    told,
)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = (("Content-Type", "application/json"),)


class Raised(RuntimeError):
    """The handler was told to raise."""


def counter(file: str, *, offers: Sequence[str] = (), mounts: Sequence[str] = ()) -> App:
    """The service. `offers` and `mounts` are what GET /counter tells beside what it always can."""
    counts = Counts(file)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        query = scope.get("query_string", b"").decode("latin-1")
        try:
            asked = read(scope["method"], scope["path"], query)
        except ValueError as error:
            await _say(send, Answer(400, [("Content-Type", "text/plain")], str(error).encode()))
            return
        if isinstance(asked, Count):
            await _count(counts, asked, scope, receive, send)
        elif isinstance(asked, Look) and asked.subject:
            await _say(send, Answer(200, JSON, told(counts.seen(asked.subject))))
        elif isinstance(asked, Look):
            await _say(send, Answer(200, JSON, offered(more=offers, mounts=mounts)))
        elif isinstance(asked, Ending):
            counts.end(asked.subject)
            await _say(send, Answer(204, (), b""))
        else:
            await _say(send, Answer(404, [("Content-Type", "text/plain")], b"not here\n"))

    return app


async def _count(counts: Counts, asked: Count, scope: Scope, receive: Receive, send: Send) -> None:
    parts: list[bytes] = []
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
        if sum(map(len, parts)) > SIZE_MAX_BYTES:
            await _say(send, Answer(413, [("Content-Type", "text/plain")], b"too large\n"))
            return
    refusal = asked.step(1).refusal(b"".join(parts))
    if refusal is not None:
        await _say(send, refusal)
        return
    run = counts.arrive(asked.subject, field(scope, b"idempotency-key"))
    try:
        await _do(asked.step(run), counts, asked.subject, run, scope, send)
    finally:
        counts.leave(asked.subject)


async def _do(step: Step, counts: Counts, subject: str, run: int, scope: Scope, send: Send) -> None:
    if step.effect and "unspool" in scope:
        scope["unspool"].effect()
    for pause_s in pauses(step, lambda: counts.has_ended(subject)):
        await asyncio.sleep(pause_s)
    if step.raises:
        raise Raised("the step says so")
    await _say(send, step.answer(subject, run))


async def _say(send: Send, answer: Answer) -> None:
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.fields]
    if not answer.chunks and answer.status not in (204, 304):
        fields.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": fields})
    for _ in range(answer.chunks):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await asyncio.sleep(STREAM_PAUSE_MS / 1000)
    await send({"type": "http.response.body", "body": answer.body})


def field(scope: Scope, wanted: bytes) -> str:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value).decode("latin-1")
    return ""


def guarded(app: App, file: str) -> App:
    """Authentication, for tests: `Authorization: Bearer NAME.TOKEN`."""
    counts = Counts(file)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        caller = caller_of(field(scope, b"authorization"))
        try:
            asked = read(scope["method"], scope["path"], "")
        except ValueError:
            asked = None
        if isinstance(asked, Revoking):
            counts.revoke(asked.caller)
            await _say(send, Answer(204, (), b""))
        elif caller and counts.is_revoked(caller):
            text = msgspec.json.encode({"detail": "you may not do that any more"})
            await _say(send, Answer(403, JSON, text))
        else:
            await app({**scope, "caller": caller}, receive, send)

    return guard


def principal(scope: Scope) -> str | None:
    """The scope function for `Idempotency` inside `guarded`."""
    return principal_of(scope["caller"])


def claimed(scope: Scope) -> str | None:
    """The same for what stands outside of `guarded`: who says that it is asking."""
    return principal_of(caller_of(field(scope, b"authorization")))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


def from_environ() -> App:
    return counter(os.environ["COUNTER_FILE"])
