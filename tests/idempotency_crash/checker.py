"""Checker: what must never have been in a race. Pure functions from evidence to violations.

check(rounds, ledger) -> list[str]       all of them; empty means that nothing was found

doubled      a key was run more than once, or never                     E1, E2, I5
two answers  one key was given two different answers                    B1, I6
foreign      an answer that quotes no execution of its key              I10
unmarked     more than one answer of a key does not say "replayed"      B2
refused      something else than an answer, or 409 and when to return   E3
impatient    one who would wait was told "running"                      E4
forgotten    after the round a repeat was not given the answer          I5
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .ledger import Line


@dataclass(slots=True)
class Call:
    """What one of the senders was told."""

    status: int
    body: bytes = b""
    replayed: bool = False
    retry_after: str = ""
    problem: str = ""
    waits: bool = False
    """It asked to wait for the first."""


@dataclass(slots=True)
class Round:
    """One key, many senders."""

    key: str
    calls: list[Call]
    after: list[Call] = field(default_factory=list)
    """Repeats once it was all over, one at each process."""


def check(rounds: Sequence[Round], ledger: Iterable[Line]) -> list[str]:
    tokens: dict[str, list[str]] = defaultdict(list)
    for line in ledger:
        if line.what == "begin":
            tokens[line.key].append(line.token)
    return [violation for one in rounds for violation in _check(one, tokens[one.key])]


def _check(one: Round, tokens: Sequence[str]) -> list[str]:
    found = []
    if len(tokens) != 1:
        found.append(f"doubled: {one.key} was run {len(tokens)} times")
    answers = [call for call in [*one.calls, *one.after] if call.status == 201]
    bodies = {call.body for call in answers}
    if len(bodies) > 1:
        found.append(f"two answers: {one.key} got {sorted(bodies)!r}")
    allowed = {f"done {token}".encode() for token in tokens}
    if bodies - allowed:
        found.append(f"foreign: {one.key} got {sorted(bodies - allowed)!r}")
    firsts = sum(not call.replayed for call in answers)
    if firsts != 1:
        found.append(f"unmarked: {one.key} has {firsts} first answers")
    for call in one.calls:
        if call.status == 201:
            continue
        if call.status != 409 or call.problem != "running" or not call.retry_after.isdigit():
            found.append(f"refused: {one.key} was told {call}")
        elif call.waits:
            found.append(f"impatient: {one.key} waited and was told {call}")
    found += [
        f"forgotten: {one.key} was told {call} afterwards"
        for call in one.after
        if call.status != 201 or not call.replayed
    ]
    return found
