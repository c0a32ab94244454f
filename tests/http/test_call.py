"""One call of an application whose caller goes away within an answer that streams."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.responses import StreamingResponse

from unspool.transports.call import Call, Receive, Scope, Send


@pytest.fixture
def uncollected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Circles of objects are not found: what still goes is let go of by whoever had it."""
    caplog.set_level(logging.CRITICAL, logger="unspool.app")  # pytest keeps what is logged
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("turn", ["at the same moment", "before", "after"])
@pytest.mark.parametrize("version", ["2.3", "2.4"])
@pytest.mark.usefixtures("uncollected")
async def test_a_stream_of_events_ends_when_its_caller_goes(version: str, turn: str) -> None:
    """F9: whatever the application is doing when its caller goes, what it began within a `try`
    is ended at once, and not by a collection that a quiet process makes hours later. Of ASGI 2.3
    Starlette listens for the disconnect; of 2.4 it waits for `send` to fail."""
    go = asyncio.Event()
    ended = asyncio.Event()

    async def ticks() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: tick\n\n"
                await go.wait()
                go.clear()
        finally:
            ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(ticks(), media_type="text/event-stream")(scope, receive, send)

    asgi = {"version": "3.0", "spec_version": version}
    call = Call(app, {"type": "http", "asgi": asgi, "method": "POST", "headers": []})
    response = await call.response()
    assert response.rest is not None
    if turn == "before":
        go.set()
        await asyncio.sleep(0.01)
    response.rest.close()
    if turn == "after":
        await asyncio.sleep(0.01)
    go.set()
    call.forsake()
    del call, response
    for _ in range(100):
        await asyncio.sleep(0.01)
        go.set()
        if ended.is_set():
            return
    raise AssertionError("it goes on")


async def test_an_endless_answer_for_nobody_leaves_others_their_turn() -> None:
    """Held back by nobody any longer, an application that makes its bytes without waiting for
    anything must not have the loop to itself: its linger would never be over."""
    made = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal made
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20_000):
            made += 1
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})

    call = Call(app, {"type": "http", "method": "GET", "headers": []})
    response = await call.response()
    assert response.rest is not None
    before = made
    response.rest.close()
    for _ in range(100):
        await asyncio.sleep(0)
    assert before < made < before + 200
    call._tell()
    call.forsake()
