"""A spool from several URLs: a custody chain, or from one: that spool.

    spool = await open_spools(["postgresql://…", "log:///unspool.log"], now=…)
    if isinstance(spool, ChainSpool): spool.keep()      what a relay does

What a chain does is said in `spool`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from ...core.message import Instant
from ...core.urls import concealed
from ..open import of_one_machine, open_spool
from ..protocol import Spool, Survives
from .custodian import Custodian
from .spool import KEEP_MS, ChainSpool

DEADLINE_MS: Final = 3_000


async def open_spools(
    urls: Sequence[str],
    *,
    now: Callable[[], Instant],
    required: Survives = Survives.NOTHING,
    deadline_ms: int = DEADLINE_MS,
    room: Callable[[str], Callable[[], bool] | None] = lambda _url: None,
    keep_ms: int = KEEP_MS,
    alone: bool = True,
    opener: Callable[[str], Awaitable[Spool]] = open_spool,
) -> Spool:
    """`deadline_ms`: how long a custodian may take before the next is asked. `room`: of a URL, what
    tells whether there is room for more. `alone`: no other process of this machine serves from
    these. Raises what opening raises: of one that is down only where
    all are."""
    assert urls
    if len(urls) == 1:
        return await opener(urls[0])
    chain = ChainSpool(
        [
            Custodian(
                name=concealed(url),
                open=partial(opener, url),
                deadline_ms=deadline_ms,
                required=required,
                room=room(url),
                private=alone and of_one_machine(url),
            )
            for url in urls
        ],
        now=now,
        keep_ms=keep_ms,
    )
    await chain.begin()
    return chain
