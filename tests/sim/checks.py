"""Checkers: what must be true of a history, whatever the weather was. They never ask the node.

    complaints(history, rules) -> list[str]      empty: nothing to complain of

Each complaint begins with the number of the invariant (design section 12). What is read: which call
a sender made and what came back, and which attempt the destination saw begin, apply and end.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from unspool.core.lane import PARK_MAX_MS, PROBE_FIRST_MS
from unspool.core.message import Failure, Request, Response, Sent
from unspool.testing.world import Event, field

RECEIPTS = b"/_unspool/receipts/"
ENDED = ("delivered", "bounced")


class Rules(msgspec.Struct):
    """What the plan promised."""

    window_max: int = 20
    closes_within: int = 25
    """So many connections refused in a row, and the lane is closed whatever its window was."""
    probe_least_ms: int = 2_400
    pause_least_ms: int = 750
    """The shortest wait between two attempts at one message: 0.8 of a second, less rounding."""
    repeatable: frozenset[bytes] = frozenset({b"PUT", b"DELETE", b"GET"})


class Call(msgspec.Struct):
    """A sender's call, from both ends."""

    ask: int
    request: Request
    asked_at: int
    ended_at: int = 2**60
    answer: Response | None = None


class Attempt(msgspec.Struct):
    """An attempt, as the destination saw it."""

    number: int
    live: bool
    request: Request
    began_at: int
    order: int
    ended_at: int = 2**60
    answer: Response | Failure | None = None
    cut: bool = False
    applied: int = 0


Name = tuple[bytes, bytes]


def name_of(request: Request) -> Name | None:
    """Whose key: credentials and key as the sender wrote it, quotes aside."""
    key = field(request, b"Idempotency-Key")
    return None if key is None else (field(request, b"Authorization") or b"", key.strip(b'"'))


class Seen:
    """The history, sorted."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.calls: dict[int, Call] = {}
        self.attempts: dict[int, Attempt] = {}
        self.kills = [event.at for event in events if event.what == "killed"]
        for order, event in enumerate(events):
            if event.what == "asked" and event.request is not None:
                self.calls[event.ask] = Call(event.ask, event.request, event.at)
            elif event.what in ("answered", "broke"):
                call = self.calls[event.ask]
                call.ended_at = event.at
                call.answer = event.answer if isinstance(event.answer, Response) else None
            elif event.what == "began" and event.request is not None:
                self.attempts[event.attempt] = Attempt(
                    event.attempt, event.ask > 0, event.request, event.at, order
                )
            elif event.what == "applied":
                self.attempts[event.attempt].applied += 1
            elif event.what in ("ended", "cut"):
                attempt = self.attempts[event.attempt]
                attempt.ended_at, attempt.answer = event.at, event.answer
                attempt.cut = event.what == "cut"
        self.requests = [c for c in self.calls.values() if not is_receipt(c)]
        self.lookups = [c for c in self.calls.values() if is_receipt(c)]
        self.end_at = events[-1].at if events else 0

    def killed_between(self, a: int, b: int) -> bool:
        return any(a <= at <= b for at in self.kills)

    def of_body(self) -> dict[bytes, list[Attempt]]:
        found = defaultdict(list)
        for attempt in self.attempts.values():
            found[attempt.request.body].append(attempt)
        return found


def is_receipt(call: Call) -> bool:
    return call.request.target.startswith(RECEIPTS)


def ours(answer: Response) -> bool:
    """Not the destination's word: a problem, a receipt, or its own trouble passed back."""
    return field(answer, b"Proxy-Status") is not None


def promised(call: Call) -> bytes | None:
    """The receipt, if this call was answered 202 with one."""
    if call.answer is None or call.answer.status != 202:
        return None
    return field(call.answer, b"Location")


