"""Opening the spool that the settings name, for those who take custody: the relay, the collector.

spool = await open_for(settings)      one, or a custody chain that is looked after
disk_of(settings)                     how much room the disk of the one has; of several each looks
"""

from __future__ import annotations

from collections.abc import Callable

from ..clock import SystemClock
from ..settings import Settings
from ..spools.chain.open import open_spools
from ..spools.chain.spool import ChainSpool
from ..spools.disk import disk_free
from ..spools.protocol import Spool, Survives


async def open_for(settings: Settings) -> Spool:
    """Raises what opening raises."""
    spool = await open_spools(
        settings.spool,
        now=SystemClock().now,
        required=Survives[settings.survives.upper()],
        deadline_ms=settings.spool_ms,
        room=lambda url: _room(url, settings.disk_free_min_bytes),
        keep_ms=settings.key_keep_ms,
        alone=settings.workers == 1,
    )
    if isinstance(spool, ChainSpool):
        spool.keep()
    return spool


def disk_of(settings: Settings) -> Callable[[], int | None] | None:
    return disk_free(settings.spool[0]) if len(settings.spool) == 1 else None


def _room(url: str, least: int) -> Callable[[], bool] | None:
    """Has the disk of one of several spools so much room?"""
    free = disk_free(url)
    if free is None or not least:
        return None

    def room() -> bool:
        found = free()
        return found is None or found >= least

    return room
