"""Reading a NATS bucket: what is found through the index, and what is asked of the server.

    reader.known(keys)            entries as the server has them; the index learns from it
    reader.find · browse · tally  of `protocol`
    reader.sure_of_line(line)     everything of it is known here

`find` asks the server, always: what another relay accepted a moment ago is found. What people look
at waits until the watch has come to where the stream was when they asked; while they walk through
it, it may change. `browse` of a sender's key reads every entry that the rest of the query fits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from ...core.lifecycle import State
from ...core.message import NEVER, Destination, Instant, Key
from ...core.record import Spoilt
from ...errors import Corrupt
from ..memory import asked_for
from ..protocol import Damaged, Entry, Query, Tally
from .link import Conflict, Link, Raw
from .records import (
    ASIDE,
    FACTS,
    OPERATION,
    Change,
    Facts,
    Known,
    checked_facts,
    entry_of,
    held,
    line_of,
    mails,
    parts_of,
    token_of,
    waits,
)
from .watch import Watch

PAGE: Final = 256
STEP: Final = 1_000
"""Rows counted before others have their turn."""
TORN_MAX: Final = 3
TOMBSTONES_MAX: Final = 10_000


class Reader:
    def __init__(self, link: Link, watch: Watch) -> None:
        self._link: Final = link
        self._watch: Final = watch
        self._tombstones: Final[dict[Key, int]] = {}
        """Revisions of tombstones: a new entry stands in their place."""

    # -- entries from the server -----------------------------------------------------------------

    async def known(self, keys: Sequence[Key], *, apart: bool) -> dict[Key, Known]:
        """Those that are there and whole. `apart`: with their parts."""
        names = self._link.names
        wanted = list(dict.fromkeys(keys))
        here = {key: row[0] for key in wanted if (row := self._watch.index.get(key))}
        raws = await self._link.last([names.message(key) for key in wanted])
        found: dict[Key, Known] = {}
        for key in wanted:
            known = self._learn(key, raws.get(names.message(key)), here.get(key, 0))
            if known is not None:
                found[key] = known
        if apart:
            await self._with_parts(found)
        return found

    def _learn(self, key: Key, raw: Raw | None, asked_at: int) -> Known | None:
        """`asked_at`: its revision as it was known when the server was asked."""
        if raw is None:
            self._tombstones.pop(key, None)
            if asked_at:
                self._watch.missing(key, asked_at)
            return None
        if raw.headers.get(OPERATION):
            if len(self._tombstones) >= TOMBSTONES_MAX:
                self._tombstones.clear()  # whoever needs one learns it again
            self._tombstones[key] = raw.sequence
            self._watch.removed(key, raw.sequence)
            return None
        try:
            if ASIDE in raw.headers:
                raise Spoilt("it was set aside before")
            facts = checked_facts(raw.headers.get(FACTS, ""), key)
        except Spoilt:
            self._watch.spoilt(key, raw.sequence)
            return None
        known = Known(raw.sequence, facts, raw.payload)
        self._watch.learned(known)
        return known

    async def entry(self, known: Known, *, request: bool = False, answer: bool = False) -> Entry:
        """Raises `Spoilt`, and `Conflict` where its parts were another revision's."""
        try:
            return entry_of(known, request=request, answer=answer)
        except Spoilt:
            if not known.facts.parts:
                raise
        key = known.facts.key
        again = (await self.known([key], apart=True)).get(key)
        if again is None or again.revision != known.revision:
            raise Conflict(key)
        return entry_of(again, request=request, answer=answer)

    def revision(self, key: Key, known: Known | None) -> int:
        """What a new entry expects of its subject."""
        return known.revision if known is not None else self._tombstones.pop(key, 0)

    async def _with_parts(self, found: dict[Key, Known]) -> None:
        apart = {
            key: [self._link.names.part(key, name) for name in parts_of(known.facts)]
            for key, known in found.items()
            if known.facts.parts
        }
        if not apart:
            return
        raws = await self._link.last([subject for some in apart.values() for subject in some])
        for key, some in apart.items():
            known = found[key]
            joined = b"".join(raws[subject].payload for subject in some if subject in raws)
            found[key] = Known(known.revision, known.facts, known.body, joined)

    async def find(self, keys: Sequence[Key], /) -> list[Entry | None]:
        entries: dict[Key, Entry] = {}
        doubtful = list(dict.fromkeys(keys))
        for _ in range(TORN_MAX):
            known = await self.known(doubtful, apart=True)
            spoilt: list[Key] = []
            for key, one in known.items():
                try:
                    entries[key] = entry_of(one, answer=True)
                except Spoilt:
                    spoilt.append(key)
            doubtful = spoilt  # its parts may be of another revision: look again
            if not doubtful:
                break
        for key in doubtful:
            await self.aside(known[key])
        if count := sum(key in self._watch.index.spoilt for key in keys):
            raise self.corrupt(count)
        return [entries.get(key) for key in keys]

    def corrupt(self, count: int) -> Corrupt:
        return Corrupt(
            f"{count} record(s) in the spool {self._link.shown} failed their checksum."
            " They are set aside with all their bytes; nothing is run under their keys, and the"
            " rest goes on. See what is left: unspool queue --all"
        )

    # -- what is damaged -------------------------------------------------------------------------

    async def aside(self, known: Known) -> None:
        """Marked, with all its bytes, for everybody and for good (12)."""
        facts = known.facts
        line = line_of(facts.destination, facts.order_key) if waits(facts) else ""
        change = Change(
            facts.key, known.revision, facts, known.body, aside=True, line=line
        )  # its parts stay where they are
        try:
            sequences = await self._link.commit(mails(self._link.names, [change]))
        except Conflict:
            return  # somebody else has written it since: whoever comes next looks again
        self._watch.spoilt(facts.key, sequences[0])

    async def damaged(self, *, after: str | None, limit: int) -> list[Damaged]:
        await self._watch.current()
        names = self._link.names
        marks = {token_of(key): key for key in self._watch.index.spoilt}
        shown = sorted(mark for mark in marks if after is None or mark > after)[:limit]
        raws = await self._link.last([names.message(marks[mark]) for mark in shown])
        found: list[Damaged] = []
        for mark in shown:
            subject = names.message(marks[mark])
            raw = raws.get(subject)
            if raw is not None:
                size = len(raw.payload) + sum(len(k) + len(v) for k, v in raw.headers.items())
                found.append(_damaged(mark, marks[mark], f"{names.stream} {subject}", raw, size))
        return found

    async def discarded(self, marks: Sequence[str]) -> dict[str, Change]:
        """Of those marks that name one: what forgets it, with its parts."""
        names, spoilt = self._link.names, self._watch.index.spoilt
        known = {token_of(key): key for key in spoilt}
        keys = {mark: known[mark] for mark in marks if mark in known}
        raws = await self._link.last([names.message(key) for key in keys.values()])
        changes: dict[str, Change] = {}
        for mark, key in keys.items():
            raw = raws.get(names.message(key))
            if raw is None or raw.headers.get(OPERATION):
                continue
            gone: list[str] = []
            with contextlib.suppress(Spoilt):
                gone = parts_of(checked_facts(raw.headers.get(FACTS, ""), key))
                if ASIDE not in raw.headers:
                    continue  # somebody else has discarded it, and the key was given anew
            changes[mark] = Change(key, raw.sequence, None, gone=gone)
        return changes

    # -- lines -----------------------------------------------------------------------------------

    async def sure_of_line(self, name: str) -> None:
        """Then what the index says of it is so, unless its register is written meanwhile (5)."""
        line = self._watch.index.lines.get(name)
        if line is None or (line.seen and line.seen >= line.newest):
            return
        if line.newest:
            await self._watch.reach(line.newest)
            line = self._watch.index.lines.get(name)
            if line is None or (line.seen and line.seen >= line.newest):
                return
        await self.learn_lines([name])

    async def learn_lines(self, lines: Sequence[str]) -> None:
        """Somebody else has written in them, or their registers have gone with age."""
        names = self._link.names
        raws = await self._link.last([names.line(line) for line in lines])
        await self._watch.current()
        for line in lines:
            raw = raws.get(names.line(line))
            if raw is None:
                self._watch.index.line_void(line)
            else:
                self._watch.index.line_seen(line, raw.sequence)

    # -- for people ------------------------------------------------------------------------------

    async def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> list[Entry]:
        await self._watch.current()
        index = self._watch.index
        places = index.after(after) if query.key is None else index.behind(after, query.key)
        entries: list[Entry] = []
        keys: list[Key] = []
        for looked, place in enumerate(places, 1):
            if looked % STEP == 0:
                await asyncio.sleep(0)
            row = index.row(place)
            if row is not None and _fits(row[1], query):
                keys.append(row[1].key)
            # Of a sender's key the index knows nothing: read on in whole pages.
            if len(keys) == PAGE or (query.name is None and len(keys) == limit - len(entries)):
                await self._show(entries, keys, query, requests=requests)
                keys = []
                if len(entries) >= limit:
                    break
        await self._show(entries, keys, query, requests=requests)
        return entries[:limit]

    async def _show(
        self, entries: list[Entry], keys: Sequence[Key], query: Query, *, requests: bool
    ) -> None:
        known = await self.known(keys, apart=requests) if keys else {}
        for one in known.values():
            try:
                entry = await self.entry(one, request=requests)
            except Spoilt:
                await self.aside(one)
                continue
            except Conflict:
                continue
            if asked_for(entry, query):
                entries.append(entry)

    async def tally(self, edges: Sequence[Instant], /) -> list[Tally]:
        await self._watch.current()
        counts: dict[Destination, list[int]] = {}
        kept: dict[Destination, int] = {}
        oldest: dict[Destination, Instant] = {}
        index = self._watch.index
        for number, place in enumerate(index.after(None), 1):
            if number % STEP == 0:
                await asyncio.sleep(0)
            row = index.row(place)
            if row is None or not waits(row[1]):
                continue
            facts = row[1]
            name = facts.destination
            here = counts.setdefault(name, [0] * (len(edges) + 1))
            if held(facts):
                kept[name] = kept.get(name, 0) + 1
            else:
                here[sum(facts.accepted_at < edge for edge in edges)] += 1
            oldest[name] = min(oldest.get(name, NEVER), facts.accepted_at)
        return [
            Tally(name, tuple(counts[name]), kept.get(name, 0), oldest[name])
            for name in sorted(counts)
        ]


def _damaged(mark: str, key: Key, where: str, raw: Raw, size: int) -> Damaged:
    """As far as it can be read."""
    try:
        facts = checked_facts(raw.headers.get(FACTS, ""), key)
    except Spoilt:
        return Damaged(mark, where, size, key)
    name = ""
    with contextlib.suppress(Spoilt):
        name = entry_of(Known(raw.sequence, facts, raw.payload)).message.name
    return Damaged(mark, where, size, key, facts.destination, name, facts.accepted_at)


def _fits(facts: Facts, query: Query) -> bool:
    """As far as facts tell."""
    is_held = waits(facts) and held(facts)
    return (
        (query.destination is None or facts.destination == query.destination)
        and (query.state is None or State(facts.state) is query.state)
        and (query.held is None or is_held == query.held)
    )
