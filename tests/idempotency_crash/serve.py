"""Serve: one process of the application, as a plan says. Run, not imported, by `fleet`.

    python -m idempotency_crash.serve      one plan a line on stdin (JSON), one answer a line

It has everything imported and forks for each plan, as `zygote` says: the child listens, says
`ready PID` and serves until it is killed; the parent says `pid N`, and `gone N` at its end.

A plan: port, folder, spool (a URL), log; and optionally `options` (of the middleware), `clock` (a
file with the milliseconds by which this process's clock is off), `naive`, `synced`, `lifespan`,
`uid` (whom to be).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import uvicorn

from unspool.clock import Clock, SystemClock
from unspool.core.fields import values
from unspool.core.message import Instant, Request, Response
from unspool.ingress.asgi import ReceivedBody, first_part, run_to_its_end, send_answer, target_of
from unspool.middleware.asgi import Idempotency
from unspool.middleware.gate import Gate, key_of
from unspool.middleware.opening import Opening
from unspool.middleware.options import read
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.transports.app import Call
from zygote import logged, say, zygote

from .application import App, Receive, Scope, Send, application, lifespan, naive
from .ledger import Ledger


def who(_scope: Scope) -> str:
    """Everybody is one caller here."""
    return "alice"


class SteppedClock:
    """A wall clock that is off by what a file says."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def now(self) -> Instant:
        return Instant(SystemClock().now() + int(self._path.read_text() or 0))


def gated(app: App, *, spool: str, clock: Clock, options: dict[str, Any]) -> App:
    """The middleware's gate with a clock of our choice. No lifespan, one principal."""
    rules, tenure, survives = read(options)  # type: ignore[arg-type]
    opening = Opening(
        spool, name=rules.name, owner="here", tenure=tenure, survives=survives, clock=clock
    )
    gate = Gate(rules=rules, opening=opening)
    running: set[asyncio.Task[Response]] = set()

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        fields = list(scope["headers"])
        name = key_of(values(fields, b"idempotency-key"), rules=rules)
        if not isinstance(name, str):
            await app(scope, receive, send)
            return
        body, _ = await first_part(ReceivedBody(receive), fields, 1 << 20)
        request = Request(b"POST", target_of(scope), fields, body)

        async def run(_running: object) -> Response:
            return await Call(app, scope, body=body).response()

        gating = gate(request, name=name, principal="alice", wait_ms=0, run=run)
        await send_answer(await run_to_its_end(gating, running), False, receive, send)

    return middleware


async def wrapped(plan: dict[str, Any]) -> App:
    folder = Path(plan["folder"])
    app = application(Ledger(folder / "ledger"), folder)
    options = {"lease_ms": 30_000, "survives": "process", **plan.get("options", {})}
    if plan.get("naive"):
        return naive(app, folder / "naive.db")
    if "clock" in plan:
        clock = SteppedClock(Path(plan["clock"]))
        return gated(app, spool=plan["spool"], clock=clock, options=options)
    spool: Any = plan["spool"]
    if not plan.get("synced", True):
        path = spool.removeprefix("sqlite:///")
        spool = await SqliteSpool.open(path, test_hook_no_sync=True)
    return Idempotency(app, spool=spool, scope=who, **options)


async def serve(plan: dict[str, Any]) -> None:
    config = uvicorn.Config(
        await wrapped(plan), host="127.0.0.1", port=plan["port"], http="httptools",
        lifespan=plan.get("lifespan", "on"), log_level="warning", access_log=False, backlog=512,
    )  # fmt: skip
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if server.started:
        say(f"ready {os.getpid()}")
    await serving


def child(plan: dict[str, Any]) -> None:
    logged(plan)
    if "uid" in plan:
        os.setuid(plan["uid"])
    asyncio.run(serve(plan))


if __name__ == "__main__":
    zygote(child)
