"""unspool: email-grade delivery for HTTP.

A relay in front of any HTTP service: what the service answers is passed on; what it cannot answer
is saved durably, answered 202 with a receipt, and delivered later. And a client that does the same
from the sender's side: `from unspool import Client`.

`import unspool` alone opens nothing and loads no driver: the client comes when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import (
        Accepted,
        AsyncClient,
        Bounced,
        Client,
        Delivered,
        FellBack,
        Queued,
        Rejected,
        Undelivered,
        Unknown,
    )

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "AsyncClient",
    "Bounced",
    "Client",
    "Delivered",
    "FellBack",
    "Queued",
    "Rejected",
    "Undelivered",
    "Unknown",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module 'unspool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
