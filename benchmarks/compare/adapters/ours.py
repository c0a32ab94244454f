"""unspool.middleware.asgi: scope is required, so there is no other way to set it up.

SPOOL=alone says that nobody else uses the spool. SPOOL=none leaves the middleware out.
"""

from __future__ import annotations

import os

from served import QUIET, App, behind, counted, serve
from unspool.middleware.asgi import Idempotency
from unspool.testing.counter.asgi import principal

MOUNTS = {
    "required": {"required": True, "docs": "https://example.com/keys"},
    "short": {"answer_ms": 1_000, "key_ms": 3_000},
}


def somebody(scope: object) -> str:
    return "alice"


def kept(name: str, **more: object) -> App:
    app = counted(offers=("effect", "revoke"), mounts=tuple(MOUNTS))
    scope_of = somebody if QUIET else principal
    return Idempotency(app, spool=f"sqlite:///{name}.db", scope=scope_of, **more)  # type: ignore[arg-type]


if QUIET:
    spool = os.environ.get("SPOOL", "")
    app = counted() if spool == "none" else kept("idem", alone=spool == "alone")
else:
    apps = {"": kept("main"), **{name: kept(name, **more) for name, more in MOUNTS.items()}}

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        first = "" if scope["type"] != "http" else scope["path"].split("/")[1]
        await apps.get(first, apps[""])(scope, receive, send)


serve(behind(app))
