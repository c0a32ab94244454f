"""Write the golden cases from the tables in unspool.core, as JSON for every language.

    python vectors/make.py          write vectors/*.json
    python vectors/make.py --check  exit 1 if a file is not what would be written

The cases are made by the code; that they say the right thing is a person's to judge in the diff.
README.md beside this file says what each member means.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

from unspool.core.handover import Unfit, pack, unpack
from unspool.core.message import (
    NEVER,
    Answer,
    Cause,
    Destination,
    Failure,
    Instant,
    Key,
    Message,
    Request,
    Response,
    Sent,
    fingerprint,
)
from unspool.core.outcome import judge, repeatable, retry_after
from unspool.core.schedule import Pace, next_due, spread
from unspool.house.lines import Brought, line, read
from unspool.house.lines import Unfit as UnfitLine

HERE = Path(__file__).parent
NOW = Instant(1_750_000_000_000)
DAY = 86_400_000

Case = dict[str, Any]


# --- outcome.json -----------------------------------------------------------------------------


def outcome_case(answer: Answer) -> Case:
    """What an answer means; the input is everything but `expect`."""
    judged = judge(answer)
    case: Case
    if isinstance(answer, Response):
        case = {"status": answer.status}
        if answer.fields:
            case["retry_after"] = answer.fields[0][1].decode("latin-1")
    else:
        case = {"cause": answer.cause.value, "sent": answer.sent.value}
    case["expect"] = {
        "outcome": judged.outcome.value,
        "sent": judged.sent.value,
        "weather": judged.weather.value,
        "suspects": judged.suspects,
        "repeatable_always": repeatable(judged, repeat=False),
        "retry_after_ms": retry_after(answer, now=NOW),
    }
    return case


def outcome_cases() -> list[Case]:
    answers: list[Answer] = [
        Response(status=status, reason=b"", fields=()) for status in range(100, 600)
    ]
    answers += [
        Response(status=status, reason=b"", fields=((b"Retry-After", hint),))
        for status in (429, 500, 502, 503)
        for hint in RETRY_AFTER
    ]
    answers += [Failure(cause, "", sent) for cause in Cause for sent in (Sent.NEVER, Sent.MAYBE)]
    return [outcome_case(answer) for answer in answers]


RETRY_AFTER = (
    b"0", b"1", b" 120 ", b"21600", b"21601", b"9999999999", b"99999999999", b"-1", b"1.5", b"",
    b"soon", b"Sun, 15 Jun 2025 15:08:10 GMT", b"Sunday, 15-Jun-25 15:08:10 GMT",
    b"Sun Jun 15 15:08:10 2025", b"Wed, 21 Oct 2015 07:28:00 GMT", b"Fri, 31 Dec 2100 23:59:59 GMT",
)  # fmt: skip


# --- schedule.json ----------------------------------------------------------------------------


def schedule_case(
    *, key: str, attempt: int, age_ms: int, left_ms: int, retry_after_ms: int | None, pace: Pace
) -> Case:
    message = Message(
        key=Key(key), fingerprint=b"", destination=Destination(""), nonce=b"",
        accepted_at=Instant(NOW - age_ms), expires_at=Instant(NOW + left_ms),
    )  # fmt: skip
    due = next_due(message, attempt=attempt, now=NOW, retry_after_ms=retry_after_ms, pace=pace)
    return {
        "key": key,
        "attempt": attempt,
        "age_ms": age_ms,
        "left_ms": left_ms,
        "retry_after_ms": retry_after_ms,
        "least_ms": pace.least_ms,
        "most_ms": pace.most_ms,
        "expect": {"spread": spread(Key(key), attempt), "wait_ms": due - NOW},
    }


def schedule_cases() -> list[Case]:
    keys = ("AAAAAAAAAAAAAAAAAAAAAA", "dGhlIHF1aWNrIGJyb3duIG", "0197742f3e0Zm9vYmFyYmF6")
    ages = (-DAY, 0, 1, 999, 1_000, 1_001, 60_000, 3_599_999, 3_600_000, 5 * DAY, 2**52)
    cases = [
        schedule_case(
            key=key, attempt=attempt, age_ms=age, left_ms=5 * DAY, retry_after_ms=None, pace=Pace()
        )
        for key in keys
        for attempt, age in enumerate(ages, start=1)
    ]
    cases += [
        schedule_case(
            key=keys[0], attempt=1, age_ms=0, left_ms=left, retry_after_ms=hint, pace=Pace()
        )
        for left in (-1, 0, 1, 500, 30_000, DAY)
        for hint in (None, 0, 1, 20_000, 3_600_000)
    ]
    cases += [
        schedule_case(
            key=keys[1], attempt=7, age_ms=90_000, left_ms=DAY, retry_after_ms=None,
            pace=Pace(least_ms=least, most_ms=most),
        )
        for least, most in ((1, 1), (100, 60_000), (120_000, 600_000))
    ]  # fmt: skip
    return cases


# --- fingerprint.json -------------------------------------------------------------------------


def fingerprint_case(
    why: str, body: bytes, *, media: bytes | None = b"application/json", method: bytes = b"POST",
    target: bytes = b"/orders",
) -> Case:  # fmt: skip
    fields = () if media is None else ((b"Content-Type", media),)
    return {
        "why": why,
        "method": method.decode(),
        "target": target.decode(),
        "content_type": None if media is None else media.decode(),
        "body": b64encode(body).decode(),
        "expect": fingerprint(Request(method, target, fields, body)).hex(),
    }


def form(boundary: bytes, item: bytes = b"tea") -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="item"\r\n\r\n%b\r\n--%b--\r\n' % (
        boundary, item, boundary,
    )  # fmt: skip


def fingerprint_cases() -> list[Case]:
    make = fingerprint_case
    return [
        make("an object", b'{"amount":10,"currency":"EUR"}'),
        make("the same in another order", b'{"currency":"EUR","amount":10}'),
        make("the same with white space", b' {\n "currency" : "EUR",\t"amount" : 10 }\r\n'),
        make("the same with escapes", b'{"\\u0061mount":10,"currency":"\\u0045UR"}'),
        make("the same, media type in capitals", b'{"amount":10,"currency":"EUR"}',
             media=b"Application/JSON"),
        make("another media type", b'{"amount":10,"currency":"EUR"}',
             media=b"application/json; charset=utf-8"),
        make("not JSON by its type", b'{"amount":10,"currency":"EUR"}', media=b"text/plain"),
        make("another number", b'{"amount":10.0,"currency":"EUR"}'),
        make("that number written otherwise", b'{"amount":10.00,"currency":"EUR"}'),
        make("that number with an exponent", b'{"amount":1e1,"currency":"EUR"}'),
        make("a number beyond 64 bits", b"18446744073709551616"),
        make("the next one", b"18446744073709551617"),
        make("a number beyond every float", b"1e400"),
        make("nested members are sorted too", b'{"b":[{"d":1,"c":2}],"a":null}'),
        make("nested, in order", b'{"a":null,"b":[{"c":2,"d":1}]}'),
        make("order in a list counts", b"[1,2]"),
        make("the other order", b"[2,1]"),
        make("JSON that is none", b'{"a":'),
        make("empty", b""),
        make("no media type", b"abc", media=None),
        make("another method", b"abc", media=None, method=b"PUT"),
        make("another target", b"abc", media=None, target=b"/orders/1"),
        make("another query", b"abc", media=None, target=b"/orders?a=1"),
        make("path and body, cut here", b"3", media=None, target=b"/orders/12"),
        make("path and body, cut there", b"", media=None, target=b"/orders/123"),
        make("bytes that are no text", bytes(range(256)), media=b"application/octet-stream"),
        make("a form", form(b"a1b2"), media=b"multipart/form-data; boundary=a1b2"),
        make("the form with another boundary", form(b"z9"),
             media=b"multipart/form-data; boundary=z9"),
        make("the form with its boundary in quotes", form(b"z 9"),
             media=b'Multipart/Form-Data; boundary="z 9"'),
        make("a form with another part", form(b"a1b2", b"coffee"),
             media=b"multipart/form-data; boundary=a1b2"),
        make("a form of another kind", form(b"a1b2"), media=b"multipart/mixed; boundary=a1b2"),
        make("a form that names no boundary", form(b"a1b2"), media=b"multipart/form-data"),
        make("the boundary, but no form", form(b"a1b2"), media=b"text/plain; boundary=a1b2"),
    ]  # fmt: skip


# --- handover.json ----------------------------------------------------------------------------


def handover_case(why: str, text: str) -> Case:
    case: Case = {"why": why, "text": text}
    try:
        found = unpack(text.encode("utf-8", "surrogatepass"))
    except Unfit:
        return case | {"expect": None}
    request = found.request
    case["expect"] = {
        "method": request.method.decode(),
        "target": request.target.decode(),
        "fields": [[name.decode(), value.decode("latin-1")] for name, value in request.fields],
        "body": b64encode(request.body).decode(),
        "key": found.key,
        "order": found.order_key,
        "expires_at": None if found.expires_at == NEVER else found.expires_at,
    }
    case["packed"] = pack(found).decode()
    return case


def handed(**members: Any) -> str:
    """The least there can be, and these members; None takes one away."""
    whole = {"unspool": 1, "method": "POST", "target": "/orders", "key": "order-7"} | members
    return json.dumps({name: value for name, value in whole.items() if value is not None})


def handover_cases() -> list[Case]:
    make = handover_case
    url = "https://shop.example:8443"
    return [
        make("the least", handed()),
        make("a body of text", handed(body='{"item": "té"}')),
        make("a body of bytes", handed(body_base64="AP8K")),
        make("bytes that are text", handed(body_base64="dGVh")),
        make("an empty body", handed(body="")),
        make("fields keep order, case and duplicates", handed(fields=[
            ["Content-Type", "a/b"], ["X-Twice", "1"], ["x-twice", "2"], ["X-No", ""]])),
        make("a value in Latin-1", handed(fields=[["X-Name", "caf\xe9"]])),
        make("an address instead of a target", handed(target=None, url=url + "/orders?a=1")),
        make("an address without a path", handed(target=None, url=url)),
        make("an address with a query alone", handed(target=None, url=url + "?a=1")),
        make("an IPv6 address", handed(target=None, url="http://[::1]:80/x")),
        make("the address is the host", handed(target=None, url=url + "/", fields=[
            ["Host", "elsewhere.example"], ["X-A", "1"]])),
        make("everything", handed(order="customer-9", expires_at=1750000060000, method="PUT")),
        make("a key with a quote", handed(key='a"b\\c')),
        make("the key as a field, too", handed(fields=[["idempotency-key", "order-7"]])),
        make("the key as a quoted field, too", handed(fields=[["Idempotency-Key", '"order-7"']])),
        make("OPTIONS of a whole server", handed(method="OPTIONS", target="*")),
        make("white space and another order", '\n{ "key":"k",\t"method":"GET" , "target":"/", '
             '"unspool":1 }\r\n'),
        make("not JSON", "POST /orders"),
        make("nothing", ""),
        make("JSON that goes on", handed() + handed()),
        make("not an object", "[]"),
        make("no version", handed(unspool=None)),
        make("another version", handed(unspool=2)),
        make("a version that is no number", handed(unspool="1")),
        make("a member that there is not", handed(ordr="customer-9")),
        make("no method", handed(method=None)),
        make("a method in small letters", handed(method="post")),
        make("a method with a space", handed(method="POST /x")),
        make("CONNECT", handed(method="CONNECT")),
        make("no target", handed(target=None)),
        make("a target and an address", handed(url=url + "/orders")),
        make("a target without its slash", handed(target="orders")),
        make("a target with a space", handed(target="/a b")),
        make("a target with an end of line", handed(target="/a\r\nX-A: 1")),
        make("a target with a fragment", handed(target="/a#b")),
        make("a target outside ASCII", handed(target="/é")),
        make("an asterisk of another method", handed(target="*")),
        make("an address of another kind", handed(target=None, url="ftp://shop.example/")),
        make("an address with a user", handed(target=None, url="https://a:b@shop.example/")),
        make("an address with a fragment", handed(target=None, url=url + "/#a")),
        make("no key", handed(key=None)),
        make("an empty key", handed(key="")),
        make("a blank key", handed(key=" ")),
        make("a key outside ASCII", handed(key="é")),
        make("a key of 256 characters", handed(key="k" * 256)),
        make("a key that is a number", handed(key=7)),
        make("another key as a field", handed(fields=[["Idempotency-Key", "order-8"]])),
        make("fields as an object", handed(fields={"X-A": "1"})),
        make("a field with a space in its name", handed(fields=[["X A", "1"]])),
        make("a field without a name", handed(fields=[["", "1"]])),
        make("a field with an end of line", handed(fields=[["X-A", "1\r\nX-B: 2"]])),
        make("a field with NUL", handed(fields=[["X-A", "\0"]])),
        make("a field with a space at its end", handed(fields=[["X-A", "1 "]])),
        make("a field outside Latin-1", handed(fields=[["X-A", "€"]])),
        make("a host that is none", handed(fields=[["Host", "a b"]])),
        make("two hosts", handed(fields=[["Host", "a"], ["host", "a"]])),
        make("the order as a field", handed(fields=[["Unspool-Order", "customer-9"]])),
        make("the deadline as a field", handed(fields=[["Unspool-Lifetime", "60"]])),
        make("two bodies", handed(body="", body_base64="")),
        make("base64 with a line break", handed(body_base64="AP8K\n")),
        make("base64 without its padding", handed(body_base64="AA")),
        make("base64 for URLs", handed(body_base64="__8=")),
        make("an order outside ASCII", handed(order="é")),
        make("a deadline in seconds", handed(expires_at=1750000060)),
        make("a deadline as text", handed(expires_at="1750000060000")),
        make("a deadline beyond all", handed(expires_at=2**53)),
        make("half of a character", '{"unspool":1,"method":"POST","target":"/","key":"k",'
             '"body":"\\ud800"}'),
    ]  # fmt: skip


# --- the files --------------------------------------------------------------------------------

# --- export.json ------------------------------------------------------------------------------


def export_case(why: str, text: str) -> Case:
    """A line of an export, what it says, and the same written by us."""
    case: Case = {"why": why, "text": text}
    try:
        found = read(text.encode("utf-8", "surrogatepass"))
    except UnfitLine:
        return case | {"expect": None}
    entry = found.entry if isinstance(found, Brought) else None
    case["expect"] = {"line": type(found).__struct_config__.tag if entry is None else "message"}
    if entry is not None:
        request, answer = entry.message.request, entry.answer
        case["expect"] |= {
            "key": entry.message.key,
            "state": entry.state.name.lower(),
            "held": entry.due_at == NEVER,
            "due_at": None if entry.due_at == NEVER else entry.due_at,
            "body": None if request is None else b64encode(request.body).decode(),
            "answer": None if answer is None else answer.status,
        }
    if not (isinstance(found, Brought) and found.leased):
        case["written"] = line(found if entry is None else entry).decode().rstrip("\n")
    return case


def exported(**members: Any) -> str:
    """A message that waits, and these members; None takes one away."""
    request = {"method": "POST", "target": "/orders", "fields": [["Host", "shop"]], "body": "dGVh"}
    whole = {
        "line": "message", "key": "k", "state": "waiting", "destination": "shop",
        "fingerprint": "AAE=", "nonce": "AgM=", "accepted_at": 1_750_000_000_000,
        "expires_at": 1_750_432_000_000, "due_at": 1_750_000_001_000, "request": request,
    } | members  # fmt: skip
    return json.dumps({name: value for name, value in whole.items() if value is not None})


def export_cases() -> list[Case]:
    make = export_case
    tried = {
        "number": 1,
        "at": 1_750_000_000_500,
        "status": 503,
        "cause": "503",
        "sent": "maybe applied",
    }
    settled = {"settled_at": 1_750_000_009_000, "keep_until": 1_752_592_009_000, "request": None}
    answer = {"status": 201, "reason": "Created", "fields": [["Location", "/7"]], "body": "AP8="}
    request = {"method": "POST", "target": "/", "fields": [], "body": ""}
    return [
        make("the head", '{"line":"export","version":1,"exported_at":1750000000000}'),
        make("the head, with the secret's mark",
             '{"line":"export","version":1,"exported_at":1750000000000,"secret_mark":"00ff"}'),
        make("a head of another version", '{"line":"export","version":2,"exported_at":1}'),
        make("the secret",
             '{"line":"secret","secret":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}'),
        make("the last line", '{"line":"end","messages":7}'),
        make("a message that waits", exported()),
        make("one with everything", exported(
            name="order-7", order_key="line", repeat=False, attempt=2, trail=[tried])),
        make("a member that nobody knows yet", exported(colour="green")),
        make("held", exported(due_at=None, held=True)),
        make("waiting, and nobody says until when", exported(due_at=None)),
        make("waiting without a request", exported(request=None)),
        make("in an attempt's hands", exported(leased=True, attempt=1)),
        make("delivered", exported(state="delivered", answer=answer, answer_until=1_750_086_409_000,
                                   **settled)),
        make("delivered, and the answer forgotten", exported(
            state="delivered", stored=False, **settled)),
        make("bounced", exported(state="bounced", reason="expired", trail=[tried], **settled)),
        make("bounced for a reason there is not", exported(state="bounced", reason="x", **settled)),
        make("settled, and not until when it is known", exported(
            state="bounced", reason="expired")),
        make("a claim", exported(state="claimed")),
        make("bytes in a field, as Latin-1", exported(
            request=request | {"fields": [["X", "caf\u00e9 \u00ff"]]})),
        make("a character that is no byte", exported(
            request=request | {"fields": [["X", "\u20ac"]]})),
        make("a field with a line in it", exported(
            request=request | {"fields": [["X", "a\r\nB: c"]]})),
        make("a name that is no token", exported(request=request | {"fields": [["X Y", "a"]]})),
        make("a target with a space", exported(request=request | {"target": "/ HTTP/1.1"})),
        make("a body that is no base64", exported(request=request | {"body": "!"})),
        make("an instant after the last", exported(expires_at=2**53)),
        make("no JSON", '{"line":"message",'),
        make("no line of ours", '{"line":"note"}'),
    ]  # fmt: skip


FILES = {
    "export.json": export_cases,
    "outcome.json": outcome_cases,
    "schedule.json": schedule_cases,
    "fingerprint.json": fingerprint_cases,
    "handover.json": handover_cases,
}


def text_of(name: str) -> str:
    """A whole file: one case a line, so that a diff shows cases."""
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in FILES[name]())
    return f"[\n{lines}\n]\n"


def main(arguments: list[str]) -> int:
    stale = [name for name in FILES if not _is(name)]
    if arguments == ["--check"]:
        for name in stale:
            print(f"vectors/{name} is not what vectors/make.py writes", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(text_of(name), encoding="ascii")
        print(f"wrote vectors/{name}")
    return 0


def _is(name: str) -> bool:
    path = HERE / name
    return path.exists() and path.read_text(encoding="ascii") == text_of(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
