"""Idempotency: reading keys (conformance A1 to A7, A13), and `recall` over all it can know."""

from __future__ import annotations

import itertools
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.core.idempotency import (
    KEY_CHARS_MAX,
    Do,
    Unreadable,
    minted_at,
    read_key,
    recall,
    uuid7,
    worth_remembering,
)
from unspool.core.lifecycle import Reason, State
from unspool.core.message import Destination, Instant, Key, Message, Response

NOW = Instant(1_750_000_000_000)
MINE, THEIRS = b"1" * 16, b"2" * 16
ANSWER = Response(status=200, reason=b"OK", fields=(), body=b"hello")


class Known(msgspec.Struct):
    """What a spool says of a key."""

    message: Message
    state: State
    leased_until: Instant = Instant(0)
    reason: str = ""
    answer: Response | None = None
    keep_until: Instant = Instant(0)
    answer_until: Instant = Instant(0)


def known(state: State, *, print_: bytes = MINE, **more: object) -> Known:
    message = Message(
        key=Key("k" * 22), fingerprint=print_, destination=Destination("http://d"), nonce=b"",
        accepted_at=NOW, expires_at=NOW,
    )  # fmt: skip
    return Known(message, state, **more)  # type: ignore[arg-type]


# --- the key ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b'"k-1"', "k-1"),  # A1
        (b"k-1", "k-1"),  # A2: quoted and bare are one key
        (b'  "k-1"\t', "k-1"),
        (b"  k-1  ", "k-1"),
        (b'"a\\"b"', 'a"b'),  # A3
        (b'"a\\\\b"', "a\\b"),
        (b'"k";v=1', "k"),  # A4: parameters are read over
        (b'"k"; v=1;w', "k"),
        (b'"a, b"', "a, b"),  # a comma inside the quotes is the sender's own
        (b'"a b"', "a b"),
        (b"a b", "a b"),
        (b"8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b"Zm9v/+==", "Zm9v/+=="),
        (b"k;v=1", "k;v=1"),  # a bare key has no parameters
        (b"'; DROP TABLE message; --", "'; DROP TABLE message; --"),  # A13: opaque
        (b"a:b:{c}", "a:b:{c}"),
        (b"?1", "?1"),
        (b":aGVsbG8=:", ":aGVsbG8=:"),
        (b'"' + b"x" * KEY_CHARS_MAX + b'"', "x" * KEY_CHARS_MAX),
        (b"x" * KEY_CHARS_MAX, "x" * KEY_CHARS_MAX),
    ],
)
def test_a_key_is_read_as_its_sender_means_it(value: bytes, name: str) -> None:
    """A1 to A4: as the draft writes keys and as the world does."""
    assert read_key([value]) == name


@pytest.mark.parametrize(
    "values",
    [
        [b'"a'],  # A3: unbalanced
        [b'a"'],
        [b'"'],
        [b'"a\\x"'],  # A3: a bad escape
        [b'"\xc3\xa9"'],  # A3: not ASCII
        [b"\xe9"],
        [b'"a"', b'"b"'],  # A5
        [b"a", b"a"],
        [b'"a", "b"'],
        [b"a,b"],
        [b'"a" "b"'],
        [b""],  # A6
        [b" \t "],
        [b'""'],
        [b'"   "'],
        [b'"' + b"x" * (KEY_CHARS_MAX + 1) + b'"'],  # A7
        [b"x" * (KEY_CHARS_MAX + 1)],
        [b"a\x00b"],  # A13
        [b'"a\x1fb"'],
        [b"a\x7fb"],
        [b"a\r\nb"],
        [b'"a"; V=1'],
    ],
)
def test_a_key_that_cannot_be_read_is_refused_and_not_repeated(values: list[bytes]) -> None:
    """A3 to A7, A13: a reason in words of ours, with nothing of the value in them."""
    read = read_key(values)
    assert isinstance(read, Unreadable)
    assert read.why
    assert "xxx" not in read.why
    assert "DROP" not in read.why


def test_no_field_is_no_key() -> None:
    """A10: what names nothing is never deduplicated."""
    assert read_key([]) is None


