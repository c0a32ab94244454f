"""The applications under test: run by servers in processes of their own, told by the environment.

    uvicorn served:bare                  the counter service, as it is
    uvicorn served:guarded               the same behind authentication
    uvicorn --factory served:asgi        behind the ASGI middleware, with its mounts
    uvicorn --factory served:retry       behind `Retry` and the ASGI middleware
    waitress-serve --call served:wsgi    behind the WSGI middleware
    waitress-serve --call served:django  in Django; with SETUP=short it forgets soon

FOLDER names the folder for counts and spools.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from unspool.testing.counter import asgi as over_asgi
from unspool.testing.counter import wsgi as over_wsgi

FOLDER = os.environ.get("FOLDER", ".")
COUNTS = f"{FOLDER}/counts.db"
SPOOL = f"sqlite:///{FOLDER}/idem.db"
OFFERS = ("effect", "revoke")
HEADROOM: dict[str, Any] = {"survives": "process"}
"""The folder may be on a RAM disk."""
SETUPS: dict[str, dict[str, Any]] = {
    "": {},
    "required": {"required": True, "docs": "https://docs.example/keys"},
    "short": {"answer_ms": 1_000, "key_ms": 3_000},
}
"""Mount: the options of the middleware there."""
MOUNTS = tuple(name for name in SETUPS if name)


def mounted(make: Callable[[str, dict[str, Any]], Any]) -> dict[str, Any]:
    return {
        name: make(f"counter-{name or 'main'}", {**HEADROOM, **options})
        for name, options in SETUPS.items()
    }


def mount_of(path: str) -> str:
    first = path.split("/", 2)[1]
    return first if first in MOUNTS else ""


bare = over_asgi.counter(COUNTS)
guarded = over_asgi.guarded(over_asgi.counter(COUNTS, offers=("revoke",)), COUNTS)


def asgi() -> Any:
    from unspool.middleware.asgi import Idempotency

    counter = over_asgi.counter(COUNTS, offers=OFFERS, mounts=MOUNTS)
    apps = mounted(
        lambda name, options: Idempotency(
            counter, spool=SPOOL, scope=over_asgi.principal, name=name, **options
        )
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = mount_of(scope["path"]) if scope["type"] == "http" else ""
        await apps[name](scope, receive, send)

    return over_asgi.guarded(app, COUNTS)


def retry() -> Any:
    """Saved outside of authentication, remembered inside of it."""
    from unspool.middleware.asgi import Idempotency
    from unspool.middleware.retry import Retry

    counter = over_asgi.counter(COUNTS, offers=OFFERS, mounts=MOUNTS)

    def make(name: str, options: dict[str, Any]) -> Any:
        kept = {name: options[name] for name in ("answer_ms", "key_ms") if name in options}
        inner = Idempotency(counter, spool=SPOOL, scope=over_asgi.principal, name=name, **options)
        return Retry(
            over_asgi.guarded(inner, COUNTS), spool=f"sqlite:///{FOLDER}/retry.db", name=name,
            scope=over_asgi.claimed, backoff_least_ms=300, **HEADROOM, **kept,
        )  # fmt: skip

    apps = mounted(make)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = mount_of(scope["path"]) if scope["type"] == "http" else ""
        await apps[name](scope, receive, send)

    return app


def wsgi() -> Any:
    from unspool.middleware.wsgi import Idempotency

    counter = over_wsgi.counter(COUNTS, offers=OFFERS, mounts=MOUNTS)
    apps = mounted(
        lambda name, options: Idempotency(
            counter, spool=SPOOL, scope=over_wsgi.principal, name=name, **options
        )
    )
    return over_wsgi.guarded(
        lambda environ, start: apps[mount_of(environ["PATH_INFO"])](environ, start), COUNTS
    )


def django() -> Any:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    setup = os.environ.get("SETUP", "")
    mounts = ("required",)
    settings.configure(
        SECRET_KEY="for tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="served_urls",
        INSTALLED_APPS=["unspool.middleware.django"],
        MIDDLEWARE=[
            "unspool.testing.counter.urls.Guard",
            "unspool.middleware.django.middleware.IdempotencyMiddleware",
        ],
        COUNTER={"file": COUNTS, "offers": OFFERS, "mounts": mounts},
        UNSPOOL={
            "spool": SPOOL,
            "scope": "unspool.testing.counter.urls.principal",
            "name": f"counter-{setup or 'main'}",
            **HEADROOM,
            **SETUPS[setup],
        },
    )
    return get_wsgi_application()
