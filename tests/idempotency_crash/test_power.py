"""Power cuts: a keyed answer that was told before the cut is the answer after it (I3, I5, I6).

An ext4 of its own on a loop device is shut down in the middle of the work, without flushing; the
processes are killed, the disk is mounted again, a new process asks for every key that had its
answer. It must be replayed, byte for byte, and nothing is run. The application's own ledger is on
another disk. The control, a spool that does not sync, must lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.disks import Disk, need_disk
from crash.history import now_ns
from crash.launch import Quick
from crash.processes import ROUNDS, eventually
from crash.wire import Severed, Wire

from .fleet import Fleet, Process, replayed, stored

pytestmark = [
    pytest.mark.slow, pytest.mark.root, pytest.mark.asyncio(loop_scope="module"),
]  # fmt: skip

CUTS = 6 * ROUNDS
CONTROL_CUTS = 3
SENDERS = 12
TOLD_MIN = 5


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_disk()
    with Disk(tmp_path, size_mib=192) as disk:
        yield disk


async def load(process: Process, prefix: str, told: dict[str, tuple[int, bytes]]) -> None:
    """New keys, one after the other, until the process is gone."""
    with contextlib.suppress(Severed):
        wire = await Wire.open(process.port)
        for number in itertools.count():
            key = f"{prefix}-{number}"
            fields = {"Idempotency-Key": key}
            answer = await wire.ask("POST", "/pay", fields=fields, body=b"{}", timeout=60)
            if answer.status == 201 and stored(answer):
                told[key] = (now_ns(), answer.body)


async def cuts(
    disk: Disk, launcher: Quick, folder: Path, count: int, *, synced: bool
) -> tuple[int, list[str], int]:
    """How many answers were at stake, what was lost, and in how many cuts."""
    stake, lost, with_loss = 0, [], 0
    for cut in range(count):
        fleet = Fleet(launcher, folder, spool=disk.mount / f"idem-{cut}.db", alone=bool(cut % 2))
        try:
            process = await fleet.start(synced=synced)
            told: dict[str, tuple[int, bytes]] = {}
            loads = [
                asyncio.create_task(load(process, f"c{cut}-{sender}", told))
                for sender in range(SENDERS)
            ]
            await asyncio.sleep(random.uniform(0.05, 0.15))
            await eventually(lambda told=told: len(told) >= TOLD_MIN, "something is at stake")
            cut_at = now_ns()
            disk.cut()
            process.kill()
            await process.gone()
            await asyncio.gather(*loads)
            disk.remount()
            again = await fleet.start()
            before = {key: body for key, (at, body) in told.items() if at < cut_at}
            gone = []
            wire = await Wire.open(again.port)
            for key, body in before.items():
                fields = {"Idempotency-Key": key}
                answer = await wire.ask("POST", "/pay", fields=fields, body=b"{}")
                if not replayed(answer) or answer.body != body:
                    gone.append(f"{key} had {body!r}, and now {answer}")
            runs = Counter(line.key for line in fleet.ledger.lines() if line.what == "begin")
            gone += [f"{key} was run {runs[key]} times" for key in before if runs[key] != 1]
            wire.close()
            stake += len(before)
            lost += gone
            with_loss += bool(gone)
        finally:
            await fleet.end()
        for old in disk.mount.glob("idem-*"):
            old.unlink()
    return stake, lost, with_loss


@pytest.mark.timeout(240 + 30 * ROUNDS)
async def test_an_answer_told_before_a_cut_is_replayed_after_it(
    tmp_path: Path, disk: Disk, launcher: Quick
) -> None:
    """On a shared spool and on a private one, in turn."""
    stake, lost, _ = await cuts(disk, launcher, tmp_path, CUTS, synced=True)
    print(f"\n{CUTS} cuts: {stake} answers told before them, lost {len(lost)}")
    assert lost[:5] == []
    assert stake >= TOLD_MIN * CUTS, "too little was at stake"


async def test_without_syncs_the_cuts_cost_answers(
    tmp_path: Path, disk: Disk, launcher: Quick
) -> None:
    """The control: or the cuts cut nothing."""
    stake, lost, with_loss = await cuts(disk, launcher, tmp_path, CONTROL_CUTS, synced=False)
    print(f"\nwithout syncs: {stake} told, lost {len(lost)} in {with_loss} of {CONTROL_CUTS} cuts")
    assert with_loss > CONTROL_CUTS // 2
