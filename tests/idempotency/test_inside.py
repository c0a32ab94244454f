"""Rows of the conformance table that are not on the wire, and stand nowhere else."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from targets import Target, asgi, django, relay, retry, wsgi

from unspool.middleware.asgi import Idempotency
from unspool.testing.idempotency.service import Orders, discovered


def test_without_a_scope_nothing_can_be_set_up() -> None:
    """D3: there is no default that could be wrong."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it is not asked")

    with pytest.raises(TypeError, match="scope"):
        Idempotency(app, spool="sqlite:///never.db")  # type: ignore[call-arg]


def spoil(file: Path) -> int:
    """Change a byte in the middle of everything of any size that is kept; how much that was."""
    changed = 0

    def spoilt(data: bytes) -> bytes:
        nonlocal changed
        changed += 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]

    database = sqlite3.connect(file, timeout=60)
    with database:
        database.create_function("spoilt", 1, spoilt)
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if kind == "BLOB":
                    database.execute(
                        f"UPDATE {table} SET {column} = spoilt({column})"
                        f" WHERE length({column}) > 64"
                    )
    database.close()
    return changed


@pytest.mark.parametrize(
    ("target", "file"),
    [
        (relay, "main-relay.db"),
        (retry, "retry.db"),
        (asgi, "idem.db"),
        (wsgi, "idem.db"),
        (django, "idem.db"),
    ],
)
def test_a_spoilt_record_fails_closed(target: Any, file: str, tmp_path: Path) -> None:
    """D9: 503, nothing runs, and the next key is none the worse."""

    async def ask(running: Target) -> None:
        orders = Orders(await discovered(running.service))
        order = await orders.make()
        assert (await order.post("k1")).status == 201
        assert spoil(running.folder / file) > 0
        reply = await order.post("k1")
        assert reply.status == 503, str(reply)
        assert reply.get("Retry-After")
        assert await order.count() == 1
        assert (await order.post("k2")).status == 201

    with target(tmp_path) as running:
        asyncio.run(ask(running))
