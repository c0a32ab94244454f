"""A shop on FastAPI: a repeated order is one order, and an order that fails is done later.

    uvicorn examples.shop.app:app --workers 2

    curl localhost:8000/orders -H 'X-User: anna' -H 'Idempotency-Key: "order-7"' \
         -H 'Content-Type: application/json' -d '{"item": "tea"}'

Twice the same line, and there is one order. `touch down` (the payment provider is down), and the
next order is answered 202 with a receipt; `rm down`, and it is done by itself.

`X-User` stands for an authentication: behind a gateway that sets it, it is one.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from unspool.middleware.asgi import Idempotency, Retry, Running
from unspool.middleware.fastapi import running

FOLDER = Path(os.environ.get("SHOP_FOLDER", "."))


def caller(scope: Any) -> str | None:
    """Who is asking: the same whenever the same caller asks."""
    name: bytes | None = dict(scope["headers"]).get(b"x-user")
    return name.decode("latin-1") if name else None


app = FastAPI(title="Shop")
app.add_middleware(Idempotency, spool=f"sqlite:///{FOLDER}/keys.db", scope=caller)
app.add_middleware(Retry, spool=f"sqlite:///{FOLDER}/saved.db", scope=caller)  # outermost


class Order(BaseModel):
    item: str


class Made(BaseModel):
    number: int
    item: str
    worker: int


class ProviderDown(Exception):
    """The payment provider does not answer."""


def orders() -> sqlite3.Connection:
    """The shop's own database."""
    database = sqlite3.connect(FOLDER / "shop.db", timeout=20)
    database.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, item, charge)")
    return database


@app.post("/orders", status_code=201)
def order(order: Order, run: Annotated[Running | None, Depends(running)]) -> Made:
    if (FOLDER / "down").exists():
        raise ProviderDown
    # What a payment provider would be given: the same whenever this order is tried.
    charge = run.child_key("charge") if run else ""
    with closing(orders()) as database, database:
        number = database.execute(
            "INSERT INTO orders (item, charge) VALUES (?, ?)", (order.item, charge)
        ).lastrowid
    assert number is not None
    return Made(number=number, item=order.item, worker=os.getpid())


@app.get("/orders")
def list_orders() -> list[str]:
    with closing(orders()) as database:
        return [item for (item,) in database.execute("SELECT item FROM orders ORDER BY number")]
