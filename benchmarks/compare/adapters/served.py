"""What the adapters share: the service behind, where to listen, and how.

counted()      the counter service, or for a benchmark one that answers and counts nothing
serve(app)     uvicorn on $PORT, one process
threads(app)   waitress, for WSGI: one process, 64 threads
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from unspool.testing.counter.asgi import counter, guarded

App = Callable[..., Awaitable[None]]
FILE = os.environ["COUNTER_FILE"]
BEST = bool(os.environ.get("BEST"))
QUIET = bool(os.environ.get("QUIET"))


async def answering(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """201 and a little JSON, at once."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    body = b'{"status":"created","number":7}'
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 201, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def counted(**how: Any) -> App:
    return answering if QUIET else counter(FILE, **{"offers": ("revoke",), **how})


def behind(app: App) -> App:
    """Authentication before it, as in an application; a benchmark has none."""
    return app if QUIET else guarded(app, FILE)


def serve(app: App) -> None:
    import uvicorn

    uvicorn.run(
        app, host="127.0.0.1", port=int(os.environ["PORT"]), http="httptools",
        log_level="warning", access_log=False,
    )  # fmt: skip


def threads(app: Any) -> None:
    import waitress

    waitress.serve(app, host="127.0.0.1", port=int(os.environ["PORT"]), threads=64)
