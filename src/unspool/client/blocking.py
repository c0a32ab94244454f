"""Client: the smart client for code that blocks. For threads, scripts, WSGI and Django.

    client = Client(["https://a.example"], outbox="outbox.db")
    result = client.post("/orders", json=order, key=order.id, deadline=10)
    client.close()

It is `AsyncClient` on a thread of its own with a private event loop (`middleware.portal`): any
number of threads may use one client, and share its connections, budgets and commits. The thread
begins with the first use, or with `start()`, and is a daemon: a program that forgets to close ends
all the same, and what waits in the outbox is sent by whoever opens it next.

A client may be made before a fork (gunicorn --preload): each process begins its own thread and
opens the outbox for itself. One that is idle when its process forks lets go of its outbox first,
and goes on after the fork; one that is in the middle of a call cannot: the child is refused with a
sentence.

The fallback plan is called in the thread that asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeVar, Unpack

import msgspec

from ..clock import SystemClock
from ..core.idempotency import uuid7
from ..errors import Misconfigured, Undelivered
from ..middleware.portal import CLOSES_S, Portal
from .client import Asked, AsyncClient, defaults_of
from .endings import fell_back, fell_through, undelivered
from .forks import Again
from .options import ClientOptions, Options, checked
from .receipt import BlockingReceipt, Receipt
from .request import Auth, Fields, Request, compose
from .results import Accepted, Fate, Progress, Queued, Result

T = TypeVar("T")
R = TypeVar("R", Result, "Fate | Queued")


class Client:
    def __init__(self, servers: str | Sequence[str] = (), **given: Unpack[ClientOptions]) -> None:
        """Raises `Misconfigured`. Nothing is opened before the first use."""
        self.options: Final[Options] = checked(servers, given)
        self._servers = servers
        self._given = given
        self._defaults = defaults_of(self.options)
        self._inner: AsyncClient | None = None
        self._closed = False
        drain_s = self.options.drain_ms / 1000
        self._portal: Final = Portal(
            "unspool client", on_close=self._let_go,
            closes_s=max(CLOSES_S, drain_s), lets_go_s=CLOSES_S + drain_s,
        )  # fmt: skip
        self._again: Final = Again(self._resume)

    # --- one request -------------------------------------------------------------------------

    def request(self, method: str, path: str, **asked: Unpack[Asked]) -> Result:
        """Send it. Raises `Undelivered` where nobody has it, `Unacceptable` where it is wrong."""
        return self.send(self.build(method, path, **asked))

    def build(self, method: str, path: str, **asked: Unpack[Asked]) -> Request:
        """The request, whole and with its key, and not sent. Raises `Unacceptable`."""
        return compose(method, path, defaults=self._defaults, mint=_mint, **asked)

    def get(self, path: str, **asked: Unpack[Asked]) -> Result:
        return self.request("GET", path, **asked)

    def head(self, path: str, **asked: Unpack[Asked]) -> Result:
        return self.request("HEAD", path, **asked)

    def post(self, path: str, **asked: Unpack[Asked]) -> Result:
        return self.request("POST", path, **asked)

    def put(self, path: str, **asked: Unpack[Asked]) -> Result:
        return self.request("PUT", path, **asked)

    def patch(self, path: str, **asked: Unpack[Asked]) -> Result:
        return self.request("PATCH", path, **asked)

    def delete(self, path: str, **asked: Unpack[Asked]) -> Result:
        return self.request("DELETE", path, **asked)

    def send(self, request: Request) -> Result:
        """Send a request that was built, or that came with an `Undelivered`."""
        try:
            result = self._call(lambda client: client.carry(request), request)
        except Undelivered as error:
            if self.options.fallback is None:
                raise
            return self._fall_back(request, error)
        return self._result(result)

    def _fall_back(self, request: Request, error: Undelivered) -> Result:
        fallback = self.options.fallback
        assert fallback is not None
        try:
            value = fallback(request)
            if hasattr(value, "__await__"):
                value = self._portal.call(lambda: value)
        except Exception as trouble:
            raise fell_through(error, trouble) from trouble
        return fell_back(request, value, error)

    # --- what was queued ---------------------------------------------------------------------

    def wait(
        self,
        key: str,
        timeout: float = 30.0,
        *,
        auth: Auth | None = None,
        headers: Fields | None = None,
    ) -> Fate | Queued:
        """What became of the request under this key; `Queued` when `timeout` seconds are over.
        `auth`, `headers`: the credentials that it came with, where they are not the client's."""
        return self._result(
            self._call(lambda client: client.wait(key, timeout, auth=auth, headers=headers))
        )

    def drain(
        self, timeout: float = 60.0, *, progress: Callable[[Progress], Any] | None = None
    ) -> Progress:
        """Wait until nothing waits in the outbox, or `timeout` seconds are over."""
        return self._call(lambda client: client.drain(timeout, progress=progress))

    def statistics(self) -> dict[str, Any]:
        """How it does, for people and probes."""
        return self._inner.statistics() if self._inner is not None else {}

    # --- beginning and end -------------------------------------------------------------------

    def start(self) -> Self:
        """Open the outbox and begin to send what waits in it, without sending anything new."""
        self._call(lambda client: client.ready())
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go. What waits in the outbox stays there. Twice does nothing."""
        self._closed = True
        self._again.stop()
        self._portal.close()

    def _call(
        self, work: Callable[[AsyncClient], Awaitable[T]], request: Request | None = None
    ) -> T:
        if self._closed:
            raise Misconfigured(
                "This client cannot be used: it is closed. Nothing was sent. Make another:"
                " Client(…)"
            )
        if sys.is_finalizing():
            why = "the interpreter is shutting down, and no thread can send it any more"
            raise _too_late(request, why)

        async def there() -> T:
            if self._inner is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._inner = AsyncClient(self._servers, **self._given)
            return await work(self._inner)

        try:
            result = self._portal.call(there)
            if self.options.outbox is not None:
                self._again.watch()
            return result
        except RuntimeError as error:
            if "interpreter shutdown" in str(error) or "can't start new thread" in str(error):
                raise _too_late(request, f"{error}") from error
            raise

    _pid = 0

    async def _let_go(self) -> None:
        """In the loop, before it ends: for good, or because the process forks."""
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.aclose()

    def _result(self, result: R) -> R:
        if isinstance(result, Accepted) and isinstance(result.receipt, Receipt):
            receipt = BlockingReceipt(result.receipt, self._portal.call)
            return msgspec.structs.replace(result, receipt=receipt)
        return result

    def _resume(self) -> bool:
        """After a fork, in the parent: what it had let go of for that."""
        if self._closed or self._inner is not None or self.options.outbox is None:
            return False
        self.start()
        return True


def _mint() -> str:
    return uuid7(now=SystemClock().now(), chance=os.urandom(10))


def _too_late(request: Request | None, why: str) -> Exception:
    if request is None:
        return Misconfigured(f"This client cannot be used: {why}. Nothing was sent.")
    return undelivered(request, f"{why}; it was not sent")
