"""FastAPI and Starlette as their users have them, through their own test client, which makes an
event loop for each request unless it is entered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.testclient import TestClient

from unspool.middleware.asgi import Idempotency, Running
from unspool.middleware.fastapi import running


class Order(BaseModel):
    item: str
    count: int


class Shop:
    def __init__(self) -> None:
        self.orders: list[str] = []
        self.tasks: list[str] = []
        self.started = 0


class Bearer(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        found = conn.headers.get("authorization", "")
        if not found.startswith("Bearer "):
            return None
        name = found.removeprefix("Bearer ").partition("-")[0]  # anna-1, anna-2: anna's tokens
        return AuthCredentials(["authenticated"]), SimpleUser(name)


def user_of(scope: Any) -> str | None:
    return scope["user"].display_name or None


def build(spool: str, **options: Any) -> tuple[FastAPI, Shop]:
    shop = Shop()

    @asynccontextmanager
    async def living(_app: FastAPI) -> Any:
        shop.started += 1
        yield

    app = FastAPI(lifespan=living)
    app.add_middleware(Idempotency, spool=spool, scope=user_of, survives="nothing", **options)
    app.add_middleware(AuthenticationMiddleware, backend=Bearer())  # added last: outermost

    @app.post("/orders", status_code=201)
    async def order(
        order: Order,
        run: Annotated[Running | None, Depends(running)],
        response: Response,
        later: BackgroundTasks,
    ) -> dict[str, Any]:
        shop.orders.append(order.item)
        later.add_task(shop.tasks.append, order.item)
        response.set_cookie("seen", "1")
        response.headers["Location"] = f"/orders/{len(shop.orders)}"
        return {"item": order.item, "attempt": run.attempt if run else 0}

    @app.post("/threads")
    def threaded(order: Order, request: Request) -> dict[str, str]:
        shop.orders.append(order.item)
        return {"thread": threading.current_thread().name, "name": request.scope["unspool"].name}

    @app.post("/fails")
    async def fails(order: Order) -> None:
        shop.orders.append(order.item)
        raise ZeroDivisionError

    @app.post("/refuses")
    async def refuses(order: Order) -> None:
        shop.orders.append(order.item)
        raise HTTPException(status_code=402, detail="no money")

    @app.post("/streams")
    async def streams() -> StreamingResponse:
        shop.orders.append("stream")
        return StreamingResponse(iter([b"1", b"2", b"3"]))

    return app, shop


@pytest.fixture(params=["memory:", "sqlite"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param if request.param == "memory:" else f"sqlite:///{tmp_path}/idem.db"


@pytest.fixture(params=["entered", "loop for each request"])
def client(request: pytest.FixtureRequest, spool: str) -> Iterator[Client]:
    app, shop = build(spool)
    test = TestClient(app, raise_server_exceptions=False)
    if request.param == "entered":
        with test:
            yield Client(test, shop)
        assert shop.started == 1
    else:
        yield Client(test, shop)


class Client:
    def __init__(self, test: TestClient, shop: Shop) -> None:
        self.test = test
        self.shop = shop

    def post(
        self, path: str = "/orders", *, key: str | None, json: Any = None, token: str = "anna-1"
    ) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        body = {"item": "tea", "count": 1} if json is None else json
        return self.test.post(path, json=body, headers=headers)


def test_the_same_answer_again(client: Client) -> None:
    """With cookies, background tasks and dependencies; and a rotated token is the same caller
    (B5, D2)."""
    first = client.post(key="a")
    again = client.post(key="a", token="anna-2")
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json() == {"item": "tea", "attempt": 1}
    assert first.headers["location"] == again.headers["location"] == "/orders/1"
    assert "set-cookie" in first.headers
    assert "set-cookie" not in again.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert client.shop.orders == client.shop.tasks == ["tea"]


def test_callers_are_kept_apart_and_nobody_has_none(client: Client) -> None:
    """D1, D4: another caller's key is another; without a caller 403; without a key as ever."""
    client.post(key="a")
    assert "idempotent-replayed" not in client.post(key="a", token="bert").headers
    assert client.post(key="a", token="").status_code == 403
    assert client.post(key=None, token="").json()["attempt"] == 0
    assert len(client.shop.orders) == 3


def test_a_corrected_body_runs_under_the_same_key(client: Client) -> None:
    """G3: FastAPI's own validation errors are not stored."""
    for _ in range(2):
        told = client.post(key="a", json={"item": "tea", "count": "many"})
        assert told.status_code == 422
        assert "idempotent-replayed" not in told.headers
    assert client.post(key="a").status_code == 201
    assert client.post(key="a").headers["idempotent-replayed"] == "true"
    assert client.post(key="a", json={"item": "coffee", "count": 1}).status_code == 422
    assert client.shop.orders == ["tea"]


def test_what_the_handler_refuses_is_remembered(client: Client) -> None:
    """G1: a 402 is the answer."""
    assert client.post("/refuses", key="a").status_code == 402
    assert client.post("/refuses", key="a").headers["idempotent-replayed"] == "true"
    assert client.shop.orders == ["tea"]


def test_what_raises_runs_again(client: Client) -> None:
    """F7, G5: the 500 is Starlette's, and a repeat runs."""
    for _ in range(2):
        told = client.post("/fails", key="a")
        assert (told.status_code, told.text) == (500, "Internal Server Error")
    assert client.shop.orders == ["tea"] * 2


def test_an_exception_reaches_the_server(spool: str) -> None:
    """As without us: the test client raises it."""
    app, _ = build(spool)
    with TestClient(app) as test, pytest.raises(ZeroDivisionError):
        Client(test, Shop()).post("/fails", key="a")


def test_handlers_in_threads(client: Client) -> None:
    """A plain `def` runs in a thread, under its key."""
    first = client.post("/threads", key="a")
    assert first.json()["name"] == "a"
    assert client.post("/threads", key="a").json() == first.json()


def test_a_small_stream_is_kept(client: Client) -> None:
    """It ends at once: so it is whole, and replayed whole."""
    assert client.post("/streams", key="a").text == "123"
    again = client.post("/streams", key="a")
    assert (again.text, again.headers["idempotent-replayed"]) == ("123", "true")
    assert client.shop.orders == ["stream"]


def test_wrapped_by_hand(spool: str) -> None:
    """Idempotency(app, …) around it all: the scope function must then know the caller itself."""
    app = FastAPI()
    runs: list[int] = []

    @app.post("/orders")
    async def order() -> None:
        runs.append(1)

    wrapped = Idempotency(
        app, spool=spool, scope=lambda scope: dict(scope["headers"])[b"x-user"], survives="nothing"
    )
    with TestClient(wrapped) as test:
        for _ in range(2):
            headers = {"Idempotency-Key": "a", "X-User": "anna"}
            assert test.post("/orders", headers=headers).status_code == 200
    assert runs == [1]


def test_many_threads_with_a_loop_each_run_a_key_once(spool: str) -> None:
    """E1 across loops: each has a ledger of its own over one spool."""
    app, shop = build(spool)
    Client(TestClient(app), shop).post(key="warm")
    statuses: list[int] = []

    def one() -> None:
        statuses.append(Client(TestClient(app), shop).post(key="a").status_code)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {201, 409}
    if spool != "memory:":  # in memory, two loops at the very first moment know nothing of another
        assert shop.orders == ["tea", "tea"]
