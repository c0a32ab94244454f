"""The plan: what to do next with a request, given what has happened to it. Decides, does nothing.

    next_step(kind, so_far, facts, terms) -> Step   Attempt, HandOver, Keep, Uncertain or GiveUp
    tried(so_far, …) · handed(so_far, …) -> SoFar   what has happened, one thing further
    full_jitter(…)                                  a pause

The order: up to `attempts_max` direct attempts, each at another server, inside the deadline; then
the queues in turn, for which a slice of the deadline is set aside; then the outbox; then the
fallback plan, which is the caller's. An answer that stands ends it before.

What it keeps to, whatever happens (tests walk all of it):

    P1  What may have been applied and may not be repeated goes nowhere any more.
    P2  Never more than `attempts_max` direct attempts.
    P3  Never the same server twice running while another may be tried.
    P4  Safe and contended requests are handed to nobody and kept nowhere.
    P5  Pauses and attempts end within the deadline; the queues' slice is theirs.
    P6  A second attempt is paid for, unless the first never reached anybody and goes elsewhere.

AWS's standard mode has the costs (2026: 14 for what is transient, 5 for what was throttled), gRPC
A6 the word by which a server forbids more attempts, Google's SRE book the two budgets.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from ..core.message import Sent, Value
from ..core.outcome import Judgement, Weather

COST_TRANSIENT: Final = 14
COST_THROTTLED: Final = 5


class Kind(Value, frozen=True):
    """What a request is, as far as the plan goes."""

    repeat: bool
    """May it be sent again after it may have been applied?"""
    safe: bool = False
    """It asks for nothing to be changed: not worth keeping."""
    contended: bool = False
    """It asks for something scarce: worth nothing late, so nobody keeps it."""

    @property
    def keepable(self) -> bool:
        return not self.safe and not self.contended


class Terms(Value, frozen=True):
    """Numbers that the plan goes by. Milliseconds."""

    attempts_max: int = 3
    attempt_ms: int = 0
    """The most that one attempt may take; 0: its share of the deadline."""
    least_ms: int = 20
    """With less than this left nothing is begun."""
    backoff_first_ms: int = 50
    backoff_most_ms: int = 1_000
    reserve_part: float = 0.2
    """The queues' slice of the deadline."""
    reserve_least_ms: int = 500
    queue_ms: int = 1_000
    """The most that one queue may take."""


class Trouble(enum.Enum):
    """Of the last attempt, as far as the next one depends on it."""

    NONE = "none"
    NEVER = "nobody was reached"
    REFUSED = "not processed"
    THROTTLED = "too many requests"
    TRANSIENT = "it failed"


class SoFar(Value, frozen=True):
    """What has happened to a request."""

    tried: tuple[int, ...] = ()
    """The servers of the attempts, in order."""
    maybe: bool = False
    """One of them may have been applied."""
    trouble: Trouble = Trouble.NONE
    hint_ms: int | None = None
    """The last one's Retry-After."""
    forbidden: bool = False
    """A server said that it is not to be tried again."""
    queue: int = 0
    """The queue whose turn it is."""


BEGINNING: Final = SoFar()


class Facts(Value, frozen=True):
    """How things are at this moment."""

    left_ms: int
    """Until the deadline."""
    whole_ms: int
    """The deadline, when it was new."""
    open: tuple[int, ...]
    """The servers that may be tried, the best first."""
    spare: int = 0
    """The one to try where none may be: somebody has to find out (fail open)."""
    admitted: bool = True
    """The throttle lets this request out."""
    tokens: int = 500
    """What is left to pay further attempts with; 0 where there are too many of them already."""
    queues: int = 0
    outbox: bool = False
    chance: float = 0.5
    """In [0, 1)."""


class Attempt(Value, frozen=True):
    """Try this server, after a pause."""

    server: int
    timeout_ms: int
    wait_ms: int = 0
    cost: int = 0
    reach_ms: int = 0
    """How much of that the server may take to be reached; 0: all of it."""


class HandOver(Value, frozen=True):
    """Offer it to this queue."""

    queue: int
    timeout_ms: int


class Keep(Value, frozen=True):
    """Put it into the outbox."""


class Uncertain(Value, frozen=True):
    """It may or may not have been applied, and may not be repeated."""


class GiveUp(Value, frozen=True):
    """Nobody has it. The fallback plan, or an exception."""

    why: str


Step = Attempt | HandOver | Keep | Uncertain | GiveUp


def next_step(kind: Kind, so_far: SoFar, facts: Facts, terms: Terms) -> Step:
    """What now? Total."""
    if so_far.maybe and (kind.contended or not kind.repeat):
        return Uncertain()  # P1
    direct = _direct(kind, so_far, facts, terms)
    if isinstance(direct, Attempt):
        return direct
    if not kind.keepable:
        return GiveUp(direct)  # P4
    if so_far.queue < facts.queues and facts.left_ms >= terms.least_ms:
        share = facts.left_ms // (facts.queues - so_far.queue)
        return HandOver(so_far.queue, max(terms.least_ms, min(terms.queue_ms, share)))
    return Keep() if facts.outbox else GiveUp(direct)


