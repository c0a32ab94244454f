"""Opening: an application's ledger, made at the first use, in whichever process and loop that is.

    opening = Opening(spool="sqlite:///idem.db", name="shop", …)
    ledger, secret = await opening.ledger()
    await opening.aclose()

See `place` for what it is good for and what is refused.

Bugs: two event loops of one process share no turns. While there are two, claims are written.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..chance import Chance
from ..clock import Clock, SystemClock
from ..core.admission import Terms
from ..core.tenure import Abandoned, Tenure
from ..custody import Custody
from ..ledger import Ledger
from ..spools.protocol import Spool, Survives
from .place import Place

_Opened = tuple[Ledger, bytes]


class Opening:
    """What an application remembers of its keys."""

    def __init__(
        self,
        spool: str | Spool,
        *,
        name: str,
        owner: str,
        tenure: Tenure,
        survives: Survives,
        clock: Clock | None = None,
    ) -> None:
        """`owner` tells the application from others that were given no name either; empty: the
        name was given, and is believed."""
        self.tenure: Final = tenure
        self.clock: Final = clock or SystemClock()
        self._survives: Final = survives
        self._place: Final[Place[_Opened]] = Place(
            spool,
            name=name,
            owner=owner,
            alone=tenure.alone and tenure.abandoned is Abandoned.RUN,
            survives=survives,
            clock=self.clock,
            make=self._make,
            close=_close,
            crowded=_crowded,
        )

    async def ledger(self) -> _Opened:
        """The ledger of this process and loop, and the spool's secret. Opened at the first call.

        Raises `Broken` where a person must act, and `Refused` where the spool does not answer.
        """
        return await self._place.get()

    async def _make(self, spool: Spool, secret: bytes) -> _Opened:
        terms = Terms(survives=spool.promises.survives, required=self._survives)
        custody = Custody(spool=spool, terms=terms)
        ledger = Ledger(custody=custody, clock=self.clock, tenure=self.tenure, chance=Chance())
        return ledger, secret

    async def aclose(self) -> None:
        """Let this loop's ledger go; and the spool with the last one, if we opened it."""
        await self._place.aclose()


async def _close(opened: _Opened) -> None:
    await opened[0].aclose()


def _crowded(all_: Collection[_Opened]) -> None:
    for ledger, _secret in all_:
        ledger.alone = False
