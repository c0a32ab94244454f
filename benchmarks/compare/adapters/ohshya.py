"""fastapi-idempotency: its middleware, as it comes; and with its scope hook, told who is asking,
and the merging of requests without a key (its "automatic window") as short as it can be set."""

from __future__ import annotations

from datetime import timedelta

from fastapi_idempotency import IdempotencyMiddleware, MemoryStore
from starlette.requests import Request

from served import BEST, behind, counted, serve
from unspool.testing.counter.doing import principal_of


def caller(request: Request) -> str:
    return principal_of(request.scope.get("caller", "")) or ""


if BEST:
    app = IdempotencyMiddleware(
        counted(), store=MemoryStore(), scope=caller, automatic_window=timedelta(0)
    )
else:
    app = IdempotencyMiddleware(counted())
serve(behind(app))
