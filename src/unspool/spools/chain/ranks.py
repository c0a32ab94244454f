"""Ranks: the custodians of a chain in their order, and where each entry was last seen.

    ranks.home · ranks.away · ranks.ups       the first, the others, and who can be asked
    await ranks.each(indices, verb)           what each of these says, without those that fail
    ranks.lies(entry, index) · where(entry)   it was seen there; the first where nothing was seen
    moved(entry) · at_home(entry)             the note that is left of what was brought home

What the parts of `chain` share. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from msgspec.structs import replace

from ...core.lifecycle import Reason, State
from ...core.message import Instant, Key
from ...errors import Refused, Unavailable
from ..protocol import Entry, Spool
from .custodian import Custodian

LIES_MAX: Final = 100_000
"""So many entries away are known by where they lie without asking."""

T = TypeVar("T")


def moved(entry: Entry) -> bool:
    """Only a note that home has it."""
    return entry.state is State.BOUNCED and entry.reason == Reason.MOVED


def at_home(entry: Entry) -> Entry:
    """A note, as it is told of while home cannot be asked: it waits there, as far as we know."""
    return replace(entry, state=State.WAITING, reason="", settled_at=Instant(0))


class Ranks:
    def __init__(self, custodians: Sequence[Custodian]) -> None:
        assert custodians
        self.all: Final = tuple(custodians)
        self.home: Final = self.all[0]
        self.away: Final = self.all[1:]
        self._lies: dict[tuple[Key, bytes], int] = {}

    @property
    def ups(self) -> list[int]:
        return [index for index, custodian in enumerate(self.all) if custodian.up]

    @property
    def clear(self) -> bool:
        """Nothing lies away of which home does not know."""
        return all(custodian.clear for custodian in self.away)

    @property
    def strangers(self) -> list[int]:
        """Those away that may know of what home does not, and can be asked."""
        return [n for n, c in enumerate(self.all) if n and c.up and not c.clear]

    @property
    def blind(self) -> str:
        """Which cannot be asked, and why; empty where all can."""
        return ", ".join(f"{c.name} ({c.pulse.cause})" for c in self.all if not c.up)

    def nobody(self) -> Unavailable:
        return Unavailable(f"no spool can be asked just now: {self.blind}. See them: unspool queue")

    def where(self, entry: Entry) -> int:
        return self._lies.get((entry.message.key, entry.message.nonce), 0)

    def lies(self, entry: Entry, index: int) -> None:
        name = entry.message.key, entry.message.nonce
        if index:
            self._lies[name] = index
            if len(self._lies) > LIES_MAX:
                del self._lies[next(iter(self._lies))]
        else:
            self._lies.pop(name, None)

    async def each(
        self,
        indices: Sequence[int],
        verb: Callable[[Spool], Awaitable[T]],
        *,
        patient: bool = False,
    ) -> dict[int, T]:
        """What each of these says; those that fail are left out. Raises if none says anything."""
        said: dict[int, T] = {}
        for index in indices:
            with suppress(Refused):
                said[index] = await self.all[index].ask(verb, patient=patient)
        if indices and not said:
            raise self.nobody()
        return said
