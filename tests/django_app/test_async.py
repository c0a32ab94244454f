"""The Django middleware in an event loop, as under ASGI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import django
import pytest
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpResponse
from django.test import AsyncClient, override_settings
from django.urls import path
from django_shop.models import Order
from django_shop.views import exempt
from shop_kit import Shop, keyed

from unspool.middleware.django import by_user


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """What the thread of `sync_to_async` has opened: the test client leaves it open."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def caller(shop: Shop) -> AsyncClient:
    client = AsyncClient(raise_request_exception=False)
    client.cookies = shop.client.cookies
    return client


async def post(client: AsyncClient, path: str, key: str = "k1", **fields: str) -> Any:
    headers = {"headers": {"Idempotency-Key": key, **fields}}
    return await client.post(path, {"item": "tea"}, **headers)


@pytest.mark.parametrize("where", ["/later", "/create", "/slowly", "/deep/method"])
async def test_a_repeat_gets_the_same_answer(caller: AsyncClient, where: str) -> None:
    """Asynchronous views and ordinary ones, atomic and not, behind the asynchronous handler."""
    first, again = await post(caller, where), await post(caller, where)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert again["Idempotent-Replayed"] == "true"
    assert await Order.objects.acount() == 1


async def test_many_at_once_run_once(caller: AsyncClient) -> None:
    """E1."""
    found = await asyncio.gather(
        *(post(caller, "/later", Prefer="wait=50" if n % 2 else "") for n in range(8))
    )
    assert {one.status_code for one in found} <= {201, 409}
    assert sum(one.status_code == 201 for one in found) >= 4
    assert await Order.objects.acount() == 1


async def test_required_and_malformed(caller: AsyncClient) -> None:
    assert (await caller.post("/later", {"item": "tea"})).status_code == 400
    assert (await post(caller, "/later", "a,b")).status_code == 400
    assert await Order.objects.acount() == 0


async def by_someone(request: Any) -> str | None:
    await asyncio.sleep(0)
    return await sync_to_async(by_user)(request)


async def test_a_scope_may_be_asynchronous(caller: AsyncClient, shop: Shop) -> None:
    """For both kinds of handler."""
    from django.conf import settings

    with override_settings(UNSPOOL=settings.UNSPOOL | {"scope": by_someone, "name": "other"}):
        assert (await post(caller, "/create")).status_code == 201
        again = await sync_to_async(shop.post)("/create")
        assert (await AsyncClient().post("/create", **keyed_async())).status_code == 403
    assert again.status_code == 201


def keyed_async() -> dict[str, Any]:
    return {"headers": {"Idempotency-Key": "k9"}}


async def test_one_request_is_one_behind_either_handler(caller: AsyncClient, shop: Shop) -> None:
    """WSGI and ASGI give the same fingerprint: a project may change over and know its keys."""
    first = await sync_to_async(shop.client.post)(
        "/create?q=caf%C3%A9&r=a b", b'{"item": 1}', content_type="application/json", **keyed("k1")
    )
    again = await caller.post(
        "/create?q=caf%C3%A9&r=a b", b'{"item":1}', content_type="application/json",
        headers={"Idempotency-Key": '"k1"'},
    )  # fmt: skip
    assert first.content == again.content
    assert again["Idempotent-Replayed"] == "true"


@pytest.mark.skipif(django.VERSION < (5, 0), reason="it does not notice that its caller is gone")
@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
async def test_a_caller_that_goes_away_does_not_stop_the_view(shop: Shop, kind: str) -> None:
    """F9: Django cancels its own task; the view ends, and a repeat is told."""
    began, gone, may_end = asyncio.Event(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @exempt
    async def slow(request: Any) -> HttpResponse:
        began.set()
        while not may_end.is_set():
            await asyncio.sleep(0.01)
        await Order.objects.acreate(item="tea")
        return HttpResponse("made", status=201)

    @exempt
    def in_a_thread(request: Any) -> HttpResponse:
        loop.call_soon_threadsafe(began.set)
        may_end.wait(60)
        Order.objects.create(item="tea")
        return HttpResponse("made", status=201)

    async def receive() -> Any:
        if not began.is_set() and events:
            return events.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        raise AssertionError("nobody is there")

    events = [{"type": "http.request", "body": b"", "more_body": False}]
    cookie = f"sessionid={shop.client.cookies['sessionid'].value}".encode()
    scope = {
        "type": "http", "method": "POST", "path": "/slow", "raw_path": b"/slow",
        "query_string": b"", "server": ("testserver", 80), "client": ("127.0.0.1", 1),
        "headers": [
            (b"idempotency-key", b"k1"), (b"cookie", cookie), (b"host", b"testserver"),
            (b"content-length", b"0"),
        ],
    }  # fmt: skip
    module = ModuleType("urls_of_a_test")
    view = slow if kind == "asynchronous" else in_a_thread
    module.urlpatterns = [path("slow", view)]  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=module):
        asking = asyncio.create_task(ASGIHandler()(scope, receive, send))
        await began.wait()
        gone.set()
        for _ in range(100):  # Django hears of it, and cancels: that takes turns, and no time
            await asyncio.sleep(0)
        may_end.set()
        await asking  # with a thread under way, until that has ended
        client = AsyncClient()
        client.cookies = shop.client.cookies
        body = {"content_type": "", "headers": {"Idempotency-Key": "k1", "Prefer": "wait=50"}}
        again = await client.generic("POST", "/slow", b"", **body)
        assert (again.status_code, again.content) == (201, b"made")
        assert again["Idempotent-Replayed"] == "true"
        assert await Order.objects.acount() == 1
