"""`once` under kill -9, SIGSTOP, forks and a crowd of processes that share a spool."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from .kinds import Place
from .process import Shop, stop_between_writes

LEASE_MS = 600
"""Of those who are killed or stopped: so long others wait for them."""
LONG_MS = 30_000
"""Of those who work, while the machine may be held up at any place."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/idem.db"


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def until_not_busy(shop: Shop) -> str:
    """What the shop says once the dead one's claim has lapsed."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        shop.tell("k1")
        if (heard := shop.heard()) != "Busy":
            return heard
        time.sleep(0.1)
    raise AssertionError("the key is stuck")


def test_killed_in_the_middle_it_runs_again_after_the_lease(url: str, tmp_path: Path) -> None:
    """F1: busy while the claim lasts, then the next attempt; its result is kept."""
    log = tmp_path / "log"
    with (
        Shop("once", url, str(log), str(LEASE_MS), "run") as first,
        Shop("once", url, str(log), str(LONG_MS), "run") as second,
    ):
        assert (first.heard(), second.heard()) == ("ready", "ready")
        asked_at = time.monotonic()
        first.tell("k1")
        assert first.heard() == "begun 1"
        second.tell("k1")
        heard = second.heard()
        late = time.monotonic() - asked_at > LEASE_MS / 1000  # then its lease is over already
        assert heard == "Busy" or late
        first.kill()
        if heard == "Busy":
            heard = until_not_busy(second)
        assert heard == "begun 2"
        second.tell()
        assert second.heard() == "done kept by 2"
        second.tell("k1")
        assert second.heard() == "done kept by 2"
    assert lines(log) == ["k1"]


def leased_until(tmp_path: Path) -> int:
    """Of the one claim that there is, in milliseconds since 1970."""
    database = apsw.Connection(str(tmp_path / "idem.db"))
    try:
        [(until,)] = database.execute("SELECT max(leased_until) FROM message")
        return int(until)
    finally:
        database.close()


def test_alive_it_keeps_its_key_for_longer_than_a_lease(url: str, tmp_path: Path) -> None:
    """F2: it is renewed. Asked when that has just been done: who is held up for less than a lease
    gets no other answer."""
    log, lease_ms = tmp_path / "log", 2_500
    arguments = ("once", url, str(log), str(lease_ms), "run")
    with Shop(*arguments) as first, Shop(*arguments) as second:
        assert (first.heard(), second.heard()) == ("ready", "ready")
        first.tell("k1")
        assert first.heard() == "begun 1"
        until = first_lease = leased_until(tmp_path)
        give_up_at = time.monotonic() + 60
        while until <= first_lease or time.time_ns() // 1_000_000 <= first_lease:
            renewed = leased_until(tmp_path)
            while leased_until(tmp_path) == renewed:
                assert time.monotonic() < give_up_at, "it is not renewed"
                time.sleep(0.01)
            until = leased_until(tmp_path)
        second.tell("k1")
        assert second.heard() == "Busy"
        first.tell()
        assert first.heard() == "done kept by 1"
        second.tell("k1")
        assert second.heard() == "done kept by 1"
    assert lines(log) == ["k1"]


def test_killed_in_the_middle_somebody_finds_out(url: str, tmp_path: Path) -> None:
    """With abandoned="unknown" a dead owner's work is asked about, and not run again."""
    log = tmp_path / "log"
    arguments = ("once", url, str(log), str(LEASE_MS), "unknown")
    with Shop(*arguments) as first, Shop(*arguments) as second:
        assert (first.heard(), second.heard()) == ("ready", "ready")
        first.tell("k1")
        assert first.heard() == "begun 1"
        first.kill()
        assert until_not_busy(second) == "asked"
        assert second.heard() == "done found out"
        second.tell("k1")
        assert second.heard() == "done found out"
    assert lines(log) == []


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_stopped_owner_commits_nothing_when_it_wakes(
    engine: str, url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """F3, F4: it is stopped for longer than its lease, before its co-commit. Its successor is told
    by the bank that there are no funds, writes nothing here, and says so to the customer. When the
    first one wakes nothing in the database stands in its way; its rows roll back all the same."""
    server = request.getfixturevalue("server") if engine == "postgresql" else None
    place = Place.fresh(tmp_path, server)
    where = server.conninfo("shop") if server else f"sqlite:{place.file}"
    with (
        Shop("held", url, where, str(LEASE_MS)) as first,
        Shop("held", url, where, str(LONG_MS)) as second,
    ):
        assert (first.heard(), second.heard()) == ("ready", "ready")
        first.tell("k1")
        assert first.heard() == "begun 1"
        stop_between_writes(first.process.pid, tmp_path / "idem.db")
        assert until_not_busy(second) == "begun 2"
        second.tell("decline")
        assert second.heard() == "Declined"
        first.signal(signal.SIGCONT)
        first.tell("commit")
        assert first.heard() == "Stale"
        assert place.rows("SELECT item FROM orders") == []
        for shop in (first, second):
            shop.tell("k1")
            assert shop.heard() == "Declined"
        for number in range(9):  # it works on; held up for so long, it had lost this one, too
            key = f"k2-{number}"
            first.tell(key)
            assert first.heard() == "begun 1"
            first.tell("commit")
            if (heard := first.heard()) != "Stale":
                break
        assert heard == "done kept by 1"
        assert place.rows("SELECT item FROM orders") == [("by 1",)]
        # By the name, for people; and for a day when the spool is lost, and its secret with it.
        assert place.rows("SELECT scope, key FROM unspool_once") == [("once/orders", key)]


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


CROWD = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unspool.middleware.once import once

url, log = sys.argv[1:]

@once(url, key=lambda m: m, scope="orders", busy="wait")
def handle(m: int) -> int:
    with open(log, "a") as file:
        file.write(f"{m}\\n")
    return m * m

def all_of_them(_: int) -> list[int]:
    return [handle(m) for m in range(20)]

if __name__ == "__main__":
    assert handle(0) == 0        # opened before the fork: the children open their own
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        found = list(pool.map(all_of_them, range(4)))
    assert found == [[m * m for m in range(20)]] * 4, found
    assert handle(3) == 9
    print("ended")
"""


def test_forked_processes_share_the_memory(url: str, tmp_path: Path) -> None:
    """E2: four children of one parent, twenty keys; each is done once. Nothing is closed by hand,
    and the interpreter ends without a word."""
    log = tmp_path / "log"
    assert run(CROWD, url, str(log)) == "ended\n"
    assert sorted(lines(log), key=int) == [str(m) for m in range(20)]


INTERRUPTED = """
import os, signal, sys, threading
from unspool.errors import OutcomeUnknown
from unspool.middleware.once import once

interrupts = [True, True]

@once(sys.argv[1], key=lambda m: m, scope="orders")
def handle(m: str, ctx) -> str:
    if m == "k2":
        ctx.effect()
    if interrupts:
        interrupts.pop()
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(20)
    return "done"

for key in ("k1", "k2"):
    try:
        handle(key)
    except KeyboardInterrupt:
        print("interrupted")
print(handle("k1"))
try:
    handle("k2")
except OutcomeUnknown:
    print("unknown")
"""


def test_an_interrupt_ends_the_claim(url: str) -> None:
    """F7, F8: a KeyboardInterrupt in the function frees the key, or after an effect leaves it
    unknown. It does not leave it claimed for as long as the process lives."""
    assert run(INTERRUPTED, url).split() == ["interrupted", "interrupted", "done", "unknown"]


def test_no_library_is_needed_that_is_not_used() -> None:
    """Importing it imports none of the databases' libraries, and with sqlite3 none is needed."""
    code = """
import sqlite3, sys
from unspool.middleware.once import once
shop = sqlite3.connect(":memory:")
once.create(shop)
with once.commit(shop, 7, scope="orders"):
    pass
shop.close()
print(*{"sqlalchemy", "django", "psycopg", "aiosqlite", "celery"} & set(sys.modules))
"""
    assert run(code) == "\n"
