"""Sweeps racing with claims, from several processes, with tiny retention (E6, J5, J6).

Keys are forgotten all the time, by whoever comes to it, while others claim, replay and are told
409. Whatever anybody is told must be true: a replay is of an execution that was remembered then, a
new execution comes when the one before may be forgotten, 410 only where there was one; no error,
and no key that stays stuck.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from crash.launch import Quick
from crash.processes import ROUNDS
from crash.wire import Told, Wire
from unspool.clock import SystemClock
from unspool.spools.sqlite.store import SqliteStore

from .fleet import Fleet, busy, problem, replayed, until_not_busy
from .ledger import Line

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 4 * ROUNDS
KEYS = 8
SENDERS = 12
LEASE_MS = 20_000
"""Nobody dies here: a key that is free before that was not lost to a lease that ran out."""
SLACK_MS = 50
"""A wall clock may be set a little."""
FORGOTTEN_MIN = 3 * KEYS
"""So often must something have been forgotten, that anything is shown."""
PATIENCE_S = 60


@dataclass(slots=True)
class Call:
    key: str
    asked_ms: int
    """Since 1970."""
    told_at: int
    """Of the clock that the ledger has."""
    told: Told


def untrue(calls: list[Call], lines: list[Line], *, answer_ms: int, key_ms: int) -> list[str]:
    """What was told and was not so; and executions that came too early."""
    found = []
    begun: dict[str, list[Line]] = defaultdict(list)
    ended = {line.token: line.at for line in lines if line.what == "end"}
    for line in sorted(lines, key=lambda line: line.at):
        if line.what == "begin":
            begun[line.key].append(line)
    for key, ones in begun.items():
        for before, after in pairwise(ones):
            apart_ms = (after.at - ended.get(before.token, after.at)) / 1e6
            if apart_ms < key_ms - 5:
                found.append(f"early: {key} was run again {apart_ms:.0f} ms after its end")
    for call in calls:
        told = call.told
        if told.status == 201:
            token = told.body.decode().removeprefix("done ")
            if token not in {line.token for line in begun[call.key]}:
                found.append(f"foreign: {call.key} got {told.body!r}")
            elif replayed(told) and call.asked_ms - answered_ms(told) > answer_ms + SLACK_MS:
                found.append(f"stale: {call.key} got an answer that was to be forgotten")
        elif told.status == 410 and problem(told) == "expired":
            if not any(ended.get(line.token, 1 << 62) < call.told_at for line in begun[call.key]):
                found.append(f"untrue: {call.key} was never run, and was told that it had been")
        elif not busy(told):
            found.append(f"refused: {call.key} was told {told}")
    return found


def answered_ms(told: Told) -> int:
    """When the answer was first given, as the record says: later than the application's own word
    by as long as its process was held up between the two."""
    at = datetime.fromisoformat(told.fields["unspool-answered-at"])
    return round(at.timestamp() * 1000)


def told_of(status: int, body: str, answered_at: str = "") -> Told:
    replay = {"idempotent-replayed": "true", "unspool-answered-at": answered_at}
    return Told(status, replay if answered_at else {}, body.encode())


MS = 1_000_000
EPOCH = "1970-01-01T00:00:00+00:00"
LINES = [Line("begin", "k", "a", 1, 10 * MS), Line("end", "k", "a", 1, 20 * MS)]


@pytest.mark.parametrize(
    ("call", "more", "kind"),
    [
        (Call("k", 0, 0, told_of(201, "done z")), [], "foreign"),
        (Call("k", 900, 901 * MS, told_of(201, "done a", EPOCH)), [], "stale"),
        (Call("k", 0, 0, told_of(500, "")), [], "refused"),
        (Call("k", 0, 0, told_of(201, "done a")), [Line("begin", "k", "b", 1, 90 * MS)], "early"),
        (Call("k", 0, 0, told_of(201, "done a")), [Line("begin", "k", "b", 1, 15 * MS)], "early"),
        (Call("k", 30, 40 * MS, told_of(201, "done a", EPOCH)), [], ""),
    ],
)
async def test_what_is_untrue_is_found(call: Call, more: list[Line], kind: str) -> None:
    """The judge of these tests, with planted violations, and with none."""
    found = untrue([call], [*LINES, *more], answer_ms=100, key_ms=100)
    assert [violation.split(":")[0] for violation in found] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("answer_ms", "key_ms"), [(100, 100), (60, 180), (1, 1)], ids=["one", "two", "nothing"]
)
@pytest.mark.timeout(240 + 10 * ROUNDS)
async def test_what_is_told_while_keys_are_forgotten_is_true(
    tmp_path: Path, launcher: Quick, answer_ms: int, key_ms: int
) -> None:
    """E6, J5, J6: three processes, twelve senders, eight keys, and two more who do nothing but
    sweep."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS, answer_ms=answer_ms, key_ms=key_ms)
    calls: list[Call] = []
    over = threading.Event()
    swept: list[int] = []

    def sweep() -> None:
        store = SqliteStore.open(fleet.spool)
        while not over.is_set():
            swept.append(store.sweep(now=SystemClock().now(), limit=100))
            time.sleep(0.002)
        store.close()

    def forgotten() -> int:
        return sum(call.told.status == 201 and not replayed(call.told) for call in calls)

    async def send(number: int, port: int) -> None:
        chance = random.Random(number)
        wire = await Wire.open(port)
        began = time.monotonic()
        while time.monotonic() < began + SECONDS / 3 or (
            forgotten() < FORGOTTEN_MIN and time.monotonic() < began + PATIENCE_S
        ):
            key = f"k-{chance.randrange(KEYS)}"
            fields = {"Idempotency-Key": key, "X-Do": f"sleep-{chance.choice((0, 0, 5, 30))}"}
            if chance.random() < 0.2:
                fields["Prefer"] = "wait=5"
            asked_ms = time.time_ns() // MS
            told = await wire.ask("POST", "/pay", fields=fields, body=b"{}")
            calls.append(Call(key, asked_ms, time.monotonic_ns(), told))
            await asyncio.sleep(chance.choice((0, 0, 0.01, 0.05)))
        wire.close()

    try:
        processes = [await fleet.start() for _ in range(3)]
        sweepers = [threading.Thread(target=sweep) for _ in range(2)]
        for sweeper in sweepers:
            sweeper.start()
        try:
            ports = [processes[number % 3].port for number in range(SENDERS)]
            await asyncio.gather(*(send(number, port) for number, port in enumerate(ports)))
        finally:
            over.set()
            for sweeper in sweepers:
                sweeper.join()
        lines = fleet.ledger.lines()
        kinds = Counter(
            "replay" if replayed(call.told) else f"{call.told.status}" for call in calls
        )
        print(f"\nkept {answer_ms}/{key_ms} ms: {dict(kinds)}; {sum(swept)} of {len(swept)}")
        assert untrue(calls, lines, answer_ms=answer_ms, key_ms=key_ms)[:5] == []
        await asyncio.sleep(key_ms / 1000)
        for number in range(KEYS):  # none is stuck
            told, _ = await until_not_busy(processes[0], f"k-{number}", seconds=LEASE_MS / 2000)
            assert told.status == 201
            assert not replayed(told)
        assert forgotten() >= FORGOTTEN_MIN, "too little was forgotten: this proved little"
        assert sum(swept) > 0
    finally:
        await fleet.end()
