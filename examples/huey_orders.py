"""Huey: the same promise with a queue in a file, and a sender who sends again.

    huey_consumer examples.huey_orders.huey --workers 2
    python -c 'from examples.huey_orders import place; place({"id": "7", "item": "tea"})'

Huey takes a task out of its queue before it runs, so one whose consumer is killed is gone. Whoever
wants it done sends it again until it is: from an outbox table, or because a customer clicks twice.
That is safe, for the order is done once, however often it is sent.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

from huey import SqliteHuey

from unspool.errors import Refused
from unspool.middleware.once import once
from unspool.middleware.running import Running

HERE = Path(os.environ.get("SHOP", "."))

huey = SqliteHuey("orders", filename=str(HERE / "queue.db"))


def trip() -> None:
    """For trying it out: where there is a file `trip`, this process is killed here, once."""
    try:
        (HERE / "trip").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@huey.task(retries=30, retry_delay=1)  # while another has it: Busy, and again in a second
@once(
    f"sqlite:///{HERE}/idem.db",
    key=lambda order: order["id"],
    scope="orders.place",
    transient=(OSError, Refused),
    lease_ms=3_000,
)
def place(order: dict[str, Any], ctx: Running) -> str:
    shop = sqlite3.connect(HERE / "shop.db", timeout=20)
    shop.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT, item TEXT, attempt INTEGER)")
    once.create(shop)
    try:
        with ctx.commit(shop) as done:
            if not done.known:
                row = [order["id"], order["item"], ctx.attempt]
                shop.execute("INSERT INTO orders VALUES (?, ?, ?)", row)
                trip()
        trip()
    finally:
        shop.close()
    return str(order["id"])
