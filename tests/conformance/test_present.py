"""What becomes of a spool on a disk whose file or folder goes while it is open."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspool.core.lifecycle import Bounced, Reason
from unspool.errors import NotDone
from unspool.spools.open import open_spool
from unspool.spools.protocol import New
from unspool.testing.conformance.values import DAY, HERE, NOW, later, waiting


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("engine", ["log", "leveldb"])
async def test_what_is_gone_takes_nothing_more(tmp_path: Path, engine: str, replaced: bool) -> None:
    """I1: it would be lost when the process ends. What it took before can be delivered, or waits
    until it can be read again: when it is back all is well, and nothing was set aside."""
    if engine == "leveldb":
        pytest.importorskip("plyvel")
    path, away = tmp_path / "spool", tmp_path / "away"
    spool = await open_spool(f"{engine}:///{path}")
    [there] = await spool.accept([waiting("k1")])
    assert isinstance(there, New)
    path.rename(away)
    if replaced:
        path.mkdir()
    with pytest.raises(NotDone, match="was removed, or something else has its name"):
        await spool.accept([waiting("k2")])
    if engine == "log":  # which reads its requests from the disk when it wants them
        with pytest.raises(NotDone, match="cannot be opened"):
            await spool.lease({HERE: 5}, now=NOW, until=later(DAY))
    else:
        [lease] = await spool.lease({HERE: 5}, now=NOW, until=later(DAY))
        assert list(await spool.settle([(lease, Bounced(Reason.DROPPED, later(DAY)))])) == [True]
    if replaced:
        path.rmdir()
    away.rename(path)
    [there] = await spool.accept([waiting("k2")])
    assert isinstance(there, New)
    leases = await spool.lease({HERE: 5}, now=NOW, until=later(DAY))
    assert len(leases) == (2 if engine == "log" else 1)
    assert not spool.corrupt
    await spool.aclose()