def complaints(events: list[Event], rules: Rules | None = None) -> list[str]:
    seen, rules = Seen(events), rules or Rules()
    return [
        complaint
        for check in (
            custody,
            ending,
            sole,
            identity,
            answers,
            effects,
            window,
            pace,
            lanes,
            privacy,
        )
        for complaint in check(seen, rules)
    ]


# --- the receipts' side -------------------------------------------------------------------------


def states(seen: Seen) -> dict[bytes, list[tuple[int, dict[str, object]]]]:
    """What each receipt said, in order of asking's end."""
    found: dict[bytes, list[tuple[int, dict[str, object]]]] = defaultdict(list)
    for call in sorted(seen.lookups, key=lambda c: (c.ended_at, c.ask)):
        if call.answer is not None and call.answer.status == 200 and call.request.method == b"GET":
            where = call.request.target.split(b"?")[0]
            if not where.endswith(b"/response"):
                found[where].append((call.ended_at, json.loads(call.answer.body)))
    return found


def promises(seen: Seen) -> dict[bytes, Call]:
    """Each receipt that was given out, and the first call that got it."""
    found: dict[bytes, Call] = {}
    for call in seen.requests:
        where = promised(call)
        if where is not None:
            found.setdefault(where, call)
    return found


def custody(seen: Seen, rules: Rules) -> Iterator[str]:
    """I1: what was answered 202 is found, at every look and at the end, and has an end by then."""
    told = states(seen)
    for where, call in promises(seen).items():
        for look in seen.lookups:
            if look.request.target == where and look.answer and look.answer.status == 404:
                yield f"I1 lost: {call.request.body!r} was promised, and is unknown"
        if not told[where]:
            yield f"I1 lost: {call.request.body!r} was promised, and nobody can tell of it"
            continue
        last = told[where][-1][1]
        if last["state"] not in ENDED:
            yield f"I2 without end: {call.request.body!r} is {last['state']}"
        if last["state"] == "delivered" and not [
            a for a in seen.of_body()[call.request.body] if stands(a)
        ]:
            yield f"I6 from nowhere: {call.request.body!r} is delivered, and was never answered"


def stands(attempt: Attempt) -> bool:
    answer = attempt.answer
    return isinstance(answer, Response) and (
        answer.status < 400 or answer.status in (404, 422, 501)
    )


def ending(seen: Seen, rules: Rules) -> Iterator[str]:
    """I3: what has ended stays as it is, and nothing of it is tried again."""
    for where, told in states(seen).items():
        ends = [(at, state) for at, state in told if state["state"] in ENDED]
        if not ends:
            continue
        first_at, first = ends[0]
        for at, state in told:
            if at > first_at and (state["state"], state.get("reason"), state.get("status")) != (
                first["state"], first.get("reason"), first.get("status"),
            ):  # fmt: skip
                yield f"I3 undone: {where!r} was {first['state']} and is {state['state']}"
        call = promises(seen).get(where)
        if call is None or several(call.request, rules):
            continue
        for attempt in seen.of_body()[call.request.body]:
            if attempt.began_at > first_at and not attempt.live:
                yield f"I3 tried again: {call.request.body!r} after it was {first['state']}"


# --- keys ---------------------------------------------------------------------------------------


def sole(seen: Seen, rules: Rules) -> Iterator[str]:
    """I4: of one message at most one attempt is under way."""
    for body, attempts in seen.of_body().items():
        if name_of(attempts[0].request) is None:
            continue
        attempts.sort(key=lambda a: a.order)
        for one, two in itertools.pairwise(attempts):
            if two.began_at < one.ended_at:
                yield f"I4 two at once: {body!r}, attempts {one.number} and {two.number}"


