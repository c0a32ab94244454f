"""Mover: `unspool move` with a term of a second or two, for being killed over and over.

python mover.py FROM TO WAIT_MS TERM_MS      prints the sums
"""

from __future__ import annotations

import asyncio
import sys

from desk_kit import DAY

from unspool.clock import SystemClock
from unspool.house.moving import Move
from unspool.spools.open import reach_spool


async def main(source_url: str, target_url: str, wait_ms: int, term_ms: int) -> None:
    source, target = await reach_spool(source_url), await reach_spool(target_url)
    moving = Move(source, target, clock=SystemClock(), key_ms=30 * DAY, term_ms=term_ms)
    sums = await moving.run(wait_ms=wait_ms)
    await source.aclose()
    await target.aclose()
    print(sums)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
