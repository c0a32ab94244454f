"""Torn writes and flipped bits: what was whole before the damage is there after it (I1, clause 12).

The relay is killed under load, so that its WAL is full of what it promised. Then the files are laid
waste to, one way at a time, each on a copy of its own:

    the WAL's end is cut off, zeroed, or overwritten with rubbish, at many places: what was
    committed before that place is there, nothing after it is half there, and the file opens;
    one bit of a message's record is flipped in the database: it is found, set aside and counted,
    never delivered, and all others are.

What a place in the WAL means is read from its frames here, by the format's own description, and not
asked of SQLite.
"""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from unspool.core.lifecycle import State
from unspool.core.message import Key
from unspool.errors import UnspoolError
from unspool.receipts import read_token
from unspool.spools.protocol import Query
from unspool.spools.sqlite.store import SqliteStore

from .checker import check
from .history import Call, History
from .load import ASYNC, KEYED, Load, settle
from .processes import ROUNDS, Relay, eventually
from .service import Service
from .wire import ask

pytestmark = pytest.mark.slow

TEARS = 60 * ROUNDS
FLIPS = 60 * ROUNDS
HEAD, FRAME_HEAD = 32, 24


@dataclass
class Wreck:
    """A spool as kill -9 left it, and what had been promised over it."""

    path: Path
    history: History
    port: int
    """Of the service that all of it is for."""

    def copy(self, folder: Path) -> Path:
        folder.mkdir()
        for file in self.path.parent.glob("spool.db*"):
            if not file.name.endswith("-shm"):
                shutil.copy2(file, folder / file.name)
        return folder / "spool.db"


async def wreck(folder: Path) -> Wreck:
    """A relay that was killed with everything still in its WAL."""
    history = History()
    with Service() as service:
        service.weather = lambda _key, _body: "425"
        relay = Relay(folder, to=service.url, arguments=("--backoff-least-ms", "1h"))
        try:
            await relay.start()
            await Load(relay.port, history, name="t", senders=8, jobs=(KEYED, ASYNC)).run(jobs=12)
            relay.kill()
        finally:
            relay.end()
    return Wreck(relay.spool, history, service.port)


def waiting_in(path: Path) -> dict[Key, bytes]:
    """Open it, read every waiting message's body, close it."""
    store = SqliteStore.open(path, create=False)
    try:
        found: dict[Key, bytes] = {}
        after: Key | None = None
        query = Query(state=State.WAITING)
        while page := store.browse(query, after=after, limit=500, requests=True):
            after = page[-1].message.key
            for entry in page:
                if entry.message.request is not None:
                    found[entry.message.key] = entry.message.request.body
        return found
    finally:
        store.close()


def key_of(call: Call) -> Key:
    read = read_token(call.receipt.rsplit("/", 1)[-1])
    assert read is not None
    return read[1]


def commits(wal: bytes) -> list[tuple[int, bytes]]:
    """Where each transaction ends in the WAL, and the bytes of its pages."""
    page_bytes = int.from_bytes(wal[8:12], "big")
    salts = wal[16:24]
    found = []
    start = place = HEAD
    while place + FRAME_HEAD + page_bytes <= len(wal) and wal[place + 8 : place + 16] == salts:
        size_after = int.from_bytes(wal[place + 4 : place + 8], "big")
        place += FRAME_HEAD + page_bytes
        if size_after:
            found.append((place, wal[start:place]))
            start = place
    return found


