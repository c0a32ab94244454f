"""What is the log's own: rot in any byte, missing segments, forged frames, memory."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from unspool.core.lifecycle import State
from unspool.core.message import Destination, Instant, Key
from unspool.errors import Corrupt
from unspool.spools.keyed.store import KeyedStore
from unspool.spools.log.frames import Damage, Frame, encode, scan
from unspool.spools.log.index import LogIndex, Rows
from unspool.spools.log.shelf import LogShelf
from unspool.testing.conformance.values import (
    HERE,
    LEASED_UNTIL,
    NOW,
    delivered,
    key,
    later,
    shown,
    waiting,
)
from unspool.testing.disk import FaultyDisk, How

SALT = b"saltsalt"


def opened(files: dict[str, bytes], *, segment_bytes: int = 1 << 26) -> tuple[KeyedStore, LogShelf]:
    shelf = LogShelf.open(FaultyDisk(files), segment_bytes=segment_bytes, salt=Random(9).randbytes)
    return KeyedStore(shelf, Path("log")), shelf


def files_of(disk: FaultyDisk) -> dict[str, bytes]:
    return {name: disk.read(name, 0, 1 << 30) for name in disk.names()}


def a_log(count: int, *, segment_bytes: int = 1 << 26) -> dict[str, bytes]:
    """Messages that came one by one, every third of them delivered; closed as it should be."""
    disk = FaultyDisk()
    shelf = LogShelf.open(disk, segment_bytes=segment_bytes, salt=Random(1).randbytes)
    store = KeyedStore(shelf, Path("log"))
    for number in range(count):
        store.accept([waiting(f"{number}")])
        if number % 3 == 2:
            [lease] = store.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)
            store.settle([(lease, delivered(f"answer {number}"))])
    store.close()
    return files_of(disk)


def test_a_bit_that_rots_costs_what_it_is_in_and_nothing_else() -> None:
    """12. Whichever it is: it is seen, counted and kept aside, and every message that is not in the
    same record, or the same batch, is there as it was. Bad bytes with good ones behind them are no
    torn tail: nothing is cut."""
    files = a_log(9)
    [name] = files
    data = files[name]
    frames = list(scan(lambda at, size: data[at : at + size], len(data), salt=name_salt(name)))
    assert all(isinstance(frame, Frame) for frame in frames)
    before, _ = opened(dict(files))
    keys = [key(f"{number}") for number in range(9)]
    was = before.find(keys)
    random = Random(0)
    flips = 0
    for frame in frames[1:-1]:
        for _ in range(12):
            place = random.randrange(frame.start, frame.end)
            bad = bytearray(data)
            bad[place] ^= 1 << random.randrange(8)
            store, shelf = opened({name: bytes(bad)})
            hit = touched(frame)
            for entry in store.lease({HERE: 99}, now=later(1), until=LEASED_UNTIL):
                assert entry.entry.message.request is not None
            for one, old in zip(keys, was, strict=True):
                try:
                    [found] = store.find([one])
                except Corrupt:
                    assert one in hit, f"{place}: {one} was not touched"
                    continue
                if one not in hit:
                    assert found is not None
                    assert found.message == old.message if old else False
                    assert found.state is (old.state if old else None)
                    assert found.answer == (old.answer if old else None)
            assert store.corrupt >= 1, f"nobody saw the bit at {place}"
            assert any(n.endswith(".bad") for n in shelf._disk.names()), "it is kept for mending"
            flips += 1
    assert flips > 100


def name_salt(name: str) -> bytes:
    return bytes.fromhex(name[9:25])


def touched(frame: Frame) -> set[Key]:
    """Keys of the entries that this batch is about: one, in this log."""
    places = {change.row[-8:] for change in frame.changes if change.row[:1] in (b"m", b"s", b"a")}
    numbers = {int.from_bytes(place, "big") & 0xFF for place in places}
    return {key(f"{number - 1}") for number in numbers}


def test_the_last_batch_of_all_may_be_torn() -> None:
    """Where nothing whole comes behind it and nobody called it synced, it is cut, and counted as
    torn, not as corrupt."""
    disk = FaultyDisk()
    shelf = LogShelf.open(disk, salt=Random(1).randbytes)
    store = KeyedStore(shelf, Path("log"))
    store.accept([waiting("a")])
    store.accept([waiting("b")])
    [(name, data)] = files_of(disk).items()
    for end in range(len(data) - 300, len(data), 7):
        again, found = opened({name: data[:end]})
        assert again.find([key("a"), key("b")]) == [shown(waiting("a")), None]
        assert (found.torn, again.corrupt) == (1, 0)


def test_a_missing_segment_is_said() -> None:
    """It is not passed over: messages are missing, and what is left may be older than they are."""
    files = a_log(30, segment_bytes=4_000)
    assert len(files) > 4
    del files[sorted(files)[2]]
    with pytest.raises(Corrupt, match="segment 3 is missing"):
        opened(files)


def test_old_segments_that_were_removed_are_not_missed() -> None:
    files = a_log(30, segment_bytes=4_000)
    del files[min(files)]
    store, _ = opened(files)
    assert store.corrupt == 0


def test_segments_go_one_after_the_other() -> None:
    """However fast they are cleaned: the name of one is gone for good before the next one's goes,
    or a row that was deleted since would come back with the first."""
    disk = FaultyDisk()
    shelf = LogShelf.open(disk, segment_bytes=4_000, salt=Random(1).randbytes)
    shelf._may_clean = False  # until there is much to clean, and no new segment in between
    model: dict[bytes, bytes | None] = {}
    for number in range(200):
        row = b"s" + (number % 7).to_bytes(8, "big")
        model[row] = (b"%d " % number) * 60 if number < 190 or number % 2 else None
        shelf.write({row: model[row]}, sync=True)
    shelf._may_clean = True
    before = len(shelf._segments)
    for number in range(before):
        shelf.write({b"k": b"%d" % number}, sync=True)
        for seed in range(4):
            again = LogShelf.open(disk.after_cut(How.TORN, Random(seed)), salt=Random(2).randbytes)
            assert {row: again.get(row) for row in model} == model
    assert len(shelf._segments) < before // 2


def test_no_sender_can_write_a_frame() -> None:
    """A body that looks like a frame is a body, even where its own frame is damaged and the next
    one is looked for byte by byte: the salt is in the name of the segment and in no message."""
    forged, _ = encode({b"kforged": b"8 bytes."}, salt=SALT, number=99, synced=98)
    real, spots = encode({b"m" + b"\0" * 8: forged * 3}, salt=b"real one", number=1, synced=0)
    assert spots == [real.index(forged) - 8]
    after, _ = encode({b"kreal": b"8 bytes."}, salt=b"real one", number=2, synced=1)
    data = b"\xff" + real[1:] + after
    items = list(scan(lambda at, size: data[at : at + size], len(data), salt=b"real one"))
    assert items[0] == Damage(0, len(real))
    assert [change.row for item in items[1:] for change in item.changes] == [b"kreal"]


def test_rows_are_an_ordered_map() -> None:
    """Against a dict and sorted(): put, drop, get and walk, over many lists."""
    random = Random(3)
    rows, model = Rows(), dict[bytes, bytes]()
    for _ in range(20_000):
        row = b"e" + random.randrange(4_000).to_bytes(16, "big")
        if random.random() < 0.6:
            value = random.randbytes(random.randrange(4))
            assert rows.put(row, value) == (row not in model)
            model[row] = value
        else:
            assert rows.drop(row) == (model.pop(row, None) is not None)
    assert len(rows) == len(model)
    assert list(rows.walk(b"e", b"")) == sorted(model.items())
    for row in list(model)[:500]:
        assert rows.get(row) == model[row]
        start = sorted(found for found in model if found >= row)[:3]
        walked = rows.walk(b"e", row)
        assert [next(walked)[0] for _ in start] == start


def test_what_a_message_costs_in_memory() -> None:
    """The figures that docs/howto/choose-a-spool.md states: bytes for each message that waits, and
    for each key that is remembered, whatever its body's size."""
    count = 4_000
    store, shelf = opened({})
    big = [
        waiting(f"{number:06}", destination=Destination("http://127.0.0.1:8000"))
        for number in range(count)
    ]
    store.accept(big[:10])
    gc.collect()
    tracemalloc.start()
    try:
        empty = LogIndex()
        for row, value in rows_of(shelf, big):
            (empty.set_spot if isinstance(value, int) else empty.put)(row, value)  # type: ignore[operator]
        gc.collect()
        waits = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    print(f"\nbytes in memory for a message that waits: {waits:.0f}")
    assert waits < 450


def rows_of(shelf: LogShelf, entries: list[object]) -> list[tuple[bytes, bytes | int]]:
    """Fresh rows as a draft would put them, made one by one so that nothing is shared."""
    made: list[tuple[bytes, bytes | int]] = []
    name = b"http://127.0.0.1:8000"
    for number in range(len(entries)):
        place = ((1 << 40) + number).to_bytes(8, "big")
        at = (NOW + number).to_bytes(8, "big")
        made += [
            (b"k" + f"{number:022}".encode(), bytes(place)),
            (b"q" + name + b"\0" + at + place, b""),
            (b"e" + at + place, at + name),
            *((family + place, 1 << 44 | 1 << 14) for family in (b"m", b"r", b"s")),
        ]
    return made


def test_a_key_is_known_however_far_back(tmp_path: Path) -> None:
    """2. After many segments and a restart, the first of all is still a duplicate."""
    files = a_log(60, segment_bytes=4_000)
    store, _ = opened(files, segment_bytes=4_000)
    [first] = store.find([key("0")])
    assert first is not None
    assert first.state in (State.DELIVERED, State.WAITING)
    [again] = store.accept([waiting("0", at=Instant(NOW + 5))])
    assert type(again).__name__ == "Duplicate"
