"""What the tests of the ledger and of the ASGI middleware share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from unspool.core.admission import Terms
from unspool.core.lifecycle import Keeping, Verdict
from unspool.core.message import Destination, Instant, Key, Response
from unspool.core.tenure import Abandoned, Tenure
from unspool.custody import Custody
from unspool.errors import Unavailable
from unspool.ledger import Ask, Claim, Ledger, Taken
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry, Lease, Promises, Survives
from unspool.testing.clock import VirtualClock

LEASE_MS = 3_000


class SharedMemory(MemorySpool):
    """A memory spool that says it is shared, counts its commits, and can be down."""

    def __init__(self, *, shared: bool = True) -> None:
        super().__init__()
        self.shared = shared
        self.commits = 0
        self.down = False
        self.settles = self.renews = True
        self.corrupt: Exception | None = None
        self.hold: asyncio.Event | None = None
        """Writes are done, and their callers learn of it when this is set."""

    @property
    def promises(self) -> Promises:
        return Promises(Survives.NOTHING, shared=self.shared, remembers=True, fences=True)

    def _look(self) -> None:
        if self.down:
            raise Unavailable("It is down. Nothing was done.")
        if self.corrupt is not None:
            raise self.corrupt

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        self._look()
        self.commits += 1
        answers = await super().accept(entries)
        if self.hold is not None:
            await self.hold.wait()
        return answers

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        self._look()
        if not self.settles:
            raise Unavailable("It does not settle. Nothing was done.")
        self.commits += 1
        answers = await super().settle(settlements)
        if self.hold is not None:
            await self.hold.wait()
        return answers

    async def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> Sequence[bool]:
        self._look()
        if not self.renews:
            raise Unavailable("It does not renew. Nothing was done.")
        return await super().renew(leases, until=until)

    async def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        self._look()
        return await super().find(keys)

    async def sweep(self, *, now: Instant, limit: int) -> int:
        self._look()
        return await super().sweep(now=now, limit=limit)


def loop_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


def ledger(
    spool: MemorySpool,
    clock: VirtualClock,
    *,
    lease_ms: int = LEASE_MS,
    abandoned: Abandoned = Abandoned.RUN,
    alone: bool = False,
    keeping: Keeping | None = None,
) -> Ledger:
    """A ledger as a process of its own would have it."""
    terms = Terms(survives=Survives.NOTHING, required=Survives.NOTHING)
    return Ledger(
        custody=Custody(spool=spool, terms=terms),
        clock=clock,
        tenure=Tenure(
            keeping=keeping or Keeping(), lease_ms=lease_ms, abandoned=abandoned, alone=alone
        ),
        chance=os.urandom,
        monotonic_ms=loop_ms,
    )


def ask(name: str = "k", *, body: bytes = b"body") -> Ask:
    return Ask(key=Key(f"{name:_<22}"), name=name, fingerprint=body, destination=Destination("app"))


OK = Response(201, b"", [(b"Location", b"/orders/7"), (b"Set-Cookie", b"a=b")], b"made")


async def claimed(ledger_: Ledger, ask_: Ask | None = None, *, wait_ms: int = 0) -> Claim:
    found = await ledger_.claim(ask_ or ask(), wait_ms=wait_ms)
    assert isinstance(found, Claim), found
    return found


async def taken(ledger_: Ledger, ask_: Ask | None = None, *, wait_ms: int = 0) -> Taken:
    found = await ledger_.claim(ask_ or ask(), wait_ms=wait_ms)
    assert isinstance(found, Taken), found
    return found


# --- an application and its caller, without a server ---------------------------------------------


class Reply:
    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.whole = False

    def __getitem__(self, name: str) -> str | None:
        wanted = name.lower().encode()
        found = [value for key, value in self.headers if key.lower() == wanted]
        return b", ".join(found).decode() if found else None


class Caller:
    """Calls an ASGI application as a server would."""

    def __init__(self, app: Any, *, extensions: dict[str, Any] | None = None) -> None:
        self.app = app
        self.extensions = extensions
        self.gone = asyncio.Event()
        self.scope: dict[str, Any] = {}
        self.replies: list[Reply] = []

    async def __call__(
        self,
        method: str = "POST",
        path: str = "/orders",
        *,
        key: str | None = None,
        body: bytes | Iterable[bytes] = b"{}",
        headers: Iterable[tuple[str, str]] = (),
        headers_as_they_are: Iterable[tuple[bytes, bytes]] = (),
        on_part: Callable[[Reply], Awaitable[None]] | None = None,
        **scope: Any,
    ) -> Reply:
        parts = [body] if isinstance(body, bytes) else list(body)
        head = [(name.lower().encode(), value.encode()) for name, value in headers]
        if key is not None:
            head.append((b"idempotency-key", key.encode()))
        head.extend(headers_as_they_are)
        self.scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": head, "client": ("127.0.0.1", 7), "server": ("shop", 80),
            **scope,
        }  # fmt: skip
        if self.extensions is not None:
            self.scope["extensions"] = self.extensions
        reply = Reply()
        self.replies.append(reply)
        events = [
            {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
            for i, part in enumerate(parts)
        ]

        over = asyncio.Event()

        async def receive() -> Any:
            if events:
                return events.pop(0)
            done = [asyncio.ensure_future(event.wait()) for event in (self.gone, over)]
            await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.cancel()
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            if event["type"] == "http.response.start":
                reply.status, reply.headers = event["status"], list(event["headers"])
                return
            reply.body += event.get("body", b"")
            reply.whole = not event.get("more_body", False)
            if reply.whole:
                over.set()
            if on_part is not None:
                await on_part(reply)

        await self.app(self.scope, receive, send)
        return reply


async def lifespan(app: Any) -> tuple[Callable[[], Awaitable[None]], list[Any]]:
    """Start the application; what is returned stops it. And what it told the server."""
    told: list[Any] = []
    events: asyncio.Queue[Any] = asyncio.Queue()
    heard = asyncio.Event()

    async def send(event: Any) -> None:
        told.append(event)
        heard.set()

    events.put_nowait({"type": "lifespan.startup"})
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, events.get, send))
    waiting = asyncio.ensure_future(heard.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()

    async def stop() -> None:
        events.put_nowait({"type": "lifespan.shutdown"})
        await task

    return stop, told
