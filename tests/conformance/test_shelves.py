"""A shelf is an ordered map that survives: held against a dict, through restarts and cleaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from unspool.spools.keyed.shelf import Shelf
from unspool.testing.disk import FaultyDisk, How

FAMILIES = (b"m", b"r", b"s", b"a", b"q", b"e", b"w", b"k")


def level(path: Path) -> Callable[[], Shelf]:
    pytest.importorskip("plyvel")
    from unspool.spools.leveldb.spool import LevelShelf

    return lambda: LevelShelf.open(path, synced=False)


def log(_path: Path) -> Callable[[], Shelf]:
    """Segments so small that it is compacted all the time; after a power cut, not after a close."""
    from unspool.spools.log.shelf import LogShelf

    disks = [FaultyDisk()]

    def opened() -> Shelf:
        disks.append(disks[-1].after_cut(How.TORN, Random(len(disks))))
        return LogShelf.open(disks[-1], segment_bytes=4_000, salt=Random(len(disks)).randbytes)

    return opened


SHELVES: dict[str, Callable[[Path], Callable[[], Shelf]]] = {"leveldb": level, "log": log}


def row_of(random: Random) -> bytes:
    family = random.choice(FAMILIES)
    number = random.randrange(40).to_bytes(8, "big")
    if family == b"q":
        return b"qlane" + random.choice((b"", b"\0\xff")) + b"\0" + bytes(8) + number
    if family in (b"e", b"w"):
        return family + bytes(8) + number
    return family + (number if family != b"k" else b"key" + number)


def value_of(row: bytes, random: Random) -> bytes:
    size = random.choice((1, 8, 70, 200))
    return random.randbytes(0 if row[:1] in (b"q", b"w") else size)


@pytest.mark.parametrize("kind", SHELVES)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_map(kind: str, seed: int, tmp_path: Path) -> None:
    opened = SHELVES[kind](tmp_path / "shelf")
    random, model = Random(seed), dict[bytes, bytes]()
    shelf: Any = opened()
    eras = [shelf.era]
    for step in range(1_500):
        changes: dict[bytes, bytes | None] = {}
        for _ in range(random.randrange(1, 6)):
            row = row_of(random)
            changes[row] = value_of(row, random) if random.random() < 0.6 else None
        shelf.write(changes, sync=True)
        for row, value in changes.items():
            if value is None:
                model.pop(row, None)
            else:
                model[row] = value
        if step % 100 == 99:
            if kind == "leveldb" or random.random() < 0.5:
                shelf.close()
            shelf = opened()
            eras.append(shelf.era)
            alike(shelf, model)
    assert eras == sorted(set(eras)), "no era comes twice"
    assert shelf.spoilt == 0
    if kind == "log":
        removed = min(shelf._segments)
        assert removed > 10, "nothing was compacted"
    shelf.close()


def alike(shelf: Shelf, model: dict[bytes, bytes]) -> None:
    with shelf.view(writer=True) as view:
        for family in FAMILIES:
            rows = sorted(row for row in model if row[:1] == family)
            for row in rows:
                assert view.get(row) == model[row]
            if family != b"k":
                assert [row for row, _ in view.walk(family)] == rows
                assert [value for _, value in view.walk(family)] == [model[row] for row in rows]
        for prefix in (b"qlane\0", b"qlane\0\xff\0"):
            of_it = [row for row in model if row[:-16] == prefix]
            assert [row for row, _ in view.walk(prefix)] == sorted(of_it)
