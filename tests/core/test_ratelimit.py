"""Rate limits as servers tell them, in each of the forms there are."""

from __future__ import annotations

import pytest

from unspool.core.message import Cause, Failure, Response, Sent
from unspool.core.outcome import RETRY_AFTER_MAX_MS
from unspool.core.ratelimit import exhausted_ms


@pytest.mark.parametrize(
    ("fields", "ms"),
    [
        ({"RateLimit": '"default";r=0;t=30'}, 30_000),
        ({"RateLimit": '"default";r=50;t=30'}, None),
        ({"RateLimit": '"a";r=5;t=3, "b";r=0;t=7, "c";r=0;t=60'}, 60_000),
        ({"RateLimit": '"default";r=0'}, None),
        ({"RateLimit": "limit=100, remaining=0, reset=9"}, 9_000),
        ({"RateLimit": "limit=100, remaining=1, reset=9"}, None),
        ({"RateLimit": '"broken'}, None),
        ({"RateLimit": "\x00"}, None),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "5"}, 5_000),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "5"}, 5_000),
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "5"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1790000000"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"}, None),
        ({"RateLimit": '"week";r=0;t=600000'}, RETRY_AFTER_MAX_MS),
        ({}, None),
    ],
)
def test_how_long_there_is_nothing(fields: dict[str, str], ms: int | None) -> None:
    pairs = tuple((name.encode(), value.encode("latin-1")) for name, value in fields.items())
    assert exhausted_ms(Response(200, b"", pairs)) == ms


def test_no_answer_says_nothing() -> None:
    assert exhausted_ms(Failure(Cause.DNS_ERROR, "", Sent.NEVER)) is None
