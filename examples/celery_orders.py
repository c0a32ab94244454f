"""Celery: an order that is delivered twice is charged and written once, whatever is killed.

    celery -A examples.celery_orders worker --pool prefork --concurrency 2
    python -c 'from examples.celery_orders import place; place.delay({"id": "7", "item": "tea"})'

Celery delivers a task again when its worker died (`acks_late`, `reject_on_worker_lost`) and when a
broker lost sight of it. So a task needs a name for each order, and that is all `once` needs.

Two effects, two means. The bank is somebody else's: it is given a key of its own for each order,
the same at each attempt (`child_key`), and knows a repeat by it. The order is ours: it is written
with its record in one transaction (`commit`), so there are both or neither.

While a dead worker's claim lasts (`lease_ms`) the order is busy, and Celery tries again later.
Here the broker is a file (`pip install sqlalchemy`), so that there is no server to start; any other
is as good. Not `filesystem://`: it now and then takes a message that is not yet written, and it is
gone.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

from celery import Celery

from unspool.errors import Refused
from unspool.middleware.once import once
from unspool.middleware.running import Running

HERE = Path(os.environ.get("SHOP", "."))
SPOOL = f"sqlite:///{HERE}/idem.db"

app = Celery("orders", broker=f"sqla+sqlite:///{HERE}/queue.db")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_lost_wait=0.5,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
)


def connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(HERE / name, timeout=20)
    connection.execute("CREATE TABLE IF NOT EXISTS charges (key TEXT PRIMARY KEY, item TEXT)")
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT, item TEXT, attempt INTEGER)")
    return connection


def charge(item: str, key: str) -> None:
    """The bank: it charges once for each key."""
    with connect("bank.db") as bank:
        bank.execute("INSERT OR IGNORE INTO charges VALUES (?, ?)", [key, item])
    bank.close()


def trip() -> None:
    """For trying it out: where there is a file `trip`, this process is killed here, once."""
    try:
        (HERE / "trip").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(autoretry_for=(Refused,), max_retries=None, default_retry_delay=1)
@once(
    SPOOL,
    key=lambda order: order["id"],
    scope="orders.place",
    transient=(OSError, Refused),
    lease_ms=4_000,
)
def place(order: dict[str, Any], ctx: Running) -> str:
    charge(order["item"], ctx.child_key("charge"))
    trip()
    shop = connect("shop.db")
    once.create(shop)
    try:
        with ctx.commit(shop) as done:
            if not done.known:
                row = [order["id"], order["item"], ctx.attempt]
                shop.execute("INSERT INTO orders VALUES (?, ?, ?)", row)
    finally:
        shop.close()
    return str(order["id"])
