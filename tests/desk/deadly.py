"""Deadly: a move that is killed with SIGKILL before or after its n-th verb, for every n.

    python deadly.py FROM TO PATH        as a program of its own: it forks for each death

FROM and TO are engines, or URLs of servers with `{}` for a name.

Each round fills two fresh spools, lets a child move and die, acts out what relays do meanwhile
(sometimes: the lease runs out and the source delivers the message), moves again to the end,
and looks: each message is live at exactly one place, as it was, or has its one answer at both.
Prints `rounds N` when all is well. Exits 1 with the round that was not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from desk_kit import DAY, HERE, now, waiting
from msgspec.structs import replace

from unspool.clock import SystemClock
from unspool.core.lifecycle import Delivered, Reason, State
from unspool.core.message import NEVER, Attempt, Instant, Response
from unspool.core.parking import unpark
from unspool.custody import secret_entry
from unspool.house import moving
from unspool.house.moving import Move
from unspool.spools.memory import bare
from unspool.spools.open import open_spool
from unspool.spools.protocol import Entry, Query

VERBS = ("accept", "seize", "settle", "find", "browse")
ANSWER = Response(200, b"OK", (), b"the one answer", None, -1)


class Deadly:
    """A spool that ends its process at the n-th verb of both, before it is done or after."""

    def __init__(self, spool: Any, counter: list[int], at: int, after: bool) -> None:
        self._spool, self._counter, self._at, self._after = spool, counter, at, after

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._spool, name)
        if name not in VERBS:
            return verb

        async def deadly(*args: Any, **kwargs: Any) -> Any:
            self._counter[0] += 1
            dies = self._counter[0] == self._at
            if dies and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = await verb(*args, **kwargs)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return deadly


async def open_(engine: str, path: Path) -> Any:
    from unspool.spools.leveldb.spool import open_leveldb
    from unspool.spools.log.spool import open_log
    from unspool.spools.sqlite.spool import SqliteSpool

    if "{}" in engine:  # a server's URL, with room for a name
        return await open_spool(engine.format(f"deadly_{path.parent.name}_{path.name}"))
    opens = {"sqlite": SqliteSpool.open, "leveldb": open_leveldb, "log": open_log}
    return await opens[engine](path, test_hook_no_sync=True)


def what_there_is() -> list[Entry]:
    at = now()
    ended = dict[str, Any](settled_at=at, keep_until=Instant(at + 30 * DAY))
    return [
        waiting("w1", due_at=at + DAY),
        waiting("w2", due_at=at + DAY),
        waiting("o1", order_key="line", due_at=at + DAY),
        waiting("o2", order_key="line", due_at=at + DAY),
        waiting("held", due_at=NEVER),
        replace(bare(waiting("done")), state=State.DELIVERED, answer=ANSWER,
                answer_until=Instant(at + DAY), **ended),
        replace(bare(waiting("bounced")), state=State.BOUNCED, reason="expired", **ended),
    ]  # fmt: skip


async def die(engines: tuple[str, str], folder: Path, at: int, after: bool) -> None:
    source, target = await _both(engines, folder)
    counter = [0]
    ends = [Deadly(spool, counter, at, after) for spool in (source, target)]
    await Move(*ends, clock=SystemClock(), key_ms=30 * DAY).run(wait_ms=0)
    await source.aclose()
    await target.aclose()


async def _both(engines: tuple[str, str], folder: Path) -> tuple[Any, Any]:
    return await open_(engines[0], folder / "a"), await open_(engines[1], folder / "b")


async def fill(engines: tuple[str, str], folder: Path) -> list[Entry]:
    source = await open_(engines[0], folder / "a")
    entries = what_there_is()
    await source.accept([secret_entry(b"s" * 32, now=now()), *entries])
    await source.aclose()
    return entries


async def meanwhile(source: Any, target: Any, *, deliver: bool) -> None:
    """The mover's leases have run out. The source's relay delivers w1, if it still may; nothing of
    the target's that is parked may be leased by its relay."""
    soon = Instant(now() + 2 * moving.TERM_MS)
    leases = await target.lease({HERE: 99}, now=Instant(now() + 2 * DAY), until=Instant(soon + DAY))
    for lease in leases:
        assert unpark(lease.entry.trail) is None, "parked is not live"
        [there] = await source.find([lease.entry.message.key])
        assert there.reason == Reason.MOVED, "live at both"
    await target.settle([(one, _again(one)) for one in leases])
    if deliver:
        [w1] = [one for one in await source.browse(Query(), after=None, limit=99)
                if one.message.name == "w1"]  # fmt: skip
        [lease] = await source.seize([w1.message.key], now=soon, until=Instant(soon + 1))
        if lease is not None:
            end = Delivered(ANSWER, Instant(soon + 30 * DAY), Instant(soon + DAY),
                            (Attempt(9, soon, 200, "OK", "answered"),), True, soon)  # fmt: skip
            assert await source.settle([(lease, end)]) == [True]


def _again(lease: Any) -> Any:
    from unspool.core.lifecycle import Deferred

    return Deferred(lease.entry.due_at, lease.entry.trail)


class Later:
    """The clock of the second mover: the first one's leases are over."""

    def now(self) -> Instant:
        return Instant(SystemClock().now() + 3 * moving.TERM_MS)


async def check(
    engines: tuple[str, str], folder: Path, entries: list[Entry], *, deliver: bool
) -> None:
    source, target = await _both(engines, folder)
    await meanwhile(source, target, deliver=deliver)
    sums = await Move(source, target, clock=Later(), key_ms=30 * DAY).run(wait_ms=0)
    assert (sums.later, sums.other, sums.back, sums.parked) == (0, 0, 0, 0), sums
    rows = await target.browse(Query(), after=None, limit=99, requests=True)
    there = {row.message.key: row for row in rows}
    answers = dict(zip(there, await target.find(list(there)), strict=True))
    for entry in entries:
        key = entry.message.key
        [old] = await source.find([key])
        new = there[key]
        if entry.state is not State.WAITING or old.state is State.DELIVERED:
            assert old.state is new.state, (old, new)
            assert old.answer == answers[key].answer
            assert old.reason == new.reason
            continue
        assert (old.state, old.reason) == (State.BOUNCED, Reason.MOVED), old
        assert new.state is State.WAITING
        assert (new.due_at, new.trail) == (entry.due_at, entry.trail), (new, entry)
        assert new.message == entry.message
    waits = [row.message.name for row in rows if row.state is State.WAITING]
    assert [name for name in waits if name[0] == "o"] == ["o1", "o2"], waits
    assert not await source.lease({HERE: 99}, now=Instant(NEVER - 1), until=NEVER)
    await source.aclose()
    await target.aclose()


def round_(engines: tuple[str, str], folder: Path, at: int, after: bool) -> bool:
    """False: there was no n-th verb any more."""
    shutil.rmtree(folder, ignore_errors=True)
    folder = folder / f"{at}_{int(after)}"
    folder.mkdir(parents=True)
    entries = asyncio.run(fill(engines, folder))
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(die(engines, folder, at, after))
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
    asyncio.run(check(engines, folder, entries, deliver=at % 2 == 1))
    return ended != 0


def main() -> None:
    engines, folder = (sys.argv[1], sys.argv[2]), Path(sys.argv[3])
    step = int(os.environ.get("DEADLY_STEP", "1"))
    rounds = 0
    for after in (False, True):
        at = 1
        while round_(engines, folder, at, after):
            at += step
            rounds += 1
    print(f"rounds {rounds}")


if __name__ == "__main__":
    main()
