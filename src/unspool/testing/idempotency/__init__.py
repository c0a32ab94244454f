"""The conformance suite for idempotency: does this server keep its Idempotency-Keys right?

    from unspool.testing.idempotency import Service, check

    results = await check(Service(url="http://127.0.0.1:8000"))
    results = await check(Service(url=…, post="/orders", count="/orders/count"), rows={"B1", "E1"})

Black-box, over plain HTTP, against any server: ours or anybody's. `table` has the rows, `service`
the contract of a server that is asked, `unspool.testing.counter` one that keeps all of it, and
`unspool check-idempotency` the same from a terminal. A result is a value: a row, what came of it,
and what was seen.

Bounded: every request has a time limit, 64 connections at once, ROW_S for each row.

Does not ask: what needs processes killed or clocks turned, and what is not visible on the wire. The
rows are in the table all the same, and their results say why they were not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from ...core.message import Value
from . import isolation, keys, later, replays, sameness, storing, together
from .seeing import Failed
from .service import CALLERS, MOUNTS, NEEDS, PLACES, NotOffered, Orders, Service, Unfit
from .service import discovered as _discovered
from .service import offers as _offers
from .table import ROWS, SECTIONS, Row
from .wire import Unanswered

__all__ = [
    "ASKED",
    "ROWS",
    "SECTIONS",
    "Came",
    "Result",
    "Row",
    "Service",
    "Unfit",
    "check",
    "sentence_of",
]

ROW_S: Final = 60.0
TOGETHER: Final = 4
"""Rows asked at the same time, where each has a count of its own."""

TROUBLE: Final = frozenset(
    {"down", "down-twice", "dead", "once-429", "once-500", "raise-once", "slow-raise",
     "effect-raise"}
)  # fmt: skip
"""Needs that make a service look as if it were in trouble."""
WELL_S: Final = 40.0

ASKED: Final[Mapping[str, Callable[[Orders], Awaitable[None]]]] = {
    **keys.ROWS,
    **replays.ROWS,
    **sameness.ROWS,
    **isolation.ROWS,
    **together.ROWS,
    **storing.ROWS,
    **later.ROWS,
}
"""Row: how it is asked. Those that are not here cannot be asked over HTTP."""


class Came(enum.StrEnum):
    """What came of a row."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_ASKED = "not asked"
    BY_DESIGN = "by design"
    """It cannot hold there, for a reason that somebody gave."""


class Result(Value, frozen=True):
    row: str
    came: Came
    seen: str = ""
    """What was seen instead; or why it was not asked."""
    took_ms: int = 0

    @property
    def level(self) -> str:
        return ROWS[self.row].level


async def check(
    service: Service,
    *,
    rows: Collection[str] = (),
    by_design: Mapping[str, str] | None = None,
    told: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Ask every row, or these; `told` hears of each as it comes. `by_design` names rows that are
    not asked, with the reason. Raises `Unfit` where the server does not keep the contract."""
    service = await _discovered(service)
    orders = Orders(service)
    room = asyncio.Semaphore(TOGETHER if service.apart else 1)

    async def one(name: str) -> Result:
        async with room:
            why = (by_design or {}).get(name, "")
            result = Result(name, Came.BY_DESIGN, why) if why else await _asked(name, orders)
        told(result)
        return result

    wanted = [name for name in ROWS if not rows or name in rows]
    last = [name for name in wanted if service.parks and TROUBLE & set(_needs(name))]
    results = await asyncio.gather(*(one(name) for name in wanted if name not in last))
    found = {result.row: result for result in results}
    for name in last:  # a server that keeps away from one in trouble does so for all rows
        await _well(orders)
        found[name] = await one(name)
    return [found[name] for name in wanted]


def _needs(name: str) -> tuple[str, ...]:
    return (*ROWS[name].needs, *ROWS[name].some)


async def _well(orders: Orders) -> None:
    """Return when the server passes requests on again; bounded."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WELL_S
    order = await orders.make()
    while loop.time() < until:
        with contextlib.suppress(Unanswered):
            if 200 <= (await order.look()).status < 300:
                return
        await asyncio.sleep(0.2)


async def _asked(name: str, orders: Orders) -> Result:
    lacks = lacking(ROWS[name], orders.service)
    if lacks:
        return Result(name, Came.NOT_ASKED, lacks)
    began = time.monotonic()
    came, seen = Came.PASSED, ""
    try:
        async with asyncio.timeout(ROW_S):
            await ASKED[name](orders)
    except Failed as failed:
        came, seen = Came.FAILED, str(failed)
    except Unanswered as unanswered:
        came, seen = Came.FAILED, str(unanswered)
    except TimeoutError:
        came, seen = Came.FAILED, f"it took more than {ROW_S:g} s"
    except NotOffered as missing:
        came, seen = Came.NOT_ASKED, f"needs {missing}"
    return Result(name, came, seen, round((time.monotonic() - began) * 1000))


def lacking(row: Row, service: Service) -> str:
    """What a row needs and this server does not offer, in words; empty: it can be asked."""
    missing = [need for need in row.needs if not _offers(service, need)]
    if row.some and not any(_offers(service, need) for need in row.some):
        missing.append(row.some[0])
    return "; ".join(f"needs {need}: {sentence_of(need)}" for need in missing)


def sentence_of(need: str) -> str:
    """What a need asks of a server."""
    if need in NEEDS:
        return NEEDS[need].sentence
    return {**MOUNTS, **CALLERS, **PLACES}[need]
