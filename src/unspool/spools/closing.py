"""Closing a spool that may hang.

await closed(spool)                  True: it was closed; False: it has not answered, and is left
await closed(spool, hung=True)       of one that has not answered before
"""

from __future__ import annotations

import asyncio
from typing import Final

from .protocol import Spool

CLOSE_S: Final = 5.0
"""How long a spool may take to finish what was begun and let go."""
HUNG_S: Final = 1.0
CANCEL_S: Final = 0.2


async def closed(spool: Spool, *, hung: bool = False) -> bool:
    """Close it, for so long. Raises what closing raises."""
    closing = asyncio.ensure_future(spool.aclose())
    try:
        done, _late = await asyncio.wait([closing], timeout=HUNG_S if hung else CLOSE_S)
    except BaseException:
        closing.cancel()
        raise
    if not done:
        closing.cancel()
        await asyncio.wait([closing], timeout=CANCEL_S)
        return False
    closing.result()
    return True
