"""The tally: what was sent against what the service's own ledger holds. Pure arithmetic.

    tally(orders, effects) -> Tally

`orders` is what a sender remembers of what it sent; `effects` counts the lines of the service's
ledger by key. Neither asks the relay: a relay that lost something would be the last to know.

    lost      sent, not in the ledger, and nobody was told that responsibility came back (a bounce)
    doubled   more than one effect under one key
    in doubt  the sender was told of an error, and the order was done all the same

The same rule for both roads, and a strict one: an order counts as lost whatever its sender was
told in the meantime, for nobody will do it any more. `promised` counts those among the lost for
which somebody had said 2xx or 202, which is the worst there is.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CROSSED = "somebody else's answer"


class Ending(enum.Enum):
    """What a sender was told of an order."""

    OPEN = "nothing yet"
    ANSWERED = "2xx: it is done"
    SAVED = "202: it will be done"
    FAILED = "an error, or nothing at all"


@dataclass(slots=True)
class Order:
    """One order, as its sender remembers it."""

    key: str
    phase: int = 0
    """Which weather it was sent in."""
    ending: Ending = Ending.OPEN
    trouble: str = ""
    """The last thing that went wrong."""
    sent_again: int = 0
    receipt: str = ""
    """Where to ask, if it was saved."""
    state: str = ""
    """What the receipt said when it was asked."""


@dataclass(frozen=True, slots=True)
class Tally:
    sent: int = 0
    answered: int = 0
    saved: int = 0
    delivered_later: int = 0
    """Of those saved, in the ledger now."""
    failed: int = 0
    unresolved: int = 0
    in_doubt: int = 0
    bounced: int = 0
    sent_again: int = 0
    missing: int = 0
    """Sent, and not in the ledger now."""
    promised: int = 0
    crossed: int = 0
    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    troubles: Mapping[str, int] = field(default_factory=dict)
    """Why orders failed, and how many."""

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing doubled, and nobody got another's answer."""
        return not self.lost and not self.doubled and not self.crossed


def tally(orders: Iterable[Order], effects: Mapping[str, int]) -> Tally:
    """Count. The orders may be those of one weather or all; effects of others do no harm."""
    endings: Counter[Ending] = Counter()
    troubles: Counter[str] = Counter()
    delivered_later = in_doubt = bounced = sent_again = missing = promised = 0
    lost: list[str] = []
    doubled: list[str] = []
    for order in orders:
        done = effects.get(order.key, 0)
        endings[order.ending] += 1
        sent_again += order.sent_again
        returned = order.state == "bounced"
        bounced += returned
        if order.ending is Ending.FAILED:
            troubles[order.trouble] += 1
            in_doubt += done > 0
        if order.ending is Ending.SAVED:
            delivered_later += done > 0
        if done > 1:
            doubled.append(order.key)
        if not done:
            missing += 1
            if not returned:
                lost.append(order.key)
                promised += order.ending in (Ending.ANSWERED, Ending.SAVED)
    return Tally(
        sent=endings.total(),
        answered=endings[Ending.ANSWERED],
        saved=endings[Ending.SAVED],
        delivered_later=delivered_later,
        failed=endings[Ending.FAILED],
        unresolved=endings[Ending.OPEN],
        in_doubt=in_doubt,
        bounced=bounced,
        sent_again=sent_again,
        missing=missing,
        promised=promised,
        crossed=troubles[CROSSED],
        lost=tuple(lost),
        doubled=tuple(doubled),
        troubles=dict(troubles.most_common()),
    )
