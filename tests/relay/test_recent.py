"""Recent answers: bounded, oldest out first, and never younger than they are."""

from __future__ import annotations

from unspool.core.lifecycle import State
from unspool.core.message import Destination, Instant, Key, Message, Response
from unspool.recent import BODY_MAX_BYTES, OVERHEAD_BYTES, Recent
from unspool.spools.protocol import Entry


def entry(name: str, body: bytes = b"") -> Entry:
    message = Message(
        Key(name), b"print", Destination("d"), Instant(0), Instant(9), b"n" * 16, name=name
    )
    return Entry(message, State.DELIVERED, Instant(0), answer=Response(200, b"", (), body))


def test_what_was_kept_is_found_until_it_is_dropped() -> None:
    recent = Recent()
    kept = entry("a")
    recent.keep(kept)
    assert recent.get(Key("a")) is kept
    assert recent.get(Key("b")) is None
    recent.drop(Key("a"))
    recent.drop(Key("a"))
    assert recent.get(Key("a")) is None
    assert recent.size_bytes == 0


def test_the_oldest_go_first_and_the_bound_holds() -> None:
    recent = Recent(bytes_max=3 * (OVERHEAD_BYTES + 100))
    for name in ("a", "b", "c", "b", "d"):
        recent.keep(entry(name, b"x" * 100))
    assert [name for name in "abcd" if recent.get(Key(name))] == ["b", "c", "d"]
    recent.keep(entry("e", b"x" * (OVERHEAD_BYTES + 200)))
    assert [name for name in "bcde" if recent.get(Key(name))] == ["d", "e"]
    assert recent.size_bytes <= 3 * (OVERHEAD_BYTES + 100)


def test_a_large_answer_is_left_to_the_spool() -> None:
    recent = Recent()
    recent.keep(entry("a", b"x" * BODY_MAX_BYTES))
    assert recent.get(Key("a")) is None
    assert recent.size_bytes == 0
