"""The conformance suite: is this a spool? Shipped, so that other people's spools can be asked too.

    from unspool.testing.conformance import SpoolConformance

    class TestMySpool(SpoolConformance):
        async def open(self) -> Spool:
            return await MySpool.open(...)

`open` opens one store again and again during a test, and a fresh one for the next test. `spoil` may
be written too, where a record can be damaged; without it the suite only asks that nothing is set
aside. Each test's docstring is the clause of `unspool.spools.protocol` that it proves. The suite
asks `promises`, and holds a spool to what it does not promise too: where the table says no, the
answer must be no, or the table is out of date.

Needs pytest and pytest-asyncio. Instants are given by the tests; a store with a clock of its own
must not use it.

Does not prove: surviving a power cut or the loss of a host (a test in one process cannot), and
speed.
"""

from __future__ import annotations

from .accepting import Claims, Custody, Identity, MovedIn
from .damage import Damage
from .leasing import Fence, Leasing, Order, Renewal, Settle
from .looking import Expiry, LookUp, Sweep
from .together import Cancellation, Concurrency

__all__ = ["SpoolConformance"]


class SpoolConformance(
    Custody,
    MovedIn,
    Identity,
    Claims,
    Order,
    Leasing,
    Fence,
    Settle,
    Renewal,
    LookUp,
    Sweep,
    Expiry,
    Concurrency,
    Cancellation,
    Damage,
):
    """Every group of the suite. Inherit from this and write `open`."""
