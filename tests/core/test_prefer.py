"""Prefer: what is read, and that nothing is ever an error (RFC 7240)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.core.prefer import NONE, Wishes, read_prefer

MAX = 60_000


@pytest.mark.parametrize(
    ("values", "wishes"),
    [
        ([], NONE),
        ([b"respond-async"], Wishes(respond_async=True)),
        ([b"Respond-Async"], Wishes(respond_async=True)),
        ([b"wait=10"], Wishes(wait_ms=10_000)),
        ([b"WAIT=10"], Wishes(wait_ms=10_000)),
        ([b'wait="10"'], Wishes(wait_ms=10_000)),
        ([b"wait = 10"], Wishes(wait_ms=10_000)),
        ([b"respond-async, wait=10"], Wishes(respond_async=True, wait_ms=10_000)),
        ([b"wait=10", b"respond-async"], Wishes(respond_async=True, wait_ms=10_000)),
        ([b"respond-async; foo=bar, wait=7; x"], Wishes(respond_async=True, wait_ms=7_000)),
        ([b"wait=1, wait=9"], Wishes(wait_ms=1_000)),
        ([b"wait=1", b"wait=9"], Wishes(wait_ms=1_000)),
        ([b"wait=0"], NONE),
        ([b"wait=600"], Wishes(wait_ms=MAX)),
        ([b"wait=999999999"], Wishes(wait_ms=MAX)),
        ([b"wait=9999999999"], NONE),
        ([b"wait=-1"], NONE),
        ([b"wait=1.5"], NONE),
        ([b"wait=soon"], NONE),
        ([b"wait=\xb2"], NONE),
        ([b"wait"], NONE),
        ([b"return=minimal, handling=lenient"], NONE),
        ([b""], NONE),
        ([b",;=,"], NONE),
    ],
)
def test_a_wish_is_read_or_ignored(values: list[bytes], wishes: Wishes) -> None:
    """The first of each counts; what is not understood is as if it were not there (§2)."""
    assert read_prefer(values, wait_max_ms=MAX) == wishes


@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(0, 10**6))
def test_no_wish_is_ever_an_error_or_longer_than_allowed(values: list[bytes], most: int) -> None:
    """Total over bytes; `wait` is within the operator's limit."""
    assert 0 <= read_prefer(values, wait_max_ms=most).wait_ms <= most