def intact(before: bytes, after: bytes) -> int:
    """Up to where they are the same. Zeros over zeros tear nothing."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(before), len(after)))


async def test_the_end_of_the_wal_is_torn(tmp_path: Path) -> None:
    (tmp_path / "relay").mkdir()
    ruin = await wreck(tmp_path / "relay")
    promised = {key_of(call): call.body for call in ruin.history.accepted()}
    wal = ruin.path.with_name("spool.db-wal").read_bytes()
    ends = commits(wal)
    assert len(promised) == 96
    assert len(ends) > 10
    assert waiting_in(ruin.copy(tmp_path / "whole")) == promised
    # Where each message was first written whole: at the end of its transaction.
    durable_at = {
        key: next(end for end, pages in ends if body[:20] in pages)
        for key, body in promised.items()
    }
    dice = random.Random(2)
    last = ends[-1][0]
    places = [end for end, _ in ends[1:]] + [end - 1 for end, _ in ends[1:]]
    places += [dice.randrange(ends[0][0], last) for _ in range(TEARS)]
    seen_less = 0
    for number, place in enumerate(dice.sample(places, min(TEARS, len(places)))):
        path = ruin.copy(tmp_path / f"tear-{number}")
        torn = path.with_name("spool.db-wal")
        match number % 3:
            case 0:
                torn.write_bytes(wal[:place])
            case 1:
                torn.write_bytes(wal[:place] + b"\0" * (len(wal) - place))
            case _:
                torn.write_bytes(wal[:place] + dice.randbytes(min(4096, len(wal) - place)))
        whole_to = intact(wal, torn.read_bytes())
        expected = {key: promised[key] for key, end in durable_at.items() if end <= whole_to}
        found = waiting_in(path)
        assert found == expected, f"torn at {place} of {len(wal)}"
        assert waiting_in(path) == expected, "opening it again finds the same"
        seen_less += len(found) < len(promised)
        shutil.rmtree(path.parent)
    print(f"\ntorn WALs: {min(TEARS, len(places))}, {seen_less} of them with something cut off")
    assert seen_less > TEARS // 2


async def test_a_torn_spool_serves_on(tmp_path: Path) -> None:
    """The relay itself starts on a torn file, delivers what is there and takes more."""
    (tmp_path / "relay").mkdir()
    ruin = await wreck(tmp_path / "relay")
    path = ruin.copy(tmp_path / "torn")
    wal = path.with_name("spool.db-wal")
    half = wal.read_bytes()[: wal.stat().st_size // 2]
    wal.write_bytes(half)
    (tmp_path / "look").mkdir()
    for file in path.parent.iterdir():
        shutil.copy2(file, tmp_path / "look" / file.name)
    kept = waiting_in(tmp_path / "look" / "spool.db")
    history = History()
    with Service(port=ruin.port) as service:
        relay = Relay(tmp_path, to=service.url, spool=path)
        release(path)
        try:
            await relay.start()
            await Load(relay.port, history, name="n", senders=4, jobs=(KEYED, ASYNC)).run(jobs=5)
            await settle(relay.port, history)

            def all_delivered() -> bool:
                return set(kept.values()) <= {one.body for one in service.handled if one.effect}

            await eventually(all_delivered, "what was kept is delivered")
            assert await relay.stop() == 0
        finally:
            relay.end()
    assert 0 < len(kept) < 96
    assert waiting_in(path) == {}
    delivered = {one.body for one in service.handled if one.effect}
    assert delivered == set(kept.values()) | {call.body for call in history.calls}


def release(path: Path, damage: str = "") -> None:
    """Its messages' due times are an hour away: they are all made due now."""
    with closing(apsw.Connection(str(path))) as database:
        database.execute(damage)
        database.execute("UPDATE message SET ready_at = 1, due_at = 1 WHERE state = 0")
        database.pragma("wal_checkpoint(TRUNCATE)")


def flipped(content: bytes, body: bytes, place: int, bit: int) -> bytes:
    """One bit of this body flipped, wherever the file has it: free pages have old copies."""
    changed = bytearray(body)
    changed[place] ^= 1 << bit
    assert body in content
    return content.replace(body, bytes(changed))


async def test_flipped_bits_are_found_and_hurt_nobody_else(tmp_path: Path) -> None:
    """One bit of one message's record: its request or its key's row. Found or harmless; and all
    other messages are there, whole."""
    (tmp_path / "relay").mkdir()
    ruin = await wreck(tmp_path / "relay")
    promised = {key_of(call): call.body for call in ruin.history.accepted()}
    # Folded into one file, so that no WAL frame's own checksum is there to help.
    folded = ruin.copy(tmp_path / "folded")
    assert waiting_in(folded) == promised
    whole = folded.read_bytes()
    dice = random.Random(3)
    found = 0
    for number, (key, body) in enumerate(dice.choices(list(promised.items()), k=FLIPS)):
        path = ruin.copy(tmp_path / f"flip-{number}")
        path.with_name("spool.db-wal").unlink(missing_ok=True)
        place, bit = dice.randrange(len(body)), dice.randrange(8)
        path.write_bytes(flipped(whole, body, place, bit))
        left = waiting_in(path)
        store = SqliteStore.open(path, create=False)
        found += store.corrupt
        store.close()
        assert left == {k: v for k, v in promised.items() if k != key}
        shutil.rmtree(path.parent)
    print(f"\nflipped bits in records: {FLIPS}, found {found}")
    assert found == FLIPS


