"""Fields: which end here, which go on, which are kept, which are served from our own origin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.core.fields import (
    HOP_BY_HOP,
    NOT_KEPT,
    ORIGIN_WIDE,
    PROTECTED,
    harmless,
    kept,
    onward,
    values,
)
from unspool.core.kinds import Kinds

HOST = (b"Host", b"example.com")


def names(fields: object) -> list[bytes]:
    return [name for name, _ in fields]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_fields_end_here(name: bytes) -> None:
    """RFC 9110 §7.6.1, in whatever case they come."""
    into = onward([HOST, (name.title(), b"x"), (name.upper(), b"y"), (b"X-Mine", b"1")])
    assert into.fields == [HOST, (b"X-Mine", b"1")]


def test_what_connection_names_ends_here_too() -> None:
    """A sender may declare its own hop-by-hop fields."""
    fields = [
        HOST, (b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"connection", b" x-other ,"),
        (b"X-Other", b"2"), (b"X-End", b"3"), (b"x-hop", b"4"),
    ]  # fmt: skip
    assert onward(fields).fields == [HOST, (b"X-End", b"3")]


@pytest.mark.parametrize("name", sorted(PROTECTED - {b"content-length", b"host"}))
def test_a_sender_may_not_have_a_protecting_field_removed(name: bytes) -> None:
    """`Connection: authorization` would otherwise log somebody out on the way."""
    into = onward([HOST, (b"Connection", name), (name, b"v")])
    assert (name, b"v") in into.fields


def test_host_goes_on_even_where_connection_names_it() -> None:
    """There is exactly one, and it is seen."""
    into = onward([(b"Connection", b"host"), HOST])
    assert into.fields == [HOST]
    assert (into.host, into.hosts) == (b"example.com", 1)


field_names = st.sampled_from([b"X-A", b"x-a", b"Accept", b"COOKIE", b"Set-Thing", b"Content-Type"])


@given(st.lists(st.tuples(field_names, st.binary(max_size=8)), max_size=20))
def test_everything_else_goes_on_in_order_case_and_number(
    fields: list[tuple[bytes, bytes]],
) -> None:
    """End-to-end fields are somebody else's words: not one is altered, merged or moved."""
    assert onward(fields).fields == fields


def test_what_speaks_to_us_is_read_and_mostly_goes_on() -> None:
    """Keys, preferences, Via, order and traceparent are for the service as well."""
    fields = [
        HOST, (b"Idempotency-Key", b'"k"'), (b"Prefer", b"wait=3"), (b"PREFER", b"respond-async"),
        (b"Via", b"1.1 a"), (b"Unspool-Order", b" o "), (b"Traceparent", b"00-1"),
    ]  # fmt: skip
    into = onward(fields)
    assert into.fields == fields
    assert into.keys == [b'"k"']
    assert into.prefers == [b"wait=3", b"respond-async"]
    assert into.vias == [b"1.1 a"]
    assert (into.order, into.traceparent) == (b"o", True)


def test_what_is_only_for_us_does_not_go_on() -> None:
    """Framing is written anew; the attempt number is ours to say; Expect is between two hops."""
    fields = [
        HOST, (b"Unspool-Lifetime", b" 60 "), (b"Unspool-Attempt", b"9"),
        (b"Expect", b"100-continue"), (b"Content-Length", b"3"),
    ]  # fmt: skip
    into = onward(fields)
    assert into.fields == [HOST]
    assert into.lifetime == b"60"


@pytest.mark.parametrize(
    ("value", "upgrade"), [(b"Upgrade", True), (b"keep-alive, UPGRADE", True), (b"close", False)]
)
def test_an_upgrade_is_seen_and_does_not_pass(value: bytes, upgrade: bool) -> None:
    """The relay does not do that."""
    into = onward([HOST, (b"Connection", value), (b"Upgrade", b"websocket")])
    assert into.upgrade is upgrade
    assert into.fields == [HOST]


def test_two_requests_share_nothing() -> None:
    """A list that outlived its request would give one caller's key to the next."""
    onward([(b"Idempotency-Key", b"a"), (b"Prefer", b"wait=1"), HOST])
    assert onward([]).keys == []
    assert onward([]).fields == []


# --- of an answer -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NOT_KEPT))
def test_what_belongs_to_one_exchange_is_not_kept(name: bytes) -> None:
    """B4: cookies, challenges, framing, dates."""
    fields = ((name.title(), b"x"), (b"Location", b"/o/1"), (name, b"y"))
    assert kept(fields) == ((b"Location", b"/o/1"),)


@given(st.lists(st.tuples(st.sampled_from([b"ETag", b"Link", b"LINK"]), st.binary(max_size=4))))
def test_what_is_kept_keeps_order_case_and_number(fields: list[tuple[bytes, bytes]]) -> None:
    """B1, B3: a replay is the same answer."""
    assert kept(fields) == tuple(fields)


@pytest.mark.parametrize("name", sorted(ORIGIN_WIDE | NOT_KEPT))
def test_nothing_that_speaks_for_our_whole_origin_is_served(name: bytes) -> None:
    """A stored answer is somebody else's bytes at our address."""
    fields = [(name.upper(), b"x"), (b"Content-Type", b"text/html"), (name, b"y")]
    assert harmless(fields) == [(b"Content-Type", b"text/html")]


def test_the_dangerous_ones_are_on_the_list() -> None:
    """The list itself, so that nobody shortens it by accident."""
    assert {
        b"strict-transport-security", b"clear-site-data", b"service-worker-allowed", b"alt-svc",
        b"access-control-allow-origin", b"access-control-allow-credentials", b"refresh",
        b"content-security-policy", b"x-content-type-options", b"nel", b"report-to",
    } <= ORIGIN_WIDE  # fmt: skip
    assert {b"set-cookie", b"www-authenticate"} <= NOT_KEPT


def test_values_finds_every_one_in_order() -> None:
    """Whatever the case of the name."""
    fields = [(b"A", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert values(fields, b"a") == [b"1", b"3"]
    assert names(fields) == [b"A", b"b", b"a"]


def test_a_stranger_with_many_names_costs_no_memory_and_nothing_afterwards() -> None:
    """Names are learnt in bounded number, and ours again when his have been forgotten."""
    asked: list[bytes] = []

    def classify(name: bytes) -> int:
        asked.append(name)
        return len(name)

    kinds = Kinds(classify)
    for number in range(3 * Kinds.NAMES_MAX):
        assert kinds[b"X-%d" % number] == len(b"X-%d" % number)
        assert len(kinds) <= Kinds.NAMES_MAX
    asked.clear()
    assert [kinds[b"Ours"] for _ in range(5)] == [4] * 5
    assert asked == [b"ours"]
    long = b"a" * (Kinds.NAME_MAX_BYTES + 1)
    assert kinds[long] == len(long)
    assert long not in kinds
