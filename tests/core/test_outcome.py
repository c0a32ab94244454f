"""Outcomes: the table of design section 5, exhaustively, written here a second time by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from unspool.core.message import Cause, Failure, Instant, Response, Sent
from unspool.core.outcome import (
    OURS,
    RETRY_AFTER_MAX_MS,
    Outcome,
    Weather,
    cause_of,
    judge,
    outcome,
    repeatable,
    retry_after,
)

NOW = Instant(1_750_000_000_000)


def response(status: int, *fields: tuple[bytes, bytes]) -> Response:
    return Response(status=status, reason=b"", fields=fields)


def expected(status: int) -> tuple[Outcome, Sent, Weather]:
    """The table, row by row, as the design has it."""
    if status in (408, 421, 425):
        return Outcome.ERROR, Sent.REFUSED, Weather.ALIVE
    if status == 429:
        return Outcome.ERROR, Sent.REFUSED, Weather.PARKED
    if status == 500:
        return Outcome.ERROR, Sent.MAYBE, Weather.SUSPECT
    if status in (501, 505, 511):
        return Outcome.FAIL, Sent.YES, Weather.GOOD
    if 200 <= status <= 399:
        return Outcome.OK, Sent.YES, Weather.GOOD
    if 400 <= status <= 499:
        return Outcome.FAIL, Sent.YES, Weather.GOOD
    return Outcome.ERROR, Sent.MAYBE, Weather.BAD


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_means_what_the_design_says(status: int) -> None:
    """The table is total over the statuses of HTTP, and no row of it is another than designed."""
    judged = judge(response(status))
    assert (judged.outcome, judged.sent, judged.weather) == expected(status)
    assert outcome(response(status)) is judged.outcome
    assert judged.why


@pytest.mark.parametrize("status", [0, 99, 600, 999, -1])
def test_a_status_that_is_none_is_trouble_of_the_destination(status: int) -> None:
    """Totality: what no RFC knows is an ERROR that may have been applied, not a crash."""
    judged = judge(response(status))
    assert (judged.outcome, judged.sent) == (Outcome.ERROR, Sent.MAYBE)


@pytest.mark.parametrize("sent", list(Sent))
@pytest.mark.parametrize("cause", list(Cause))
def test_every_failure_is_an_error_and_says_whether_it_was_sent(cause: Cause, sent: Sent) -> None:
    """No answer is never an answer. Never sent is bad weather; sent is suspect, two in a row."""
    judged = judge(Failure(cause, "", sent))
    assert judged.outcome is Outcome.ERROR
    assert judged.sent is (Sent.NEVER if sent is Sent.NEVER else Sent.MAYBE)
    if cause in OURS:
        assert judged.weather is Weather.UNKNOWN
    elif sent is Sent.NEVER:
        assert judged.weather is Weather.BAD
    else:
        assert (judged.weather, judged.suspects) == (Weather.SUSPECT, 2)


def test_only_our_own_limits_and_bugs_are_not_the_destinations_fault() -> None:
    """A connection limit of ours must not close the destination's lane."""
    assert {
        Cause.CONNECTION_LIMIT_REACHED, Cause.PROXY_INTERNAL_ERROR, Cause.CLOSING,
    } == OURS  # fmt: skip


def test_a_500_counts_against_the_lane_after_five_messages() -> None:
    """A bug for one message is not an outage."""
    assert judge(response(500)).suspects == 5


def test_503_with_retry_after_parks_the_lane_and_without_it_is_bad() -> None:
    """Who says when to come back is not dead."""
    assert judge(response(503)).weather is Weather.BAD
    assert judge(response(503, (b"Retry-After", b"3"))).weather is Weather.PARKED
    assert judge(response(503, (b"retry-after", b"soon"))).weather is Weather.BAD
    dated = response(503, (b"Retry-After", b"Wed, 21 Oct 2015 07:28:00 GMT"))
    assert judge(dated).weather is Weather.PARKED
    assert judge(response(502, (b"Retry-After", b"3"))).weather is Weather.BAD


