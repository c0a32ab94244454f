"""Taking: which custodian of a chain takes which entry.

    await taking.each(entries)      of each its acceptance, or why it alone was not taken

While home is well and nothing lies away, this is home's own accept, on its way before anybody
awaits it. Else a key is looked for wherever it may lie, and what is new goes to the first custodian
that takes it. See `spool`, 1 to 4.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ...core.custodian import follows
from ...core.lifecycle import State, Verdict
from ...errors import Full, Homeless, InDoubt, NotDone, Refused, Unavailable
from ..memory import after_verdict
from ..protocol import Acceptance, Entry, Lease, Mismatch, New, Spool
from .custodian import Custodian
from .looking import Looking
from .ranks import Ranks

log: Final = logging.getLogger("unspool.chain")

Answer = Acceptance | Refused


class Taking:
    def __init__(
        self, ranks: Ranks, looking: Looking, *, ring: Callable[[], None], stir: Callable[[], None]
    ) -> None:
        """`ring`: something waits that was not there before. `stir`: something lies away."""
        self._ranks = ranks
        self._looking = looking
        self._ring = ring
        self._stir = stir
        self._taker = 0

    def each(self, entries: Sequence[Entry]) -> Awaitable[Sequence[Answer]]:
        home = self._ranks.home
        if self._ranks.clear and home.takes and home.spool is not None:
            return self._usual(home.spool.accept(entries), entries)
        return self._looked(entries)

    async def _usual(
        self, begun: Awaitable[Sequence[Acceptance]], entries: Sequence[Entry]
    ) -> Sequence[Answer]:
        try:
            answers = await self._ranks.home.finish(begun, write=True)
        except (Full, Unavailable) as error:
            doubt = not isinstance(error, Full | NotDone)
        else:
            self._took(0, answers)
            return answers
        return await self._looked(entries, first=1, doubt=doubt)

    async def _looked(
        self, entries: Sequence[Entry], *, first: int = 0, doubt: bool = False
    ) -> Sequence[Answer]:
        answers: list[Answer | None] = [*await self._looking.known_away(entries)]
        return await self._place(entries, answers, first=first, doubt=doubt)

    async def _place(
        self, entries: Sequence[Entry], answers: list[Answer | None], *, first: int, doubt: bool
    ) -> Sequence[Answer]:
        """Those without an answer, at the first that takes them. `doubt`: one before may have."""
        rest = [number for number, answer in enumerate(answers) if answer is None]
        someone = False
        for index, custodian in enumerate(self._ranks.all):
            if not rest or index < first or not custodian.takes:
                continue
            mine = [n for n in rest if not index or follows(entries[n].message, doubt=doubt)]
            batch = [entries[number] for number in mine]

            def accept(
                spool: Spool, batch: Sequence[Entry] = batch
            ) -> Awaitable[Sequence[Acceptance]]:
                return spool.accept(batch)

            try:
                got = await custodian.ask(accept, write=True) if batch else ()
            except (Full, NotDone):
                continue
            except Unavailable:
                doubt = True
                if index:
                    self._lies_at(custodian, len(batch))  # perhaps; who looks will know
                continue
            someone = True
            self._took(index, got)
            for number, answer in zip(mine, got, strict=True):
                answers[number] = await self._looking.read(answer)
            rest = [number for number in rest if answers[number] is None]
        for number in rest:
            answers[number] = self._refusal(entries[number], doubt=doubt, someone=someone)
        return [answer for answer in answers if answer is not None]

    async def instead(
        self, settlements: Sequence[tuple[Lease, Verdict]], ended: list[bool | Refused]
    ) -> None:
        """Claims whose custodian is down end at the next: saved there, or answered. `ended` is what
        came of each, and is mended. Home learns of it by the nonce."""
        late: list[tuple[int, Entry]] = []
        for number, (lease, verdict) in enumerate(settlements):
            claimed = lease.entry.state is State.CLAIMED and lease.entry.message.repeat
            if claimed and isinstance(ended[number], Refused):
                entry = after_verdict(lease.entry, verdict)
                if entry is not None:
                    late.append((number, entry))
        if not late:
            return
        entries = [entry for _, entry in late]
        for (number, entry), answer in zip(late, await self._looked(entries), strict=True):
            ours = not isinstance(answer, Refused | Mismatch)
            if ours and answer.entry.message.nonce == entry.message.nonce:  # type: ignore[union-attr]
                ended[number] = True

    def _refusal(self, entry: Entry, *, doubt: bool, someone: bool) -> Refused:
        """Why it was not taken. `someone` takes others."""
        why = "; ".join(f"{c.name}: {c.why_not()}" for c in self._ranks.all if not c.takes)
        state = "It may or may not have been taken" if doubt else "It was not taken"
        rest = f"({why}). {state}; send it again later. See them: unspool queue"
        if not someone:
            refusal = Unavailable if doubt else NotDone
            return refusal(f"no spool takes anything just now {rest}")
        if entry.message.order_key:
            return Homeless(
                f"a request that is to keep its order is taken by the first spool alone {rest}"
            )
        return InDoubt(
            f"the spool did not answer ({why}), and this request may not be sent twice: it may or"
            " may not have been taken. See what there is: unspool queue"
        )

    def _lies_at(self, custodian: Custodian, count: int) -> None:
        custodian.settled = False
        custodian.arrivals += count
        self._stir()

    def _took(self, index: int, answers: Sequence[Acceptance]) -> None:
        custodian = self._ranks.all[index]
        fresh = [one.entry for one in answers if isinstance(one, New)]
        if index:
            for answer in answers:
                self._ranks.lies(answer.entry, index)
            if fresh:
                self._lies_at(custodian, len(fresh))
        if any(entry.state is State.WAITING for entry in fresh):
            self._ring()
        if fresh and index != self._taker:
            self._taker = index
            before = self._ranks.all[:index]
            why = "; ".join(f"{c.name}: {c.why_not()}" for c in before)
            log.warning(
                "custody is taken by %s%s", custodian.name, f" ({why})" if why else ", as it should"
            )
