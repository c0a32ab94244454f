"""Checker: what must never have happened. Pure functions from a history to violations.

    check(history) -> list[str]        all of them; empty means that nothing was found

    lost         accepted (202) and never done, though its receipt is not a bounce          I1
    unsettled    accepted, and the receipt still waits, or is gone                          I2
    doubled      one body had two effects                                                   I9
    needless     forwarded again after a whole answer, and no crash in between              I5
    two_answers  one key was given two different answers, by any way, to anybody            I5, I6
    two_receipts one key was given two receipts                                             I5
    went_back    a key that had its answer was later given a 202                            I3
    phantom      the service saw what nobody had sent, or a changed body                    I5

`known_to(…)` is the same question to a spool instead of to the service: who was told something
that is not there?
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from .history import Call, Handled, History


def check(history: History) -> list[str]:
    """Every violation, in words. The history must be at rest: all faults off, all drained."""
    return [
        *lost(history),
        *unsettled(history),
        *doubled(history),
        *needless(history),
        *two_answers(history),
        *two_receipts(history),
        *went_back(history),
        *phantom(history),
    ]


def lost(history: History) -> list[str]:
    done = {one.body for one in history.effects()}
    bounced = {name for name, final in history.finals.items() if final.state == "bounced"}
    return [
        f"lost: {_who(call)} was told {call.status}, and it was never done"
        for call in history.calls
        if (call.accepted or call.answered)
        and call.body not in done
        and call.receipt not in bounced
    ]


def unsettled(history: History) -> list[str]:
    found = []
    for receipt in sorted({call.receipt for call in history.accepted()}):
        final = history.finals.get(receipt)
        state = final.state if final else "never asked"
        if state not in ("delivered", "bounced"):
            found.append(f"unsettled: {receipt} is {state}")
        if final and final.state == "bounced" and final.reason != "unknown":
            found.append(f"unsettled: {receipt} bounced as {final.reason} though nothing expired")
    keyed = {call.receipt for call in history.accepted() if call.key}
    found += [
        f"unsettled: {receipt} ended as unknown though it may be repeated"
        for receipt in sorted(keyed)
        if receipt in history.finals and history.finals[receipt].reason == "unknown"
    ]
    return found


def doubled(history: History) -> list[str]:
    times: dict[bytes, int] = defaultdict(int)
    for one in history.effects():
        times[one.body] += 1
    return [
        f"doubled: {body!r} was done {count} times" for body, count in times.items() if count > 1
    ]


def needless(history: History) -> list[str]:
    """A forward after a whole answer needs a crash between the two to excuse it.

    The crash may have been before that answer was given: into the socket of a dead relay.
    """
    crashes = sorted(history.crashes)
    found = []
    for body, ones in _by_body(history.handled).items():
        done = 0
        for one in sorted(ones, key=lambda one: one.at):
            before = bisect_left(crashes, done)
            if done and before == bisect_left(crashes, one.at):
                crash = f"{(done - crashes[before - 1]) / 1e6:.1f} ms before" if before else "never"
                found.append(
                    f"needless: {body[:40]!r} went to the service again, unprovoked,"
                    f" {(one.at - done) / 1e6:.1f} ms after it (last crash: {crash})"
                )
            if one.answered_at and one.did in ("ok", "again"):
                done = one.at
    return found


def two_answers(history: History) -> list[str]:
    answers: dict[str, set[bytes]] = defaultdict(set)
    for call in history.calls:
        if call.key and call.answered and call.stored:
            answers[call.key].add(call.answer)
        if call.key and call.accepted:
            final = history.finals.get(call.receipt)
            if final is not None and final.state == "delivered":
                answers[call.key].add(final.answer)
    given = defaultdict(set)
    for one in history.handled:
        if one.answer:
            given[one.key].add(one.answer)
    found = [
        f"two answers: {key} got {sorted(ones)!r}" for key, ones in answers.items() if len(ones) > 1
    ]
    found += [
        f"two answers: {key} got {sorted(ones - given[key])!r}, which the service never said"
        for key, ones in answers.items()
        if ones - given[key]
    ]
    return found


def two_receipts(history: History) -> list[str]:
    receipts: dict[str, set[str]] = defaultdict(set)
    for call in history.accepted():
        if call.key:
            receipts[call.key].add(call.receipt)
    return [f"two receipts: {key}" for key, ones in receipts.items() if len(ones) > 1]


def went_back(history: History) -> list[str]:
    first: dict[str, int] = {}
    for call in history.answered():
        if call.key and call.stored:
            first[call.key] = min(first.get(call.key, call.told_at), call.told_at)
    return [
        f"went back: {call.key} had its answer, and was told 202 afterwards"
        for call in history.accepted()
        if call.key in first and call.asked_at > first[call.key]
    ]


def phantom(history: History) -> list[str]:
    asked = {(call.key, call.body) for call in history.calls}
    return [
        f"phantom: the service got {one.key!r} with {one.body[:60]!r}, which nobody sent"
        for one in history.handled
        if (one.key, one.body) not in asked
    ]


def known_to(
    calls: Iterable[Call],
    *,
    waiting: Callable[[Call], bytes | None],
    answers: Mapping[str, bytes],
) -> list[str]:
    """Whoever was told something finds it in the spool.

    `waiting(call)` is the body that is kept for a 202, or None; `answers` the kept answers by key.
    """
    found = []
    for call in calls:
        if not call.told_at:
            continue
        if call.accepted and waiting(call) != call.body:
            found.append(f"lost: the 202 of {_who(call)}")
        if call.answered and call.key and call.stored and answers.get(call.key) != call.answer:
            found.append(f"lost: the answer that {_who(call)} was given")
    return found


def _who(call: Call) -> str:
    return f"{call.key or 'a request without a key'} ({call.body[:40]!r})"


def _by_body(handled: Iterable[Handled]) -> dict[bytes, list[Handled]]:
    out: dict[bytes, list[Handled]] = defaultdict(list)
    for one in handled:
        out[one.body].append(one)
    return out