async def test_a_spoilt_message_is_set_aside_and_the_others_delivered(tmp_path: Path) -> None:
    """The same through the relay: the spoilt one is never sent, and nobody pretends it was."""
    (tmp_path / "relay").mkdir()
    ruin = await wreck(tmp_path / "relay")
    path = ruin.copy(tmp_path / "spoilt")
    promised = {key_of(call): call for call in ruin.history.accepted()}
    release(path)
    victim = random.Random(4).choice(list(promised))
    path.write_bytes(flipped(path.read_bytes(), promised[victim].body, 5, 2))
    history = ruin.history
    with Service(port=ruin.port) as service:
        relay = Relay(tmp_path, to=service.url, spool=path)
        try:
            await relay.start()
            lost = promised.pop(victim)
            history.calls = [call for call in history.calls if call.body != lost.body]
            await settle(relay.port, history)
            told = await ask(relay.port, "GET", lost.receipt)
            fields = {"Idempotency-Key": f'"{lost.key}"'}
            again = await ask(relay.port, "POST", lost.target, fields=fields, body=lost.body)
        finally:
            relay.end()
    history.handled = list(service.handled)
    assert check(history) == []
    assert lost.body not in {one.body for one in service.handled}, "fail closed"
    assert told.status == 503
    assert again.status == 503


VICTIMS = "(SELECT id FROM message WHERE state = 0 ORDER BY id LIMIT 8)"
DAMAGE = {
    "request gone": f"UPDATE body SET request = NULL WHERE id IN {VICTIMS}",
    "row gone": f"DELETE FROM body WHERE id IN {VICTIMS}",
    "no name": f"UPDATE message SET name = CAST(x'ff41' AS TEXT) WHERE id IN {VICTIMS}",
    "no destination": "UPDATE message SET destination = CAST(x'41ff' AS TEXT)"
    f" WHERE id IN {VICTIMS}",
    "no order": f"UPDATE message SET order_key = CAST(x'ff' AS TEXT) WHERE id IN {VICTIMS}",
    "no key": f"UPDATE message SET key = CAST(x'ff' || key AS TEXT) WHERE id IN {VICTIMS}",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_beside_the_records_hurts_nobody_else(tmp_path: Path, damage: str) -> None:
    """What rots where no checksum is: set aside as well; and more of them than the window is wide
    do not keep the others waiting."""
    (tmp_path / "relay").mkdir()
    ruin = await wreck(tmp_path / "relay")
    path = ruin.copy(tmp_path / "rotten")
    with closing(apsw.Connection(str(path))) as database:
        names = f"SELECT name FROM message WHERE id IN {VICTIMS}"
        spoilt = {name for (name,) in database.execute(names)}
    release(path, DAMAGE[damage])
    kept = {call.body for call in ruin.history.accepted() if call.key not in spoilt}
    assert len(kept) == 96 - 8
    with Service(port=ruin.port) as service:
        relay = Relay(tmp_path, to=service.url, spool=path)
        try:
            await relay.start()

            def delivered() -> bool:
                return {one.body for one in service.handled if one.effect} == kept

            await eventually(delivered, "the others were delivered")
            log = relay.tail(200)
        finally:
            relay.end()
    assert "Traceback" not in log, log
    store = SqliteStore.open(path, create=False)
    corrupt = store.corrupt
    store.close()
    assert corrupt == 8


async def test_a_bit_may_rot_anywhere(tmp_path: Path) -> None:
    """A bit anywhere in the file: it opens or says why not, and no body is given but one that was
    promised. What rots in the engine's own pages may take several messages with it: SQLite keeps
    no checksums of them, and neither do we."""
    (tmp_path / "relay").mkdir()
    ruin = await wreck(tmp_path / "relay")
    promised = {key_of(call): call.body for call in ruin.history.accepted()}
    folded = ruin.copy(tmp_path / "folded")
    assert waiting_in(folded) == promised
    whole = folded.read_bytes()
    dice = random.Random(5)
    verdicts = {"the same": 0, "fewer": 0, "refused": 0}
    for number in range(FLIPS):
        path = ruin.copy(tmp_path / f"rot-{number}")
        path.with_name("spool.db-wal").unlink(missing_ok=True)
        rotten = bytearray(whole)
        rotten[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(rotten)
        try:
            left = waiting_in(path)
        except UnspoolError:
            verdicts["refused"] += 1
            continue
        finally:
            shutil.rmtree(path.parent)
        assert set(left.values()) <= set(promised.values()), "a body that was never sent"
        verdicts["the same" if left == promised else "fewer"] += 1
    print(f"\nflipped bits anywhere: {FLIPS}: {verdicts}")
