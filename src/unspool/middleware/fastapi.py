"""For FastAPI and Starlette: the `Running` as a dependency.

    from unspool.middleware.fastapi import running

    @app.post("/orders")
    async def order(order: Order, run: Annotated[Running | None, Depends(running)]) -> Made: …

None where the request has no key, or its method is not one that runs under keys. Needs Starlette,
which both bring.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection

from .running import Running


def running(connection: HTTPConnection) -> Running | None:
    """What runs under a key here."""
    found = connection.scope.get("unspool")
    return found if isinstance(found, Running) else None
