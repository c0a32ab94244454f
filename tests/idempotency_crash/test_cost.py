"""What a key costs the disk: one commit on a private spool, two on a shared one; a replay none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks.commits import commits

from crash.launch import Quick
from unspool.upkeep import SWEEP_MS

from .fleet import Fleet, replayed

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

REQUESTS = 50


@pytest.mark.parametrize(("alone", "most"), [(True, 1), (False, 2)], ids=["private", "shared"])
async def test_commits_for_each_key(
    tmp_path: Path, launcher: Quick, alone: bool, most: int
) -> None:
    """Counted in the file's own WAL, one request after the other, so that none is shared. A claim
    must be written where others could run under the key, and only there."""
    fleet = Fleet(launcher, tmp_path, alone=alone)
    try:
        process = await fleet.start()
        began = time.monotonic()
        await process.ask("first")
        before = commits(fleet.spool)
        for number in range(REQUESTS):
            assert (await process.ask(f"k-{number}")).status == 201
        made = commits(fleet.spool) - before
        # On a machine that takes 10 s for it, a request under way at a beat is renewed besides.
        beats = int((time.monotonic() - began) * 1000) // SWEEP_MS
        assert most * REQUESTS <= made <= most * REQUESTS + beats
        for number in range(REQUESTS):
            assert replayed(await process.ask(f"k-{number}"))
        assert commits(fleet.spool) == before + made
    finally:
        await fleet.end()
