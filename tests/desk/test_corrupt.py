"""`queue --corrupt` and `drop --corrupt`: what was set aside is seen, and an operator's to end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import apsw
import pytest
from desk_kit import HERE, put, run

from unspool.errors import Corrupt
from unspool.spools.open import open_spool


async def _damaged(folder: Path) -> None:
    spool = await open_spool(f"sqlite:///{folder}/unspool.db")
    keys = await put(spool, "order-1", "order-2", "order-3")
    db = apsw.Connection(str(folder / "unspool.db"))
    db.execute("UPDATE message SET status = x'00' WHERE name <> 'order-2'")
    db.close()
    with pytest.raises(Corrupt):
        await spool.find(keys)
    await spool.aclose()


async def test_corrupt_records_are_listed_and_dropped(tmp_path: Path) -> None:
    """Each with its mark, its size and what can be read of it; dropped, its key is new again."""
    await _damaged(tmp_path)
    waits = run(tmp_path, "queue")
    assert (b"order-2" in waits.stdout, b"order-1" in waits.stdout) == (True, False)
    assert b"unspool queue --corrupt" in waits.stderr
    lines = run(tmp_path, "queue", "--corrupt", "--json").stdout.splitlines()
    first, second = [json.loads(line) for line in lines]
    assert (first["name"], first["destination"]) == ("order-1", HERE)
    assert first["size_bytes"] > 0
    gone = run(tmp_path, "drop", "--corrupt", first["mark"], "no-such-mark")
    assert gone.returncode == os.EX_NOINPUT
    assert b"forgotten" in gone.stdout
    assert b"is not the mark" in gone.stdout
    left = run(tmp_path, "queue", "--corrupt").stdout
    assert second["name"].encode() in left
    assert b"-- 1 record set aside" in left


async def test_all_corrupt_records_go_after_a_yes(tmp_path: Path) -> None:
    """`drop --corrupt --all` asks as `drop --all` does, and leaves what is whole alone."""
    await _damaged(tmp_path)
    asked = run(tmp_path, "drop", "--corrupt", "--all")
    assert asked.returncode == os.EX_USAGE
    assert b"2 corrupt records" in asked.stderr
    assert run(tmp_path, "drop", "--corrupt", "--all", "--yes").returncode == 0
    assert run(tmp_path, "queue", "--corrupt").stdout == b"No record is set aside as corrupt.\n"


async def test_what_is_spoilt_keeps_no_operator_from_the_rest(tmp_path: Path) -> None:
    """`--all`, and several by name: of each is said what was done, though one of them turns out to
    be spoilt when it is taken."""
    spool = await open_spool(f"sqlite:///{tmp_path}/unspool.db")
    await put(spool, "order-1", "order-2", "order-3")
    await spool.aclose()
    db = apsw.Connection(str(tmp_path / "unspool.db"))
    spoilt = "id = (SELECT id FROM message WHERE name = 'order-2')"
    db.execute(f"UPDATE body SET request = x'01' WHERE {spoilt}")
    named = run(tmp_path, "hold", "order-1", "order-2", "order-3")
    assert named.stdout.count(b": held;") == 2, named
    assert b"order-2: is gone, or set aside" in named.stdout
    assert named.returncode == os.EX_NOINPUT
    db.execute(f"UPDATE message SET state = 0 WHERE {spoilt}")
    everything = run(tmp_path, "drop", "--all", "--yes")
    assert everything.stdout.count(b": dropped;") == 2, everything
    assert b"order-2: is gone, or set aside" in everything.stdout
    db.execute(f"UPDATE message SET accepted_at = {2**60} WHERE {spoilt}")
    db.close()
    assert b"order-2" in run(tmp_path, "queue", "--corrupt").stdout