def identity(seen: Seen, rules: Rules) -> Iterator[str]:
    """I5: a key that was answered for one body is never another's; its receipt is always one."""
    by_name: dict[Name, list[Call]] = defaultdict(list)
    for call in seen.requests:
        name = name_of(call.request)
        if name is not None and call.answer is not None:
            by_name[name].append(call)
    tried: dict[Name, list[Attempt]] = defaultdict(list)
    for attempt in seen.attempts.values():
        name = name_of(attempt.request)
        if name is not None:
            tried[name].append(attempt)
    for name, calls in by_name.items():
        known = [c for c in calls if promised(c) or taken(c)]
        if len({where for c in calls if (where := promised(c))}) > 1:
            yield f"I5 two receipts: {name!r}"
        if not known:
            continue
        first = min(known, key=lambda c: c.ended_at)
        body = first.request.body
        for call in known:
            if call.request.body != body and call.asked_at >= first.ended_at:
                yield f"I5 taken for another: {name!r}, {call.request.body!r} after {body!r}"
        for attempt in tried[name]:
            if attempt.request.body != body and attempt.began_at > first.ended_at:
                yield f"I5 sent another: {name!r}, {attempt.request.body!r} after {body!r}"


def taken(call: Call) -> bool:
    """The destination's lasting answer, given to this call."""
    answer = call.answer
    if answer is None or field(answer, b"Idempotency-Stored") == b"false":
        return False  # they were told that nobody will remember
    return answer.status in (200, 201, 404, 422) and not ours(answer)


def answers(seen: Seen, rules: Rules) -> Iterator[str]:
    """I6: an answer that stands is the destination's own, byte for byte; one key, one answer."""
    gave: dict[bytes, set[bytes]] = defaultdict(set)
    for attempt in seen.attempts.values():
        if isinstance(attempt.answer, Response):
            gave[attempt.request.body].add(attempt.answer.body)
    for call in seen.requests:
        if taken(call) and call.answer and call.answer.body not in gave[call.request.body]:
            yield f"I6 from nowhere: {call.request.body!r} was answered {call.answer.body!r}"
    by_name: dict[tuple[Name, bytes], set[bytes]] = defaultdict(set)
    for call in seen.requests:
        name = name_of(call.request)
        if name is not None and taken(call) and call.answer:
            by_name[name, call.request.body].add(call.answer.body)
            replay = field(call.answer, b"Idempotent-Replayed") == b"true"
            if replay and field(call.answer, b"Set-Cookie") is not None:
                yield f"I6 a cookie of another exchange: {name!r}"
    for (name, _), bodies in by_name.items():
        if len(bodies) > 1:
            yield f"I6 two answers: {name!r}: {sorted(bodies)}"
    given = promises(seen)
    for look in seen.lookups:
        where = look.request.target
        if not where.endswith(b"/response") or look.answer is None or look.answer.status != 201:
            continue
        call = given.get(where.removesuffix(b"/response"))
        if call is not None and look.answer.body not in gave[call.request.body]:
            yield f"I6 from nowhere: {where!r} holds {look.answer.body!r}"


def effects(seen: Seen, rules: Rules) -> Iterator[str]:
    """I9: a key has at most one effect; and what may not be repeated is not repeated."""
    for body, attempts in seen.of_body().items():
        request = attempts[0].request
        if request.method in rules.repeatable:
            continue
        count = sum(a.applied for a in attempts)
        if count > 1:
            yield f"I9 {count} effects: {body!r}"
        if name_of(request) is None:
            attempts.sort(key=lambda a: a.order)
            for one in attempts[:-1]:
                sent = one.answer.sent if isinstance(one.answer, Failure) else None
                status = one.answer.status if isinstance(one.answer, Response) else 0
                if sent is not Sent.NEVER and status not in (408, 421, 425, 429):
                    yield f"I9 repeated without a key: {body!r}"


