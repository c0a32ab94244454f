"""idemptx: its decorator on a FastAPI route, with its memory backend (the other one is Redis).

JSON answers are given as JSONResponse, as its README asks, other answers as Response. As it comes
its exceptions reach the server; the best configuration turns them into answers, in the way FastAPI
has for that, makes keys optional, and waits for the first.
"""

from __future__ import annotations

import json

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from idemptx import idempotent
from idemptx.backend import InMemoryBackend
from idemptx.exceptions import (
    ConflictRequestException,
    MissingKeyException,
    RequestInProgressException,
)

from served import BEST, behind, counted, serve

inner = counted()
app = FastAPI()
ANSWERS = {
    ConflictRequestException: 422,
    MissingKeyException: 400,
    RequestInProgressException: 409,
}
how = {"required": False, "wait_timeout": 3.0} if BEST else {}


async def answer_of(request: Request) -> Response:
    """What the service behind says, as a response of FastAPI's."""
    body = await request.body()
    events: list[dict] = []
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict:
        return given.pop(0) if given else {"type": "http.disconnect"}

    async def send(event: dict) -> None:
        events.append(event)

    await inner(request.scope, receive, send)
    start, parts = events[0], events[1:]
    fields = {
        name.decode(): value.decode("latin-1")
        for name, value in start["headers"]
        if name != b"content-length"
    }
    content = b"".join(part.get("body", b"") for part in parts)
    if fields.get("content-type") == "application/json" and content:
        return JSONResponse(json.loads(content), start["status"], fields)
    return Response(content, start["status"], fields)


@app.api_route("/{path:path}", methods=["POST", "PATCH"])
@idempotent(storage_backend=InMemoryBackend(), **how)
async def write(request: Request) -> Response:
    return await answer_of(request)


@app.api_route("/{path:path}", methods=["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def read(request: Request) -> Response:
    return await answer_of(request)


if BEST:
    for kind, status in ANSWERS.items():

        async def told(_request: Request, error: Exception, status: int = status) -> Response:
            return JSONResponse({"detail": str(error)}, status)

        app.add_exception_handler(kind, told)

serve(behind(app))
