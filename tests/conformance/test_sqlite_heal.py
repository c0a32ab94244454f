"""Indexes of the SQLite spool that disagree with its rows, as after a bit that rotted in one of the
two: SQLite then refuses whatever touches the row, and all that is in one batch with it."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from unspool.core.message import Instant
from unspool.errors import Corrupt
from unspool.spools.sqlite.store import SqliteStore
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    NOW,
    THERE,
    delivered,
    key,
    later,
    waiting,
)

KEYS = [key(name) for name in "abcd"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unspool.db"


def places(path: Path, value: bytes) -> list[int]:
    """Where the file has it: in the row, and in each index."""
    content = path.read_bytes()
    return [at for at in range(len(content)) if content.startswith(value, at)]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


ENTRIES = [
    waiting(name, destination=THERE if name == "b" else HERE, at=later(at))
    for at, name in enumerate("abcd")
]


def filled(path: Path) -> None:
    path.unlink(missing_ok=True)
    store = SqliteStore.open(path)
    store.accept(ENTRIES)
    store.close()


@pytest.mark.parametrize("column", ["destination", "expires_at"])
def test_a_bit_in_a_row_or_in_an_index_stops_nobody_else(
    path: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """12. In whichever of the two it rotted: the lane, the verdicts, expiry and the broom go on."""
    filled(path)
    expires_at = ENTRIES[1].message.expires_at
    value = THERE.encode() if column == "destination" else expires_at.to_bytes(6, "big")
    found = places(path, value)
    assert len(found) >= 2
    others = {key(name) for name in "acd"}
    for place in found:
        filled(path)
        flip(path, place + len(value) - 1)
        store = SqliteStore.open(path)
        leases = store.lease({HERE: 2, THERE: 2}, now=NOW, until=LEASED_UNTIL)
        assert all(store.settle([(lease, delivered()) for lease in leases]))
        gone = {lease.entry.message.key for lease in leases}
        late = later(30 * DAY)
        leases = store.expire(now=late, until=Instant(late + DAY), limit=9)
        assert all(store.settle([(lease, delivered()) for lease in leases]))
        assert others <= gone | {lease.entry.message.key for lease in leases}
        store.sweep(now=later(10_000 * DAY), limit=99)
        assert store.find([key(name) for name in "acd"]) == [None, None, None]
        store.close()
        check = apsw.Connection(str(path))
        assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        check.close()
    assert "made anew" in caplog.text


def test_healing_is_tried_once(path: Path) -> None:
    """Where it did not help, the trouble is told: nobody waits for it with every call."""
    filled(path)
    refused = 0
    for place in places(path, THERE.encode()):
        filled(path)
        flip(path, place + len(THERE) - 1)
        store = SqliteStore.open(path)
        store._healed = True
        try:
            leases = store.seize(KEYS, now=later(9), until=LEASED_UNTIL)
            store.settle([(lease, delivered()) for lease in leases if lease])
        except Corrupt:
            refused += 1
        assert not store.heal()
        store.close()
    assert refused


def test_what_its_key_does_not_find_is_not_leased(path: Path) -> None:
    """6. No verdict would find it either: it would be delivered again for ever. In the row or in
    the index: it is set aside and can be discarded, and the others of its lane go."""
    filled(path)
    found = places(path, key("c").encode())
    assert len(found) >= 2
    for place in found:
        filled(path)
        flip(path, place + 1)
        store = SqliteStore.open(path)
        leases = store.lease({HERE: 9}, now=NOW, until=LEASED_UNTIL)
        assert [lease.entry.message.key for lease in leases] == [key("a"), key("d")]
        assert store.corrupt == 1
        [damaged] = store.damaged(after=None, limit=9)
        assert store.discard([damaged.mark]) == [True]
        assert store.corrupt == 0
        store.close()
