"""Deep: what many millions of waiting messages cost those who come, and the start.

    ./run bench --only deep                    ten million: five minutes, and 17 GB of disk
    ./run bench --only deep --deep 1000000     one

The spool's file is filled beforehand, without a relay and without syncs; half of its keys are
random, as senders make them, and so is where they are in the index. Each row beside it is the
same with a file that was empty. Only where it is asked for: it is no part of "everything".

Deliveries are counted once the relay has counted what waits: until then that runs beside them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from unspool.core.lifecycle import State
from unspool.core.message import Destination, Instant, Key, Request, mint, seal
from unspool.spools.protocol import Entry
from unspool.spools.sqlite.store import SqliteStore

from .bench import Bench, Goal, Row
from .load import WARM_S, good, load
from .nginx import Nginx, upstream
from .process import free_port, wait_for
from .relay import Relay

BATCH: Final = 500
LIFETIME_MS: Final = 5 * 24 * 3600 * 1000
PER_MS: Final = 25
"""So many were accepted in each millisecond."""
COUNTED_S: Final = 600.0
FIRST_S: Final = 60.0
MB: Final = 1e6


def _entry(request: Request, to: Destination, now: Instant, *, named: bool) -> Entry:
    luck = os.urandom(32)
    made = Instant(int.from_bytes(luck[27:32], "big")) if named else now
    key: Key = mint(now=made, chance=luck[:11])
    return Entry(
        seal(
            request, key=key, name="n" if named else "", destination=to, now=now,
            lifetime_ms=LIFETIME_MS, nonce=luck[11:27], repeat=named,
            print_=luck[:16] if named else b"",
        ),
        State.WAITING, now,
    )  # fmt: skip


def fill(path: Path, *, count: int, to: Destination) -> None:
    """A spool file in which so many wait for this destination."""
    fields = [
        (b"Host", b"127.0.0.1"),
        (b"Content-Type", b"application/octet-stream"),
        (b"Via", b"1.1 unspool"),
        (b"Forwarded", b"for=127.0.0.1;proto=http;host=127.0.0.1"),
    ]
    request = Request(b"POST", b"/orders", fields, b"x" * 1024)
    began = int(time.time() * 1000) - count // PER_MS
    store = SqliteStore.open(path, test_hook_no_sync=True)
    try:
        for first in range(0, count, BATCH):
            now = Instant(began + first // PER_MS)
            some = range(min(BATCH, count - first))
            store.accept([_entry(request, to, now, named=bool(i % 2)) for i in some])
    finally:
        store.close()


@contextmanager
def _relay(bench: Bench, spool: Path, to: int) -> Iterator[tuple[Relay, float]]:
    """A relay on this file, and the seconds that it took to listen."""
    bench.settle()
    began = time.monotonic()
    with Relay(bench, to=to, spool=spool) as relay:
        yield relay, time.monotonic() - began


def _accepts(bench: Bench, relay: Relay, script: str) -> float:
    good(load(bench, relay.port, script, seconds=WARM_S, tag="warm"), "accept")
    return good(load(bench, relay.port, script, tag="run"), "accept").per_s


def _delivered(bench: Bench, relay: Relay, service: Nginx) -> float:
    wait_for(lambda: relay.health()["backlog"] is not None, "the count", COUNTED_S)
    wait_for(lambda: service.count() > 0, "the first delivery", FIRST_S)
    time.sleep(WARM_S)  # slow start
    before, began = service.count(), time.monotonic()
    time.sleep(bench.seconds)
    return (service.count() - before) / (time.monotonic() - began)


def _measure(bench: Bench, spool: Path, to: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with _relay(bench, spool, to) as (relay, found["start"]):
        for script in ("plain", "keyed"):
            found[script] = _accepts(bench, relay, script)
        found["accepting"] = relay.rss_bytes() / MB
    with upstream(bench, to) as service, _relay(bench, spool, to) as (relay, _):
        found["redelivery"] = _delivered(bench, relay, service)
        found["delivering"] = relay.rss_bytes() / MB
    return found


def deep(bench: Bench) -> list[Row]:
    to = free_port()
    folder = bench.new_folder("deep")
    empty = _measure(bench, folder / "empty.db", to)
    fill(folder / "deep.db", count=bench.deep, to=Destination(f"http://127.0.0.1:{to}"))
    full = _measure(bench, folder / "deep.db", to)
    waiting = f"{bench.deep:,} waiting: ".replace(",", " ")
    most = max(full["accepting"], full["delivering"])
    rows = [
        Row(what=f"{waiting}start", ours=full["start"], unit="s", goal=Goal(2, at_most=True)),
        Row(what=f"{waiting}memory", ours=most, unit="MB", goal=Goal(200, at_most=True)),
    ]
    for what, name in (
        ("durable accept", "plain"),
        ("durable accept, keyed", "keyed"),
        ("redelivery, as it comes", "redelivery"),
    ):
        rows.append(
            Row(
                what=waiting + what, ours=full[name], compared_with="an empty spool",
                theirs=empty[name], goal=Goal(0.8), goal_on="ratio",
            )
        )  # fmt: skip
    return rows
