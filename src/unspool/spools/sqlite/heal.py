"""Healing: indexes of an SQLite spool that disagree with its rows are made anew.

    @healing                     a verb of the store: where SQLite finds its file damaged, the
    def lease(self, …): …        indexes are made anew, once for each time the spool is opened, and
                                 the verb is done again

One bit that rots in a column which has an index, or in the index, and whatever touches that row is
refused by SQLite: with it all that stands in its batch, the whole lane behind it, or the broom. The
rows have all there is to know, so nothing is lost by it; a row that rotted is then what it says.

Costs nothing where nothing is wrong; healing, some 6 s for a million rows, in which all that writes
waits. Where the rows themselves are damaged it fails, and the verb's own trouble is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import apsw

from ...errors import Corrupt, UnspoolError

log: Final = logging.getLogger("unspool.spool")

REINDEX: Final = "REINDEX message"


class Healable(Protocol):
    def heal(self) -> bool:
        """False: it was tried before, or is part of a larger transaction."""
        ...


H = TypeVar("H", bound=Healable)
P = ParamSpec("P")
T = TypeVar("T")


def healing(verb: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    @wraps(verb)
    def healed(store: H, /, *args: P.args, **values: P.kwargs) -> T:
        try:
            return verb(store, *args, **values)
        except Corrupt as trouble:
            if not isinstance(trouble.__cause__, apsw.CorruptError) or not _heals(store, trouble):
                raise
        return verb(store, *args, **values)

    return healed


def _heals(store: Healable, trouble: Corrupt) -> bool:
    try:
        if not store.heal():
            return False
    except UnspoolError as error:
        log.error("the spool's indexes could not be made anew: %s", error)
        return False
    log.error(
        "the spool's indexes disagreed with its rows, and were made anew; look at the disk: %s",
        trouble,
    )
    return True
