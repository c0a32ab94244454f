"""The counter service as a WSGI application.

    app = counter("counts.db")
    app = guarded(Idempotency(counter("counts.db", offers=("effect", "revoke")), …,
                              scope=principal), "counts.db")
    gunicorn 'unspool.testing.counter.wsgi:from_environ()'           COUNTER_FILE names the file

`guarded` says who is asking in `environ["caller"]`: see `asgi`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from .doing import (
    CHUNK,
    SIZE_MAX_BYTES,
    STREAM_PAUSE_MS,
    Answer,
    Asked,
    Count,
    Counts,
    Ending,
    Look,
    Revoking,
    caller_of,
    offered,
    pauses,
    principal_of,
    read,
    told,
)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

JSON = (("Content-Type", "application/json"),)


class Raised(RuntimeError):
    """The handler was told to raise."""


def asked_of(environ: Environ) -> Asked | None:
    return read(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""))


def answer_to(
    asked: Asked | None,
    counts: Counts,
    *,
    body: Callable[[], bytes],
    key: str,
    running: Any,
    offers: Sequence[str],
    mounts: Sequence[str],
) -> Answer:
    """What to say, for every form that blocks. Raises `Raised`."""
    if isinstance(asked, Look):
        if asked.subject:
            return Answer(200, JSON, told(counts.seen(asked.subject)))
        return Answer(200, JSON, offered(more=offers, mounts=mounts))
    if isinstance(asked, Ending):
        counts.end(asked.subject)
        return Answer(204, (), b"")
    if not isinstance(asked, Count):
        return Answer(404, [("Content-Type", "text/plain")], b"not here\n")
    refusal = asked.step(1).refusal(body())
    if refusal is not None:
        return refusal
    run = counts.arrive(asked.subject, key)
    try:
        step = asked.step(run)
        if step.effect and running is not None:
            running.effect()
        for pause_s in pauses(step, lambda: counts.has_ended(asked.subject)):
            time.sleep(pause_s)
        if step.raises:
            raise Raised("the step says so")
        return step.answer(asked.subject, run)
    finally:
        counts.leave(asked.subject)


def counter(file: str, *, offers: Sequence[str] = (), mounts: Sequence[str] = ()) -> App:
    """The service: see `asgi.counter`."""
    counts = Counts(file)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def body() -> bytes:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            read: bytes = environ["wsgi.input"].read(min(length, SIZE_MAX_BYTES))
            return read

        try:
            answer = answer_to(
                asked_of(environ),
                counts,
                body=body,
                key=environ.get("HTTP_IDEMPOTENCY_KEY", ""),
                running=environ.get("unspool"),
                offers=offers,
                mounts=mounts,
            )
        except ValueError as error:
            answer = Answer(400, [("Content-Type", "text/plain")], str(error).encode())
        return _say(answer, start_response)

    return app


def _say(answer: Answer, start_response: StartResponse) -> Iterable[bytes]:
    fields = [*answer.fields]
    if not answer.chunks and answer.status not in (204, 304):
        fields.append(("Content-Length", str(len(answer.body))))
    start_response(f"{answer.status} {phrase(answer.status)}", fields)
    return parts_of(answer) if answer.chunks else [answer.body]


def parts_of(answer: Answer) -> Iterator[bytes]:
    for _ in range(answer.chunks):
        yield CHUNK
        time.sleep(STREAM_PAUSE_MS / 1000)
    if answer.body:
        yield answer.body


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def guarded(app: App, file: str) -> App:
    """Authentication, for tests: `Authorization: Bearer NAME.TOKEN`."""
    counts = Counts(file)

    def guard(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        caller = caller_of(environ.get("HTTP_AUTHORIZATION", ""))
        refusal = guarding(environ["REQUEST_METHOD"], environ["PATH_INFO"], caller, counts)
        if refusal is not None:
            return _say(refusal, start_response)
        environ["caller"] = caller
        return app(environ, start_response)

    return guard


def guarding(method: str, path: str, caller: str, counts: Counts) -> Answer | None:
    """What the guard says by itself; None: it lets the request pass."""
    try:
        asked = read(method, path, "")
    except ValueError:
        asked = None
    if isinstance(asked, Revoking):
        counts.revoke(asked.caller)
        return Answer(204, (), b"")
    if caller and counts.is_revoked(caller):
        text = msgspec.json.encode({"detail": "you may not do that any more"})
        return Answer(403, JSON, text)
    return None


def principal(environ: Environ) -> str | None:
    """The scope function for `Idempotency` inside `guarded`."""
    return principal_of(environ["caller"])


def from_environ() -> App:
    return counter(os.environ["COUNTER_FILE"])
