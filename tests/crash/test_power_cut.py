"""M4, power cuts: what a sender was told before the power failed is in the spool after it (I1, I6).

A relay works on an ext4 of its own while senders load it: some requests are saved (202), some pass
through under a key (the service's answer, recorded first). Then the power fails: the file system
is shut down, the relay killed, the disk mounted again. Of every answer that a sender had read to
its end before the cut began, the spool must know: the request waits with its body intact, or its
answer is there. Answers that raced with the cut are no evidence and are not counted.

Every third cut is followed by another while the relay is opening the spool after the first. Ten
cuts hit one spool, one after the other, and each checks everything since the spool was new.

The control: a spool that does not sync must lose in most cuts, or the cuts cut nothing.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ports import free_port
from unspool.core.lifecycle import State
from unspool.core.message import Key
from unspool.receipts import read_token
from unspool.spools.protocol import Query

from .checker import known_to
from .disks import Disk, need_disk
from .engines import ENGINES, SHARE, need, open_store
from .history import Call, History, now_ns
from .launch import Quick
from .load import ASYNC, KEYED, PLAIN, Load, at_stake
from .processes import ROUNDS
from .service import Service

pytestmark = [pytest.mark.slow, pytest.mark.root]

CUTS = 100 * ROUNDS
CONTROL_CUTS = 8
CUTS_A_SPOOL = 10
STAKE_202 = 10
STAKE_ANSWERS = 5
"""So many must have been told, at each cut; answers where there is a service."""
SENDERS = 12


@dataclass
class Score:
    cuts: int = 0
    cuts_with_loss: int = 0
    evidence_202: int = 0
    evidence_answers: int = 0
    raced: int = 0
    """Answers that came after the cut had begun."""
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cuts} cuts; told before them: {self.evidence_202} x 202,"
            f" {self.evidence_answers} keyed answers; lost {len(self.lost)}"
            f" in {self.cuts_with_loss} cuts; {self.raced} answers raced and are not counted"
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_disk()
    with Disk(tmp_path, size_mib=192) as disk:
        yield disk


@pytest.fixture
async def quick() -> AsyncIterator[Quick]:
    quick = Quick()
    yield quick
    await quick.end()


class Spool:
    """One spool, and what was promised over it."""

    def __init__(self, engine: str, path: Path | str, number: int) -> None:
        self.engine = engine
        self.path = path
        self.number = number
        self.history = History()
        self.checked = 0

    def lost(self) -> list[str]:
        """Open the file itself and look for everything that was told before a cut."""
        store = open_store(self.engine, self.path)
        try:
            assert store.corrupt == 0
            bodies: dict[Key, bytes] = {}
            quoted: dict[Key, bytes] = {}
            unknown: set[Key] = set()
            answers: dict[str, bytes] = {}
            names: dict[Key, str] = {}
            after: Key | None = None
            while page := store.browse(Query(), after=after, limit=500, requests=True):
                after = page[-1].message.key
                for entry in page:
                    if entry.state is State.WAITING and entry.message.request is not None:
                        bodies[entry.message.key] = entry.message.request.body
                    if entry.reason == "unknown" and not entry.message.name:
                        unknown.add(entry.message.key)
                    if entry.state is State.DELIVERED and entry.message.destination:
                        names[entry.message.key] = entry.message.name
            for entry, name in zip(store.find(list(names)), names.values(), strict=True):
                if entry is not None and entry.answer is not None:
                    answers[name] = entry.answer.body
                    quoted[entry.message.key] = _asked(entry.answer.body)
        finally:
            store.close()

        def kept(call: Call) -> bytes | None:
            """Its body; of what was delivered, the answer stands for it and quotes it.

            A request without a key that was cut off at the service ends as unknown, and says so.
            """
            read = read_token(call.receipt.rsplit("/", 1)[-1])
            assert read is not None
            key = read[1]
            if key in unknown and not call.key:
                return call.body
            if key in quoted:
                return call.body if call.body[:64] == quoted[key] else None
            return bodies.get(key)

        return known_to(self.history.calls, waiting=kept, answers=answers)


def _asked(answer: bytes) -> bytes:
    """The service quotes the beginning of the request that it answers: `done 7 <a-1-2>…`."""
    return answer.split(b" ", 2)[2]


def weather(key: str, _body: bytes) -> str:
    """What goes through goes through; half of what is tried from the spool stays there."""
    return "425" if key.endswith(("1", "3", "5", "7", "9")) else "ok"


async def cycle(
    disk: Disk, quick: Quick, service: Service, spool: Spool, score: Score, *, synced: bool
) -> None:
    """One cut, and what it cost."""
    port = free_port()
    begun = len(spool.history.calls)
    score.cuts += 1
    plan = {"to": service.url, "port": port, "spool": str(spool.path), "engine": spool.engine}
    relay = await quick.start(**plan, synced=synced)
    load = Load(
        port,
        spool.history,
        name=f"{spool.number}-{score.cuts}",
        senders=SENDERS,
        jobs=(KEYED, ASYNC, PLAIN),
        patience=5,
    )
    running = asyncio.create_task(load.run())
    await asyncio.sleep(random.uniform(0.02, 0.25))
    await at_stake(
        spool.history, since=begun, accepted=STAKE_202, answered=STAKE_ANSWERS * service.is_up
    )
    cut_at = now_ns()
    disk.cut()
    relay.kill()
    load.stop(give_up=True)
    await relay.gone()
    await running
    disk.remount()
    if synced and score.cuts % 3 == 0:
        again = await quick.fork(**plan)
        await asyncio.sleep(random.uniform(0, 0.03))
        disk.cut()
        again.kill()
        await again.gone()
        disk.remount()
    for call in spool.history.calls[spool.checked :]:
        if call.told_at >= cut_at:
            score.raced += 1
            call.told_at = 0  # nor is it evidence at the next cut
        elif call.told_at:
            score.evidence_202 += call.accepted
            score.evidence_answers += call.answered
    spool.checked = len(spool.history.calls)
    lost = spool.lost()
    score.lost += lost
    score.cuts_with_loss += bool(lost)


async def cuts(engine: str, disk: Disk, quick: Quick, count: int, *, synced: bool) -> Score:
    score = Score()
    spool = Spool(engine, disk.mount / "spool-0.db", 0)
    with Service() as service:
        service.weather = weather
        for number in range(count):
            # A spool that has lost something is not asked about it twice.
            if number % CUTS_A_SPOOL == 0 or not synced:
                for old in disk.mount.glob("spool-*"):
                    if old.is_dir():
                        shutil.rmtree(old)
                    else:
                        old.unlink()
                spool = Spool(engine, disk.mount / f"spool-{number}.db", number)
                service.handled.clear()
            # In every other cut nobody is behind the relay: it saves, and delivers nothing.
            if number % 2:
                service.down()
            else:
                service.up()
            await cycle(disk, quick, service, spool, score, synced=synced)
    return score


@pytest.mark.timeout(240 + 4 * CUTS)
@pytest.mark.parametrize("engine", ENGINES)
async def test_what_was_told_before_a_cut_is_there_after_it(
    disk: Disk, quick: Quick, engine: str
) -> None:
    need(engine)
    count = int(CUTS * SHARE[engine])
    score = await cuts(engine, disk, quick, count, synced=True)
    print(f"\npower cuts, {engine}: {score}")
    assert score.lost[:20] == []
    assert score.evidence_202 >= STAKE_202 * count, "too little was at stake"
    assert score.evidence_answers >= STAKE_ANSWERS * (count // 2), "too little was at stake"


@pytest.mark.parametrize("engine", ENGINES)
async def test_without_syncs_the_cuts_cost_what_was_told(
    disk: Disk, quick: Quick, engine: str
) -> None:
    need(engine)
    score = await cuts(engine, disk, quick, CONTROL_CUTS, synced=False)
    print(f"\nwithout syncs, {engine}: {score}")
    assert score.cuts_with_loss > CONTROL_CUTS // 2