def privacy(seen: Seen, rules: Rules) -> Iterator[str]:
    """I10: nobody sees what was answered to another."""
    for call in seen.requests:
        who = field(call.request, b"Authorization") or b""
        if taken(call) and call.answer and b" by %b," % who not in call.answer.body:
            yield f"I10 another's answer: {who!r} got {call.answer.body!r}"
    for call in seen.requests:
        name = name_of(call.request)
        if name is not None and call.answer and call.answer.status == 422 and ours(call.answer):
            others = {c.request.body for c in seen.requests if name_of(c.request) == name}
            if others == {call.request.body}:
                yield f"I10 another's key: {name!r} was refused, and used it for one thing only"


# --- pace ---------------------------------------------------------------------------------------


def window(seen: Seen, rules: Rules) -> Iterator[str]:
    """I7: deliveries under way never exceed the window."""
    busy = 0
    for event in seen.events:
        if event.what == "began" and event.ask == 0:
            busy += 1
            if busy > rules.window_max:
                yield f"I7 {busy} at once at {event.at}"
        elif event.what in ("ended", "cut") and event.ask == 0:
            busy -= 1


def pace(seen: Seen, rules: Rules) -> Iterator[str]:
    """I8: between two attempts at a message that is saved lies its wait, and what it was asked."""
    for body, attempts in seen.of_body().items():
        if several(attempts[0].request, rules):
            continue
        attempts.sort(key=lambda a: a.order)
        for one, two in itertools.pairwise(attempts):
            if two.live or one.cut or one.answer is None:
                continue
            if one.live and not trouble(one):
                continue
            gap = two.began_at - one.ended_at
            if gap < max(rules.pause_least_ms, hint_ms(one)):
                yield f"I8 too soon: {body!r} after {gap} ms"


def several(request: Request, rules: Rules) -> bool:
    """Without a key, each repeat of its sender is a message of its own, and looks the same."""
    return name_of(request) is None and request.method in rules.repeatable


def trouble(attempt: Attempt) -> bool:
    answer = attempt.answer
    return isinstance(answer, Failure) or (answer is not None and answer.status >= 429)


def hint_ms(attempt: Attempt) -> int:
    answer = attempt.answer
    hint = field(answer, b"Retry-After") if isinstance(answer, Response) else None
    return 0 if hint is None else int(hint) * 1000


def lanes(seen: Seen, rules: Rules) -> Iterator[str]:
    """I8: where the destination asked for peace it has some, and then a probe now and then; and
    one probe at a time while it is down."""
    peace_until, parked_until, refused, last_at, probed_at = 0, 0, 0, -(2**60), -(2**60)
    bodies: set[bytes] = set()
    for event in seen.events:
        if event.what == "killed":
            peace_until = parked_until = refused = 0
            bodies.clear()
        elif event.what == "began" and event.request is not None:
            if event.at < peace_until:
                yield f"I8 not left in peace: {event.request.body!r} at {event.at}"
            elif event.at < parked_until:
                if event.at - probed_at < rules.probe_least_ms:
                    yield f"I8 not one by one: {event.request.body!r} at {event.at}"
                probed_at = event.at
            if refused >= rules.closes_within and len(bodies) > 1:
                if event.at - last_at < rules.probe_least_ms:
                    yield f"I8 while closed: {event.request.body!r} after {event.at - last_at} ms"
                last_at = event.at
        elif event.what == "ended" and event.request is not None:
            answer = event.answer
            if isinstance(answer, Failure) and answer.sent is Sent.NEVER:
                refused += 1
                bodies.add(event.request.body)
                if refused == rules.closes_within:
                    last_at = event.at
            else:
                refused = 0
                bodies.clear()
            if isinstance(answer, Response):
                hint = field(answer, b"Retry-After")
                if hint is not None and answer.status in (429, 503):
                    wish_ms = int(hint) * 1000
                    if event.at >= parked_until:
                        peace_until = event.at + min(wish_ms, PROBE_FIRST_MS)
                    parked_until = max(parked_until, event.at + min(wish_ms, PARK_MAX_MS))
                elif answer.status != 429 and probed_at >= peace_until:
                    parked_until = 0  # a success, or anything that shows it is there
