"""The application behind the middleware; and a middleware that is wrong, to be convicted.

A POST does what its X-Do field says (fields are no part of the fingerprint, so a repeat may leave
it out):

    sleep-20     end after 20 ms               hold       end once the file go-<key> is there
    nap          end once the file go-nap-<key> is there
    fail         hold, then raise              5xx        hold, then answer 503
    buy          a row and its record in one transaction of our own database (co-commit)
    hold-buy     hold, then buy                buy-hold   buy, then hold: before the answer
    (nothing)    end at once

and answers 201 with the token of this execution. Each execution is in the ledger twice: begin, end.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import apsw

from unspool.middleware.running import Running

from .ledger import Ledger

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def field_of(scope: Scope, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode()


def application(ledger: Ledger, folder: Path) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        if scope["method"] == "GET":
            await answer(send, 200, b"here")
            return
        while (await receive()).get("more_body"):
            pass
        key = field_of(scope, b"idempotency-key").strip(chr(34))
        do = field_of(scope, b"x-do")
        token = secrets.token_hex(8)
        ledger.note("begin", key, token)
        if do.startswith("sleep-"):
            await asyncio.sleep(int(do.removeprefix("sleep-")) / 1000)
        elif do == "nap":
            await held(folder, f"nap-{key}")
        elif do.startswith("hold") or do in ("fail", "5xx"):
            await held(folder, key)
        if "buy" in do:
            token = bought(folder / "shop.db", scope["unspool"], key, token)
        if do == "buy-hold":
            await held(folder, key)
        if do == "fail":
            raise RuntimeError("as it was told")
        ledger.note("end", key, token)
        await answer(send, 503 if do == "5xx" else 201, f"done {token}".encode())

    return app


async def held(folder: Path, key: str) -> None:
    (folder / f"held-{key}").touch()
    while not (folder / f"go-{key}").exists():
        await asyncio.sleep(0.01)


def bought(shop: Path, running: Running, key: str, token: str) -> str:
    """One order, exactly once; the token of the execution that placed it."""
    with (
        contextlib.closing(sqlite3.connect(shop, isolation_level=None)) as db,
        running.commit(db) as done,
    ):
        if done.known:
            return str(done.value)
        db.execute("INSERT INTO orders VALUES (?, ?)", (key, token))
        done.value = token
        return token


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def answer(
    send: Send, status: int, body: bytes, fields: list[tuple[bytes, bytes]] | None = None
) -> None:
    length = (b"content-length", b"%d" % len(body))
    headers = [(b"content-type", b"text/plain"), length, *(fields or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def naive(app: App, path: Path) -> App:
    """Look, then run, then write down. In between anybody else may look, too."""
    db = apsw.Connection(str(path))
    db.set_busy_timeout(5_000)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE IF NOT EXISTS answer (key TEXT PRIMARY KEY, status, body)")

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        key = field_of(scope, b"idempotency-key").strip(chr(34))
        known = db.execute("SELECT status, body FROM answer WHERE key = ?", (key,)).fetchone()
        if known is not None:
            await answer(send, known[0], known[1], [(b"idempotent-replayed", b"true")])
            return
        events: list[MutableMapping[str, Any]] = []

        async def keep(event: MutableMapping[str, Any]) -> None:
            events.append(event)

        await app(scope, receive, keep)
        with contextlib.suppress(apsw.ConstraintError):
            row = (key, events[0]["status"], events[1]["body"])
            db.execute("INSERT INTO answer VALUES (?, ?, ?)", row)
        for event in events:
            await send(event)

    return middleware
