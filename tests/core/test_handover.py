"""The form of a handed-over message: what is read, what is refused, and with which words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.core.handover import FIELDS_MAX, HEAD_MAX_BYTES, Handover, Unfit, pack, unpack
from unspool.core.message import NEVER, Instant, Request

LEAST = {"unspool": 1, "method": "POST", "target": "/orders", "key": "order-7"}


def written(**members: object) -> bytes:
    whole = LEAST | members
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"POST /orders", "JSON is malformed"),
        (b"\xff\xfe", "JSON is malformed|utf-8|UTF-8"),
        (written(method=None), "missing required field `method`"),
        (written(ordr="x"), "unknown field `ordr`"),
        (written(key=7), r"Expected `str`, got `int` - at `\$.key`"),
        (written(unspool=2), "another version; this one reads 1"),
        (written(target=None), "one of `target` and `url`"),
        (written(method="post"), "in capitals"),
        (written(fields=[["X-A", "a\r\nb"]]), "the value of the field X-A"),
        (written(fields=[["Unspool-Lifetime", "60"]]), "is the member `expires_at`"),
        (written(expires_at=1_750_000_000), "milliseconds"),
        (written(fields=[["Idempotency-Key", "other"]]), "do not agree"),
        (written(fields=[["X-A", "a"]] * (FIELDS_MAX + 1)), f"at most {HEAD_MAX_BYTES} bytes"),
        (written(fields=[["X-A", "a" * HEAD_MAX_BYTES]]), f"at most {HEAD_MAX_BYTES} bytes"),
        (b'{"unspool":' + b"[" * 5000, "recursion|malformed|truncated|Expected"),
    ],
)
def test_a_refusal_says_which_member(payload: bytes, says: str) -> None:
    """Whoever writes by hand finds the mistake by the sentence alone."""
    with pytest.raises(Unfit, match=says):
        unpack(payload)


def test_a_refusal_repeats_no_values() -> None:
    """Bodies, fields and keys are somebody's secrets, and sentences are logged."""
    for members in ({"fields": [["Authorization", "s3cret\n"]]}, {"key": "s3cret\n"}):
        with pytest.raises(Unfit) as caught:
            unpack(written(**members))
        assert "s3cret" not in str(caught.value)


fields = st.lists(
    st.tuples(
        st.sampled_from([b"X-A", b"x-a", b"Content-Type", b"Authorization"]),
        st.binary(max_size=20).map(lambda value: bytes(b for b in value if b > 32 and b != 127)),
    ),
    max_size=5,
)


@given(
    method=st.sampled_from([b"POST", b"PUT", b"GET", b"PROPFIND"]),
    target=st.text("abc/?&=%.", max_size=20).map(lambda text: b"/" + text.encode()),
    fields=fields,
    body=st.binary(max_size=50) | st.text(max_size=20).map(str.encode),
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255),
    expires_at=st.integers(10**11, NEVER) | st.none(),
)
def test_what_is_packed_is_read_again(
    method: bytes,
    target: bytes,
    fields: list[tuple[bytes, bytes]],
    body: bytes,
    key: str,
    expires_at: int | None,
) -> None:
    """Every byte, and the same bytes for the same request: a queue tells repeats by them."""
    until = NEVER if expires_at is None else Instant(expires_at)
    handover = Handover(Request(method, target, tuple(fields), body), key, "customer-9", until)
    payload = pack(handover)
    found = unpack(payload)
    assert (found.key, found.order_key, found.expires_at) == (key, "customer-9", until)
    request = found.request
    assert (request.method, request.target, request.body) == (method, target, body)
    assert list(request.fields[:-1]) == fields
    assert request.fields[-1][0] == b"Idempotency-Key"
    assert unpack(pack(found)) == found
    assert pack(handover) == payload


@pytest.mark.parametrize(
    "request_",
    [
        Request(b"POST", "/é".encode(), ()),
        Request(b"POST", b"/a b", ()),
        Request(b"POST", b"/", ((b"X A", b""),)),
        Request(b"POST", b"/", ((b"X-A", b"1\r\nX-B: 2"),)),
        Request(b"CONNECT", b"/", ()),
    ],
)
def test_nothing_is_packed_that_nobody_could_read(request_: Request) -> None:
    """A request that would be refused far away, hours later, is refused here and now."""
    with pytest.raises(Unfit):
        pack(Handover(request_, "k"))
