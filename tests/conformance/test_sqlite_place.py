"""The files of an open SQLite spool are removed, replaced and put back, as when somebody tidies up.

No promise is given over a file that nobody will find (I1).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unspool.core.lifecycle import Bounced, Reason
from unspool.errors import NotDone
from unspool.spools.sqlite.place import PARTS, WAL_LARGE_BYTES, Place
from unspool.spools.sqlite.store import SqliteStore
from unspool.testing.conformance.values import HERE, LEASED_UNTIL, NOW, key, waiting


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unspool.db"


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_taken_into_a_file_that_was_removed(path: Path, part: str) -> None:
    """1. It is said that nothing was done; with the file back where it was, it goes on."""
    store = SqliteStore.open(path)
    store.accept([waiting("a")])
    file = Path(f"{path}{part}")
    file.rename(f"{file}.aside")
    for _ in "12":
        with pytest.raises(NotDone, match="removed or replaced"):
            store.accept([waiting("b")])
    Path(f"{file}.aside").rename(file)
    assert store.find([key("b")]) == [None]
    store.accept([waiting("b")])
    store.close()
    again = SqliteStore.open(path)
    assert all(again.find([key("a"), key("b")]))
    again.close()


@pytest.mark.parametrize("again", [False, True])
def test_what_was_taken_before_its_file_was_removed_is_delivered(path: Path, again: bool) -> None:
    """I1: nobody else can have it, and when we end it is lost. Nothing more is taken into it."""
    store = SqliteStore.open(path)
    store.accept([waiting("a"), waiting("b")])
    for part in (*PARTS, "-lock"):
        Path(f"{path}{part}").unlink()
    if again:
        path.touch()
    for _ in "12":
        with pytest.raises(NotDone, match="removed or replaced"):
            store.accept([waiting("c")])
        [lease] = store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
        assert store.settle([(lease, Bounced(Reason.DROPPED, LEASED_UNTIL))]) == [True]
    store.close()


def test_another_spool_in_its_place_is_left_alone(path: Path) -> None:
    """1. As after a backup was put back under a relay: it takes nothing more, and when it ends it
    does not remove the WAL that another has by now."""
    old = SqliteStore.open(path)
    old.accept([waiting("a")])
    for part in (*PARTS, "-lock"):
        Path(f"{path}{part}").rename(f"{path}{part}.aside")
    new = SqliteStore.open(path)
    new.accept([waiting("b")])
    with pytest.raises(NotDone, match="removed or replaced"):
        old.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
    old.close()
    assert Path(f"{path}-wal").exists()
    new.accept([waiting("c")])
    new.close()
    again = SqliteStore.open(path)
    assert [one is not None for one in again.find([key(name) for name in "abc"])] == [
        False, True, True,
    ]  # fmt: skip
    again.close()


def test_a_lock_that_was_removed_is_held_again(path: Path) -> None:
    """4. Whoever opens the spool next would think himself alone, and free what is being tried."""
    store = SqliteStore.open(path)
    store.accept([waiting("a")])
    [lease] = store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
    Path(f"{path}-lock").unlink()
    store.accept([waiting("b")])
    other = SqliteStore.open(path)
    assert not other.sole
    [entry] = other.find([key("a")])
    assert entry is not None
    assert entry.leased_until == lease.until
    other.close()
    store.close()


def test_a_wal_that_cannot_be_folded_is_told_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As while a tool that was left open reads it: once, and again when it is twice as large."""
    for part in PARTS:
        Path(f"{path}{part}").touch()
    place = Place(path, -1)
    told = []
    for size in (0, WAL_LARGE_BYTES - 1, WAL_LARGE_BYTES, WAL_LARGE_BYTES + 1, 3 * WAL_LARGE_BYTES):
        os.truncate(f"{path}-wal", size)  # nothing is written: the file has a hole
        place.weigh()
        told.append(len(caplog.records))
    assert told == [0, 0, 1, 1, 2]
    assert f"fuser -v {path}" in caplog.text


def test_each_transaction_looks_how_large_the_wal_is(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore.open(path)
    store._opened.place._large_bytes = 1
    store.accept([waiting("a")])
    store.accept([waiting("b")])
    assert "cannot be folded" in caplog.text
    store.close()
