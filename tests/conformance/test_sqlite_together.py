"""Verbs that have queued up are one transaction, and each is answered as if it were alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from unspool.core.lifecycle import Deferred
from unspool.core.message import Instant
from unspool.errors import Corrupt, Unavailable
from unspool.spools.protocol import Duplicate, Lease, New
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.spools.sqlite.store import SqliteStore
from unspool.testing.conformance.values import HERE, NOW, key, waiting

UNTIL = Instant(NOW + 60_000)


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore.open(tmp_path / "unspool.db")


def commits(store: SqliteStore) -> Callable[[], int]:
    count = 0

    def seen() -> bool:
        nonlocal count
        count += 1
        return False

    store._db.set_commit_hook(seen)
    return lambda: count


def test_several_verbs_are_one_commit(store: SqliteStore) -> None:
    store.accept([waiting("1"), waiting("2")])
    [first, second] = store.lease({HERE: 2}, now=NOW, until=UNTIL)
    count = commits(store)
    outcomes = store.together(
        [
            lambda: store.settle([(first, Deferred(NOW))]),
            lambda: store.accept([waiting("3")]),
            lambda: store.lease({HERE: 9}, now=NOW, until=UNTIL),
        ]
    )
    assert count() == 1
    assert [error for _, error in outcomes] == [None] * 3
    [kept], [new], leases = (result for result, _ in outcomes)
    assert kept is True
    assert isinstance(new, New)
    assert {lease.entry.message.key for lease in leases} == {key("1"), key("3")}
    assert store.settle([(second, Deferred(NOW))]) == [True]
    store.close()


def test_a_known_key_takes_nobody_along(store: SqliteStore) -> None:
    """Its accept would roll all of them back: then each is done for itself, and none twice."""
    store.accept([waiting("1")])
    outcomes = store.together(
        [
            lambda: store.accept([waiting("2")]),
            lambda: store.accept([waiting("1"), waiting("4")]),
            lambda: store.accept([waiting("3")]),
        ]
    )
    kinds = [[type(answer) for answer in result] for result, _ in outcomes]
    assert kinds == [[New], [Duplicate, New], [New]]
    found = store.find([key("1"), key("2"), key("3"), key("4")])
    assert all(entry is not None for entry in found)
    store.close()


def test_trouble_of_one_is_nobody_elses(store: SqliteStore) -> None:
    def stumbles() -> None:
        raise Corrupt("a record is spoilt")

    outcomes = store.together([lambda: store.accept([waiting("1")]), stumbles])
    assert isinstance(outcomes[0][0][0], New)
    assert isinstance(outcomes[1][1], Corrupt)
    assert store.find([key("1")])[0] is not None
    store.close()


def test_a_commit_that_fails_is_everybodys_trouble_and_not_tried_again(store: SqliteStore) -> None:
    """It may have happened: done once more, an accept would find itself there."""
    tries = 0

    def refuse() -> bool:
        nonlocal tries
        tries += 1
        return True

    store._db.set_commit_hook(refuse)
    outcomes = store.together(
        [lambda: store.accept([waiting("1")]), lambda: store.accept([waiting("2")])]
    )
    assert tries == 1
    assert all(isinstance(error, Unavailable) for _, error in outcomes)
    store._db.set_commit_hook(None)
    assert list(store.find([key("1"), key("2")])) == [None, None]
    assert isinstance(store.accept([waiting("1")])[0], New)
    store.close()


def test_another_thread_waits_for_its_end(store: SqliteStore) -> None:
    """A sweep from elsewhere is no part of it, though it comes in the middle."""
    inside, done = threading.Event(), threading.Event()

    def sweep() -> None:
        inside.wait(60)
        store.sweep(now=NOW, limit=1)
        done.set()

    other = threading.Thread(target=sweep)
    other.start()

    def slow() -> bool:
        inside.set()
        return done.wait(0.1)

    outcomes = store.together([lambda: store.accept([waiting("1")]), slow])
    assert outcomes[1] == (False, None)
    other.join(60)
    assert done.is_set()
    store.close()


async def test_what_queues_up_behind_a_sync_is_done_in_its_order(tmp_path: Path) -> None:
    spool = await SqliteSpool.open(tmp_path / "unspool.db")
    count = commits(spool.store)
    accepts = [spool.accept([waiting(f"{number}")]) for number in range(20)]
    leases = spool.lease({HERE: 50}, now=NOW, until=UNTIL)
    answers = await asyncio.gather(*accepts)
    got = await leases
    assert all(isinstance(answer, New) for [answer] in answers)
    assert len(got) == 20
    assert all(isinstance(lease, Lease) for lease in got)
    assert count() < 21
    reading = apsw.Connection(str(tmp_path / "unspool.db"), flags=apsw.SQLITE_OPEN_READONLY)
    assert reading.execute("SELECT count(*) FROM message").fetchone() == (20,)
    reading.close()
    await spool.aclose()
