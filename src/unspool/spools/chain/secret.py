"""The one secret of a chain: home's. Without it a key would be another at each custodian.

    await secrets.agree(entry)      the answer to whoever opens the spool and brings one to make
    await secrets.teach(custodian)  one that came up later learns it; home may turn out to differ

A custodian that had a secret of its own keeps it, and home's under another key beside it.
"""

from __future__ import annotations

import logging
from typing import Final

from msgspec.structs import replace

from ...errors import Corrupt, Refused
from ..protocol import Acceptance, Duplicate, Entry
from ..secret import HOME_KEY
from .custodian import Custodian
from .ranks import Ranks

log: Final = logging.getLogger("unspool.chain")


class Secrets:
    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._entry: Entry | None = None

    async def agree(self, entry: Entry) -> Acceptance:
        """Raises `Unavailable` where none can be asked."""
        if self._entry is None:
            self._entry = await self._known(entry)
            for custodian in self._ranks.all:
                await self.teach(custodian)
        return Duplicate(self._entry)

    async def _known(self, entry: Entry) -> Entry:
        for custodian in self._ranks.all:
            if not custodian.up:
                continue
            try:
                if custodian is not self._ranks.home:
                    [found] = await custodian.ask(lambda spool: spool.find([HOME_KEY]))
                    if found is not None and found.answer is not None:
                        return _as(entry, found.answer.body)
                return _as(entry, await _kept(custodian, entry))
            except Refused:
                continue
        raise self._ranks.nobody()

    async def teach(self, custodian: Custodian) -> None:
        ours = self._entry
        if ours is None or ours.answer is None or not custodian.up:
            return
        body = ours.answer.body
        try:
            if await _kept(custodian, ours) == body:
                return
            if custodian is self._ranks.home:
                custodian.shut(
                    "it has another secret than the one that we started with while it was away;"
                    " to use it, start the relay again"
                )
                return
            message = replace(ours.message, key=HOME_KEY)
            if await _kept(custodian, replace(ours, message=message)) == body:
                return
        except Refused:
            return  # it is down again; its next return is the next time
        except Corrupt as error:
            log.warning("%s cannot be told the secret of the first: %s", custodian.name, error)
            return
        log.warning(
            "%s has stood behind another first spool before: started while the first is down, keys"
            " of before will not be known. Give it a spool of its own, or start with the first up",
            custodian.name,
        )


async def _kept(custodian: Custodian, entry: Entry) -> bytes:
    """What it has under this key: what it had, or now this."""
    [answer] = await custodian.ask(lambda spool: spool.accept([entry]), write=True)
    kept = answer.entry.answer
    if kept is None:
        [found] = await custodian.ask(lambda spool: spool.find([entry.message.key]))
        kept = found.answer if found else None
    return b"" if kept is None else kept.body


def _as(entry: Entry, body: bytes) -> Entry:
    assert entry.answer is not None
    return replace(entry, answer=replace(entry.answer, body=body))