@pytest.mark.parametrize("status", range(100, 600))
def test_what_may_be_repeated_was_not_processed_or_is_repeatable_by_itself(status: int) -> None:
    """RFC 9110 §9.2.2: after "maybe applied" only what is repeatable goes out again."""
    judged = judge(response(status))
    assert repeatable(judged, repeat=True)
    assert repeatable(judged, repeat=False) == (status in (408, 421, 425, 429))


@pytest.mark.parametrize("cause", list(Cause))
def test_what_was_never_sent_may_always_be_repeated(cause: Cause) -> None:
    """Nothing reached the destination, so nothing can have been applied."""
    assert repeatable(judge(Failure(cause, "", Sent.NEVER)), repeat=False)
    assert not repeatable(judge(Failure(cause, "", Sent.MAYBE)), repeat=False)


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        (b"0", 0),
        (b"1", 1_000),
        (b" 120 ", 120_000),
        (b"007", 7_000),
        (b"21600", RETRY_AFTER_MAX_MS),
        (b"21601", RETRY_AFTER_MAX_MS),
        (b"9999999999", RETRY_AFTER_MAX_MS),
        (b"99999999999", None),
        (b"-1", None),
        (b"+1", None),
        (b"1.5", None),
        (b"1e3", None),
        (b"", None),
        (b"\xb2", None),
        (b"\xd9\xa3", None),
        (b"soon", None),
        (b"Wed, 99 Oct 2015 07:28:00 GMT", None),
        (b"Wed, 21 Oct 2015 07:28:00", None),
    ],
)
def test_retry_after_in_seconds(value: bytes, wait_ms: int | None) -> None:
    """delay-seconds of RFC 9110 §10.2.3, cut to six hours; what cannot be read is not there."""
    answer = response(503, (b"Retry-After", value))
    assert retry_after(answer, now=NOW) == wait_ms


@pytest.mark.parametrize(
    "form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"]
)
def test_retry_after_as_each_of_the_three_dates(form: str) -> None:
    """A recipient must read all three forms of HTTP-date (RFC 9110 §5.6.7)."""
    at = datetime.fromtimestamp(NOW / 1000 + 90, UTC)
    answer = response(503, (b"Retry-After", at.strftime(form).encode()))
    assert retry_after(answer, now=NOW) == 90_000
    assert retry_after(answer) == 0
    assert judge(answer).weather is Weather.PARKED


def test_asctime_pads_the_day_with_a_space() -> None:
    """`Sun Nov  6 08:49:37 1994` is the form of RFC 9110 §5.6.7."""
    answer = response(503, (b"Retry-After", b"Sun Nov  6 08:49:37 1994"))
    assert retry_after(answer, now=Instant(784_111_770_000)) == 7_000


def test_a_date_that_has_passed_is_now_and_one_far_off_is_cut() -> None:
    """Nobody waits a negative time, and nobody shall park us for ever."""
    past = response(503, (b"Retry-After", b"Wed, 21 Oct 2015 07:28:00 GMT"))
    future = response(503, (b"Retry-After", b"Fri, 31 Dec 2100 23:59:59 GMT"))
    assert retry_after(past, now=NOW) == 0
    assert retry_after(future, now=NOW) == RETRY_AFTER_MAX_MS


def test_the_first_retry_after_counts_and_a_failure_has_none() -> None:
    """Duplicates do not add up; without an answer there is no hint."""
    twice = response(503, (b"retry-after", b"2"), (b"Retry-After", b"9"))
    assert retry_after(twice, now=NOW) == 2_000
    assert retry_after(response(503), now=NOW) is None
    assert retry_after(Failure(Cause.DNS_ERROR, "", Sent.NEVER), now=NOW) is None


def test_the_cause_is_told_in_words() -> None:
    """A receipt says what happened, whether an answer came or not."""
    teapot = Response(status=500, reason=b"Oh \xff", fields=())
    assert cause_of(teapot) == (500, "500 Oh \xff")
    assert cause_of(response(502)) == (502, "502")
    failure = Failure(Cause.CONNECTION_REFUSED, "10.0.0.1:80", Sent.NEVER)
    assert cause_of(failure) == (0, "connection_refused: 10.0.0.1:80")
    assert cause_of(Failure(Cause.DNS_ERROR, "", Sent.NEVER)) == (0, "dns_error")
