"""Messages: fingerprints, keys and seals."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unspool.core.message import (
    IDEMPOTENT_METHODS,
    JSON_FINGERPRINT_MAX_BYTES,
    NEVER,
    SAFE_METHODS,
    Destination,
    Instant,
    Key,
    Request,
    fingerprint,
    identify,
    mint,
    seal,
)

SECRET = b"s" * 32
HOME = Destination("http://home")
JSON = b"application/json"


def request(
    body: bytes = b"", *, media: bytes | None = JSON, method: bytes = b"POST",
    target: bytes = b"/orders", more: tuple[tuple[bytes, bytes], ...] = (),
) -> Request:  # fmt: skip
    fields = () if media is None else ((b"Content-Type", media),)
    return Request(method, target, (*more, *fields), body)


def same(a: Request, b: Request) -> bool:
    return fingerprint(a) == fingerprint(b)


# --- fingerprints -----------------------------------------------------------------------------

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner
    ),
    max_leaves=12,
)  # fmt: skip


@given(documents, st.randoms(use_true_random=False))
def test_json_is_the_same_in_any_order_of_members_and_with_any_white_space(
    document: object, random: object
) -> None:
    """C4: what a library writes differently today is still the same order."""

    def shuffled(value: object) -> object:
        if isinstance(value, dict):
            items = list(value.items())
            random.shuffle(items)  # type: ignore[attr-defined]
            return {name: shuffled(inner) for name, inner in items}
        if isinstance(value, list):
            return [shuffled(inner) for inner in value]
        return value

    one = json.dumps(document, ensure_ascii=False).encode()
    two = json.dumps(shuffled(document), indent=3, ensure_ascii=True).encode()
    assert same(request(one), request(two))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (b"1.0", b"1.00"),
        (b"1", b"1.0"),
        (b"1e2", b"100"),
        (b"1e2", b"1E2"),
        (b"0.1", b"0.10"),
        (b"1e400", b"1e401"),
        (b"0.1000000000000000000001", b"0.1000000000000000000002"),
        (b"18446744073709551616", b"18446744073709551617"),
        (b"9007199254740992", b"9007199254740993"),
        (b"1", b'"1"'),
        (b"null", b"false"),
        (b"[1,2]", b"[2,1]"),
        (b'{"a":1}', b'{"a":1,"b":null}'),
        (b'"a"', b'"A"'),
        (b'"\\u0000number"', b'"number"'),
        (b'{"\\u0000number":"1.0"}', b"1.0"),
        (b'[{"a":1.5}]', b'[{"a":1.50}]'),
    ],
)
def test_json_that_means_another_thing_is_another_request(one: bytes, two: bytes) -> None:
    """Numbers count as written: what is one amount to some is two to others."""
    assert not same(request(one), request(two))
    assert same(request(one), request(b" " + one + b"\n"))


@pytest.mark.parametrize(
    "media",
    [
        b"application/json",
        b"application/json; charset=utf-8",
        b"application/vnd.api+json",
        b"text/json",
    ],
)
def test_every_json_media_type_is_compared_by_meaning(media: bytes) -> None:
    """And the media type itself in any case."""
    one, two = request(b'{"a":1,"b":2}', media=media), request(b'{"b":2, "a":1}', media=media)
    assert same(one, two)
    assert same(one, request(b'{"a":1,"b":2}', media=media.upper()))


@pytest.mark.parametrize("media", [None, b"text/plain", b"application/x-www-form-urlencoded"])
def test_everything_else_is_compared_by_bytes(media: bytes | None) -> None:
    """No guessing at what a body might mean."""
    assert not same(request(b'{"a":1}', media=media), request(b'{"a": 1}', media=media))
    assert same(request(b'{"a":1}', media=media), request(b'{"a":1}', media=media))


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a":1}{"a":1}', b"[1,]", b"NaN", b"\xff", b'"\\ud800"', b"[" * 5000]
)
def test_json_that_is_none_is_compared_by_bytes(body: bytes) -> None:
    """A body that lies about its type is still itself and no other."""
    assert same(request(body), request(body))
    assert not same(request(body), request(body + b" "))


def test_large_json_is_compared_by_bytes() -> None:
    """Beyond the limit, reading it twice would cost more than it tells."""
    filler = b'"' + b"x" * JSON_FINGERPRINT_MAX_BYTES + b'"'
    assert not same(request(b"[" + filler + b"]"), request(b"[ " + filler + b"]"))


def form(boundary: bytes, *parts: bytes, media: bytes = b"multipart/form-data") -> Request:
    body = b"".join(b"--" + boundary + b"\r\n\r\n" + part + b"\r\n" for part in parts)
    kind = media + b"; boundary=" + boundary
    return request(body + b"--" + boundary + b"--\r\n", media=kind)


boundaries = st.from_regex(rb"[A-Za-z0-9'()+_./:=?-]{1,80}", fullmatch=True)
pieces = st.lists(st.binary(max_size=30), max_size=3)


@given(boundaries, boundaries, pieces)
@example(one=b"'", two=b"-", parts=[])
@example(one=b"--", two=b"b", parts=[b"x"])
@example(one=b"a" * 71, two=b"b" * 72, parts=[b"x"])
def test_a_form_with_a_new_boundary_is_the_same_form(
    one: bytes, two: bytes, parts: list[bytes]
) -> None:
    """C10: a sender who tries again makes a new boundary. It stands in none of the parts. Those of
    Werkzeug have 63 to 72 characters, as the time and chance will have it."""
    if not any(boundary in part for boundary in (one, two) for part in parts):
        assert same(form(one, *parts), form(two, *parts))


@given(pieces, pieces)
def test_a_form_with_other_parts_is_another_form(one: list[bytes], two: list[bytes]) -> None:
    """C10: the boundary is left out, the marks of where parts begin and end are not."""
    assert same(form(b"b0undary", *one), form(b"b0undary", *two)) == (one == two)


def test_a_part_that_looks_like_two_is_one() -> None:
    """C9: a form cannot be cut differently and look the same, for all that its part says."""
    assert not same(form(b"a1", b"\r\n--\r\n\r\n"), form(b"a1", b"", b""))
    assert not same(form(b"a1", b"x\r\n--\r\n\r\ny"), form(b"a1", b"x", b"y"))


def test_a_form_that_is_cut_too_often_is_compared_by_bytes() -> None:
    """A boundary of one letter costs no more than another."""
    body = b"--a" * 100_000
    one, two = (request(body, media=b"multipart/mixed; boundary=" + b) for b in (b"a", b"aa"))
    assert not same(one, two)
    assert same(one, one)


def test_only_forms_have_boundaries() -> None:
    """A word that is called so elsewhere is a word, and what is no form is compared by bytes."""
    for media in (b"text/plain", b"application/json"):
        assert not same(form(b"a1", b"x", media=media), form(b"b2", b"x", media=media))
    assert same(form(b'"a 1"', b"x"), form(b'"a 1"', b"x"))
    assert not same(
        form(b"a1", b"x"), request(form(b"a1", b"x").body, media=b"multipart/form-data")
    )
    assert not same(form(b"a1", b"x"), form(b"a1", b"x", media=b"multipart/mixed"))


def test_method_target_query_and_media_type_count() -> None:
    """C2, C3: the key is not all there is."""
    seen = {
        fingerprint(each)
        for each in (
            request(b"1"), request(b"1", method=b"PUT"), request(b"1", target=b"/orders/"),
            request(b"1", target=b"/orders?a=1"), request(b"1", target=b"/orders?a=2"),
            request(b"1", media=b"text/plain"), request(b"1", media=None), request(b"2"),
        )
    }  # fmt: skip
    assert len(seen) == 8


def test_fields_that_change_from_try_to_try_do_not_count() -> None:
    """C5: request ids, user agents and traces are new each time."""
    again = request(b"1", more=((b"X-Request-Id", b"2"), (b"traceparent", b"00-2")))
    assert same(request(b"1", more=((b"X-Request-Id", b"1"),)), again)


def test_a_request_cannot_be_cut_differently_and_look_the_same() -> None:
    """C9: `/orders/12` with `3` is not `/orders/123`."""
    assert not same(
        request(b"3", target=b"/orders/12", media=None),
        request(b"", target=b"/orders/123", media=None),
    )
    assert not same(request(b"b", media=b"a"), request(b"", media=b"ab"))
    assert not same(
        request(b"x", method=b"PO", target=b"ST/"), request(b"x", method=b"POST", target=b"/")
    )


parts = st.binary(max_size=12)


@given(st.tuples(parts, parts, parts, parts), st.tuples(parts, parts, parts, parts))
def test_equal_prints_are_equal_requests(
    a: tuple[bytes, bytes, bytes, bytes], b: tuple[bytes, bytes, bytes, bytes]
) -> None:
    """Over all cuts of small byte strings (as text, so that bytes are what counts)."""
    one, two = (
        request(r[0], method=r[1], target=r[2], media=b"text/" + r[3].lower()) for r in (a, b)
    )
    assert same(one, two) == (one == two)


def test_a_print_is_sixteen_bytes() -> None:
    """Short enough to keep a hundred million of."""
    assert len(fingerprint(request(b"x" * 10_000))) == 16


# --- keys -------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=20)
scopes = st.tuples(st.binary(max_size=20), st.binary(max_size=20))


@given(scopes, scopes, names, names, st.sampled_from(["http://a", "http://b"]))
def test_a_key_belongs_to_one_scope_one_destination_and_one_name(
    scope: tuple[bytes, bytes], other: tuple[bytes, bytes], name: str, second: str, where: str
) -> None:
    """I10: equal keys of two callers are two requests."""
    here = identify(SECRET, scope=scope, destination=HOME, name=name)
    assert identify(SECRET, scope=list(scope), destination=HOME, name=name) == here
    assert (identify(SECRET, scope=other, destination=HOME, name=name) == here) == (scope == other)
    assert (identify(SECRET, scope=scope, destination=HOME, name=second) == here) == (
        name == second
    )
    assert identify(SECRET, scope=scope, destination=Destination(where), name=name) != here


def test_scopes_cannot_be_cut_differently_and_look_the_same() -> None:
    """`ab` and nothing is not `a` and `b`."""
    keys = {
        identify(SECRET, scope=scope, destination=HOME, name="k")
        for scope in ([b"ab", b""], [b"a", b"b"], [b"", b"ab"], [b"ab"], [b"a\0b"], [])
    }
    assert len(keys) == 6


def test_without_the_secret_nobody_can_compute_a_key() -> None:
    """Whoever holds a receipt cannot try passwords against it."""
    mine = identify(SECRET, scope=[b"Bearer x"], destination=HOME, name="k")
    assert identify(b"t" * 32, scope=[b"Bearer x"], destination=HOME, name="k") != mine
    assert identify(b"", scope=[b"Bearer x"], destination=HOME, name="k") != mine


@given(scopes, names)
def test_a_key_is_twenty_two_opaque_characters(scope: tuple[bytes, bytes], name: str) -> None:
    """Every spool holds short keys of one shape."""
    key = identify(SECRET, scope=scope, destination=HOME, name=name)
    assert len(key) == 22
    assert set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.integers(0, 2**43), st.integers(1, 2**42), st.binary(min_size=11, max_size=11))
def test_minted_keys_sort_by_time(now: int, later: int, chance: bytes) -> None:
    """A spool appends rather than scatters."""
    first = mint(now=Instant(now), chance=chance)
    second = mint(now=Instant(now + later), chance=b"\0" * 11)
    assert first < second
    assert len(first) == len(second) == 22


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))
def test_minted_keys_of_one_instant_differ_by_chance(a: bytes, b: bytes) -> None:
    """64 bits of the chance are in the key."""
    one, two = (mint(now=Instant(5), chance=c + b"\0\0\0") for c in (a, b))
    assert (one == two) == (a == b)


# --- the seal ---------------------------------------------------------------------------------


class Rest:
    """A body that is still on its way."""

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def test_a_seal_is_the_request_with_its_envelope() -> None:
    """Written once; the print is the request's unless the caller has it already."""
    asked = request(b'{"a":1}')
    message = seal(
        asked, key=Key("k"), name="n", destination=HOME, now=Instant(7), lifetime_ms=10,
        nonce=b"x" * 16, repeat=False, order_key="o",
    )  # fmt: skip
    assert message.request == asked
    assert (message.accepted_at, message.expires_at) == (7, 17)
    assert message.fingerprint == fingerprint(asked)
    assert (message.key, message.name, message.order_key, message.repeat) == ("k", "n", "o", False)
    given_ = seal(
        asked, key=Key("k"), name="n", destination=HOME, now=Instant(7), lifetime_ms=10,
        nonce=b"", repeat=True, print_=b"print",
    )  # fmt: skip
    assert given_.fingerprint == b"print"


def test_what_is_not_here_cannot_be_promised() -> None:
    """I1: a body that still streams is not sealed."""
    with pytest.raises(AssertionError, match="I1"):
        seal(
            Request(b"POST", b"/", (), b"", Rest()), key=Key("k"), name="", destination=HOME,
            now=Instant(0), lifetime_ms=1, nonce=b"", repeat=True,
        )  # fmt: skip


def test_methods_are_what_rfc_9110_says() -> None:
    """§9.2: safe ones change nothing, idempotent ones intend no more than once."""
    assert {b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"QUERY"} == SAFE_METHODS
    assert SAFE_METHODS | {b"PUT", b"DELETE"} == IDEMPOTENT_METHODS
    assert not {b"POST", b"PATCH"} & IDEMPOTENT_METHODS


def test_never_is_exact_in_every_language() -> None:
    """JavaScript numbers and Redis scores hold it."""
    assert float(NEVER) == NEVER
    assert float(NEVER) != float(NEVER - 1)
