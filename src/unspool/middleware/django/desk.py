"""The desk: what the management commands do with the keys of this project.

    desk().keys(…)       rows for people: key, name, state, since when, attempt
    desk().settle(…)     end a run that was cut short
    desk().sweep()       forget what was kept long enough: how many keys, how many records

It takes claims as everybody does, so it may run beside the server: a run that is under way is not
touched, and one that begins meanwhile keeps the desk out.

Bugs: a key that has ended as unknown is not changed any more (I3): it is new work that needs a new
key.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.db import connections
from msgspec.structs import replace

from ...core.lifecycle import Forgotten, Reason, State, bounced, delivered
from ...core.message import Destination, Instant, Key, Response
from ...spools.protocol import Entry, Lease, New, Query, Spool
from .. import commit_table
from .keeper import Keeper

PAGE: Final = 200
SWEEP_MAX: Final = 1_000
ROUNDS_MAX: Final = 100_000


class Told(NamedTuple):
    done: bool
    text: str


class Desk:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper: Final = keeper

    def keys(self, *, name: str | None, everything: bool, limit: int) -> list[tuple[str, ...]]:
        return self._keeper.portal.call(self._keys, name, everything, limit)

    async def _keys(self, name: str | None, everything: bool, limit: int) -> list[tuple[str, ...]]:
        spool, now = await self._spool()
        query = Query(destination=Destination(self._keeper.rules.name), name=name)
        rows: list[tuple[str, ...]] = []
        after: Key | None = None
        while len(rows) < limit:
            page = await spool.browse(query, after=after, limit=PAGE)
            for entry in page:
                if everything or worth_a_look(entry):
                    rows.append(row_of(entry, now))
            if len(page) < PAGE:
                break
            after = page[-1].message.key
        return rows[:limit]

    def settle(self, key: str, *, status: int | None, release: bool) -> Told:
        return self._keeper.portal.call(self._settle, Key(key), status, release)

    async def _settle(self, key: Key, status: int | None, release: bool) -> Told:
        spool, now = await self._spool()
        [entry] = await spool.find([key])
        if entry is None or entry.message.destination != self._keeper.rules.name:
            return Told(False, "There is no such key. See: python manage.py unspool_keys")
        if entry.state is not State.CLAIMED:
            return Told(
                False, f"It has ended ({state_of(entry, now)}), and is not changed any more."
            )
        if now < entry.leased_until:
            return Told(False, "Its run is under way. Wait until it ends, or is cut short.")
        keeping = self._keeper.opening.tenure.keeping
        until = Instant(now + self._keeper.opening.tenure.lease_ms)
        taken = Entry(
            message=replace(entry.message, accepted_at=now, nonce=os.urandom(16)),
            state=State.CLAIMED,
            due_at=now,
            attempt=1,
            leased_until=until,
            keep_until=Instant(now + keeping.key_ms),
        )
        [acceptance] = await spool.accept([taken])
        if not isinstance(acceptance, New):
            return Told(False, "Somebody else has just begun to run it.")
        verdict: Any
        if release:
            verdict, text = Forgotten(), "Released: a repeat runs it again."
        elif status is None:
            verdict = bounced(Reason.UNKNOWN, now=now, keeping=keeping, trail=entry.trail)
            text = "Ended as unknown: a repeat is told so."
        else:
            answer = Response(status, b"", ())
            found = delivered(answer, now=now, keeping=keeping, trail=entry.trail)
            verdict = replace(found, stored=False)
            text = f"Done: a repeat gets {status}, and is told that the body was not kept."
        [kept] = await spool.settle([(Lease(entry=acceptance.entry, until=until), verdict)])
        return Told(kept, text if kept else "Somebody else was faster.")

    def sweep(self) -> tuple[int, int]:
        records = 0
        connection = connections[self._keeper.using]
        if commit_table.NAME in connection.introspection.table_names():
            for _ in range(ROUNDS_MAX):
                went = commit_table.sweep(connection, limit=SWEEP_MAX)
                records += went
                if went < SWEEP_MAX:
                    break
        return self._keeper.portal.call(self._sweep), records

    async def _sweep(self) -> int:
        spool, now = await self._spool()
        keys = 0
        for _ in range(ROUNDS_MAX):
            went = await spool.sweep(now=now, limit=SWEEP_MAX)
            keys += went
            if went < SWEEP_MAX:
                break
        return keys

    async def _spool(self) -> tuple[Spool, Instant]:
        ledger, _ = await self._keeper.opening.ledger()
        return ledger.custody.spool, ledger.now()


def desk() -> Desk:
    config: Any = apps.get_app_config("unspool")
    return Desk(config.keeper())


def worth_a_look(entry: Entry) -> bool:
    return entry.state is State.CLAIMED or entry.reason == Reason.UNKNOWN


def state_of(entry: Entry, now: Instant) -> str:
    if entry.state is State.CLAIMED:
        return "running" if now < entry.leased_until else "cut short"
    if entry.state is State.BOUNCED:
        return entry.reason
    return "done"


def row_of(entry: Entry, now: Instant) -> tuple[str, ...]:
    since = datetime.fromtimestamp(entry.message.accepted_at / 1000, UTC).strftime("%FT%TZ")
    message = entry.message
    return (message.key, message.name, state_of(entry, now), since, f"attempt {entry.attempt}")
