"""A small FastAPI application whose callers go away. Run by servers in tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from unspool.middleware.asgi import Idempotency

app = FastAPI()
app.add_middleware(
    Idempotency,
    spool=f"sqlite:///{os.environ['SHOP_FOLDER']}/keys.db",
    scope=lambda scope: "anna",
    survives="process",
)
told: dict[str, int] = {"begun": 0, "done": 0, "streams": 0, "ended": 0}
may_end = asyncio.Event()


@app.get("/told")
async def tell() -> dict[str, int]:
    return told


@app.put("/may-end")
async def let_it_end() -> None:
    may_end.set()


@app.post("/slow")
async def slow() -> dict[str, int]:
    """Takes until it may end."""
    told["begun"] += 1
    await may_end.wait()
    told["done"] += 1
    return {"begun": told["begun"]}


@app.post("/events")
async def events() -> StreamingResponse:
    async def forever() -> AsyncIterator[bytes]:
        told["streams"] += 1
        try:
            while True:
                yield b"data: tick\n\n"
                await asyncio.sleep(0.01)
        finally:
            told["ended"] += 1

    return StreamingResponse(forever(), media_type="text/event-stream")


@app.post("/breaks")
async def breaks() -> StreamingResponse:
    async def some() -> AsyncIterator[bytes]:
        yield b"data: tick\n\n"
        raise ZeroDivisionError

    return StreamingResponse(some(), media_type="text/event-stream")
