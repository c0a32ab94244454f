"""Outcomes: what an answer means. One table, read by the code, the tests and the docs.

    judge(answer) -> Judgement       outcome, whether it can have had an effect, whose trouble it is
    outcome(answer) -> Outcome       OK, FAIL or ERROR

OK and FAIL are answers: the sender gets them. ERROR means that nobody knows yet, and it is tried
again where that is allowed: "you cannot know if an error is a failure" (Aria Stewart).

`vectors/outcome.json` is written from this table; other languages run it.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from .message import Answer, Cause, Failure, Instant, Response, Sent, Value


class Outcome(enum.StrEnum):
    OK = "OK"
    FAIL = "FAIL"
    ERROR = "ERROR"


class Weather(enum.StrEnum):
    """What an answer says of the destination, as opposed to this one message."""

    GOOD = "good"
    """It works."""
    ALIVE = "alive"
    """It is there, and does not want this now."""
    PARKED = "parked"
    """It is there, and says when to come back."""
    SUSPECT = "suspect"
    """Perhaps this message, perhaps the destination: the latter after several messages in a row."""
    BAD = "bad"
    """It does not work."""
    UNKNOWN = "unknown"
    """It was not asked."""


class Judgement(Value, frozen=True):
    outcome: Outcome
    sent: Sent
    weather: Weather
    suspects: int = 0
    """For SUSPECT: after so many different messages in a row it is the destination."""
    why: str = ""


def _row(
    outcome: Outcome, sent: Sent, weather: Weather, why: str, *, suspects: int = 0
) -> Judgement:
    return Judgement(outcome=outcome, sent=sent, weather=weather, suspects=suspects, why=why)


_OK: Final = _row(Outcome.OK, Sent.YES, Weather.GOOD, "an answer")
_FAIL: Final = _row(Outcome.FAIL, Sent.YES, Weather.GOOD, "the sender must mend it")
_BAD: Final = _row(Outcome.ERROR, Sent.MAYBE, Weather.BAD, "the destination is in trouble")

STATUSES: Final[dict[int, Judgement]] = {
    408: _row(Outcome.ERROR, Sent.REFUSED, Weather.ALIVE, "it tired of waiting for the request"),
    421: _row(Outcome.ERROR, Sent.REFUSED, Weather.ALIVE, "it is not the server for this"),
    425: _row(Outcome.ERROR, Sent.REFUSED, Weather.ALIVE, "too early to risk a replay"),
    429: _row(Outcome.ERROR, Sent.REFUSED, Weather.PARKED, "too many requests"),
    500: _row(Outcome.ERROR, Sent.MAYBE, Weather.SUSPECT, "a bug, for this message", suspects=5),
    501: _row(Outcome.FAIL, Sent.YES, Weather.GOOD, "it will never do this"),
    502: _row(Outcome.ERROR, Sent.MAYBE, Weather.BAD, "the server behind it is in trouble"),
    503: _row(Outcome.ERROR, Sent.MAYBE, Weather.BAD, "unavailable"),
    504: _row(Outcome.ERROR, Sent.MAYBE, Weather.BAD, "the server behind it did not answer"),
    505: _row(Outcome.FAIL, Sent.YES, Weather.GOOD, "it will never speak this version"),
    511: _row(Outcome.FAIL, Sent.YES, Weather.GOOD, "a network wants a login"),
}
"""The statuses that are not what their hundred says. RFC 9110 §15, RFC 8470 (425), RFC 6585."""

PARKED_503: Final = _row(
    Outcome.ERROR, Sent.MAYBE, Weather.PARKED, "unavailable, and it says until when"
)
"""A 503 with Retry-After: the destination is well enough to say when it will be back."""

HUNDREDS: Final[dict[int, Judgement]] = {2: _OK, 3: _OK, 4: _FAIL, 5: _BAD}

NEVER_SENT: Final = _row(Outcome.ERROR, Sent.NEVER, Weather.BAD, "nothing reached the destination")
NO_ANSWER: Final = _row(
    Outcome.ERROR, Sent.MAYBE, Weather.SUSPECT, "sent, and no whole answer", suspects=2
)
NOT_ITS_FAULT: Final = _row(
    Outcome.ERROR, Sent.NEVER, Weather.UNKNOWN, "nothing was sent, for a reason of our own"
)
"""Our own limit or bug: says nothing of the destination."""
OUR_MISTAKE: Final = _row(
    Outcome.ERROR, Sent.MAYBE, Weather.UNKNOWN, "it may have been sent, and then we failed"
)

OURS: Final = frozenset({Cause.CONNECTION_LIMIT_REACHED, Cause.PROXY_INTERNAL_ERROR, Cause.CLOSING})

_BY_STATUS: Final[tuple[Judgement, ...]] = tuple(
    STATUSES.get(status, HUNDREDS.get(status // 100, _BAD)) for status in range(600)
)


STANDS: Final = bytes(row.outcome is not Outcome.ERROR for row in _BY_STATUS)
"""By status: 1 where the answer is passed on whatever else is known."""


def judge(answer: Answer) -> Judgement:
    """What this answer means. Total: every answer has one judgement."""
    if isinstance(answer, Response):
        if answer.status == 503 and retry_after(answer) is not None:
            return PARKED_503
        return _BY_STATUS[answer.status] if 0 <= answer.status < 600 else _BAD
    return _judge_failure(answer)


def _judge_failure(failure: Failure) -> Judgement:
    ours = failure.cause in OURS
    if failure.sent is Sent.NEVER:
        return NOT_ITS_FAULT if ours else NEVER_SENT
    return OUR_MISTAKE if ours else NO_ANSWER


def outcome(answer: Answer) -> Outcome:
    return judge(answer).outcome


def repeatable(judgement: Judgement, *, repeat: bool) -> bool:
    """May the request be sent again after this? (RFC 9110 §9.2.2; design section 5)"""
    return repeat or judgement.sent in (Sent.NEVER, Sent.REFUSED)


def is_busy(answer: Answer) -> bool:
    """A 409 that says when to ask again: another request under the key is being tried just now.

    So says our own middleware, and the IETF draft has it (§2.7). It is an answer to this try, and
    the sender's if he waits; it is never the answer of the message: that one is still to come.
    """
    return isinstance(answer, Response) and answer.status == 409 and retry_after(answer) is not None


OUTCOME_UNKNOWN: Final = b"/_unspool/problems/outcome-unknown"


def is_unknown(answer: Answer) -> bool:
    """Our own middleware, at the destination, says that nobody knows what an earlier attempt did.

    A 409 with our Proxy-Status and our problem's name. As an answer it would look like delivery.
    """
    if (
        not isinstance(answer, Response)
        or answer.status != 409
        or OUTCOME_UNKNOWN not in answer.body
    ):
        return False
    return any(
        name.lower() == b"proxy-status" and value.startswith(b"unspool")
        for name, value in answer.fields
    )


RETRY_AFTER_MAX_MS: Final = 6 * 3600 * 1000
"""A longer wish is cut: nobody shall park us for ever (urllib3's limit)."""
DATES: Final = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")
"""The three forms of an HTTP-date; a recipient reads them all (RFC 9110 §5.6.7)."""


def retry_after(answer: Answer, *, now: Instant | None = None) -> int | None:
    """Milliseconds of Retry-After, from now (RFC 9110 §10.2.3); None without a readable one.

    Without `now`, a date counts as 0: that one was sent is all the caller wants to know.
    """
    if isinstance(answer, Failure):
        return None
    for name, value in answer.fields:
        if len(name) == 11 and name.lower() == b"retry-after":
            return _delay_ms(value.strip().decode("latin-1"), now)
    return None


def _delay_ms(text: str, now: Instant | None) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return min(int(text) * 1000, RETRY_AFTER_MAX_MS)
    for form in DATES:
        try:
            date = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        if now is None:
            return 0
        return max(0, min(int(date.timestamp() * 1000) - now, RETRY_AFTER_MAX_MS))
    return None


def cause_of(answer: Answer) -> tuple[int, str]:
    """The status (0 where no answer came) and the cause in words, for people."""
    if isinstance(answer, Failure):
        return 0, f"{answer.cause}: {answer.detail}" if answer.detail else str(answer.cause)
    return answer.status, _said(answer.status, answer.reason)


@lru_cache(maxsize=256)
def _said(status: int, reason: bytes) -> str:
    return f"{status} {reason.decode('latin-1', 'replace')}".strip()