@given(st.lists(st.binary(max_size=300), max_size=3))
def test_read_key_is_total(values: list[bytes]) -> None:
    """Whatever bytes come, there is a key, a reason or nothing; never an exception."""
    read = read_key(values)
    if not values:
        assert read is None
    elif not isinstance(read, Unreadable):
        assert read is not None
        assert 0 < len(read) <= KEY_CHARS_MAX
        assert read.isascii()
        assert read.isprintable()


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_every_printable_key_can_be_written_in_quotes(name: str) -> None:
    """A1, A2: the quoted form reads back to the name; so does the bare one, where it is allowed."""
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    read = read_key([quoted.encode()])
    assert read == name or (not name.strip() and isinstance(read, Unreadable))
    if not set(name) & {",", '"'} and name.strip() == name:
        assert read_key([name.encode()]) == name


def test_the_operator_says_how_long_a_key_may_be() -> None:
    """A7 with another limit."""
    assert read_key([b"abcd"], chars_max=4) == "abcd"
    assert isinstance(read_key([b"abcde"], chars_max=4), Unreadable)


# --- recall -----------------------------------------------------------------------------------

TIMES = (NOW - 1, NOW, NOW + 1)


@pytest.mark.parametrize(
    ("state", "print_", "leased", "keep", "answer_until", "answer", "reason"),
    list(
        itertools.product(State, (MINE, THEIRS), TIMES, TIMES, TIMES, (None, ANSWER), ("", *Reason))
    ),
)
def test_recall_is_total_over_what_can_be_known(
    state: State,
    print_: bytes,
    leased: int,
    keep: int,
    answer_until: int,
    answer: Response | None,
    reason: str,
) -> None:
    """One table of states, fingerprints and times; each cell has the one right thing to do."""
    entry = known(
        state, print_=print_, leased_until=leased, keep_until=keep, answer_until=answer_until,
        answer=answer, reason=reason,
    )  # fmt: skip
    what = recall(entry, fingerprint=MINE, now=NOW)
    settled = state in (State.DELIVERED, State.BOUNCED)
    if settled and keep <= NOW:
        assert what.do is Do.RUN  # J6: too old is too old, swept or not
    elif print_ != MINE:
        assert (what.do, what.problem) == (Do.REFUSE, "key-reused")
    elif state is State.WAITING:
        assert what.do is Do.ATTACH
    elif state is State.CLAIMED:
        assert what.do is (Do.WAIT if leased > NOW else Do.RUN)
    elif state is State.DELIVERED:
        if answer is not None and answer_until > NOW:
            assert what.do is Do.REPLAY
        else:
            assert (what.do, what.problem) == (Do.REFUSE, "expired")
    elif reason == Reason.UNKNOWN:
        assert (what.do, what.problem) == (Do.REFUSE, "outcome-unknown")
    elif reason == Reason.MOVED:
        assert (what.do, what.problem) == (Do.REFUSE, "moved")
    else:
        assert (what.do, what.problem) == (Do.REFUSE, "bounced")
    assert (what.do is Do.REFUSE) == bool(what.problem)


def test_what_nobody_knows_is_run() -> None:
    """C6: another key is another request."""
    assert recall(None, fingerprint=MINE, now=NOW).do is Do.RUN


def test_a_mismatch_is_no_oracle() -> None:
    """C7: the refusal is the same whatever the first request was and became."""
    answers = {
        recall(
            known(state, print_=THEIRS, keep_until=Instant(NOW + 9), answer=ANSWER),
            fingerprint=MINE, now=NOW,
        )
        for state in State
    }  # fmt: skip
    assert len(answers) == 1


@pytest.mark.parametrize("status", range(200, 500))
def test_what_is_about_the_moment_is_not_remembered(status: int) -> None:
    """G1, G2: 401, 403 and 407 run again; every other lasting answer is the answer."""
    assert worth_remembering(Response(status, b"", ())) == (status not in (401, 403, 407))


def test_a_conflict_that_passes_is_not_the_answer() -> None:
    """409 with Retry-After says that the first is still being tried (IETF draft §2.7): the answer
    is still to come. Without it, it is the answer (G1)."""
    assert worth_remembering(Response(409, b"", ()))
    assert not worth_remembering(Response(409, b"", ((b"Retry-After", b"1"),)))


def test_a_key_of_ours_tells_when_it_was_made() -> None:
    """A UUIDv7 (RFC 9562 §5.7), of any chance there is."""
    for chance in (bytes(10), b"\xff" * 10, bytes(range(10))):
        key = uuid7(now=Instant(1_790_000_000_123), chance=chance)
        assert str(uuid.UUID(key)) == key
        assert (uuid.UUID(key).version, uuid.UUID(key).variant) == (7, uuid.RFC_4122)
        assert minted_at(key) == 1_790_000_000_123
    assert uuid7(now=Instant(1), chance=bytes(10)) < uuid7(now=Instant(2), chance=bytes(10))
