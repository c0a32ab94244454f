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
LEASE_MS = 600
SLACK_MS = 400
"""Between an instant of the application and that of a record lie a commit or two."""


@dataclass(slots=True)
class Call:
    key: str
    asked_at: int
    told_at: int
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
            elif replayed(told) and (call.asked_at - ended[token]) / 1e6 > answer_ms + SLACK_MS:
                found.append(f"stale: {call.key} got an answer that was to be forgotten")
        elif told.status == 410 and problem(told) == "expired":
            if not any(ended.get(line.token, 1 << 62) < call.told_at for line in begun[call.key]):
                found.append(f"untrue: {call.key} was never run, and was told that it had been")
        elif not busy(told):
            found.append(f"refused: {call.key} was told {told}")
    return found


def told_of(status: int, body: str, replays: bool = False) -> Told:
    return Told(status, {"idempotent-replayed": "true"} if replays else {}, body.encode())


MS = 1_000_000
LINES = [Line("begin", "k", "a", 1, 10 * MS), Line("end", "k", "a", 1, 20 * MS)]


@pytest.mark.parametrize(
    ("call", "more", "kind"),
    [
        (Call("k", 0, 0, told_of(201, "done z")), [], "foreign"),
        (Call("k", 900 * MS, 901 * MS, told_of(201, "done a", True)), [], "stale"),
        (Call("k", 0, 0, told_of(500, "")), [], "refused"),
        (Call("k", 0, 0, told_of(201, "done a")), [Line("begin", "k", "b", 1, 90 * MS)], "early"),
        (Call("k", 0, 0, told_of(201, "done a")), [Line("begin", "k", "b", 1, 15 * MS)], "early"),
        (Call("k", 30 * MS, 40 * MS, told_of(201, "done a", True)), [], ""),
    ],
)
async def test_what_is_untrue_is_found(call: Call, more: list[Line], kind: str) -> None:
    """The judge of these tests, with planted violations, and with none."""
    found = untrue([call], [*LINES, *more], answer_ms=100, key_ms=100)
    assert [violation.split(":")[0] for violation in found] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("answer_ms", "key_ms"), [(100, 100), (60, 180), (1, 1)], ids=["one", "two", "nothing"]
)
@pytest.mark.timeout(60 + 10 * ROUNDS)
async def test_what_is_told_while_keys_are_forgotten_is_true(
    tmp_path: Path, launcher: Quick, answer_ms: int, key_ms: int
) -> None:
    """E6, J5, J6: three processes, twelve senders, eight keys, and two more who do nothing but
    sweep."""
    fleet = Fleet(launcher, tmp_path, lease_ms=LEASE_MS, answer_ms=answer_ms, key_ms=key_ms)
    calls: list[Call] = []
    over = threading.Event()
    swept = Counter[str]()

    def sweep() -> None:
        store = SqliteStore.open(fleet.spool)
        while not over.is_set():
            swept["went"] += store.sweep(now=SystemClock().now(), limit=100)
            swept["times"] += 1
            time.sleep(0.002)
        store.close()

    async def send(number: int, port: int) -> None:
        chance = random.Random(number)
        wire = await Wire.open(port)
        until = time.monotonic() + SECONDS / 3
        while time.monotonic() < until:
            key = f"k-{chance.randrange(KEYS)}"
            fields = {"Idempotency-Key": key, "X-Do": f"sleep-{chance.choice((0, 0, 5, 30))}"}
            if chance.random() < 0.2:
                fields["Prefer"] = "wait=5"
            asked_at = time.monotonic_ns()
            told = await wire.ask("POST", "/pay", fields=fields, body=b"{}")
            calls.append(Call(key, asked_at, time.monotonic_ns(), told))
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
        print(f"\nkept {answer_ms}/{key_ms} ms: {dict(kinds)}; {dict(swept)}")
        assert untrue(calls, lines, answer_ms=answer_ms, key_ms=key_ms)[:5] == []
        await asyncio.sleep(key_ms / 1000)
        for number in range(KEYS):  # none is stuck
            told, _ = await until_not_busy(processes[0], f"k-{number}", seconds=5)
            assert told.status == 201
            assert not replayed(told)
        assert kinds["201"] > 3 * KEYS, "too little was forgotten: this proved little"
        assert swept["went"] > 0
    finally:
        await fleet.end()