def _direct(kind: Kind, so_far: SoFar, facts: Facts, terms: Terms) -> Attempt | str:
    """The next direct attempt, or why there is none."""
    tries = len(so_far.tried)
    if so_far.queue:
        return "the queues did not take it"
    if so_far.forbidden:
        return "the server said not to try again"
    if tries >= terms.attempts_max:  # P2
        return f"{tries} attempts failed"
    if tries == 0 and not facts.admitted:
        return "not tried: the servers reject most of what is sent"
    room_ms = facts.left_ms - _reserve_ms(kind, so_far, facts, terms)
    server = _server(so_far, facts)
    if server is None:
        return "no other server may be tried now"
    again = tries > 0 and server == so_far.tried[-1]
    cost = _cost(so_far, again=again)
    if cost > facts.tokens:  # P6
        return "there is no budget left for more attempts"
    wait_ms = _wait_ms(so_far, facts, terms, again=again)
    if again and so_far.hint_ms is not None and wait_ms > room_ms // 2:
        return "the server wants to be left alone for longer than there is time"
    timeout_ms = room_ms - wait_ms
    reach_ms = 0
    if any(one != server for one in facts.open) and tries + 1 < terms.attempts_max:
        # Somebody who hangs must leave time for somebody who does not; who may be asked after him
        # only if he was never reached, when that is clear.
        if kind.repeat:
            timeout_ms = timeout_ms // 2
        else:
            reach_ms = timeout_ms // 2
    if terms.attempt_ms:
        timeout_ms = min(timeout_ms, terms.attempt_ms)
    if timeout_ms < terms.least_ms:  # P5
        return "there is no time left for another attempt" if tries else "there is no time left"
    return Attempt(server, timeout_ms, wait_ms, cost, reach_ms)


def _reserve_ms(kind: Kind, so_far: SoFar, facts: Facts, terms: Terms) -> int:
    if not kind.keepable or so_far.queue >= facts.queues:
        return 0
    wanted = max(terms.reserve_least_ms, round(facts.whole_ms * terms.reserve_part))
    return min(wanted, facts.whole_ms // 2)


def _server(so_far: SoFar, facts: Facts) -> int | None:
    """One that was not tried, else one that was not tried last, else the same (P3)."""
    if not so_far.tried:
        return facts.open[0] if facts.open else facts.spare
    last = so_far.tried[-1]
    for server in facts.open:
        if server not in so_far.tried:
            return server
    for server in facts.open:
        if server != last:
            return server
    return last if last in facts.open else None


def _cost(so_far: SoFar, *, again: bool) -> int:
    match so_far.trouble:
        case Trouble.NONE:
            return 0
        case Trouble.NEVER | Trouble.REFUSED:
            return COST_TRANSIENT if again else 0
        case Trouble.THROTTLED:
            return COST_THROTTLED
        case Trouble.TRANSIENT:
            return COST_TRANSIENT


def _wait_ms(so_far: SoFar, facts: Facts, terms: Terms, *, again: bool) -> int:
    if so_far.trouble is Trouble.NONE:
        return 0
    if again and so_far.hint_ms is not None:
        return so_far.hint_ms
    if not again and so_far.trouble is not Trouble.TRANSIENT:
        return 0
    return full_jitter(
        len(so_far.tried) - 1,
        first_ms=terms.backoff_first_ms,
        most_ms=terms.backoff_most_ms,
        chance=facts.chance,
    )


def full_jitter(number: int, *, first_ms: int, most_ms: int, chance: float) -> int:
    """U(0, min(most, first · 2^number)): AWS's full jitter. `number` counts from 0."""
    return int(chance * min(most_ms, first_ms * 2 ** min(number, 30)))


def tried(
    so_far: SoFar,
    server: int,
    judgement: Judgement,
    *,
    hint_ms: int | None = None,
    forbidden: bool = False,
) -> SoFar:
    """A direct attempt failed so."""
    if judgement.sent is Sent.NEVER:
        trouble = Trouble.NEVER
    elif judgement.weather is Weather.PARKED:
        trouble = Trouble.THROTTLED
    elif judgement.sent is Sent.REFUSED:
        trouble = Trouble.REFUSED
    else:
        trouble = Trouble.TRANSIENT
    return msgspec.structs.replace(
        so_far,
        tried=(*so_far.tried, server),
        maybe=so_far.maybe or judgement.sent is Sent.MAYBE,
        trouble=trouble,
        hint_ms=hint_ms,
        forbidden=so_far.forbidden or forbidden,
    )


def handed(so_far: SoFar, sent: Sent) -> SoFar:
    """The queue whose turn it was did not take it; `sent`: as far as one can know."""
    return msgspec.structs.replace(
        so_far, queue=so_far.queue + 1, maybe=so_far.maybe or sent is Sent.MAYBE
    )


def hedge_after_ms(
    kind: Kind, *, asked: bool, usual_ms: int | None, least_ms: int, others: int, affordable: bool
) -> int | None:
    """After how long a second server is asked the same beside the first; None: not at all.

    `usual_ms` is what 95 of 100 answers take. Only what may be repeated is asked twice, and nothing
    contended: two servers would give two tickets.
    """
    if not asked or kind.contended or not (kind.safe or kind.repeat):
        return None
    if usual_ms is None or not others or not affordable:
        return None
    return max(usual_ms, least_ms)
