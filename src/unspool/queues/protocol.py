"""The Queue protocol: somebody else's queue server, used to hand custody over. The manual.

    put          hand custody over: from here on the queue answers for it
    take         have some of what waits, for a while
    complete     it is in our spool, synced: the queue may forget it
    give_back    it is not: the queue keeps it, and gives it to whoever asks next
    set_aside    nobody can read it: out of the way, on the same server, with all its bytes

A queue is no spool: it cannot look a key up, schedule, remember an answer or fence a late verdict.
So nothing is delivered from one. A collector takes from it into a spool, and everything that a
message needs happens there. What is carried is bytes; what they say is `core/handover.py`.

The contract, clause by clause (the conformance suite proves each):

1. Hand over. When `put` returns, each payload is the queue's, and outlives `promises.survives`.
2. Repeats. Who does not know whether a `put` happened does it again. The same bytes are then given
   once or twice; bytes that differ, in whatever way, are never taken for a repeat.
3. Bytes. Any bytes up to `promises.payload_max_bytes`. With a longer one `put` raises `TooLarge`,
   and nothing of the batch was handed over.
4. Take. Up to `limit`, waiting up to `wait_ms` for the first; none if there is none by then. What
   is there is given at once: a take does not wait to be full. Where `promises.exclusive`, nobody
   else is given it while we hold it; else two may be, and the message's key makes them one.
5. Complete. Only what is in a spool, synced, is completed. Whoever is given it again, because the
   word got lost, finds the key known and completes it again.
6. Give back. It can be taken again at once, by us too: who gives back pauses before the next take.
   A queue may give back more of what we hold than was asked; that is given again, and is harmless.
7. Vanished. What a holder that died, hung up or was closed had taken is given to others by itself.
8. Set aside. Kept under the name that `promises.aside` tells, as safely as by `put`, before it is
   completed. From there it can be taken like everything else, by a queue opened under that name.
9. Order. Roughly as it came; nobody may rely on it.
10. Trouble. `Unavailable` after a `put`: some of it may have happened; doing it again is safe (2).
    `Full`: the server says that it takes no more. `Broken` (its kinds): a person must act; asking
    again is useless. Every verb comes to an end by itself: a server that accepts connections
    and never answers is `Unavailable` after a deadline, and so is one that speaks another protocol.
    After any trouble the next call begins anew, with a connection of its own.
11. Cancellation. A cancelled `put` may have happened; what a cancelled `take` had is given back.
12. Callers. Many may `put` at once; `take` and what follows it belong to one caller.

Bugs: there is no priority, no delay and no look at what waits: the server's own tools show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from ..core.message import Value
from ..errors import TooLarge
from ..spools.protocol import Survives

__all__ = ["PAYLOAD_MAX_BYTES", "Promises", "Queue", "Survives", "Taken", "too_large", "unique"]

PAYLOAD_MAX_BYTES = 16 * 1024 * 1024
"""No queue of ours takes or gives more at once, whatever its server would: it is held in memory."""


class Promises(Value, frozen=True):
    """What this queue gives, as far as that can be known from here."""

    survives: Survives
    """What a payload outlives once it was put. NOTHING where the server does not tell."""
    exclusive: bool
    """What one holds, nobody else is given (4)."""
    payload_max_bytes: int
    aside: str
    """The name on the server under which there is what nobody could read (8), for people."""
    detail: str = ""
    """How that is known, for people."""


class Taken(Value, frozen=True):
    """Some bytes that we hold for a while."""

    payload: bytes
    name: str
    """What the queue calls it, for people and logs."""
    handle: object = None
    """The queue's own business."""


class Queue(Protocol):
    """A place where custody is handed over. The module's text is the contract."""

    @property
    def promises(self) -> Promises: ...

    async def put(self, payloads: Sequence[bytes], /) -> None:
        """Hand these over (1, 2, 3). Raises `Unavailable`, `Full`, `TooLarge`, `Broken` (10)."""
        ...

    async def take(self, *, limit: int, wait_ms: int) -> Sequence[Taken]:
        """Up to `limit` of what waits (4). Raises `Unavailable`, `Broken`."""
        ...

    async def complete(self, taken: Sequence[Taken], /) -> None:
        """They are in a spool, synced (5). Raises `Unavailable`: some are given again."""
        ...

    async def give_back(self, taken: Sequence[Taken], /) -> None:
        """They are not: the queue keeps them (6). Does not raise: hanging up says it, too (7)."""
        ...

    async def set_aside(self, taken: Sequence[Taken], /) -> None:
        """Nobody can read them (8). Raises as `put`: then they are still held, or given again."""
        ...

    async def aclose(self) -> None:
        """Let go. What is held is given back by it (7)."""
        ...


def too_large(payload: bytes, promises: Promises) -> TooLarge:
    return TooLarge(
        f"a message of {len(payload)} bytes, and the queue takes {promises.payload_max_bytes}. "
        "Nothing was handed over. Put what is large elsewhere, and its address into the request."
    )


def unique(payload: bytes) -> str:
    """What a queue may tell a repeat by: 32 characters that no other bytes have. A key would not
    do: two callers may use one, and so may two requests by mistake, and neither may vanish."""
    return blake2b(payload, digest_size=16, person=b"unspool unique").hexdigest()
