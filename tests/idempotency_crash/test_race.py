"""50 parallel repeats of one key over several processes: it runs once (E1, E2, E3, E4, I5).

UNSPOOL_CRASH_ROUNDS=20 ./run test tests/idempotency_crash/test_race.py -s     1 000 rounds
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from crash.launch import Quick
from crash.processes import ROUNDS
from crash.wire import Told, Wire

from .checker import Call, Round, check
from .fleet import Fleet, Process, problem, replayed

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

REPEATS = 50
RACES = 50 * ROUNDS
PROCESSES = 3
OUTRIGHT = 10
"""Rounds of a control: a naive middleware is convicted by fewer."""


def call_of(told: Told, *, waits: bool = False) -> Call:
    return Call(
        status=told.status,
        body=told.body,
        replayed=replayed(told),
        retry_after=told.fields.get("retry-after", ""),
        problem=problem(told),
        waits=waits,
    )


class Senders:
    """Connections to all processes, kept from round to round."""

    def __init__(self, wires: Sequence[Wire]) -> None:
        self._wires = wires

    @classmethod
    async def of(cls, processes: Sequence[Process]) -> Senders:
        ports = [processes[place % len(processes)].port for place in range(REPEATS)]
        return cls(await asyncio.gather(*(Wire.open(port) for port in ports)))

    async def race(self, key: str, *, chance: random.Random) -> Round:
        """All at once. Every third waits for the first; the handler takes no time, or a little."""
        do = f"sleep-{chance.choice((0, 0, 1, 5, 20))}"

        async def one(place: int, wire: Wire) -> Call:
            waits = place % 3 == 0
            fields = {"Idempotency-Key": f'"{key}"', "X-Do": do}
            if waits:
                fields["Prefer"] = "wait=50"
            told = await wire.ask("POST", "/pay", fields=fields, body=b'{"amount": 7}', timeout=60)
            return call_of(told, waits=waits)

        order = list(enumerate(self._wires))
        chance.shuffle(order)
        return Round(key, list(await asyncio.gather(*(one(*each) for each in order))))

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


async def races(
    fleet: Fleet, processes: Sequence[Process], count: int, *, prefix: str = "race"
) -> list[Round]:
    senders = await Senders.of(processes)
    chance = random.Random(7)
    rounds = []
    try:
        for number in range(count):
            found = await senders.race(f"{prefix}-{number}", chance=chance)
            found.after = [call_of(await process.ask(found.key)) for process in processes]
            rounds.append(found)
    finally:
        senders.close()
    return rounds


def tell(what: str, rounds: Sequence[Round], fleet: Fleet) -> None:
    told = Counter(
        "replay" if call.replayed else str(call.status) for one in rounds for call in one.calls
    )
    winners = Counter(line.pid for line in fleet.ledger.lines() if line.what == "begin")
    shares = sorted(winners.values())
    print(f"\n{what}: {len(rounds)} rounds x {REPEATS}: {dict(told)}; run by processes: {shares}")


@pytest.mark.timeout(240 + 20 * ROUNDS)
async def test_one_key_runs_once_however_many_ask_at_once(tmp_path: Path, launcher: Quick) -> None:
    """E1, E2, E3, E4 over three processes and one spool. The counter is the application's own."""
    fleet = Fleet(launcher, tmp_path)
    try:
        processes = [await fleet.start() for _ in range(PROCESSES)]
        rounds = await races(fleet, processes, RACES)
        winners = {line.pid for line in fleet.ledger.lines()}
        if len(winners) < PROCESSES:  # one did not have the processor: it gets another chance
            rounds += await races(fleet, processes, RACES, prefix="again")
        tell(f"{PROCESSES} processes", rounds, fleet)
        assert check(rounds, fleet.ledger.lines()) == []
        winners = {line.pid for line in fleet.ledger.lines()}
        assert len(winners) == PROCESSES, "one process never won: this proved little"
    finally:
        await fleet.end()


@pytest.mark.timeout(240 + 10 * ROUNDS)
@pytest.mark.parametrize("alone", [False, True])
async def test_one_key_runs_once_in_one_process(
    tmp_path: Path, launcher: Quick, alone: bool
) -> None:
    """E1; and where nobody else uses the spool no claim is written, and it is true all the same."""
    fleet = Fleet(launcher, tmp_path, alone=alone)
    try:
        processes = [await fleet.start()]
        rounds = await races(fleet, processes, RACES // 5)
        tell("one process", rounds, fleet)
        assert check(rounds, fleet.ledger.lines()) == []
    finally:
        await fleet.end()


async def test_a_naive_middleware_is_convicted(tmp_path: Path, launcher: Quick) -> None:
    """The positive control: who looks before he writes runs twice, and the checker says so."""
    fleet = Fleet(launcher, tmp_path)
    try:
        processes = [await fleet.start(naive=True) for _ in range(PROCESSES)]
        rounds = await races(fleet, processes, OUTRIGHT)
        tell("naive", rounds, fleet)
        found = check(rounds, fleet.ledger.lines())
        assert sum(violation.startswith("doubled") for violation in found) >= OUTRIGHT // 2, found
    finally:
        await fleet.end()
