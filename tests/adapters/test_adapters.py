"""Every adapter: the answers, the errors and `Saved`, over sockets, asked as its library asks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ports import free_port
from unspool import Accepted, Delivered, Queued, Rejected, Undelivered
from unspool.errors import Misconfigured, Saved, Unacceptable

from .libraries import LIBRARIES
from .service import SLOW_S, Service, service

NOBODY = f"http://127.0.0.1:{free_port()}"

IN_TIME = 20.0
"""A deadline for what ends by itself: of it a fifth, two seconds at most, is for the outbox."""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def one() -> Iterator[Service]:
    with service() as found:
        yield found


@pytest.fixture(autouse=True)
def _forgets(one: Service) -> None:
    one.asked.clear()


@pytest.fixture(params=[name for name in LIBRARIES if name != "httpx async"])
def library(request: pytest.FixtureRequest) -> Open:
    return LIBRARIES[request.param]


@pytest.fixture(params=[name for name in LIBRARIES if name != "aiohttp"])
def with_ours(request: pytest.FixtureRequest) -> Open:
    """Those whose responses can carry our result."""
    return LIBRARIES[request.param]


def test_a_normal_answer_is_a_normal_response(library: Open, one: Service) -> None:
    """Status, fields, body; the key is on the wire, as is what the caller gave."""
    with library(one.url, one.url) as session:
        answer = session.ask("POST", "/orders?a=%26&b=", json={"tea": 1}, headers={"X-Own": "a, b"})
    assert answer.status == 201
    told = json.loads(answer.body)
    assert json.loads(told["body"]) == {"tea": 1}
    assert told["type"] == "application/json"
    [asked] = one.asked
    assert asked.path == "/orders?a=%26&b="
    assert asked.fields["idempotency-key"].count("-") == 4
    assert asked.fields["host"] == one.url.removeprefix("http://")
    assert asked.fields["x-own"] == "a, b"


def test_what_became_of_it_is_with_the_response(with_ours: Open, one: Service) -> None:
    with with_ours(one.url, one.url) as session:
        assert isinstance(session.ask("POST", "/orders", json=1).ours, Delivered)
        assert isinstance(session.ask("POST", "/wrong", json=1).ours, Rejected)


def test_4xx_is_a_response_and_never_retried(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        answer = session.ask("POST", "/wrong", json=1)
    assert (answer.status, answer.body) == (422, b'{"why":"no tea"}')
    assert len(one.asked) == 1


def test_another_server_is_tried_under_the_same_key(library: Open, one: Service) -> None:
    with library(NOBODY, [NOBODY, one.url]) as session:
        for _ in range(4):
            assert session.ask("POST", "/orders", json=1).status == 201
    assert len(set(one.keys())) == 4


def test_what_nobody_took_is_saved_and_sent_later(
    library: Open, one: Service, tmp_path: Path
) -> None:
    """`Saved` says under which key, and is none of the library's errors."""
    box = str(tmp_path / "o.db")
    with library(NOBODY, NOBODY, outbox=box) as session:
        with pytest.raises(Saved, match="k-1: it is in the outbox") as caught:
            session.ask(
                "POST", "/orders", json=1, headers={"Idempotency-Key": "k-1"}, timeout=IN_TIME
            )
        assert not isinstance(caught.value, session.every_error | OSError)
        assert caught.value.key == "k-1"
        assert caught.value.request.method == "POST"  # type: ignore[attr-defined]
        assert isinstance(caught.value.result, Queued)
        with pytest.raises(Saved):  # who tries again repeats it, and does not do it twice
            session.ask(
                "POST", "/orders", json=1, headers={"Idempotency-Key": '"k-1"'}, timeout=IN_TIME
            )
    with library(one.url, one.url, outbox=box, destination=NOBODY) as session:
        assert session.drain().waiting == 0
    assert one.keys() == ['"k-1"']


def test_what_a_relay_took_is_saved_with_its_receipt(library: Open, relay: str) -> None:
    with library(NOBODY, NOBODY, queues=[relay]) as session:
        with pytest.raises(Saved, match="has taken responsibility") as caught:
            session.ask("POST", "/orders", json=1, timeout=IN_TIME)
        assert isinstance(caught.value.result, Accepted)
        assert caught.value.receipt.url.startswith(relay)  # type: ignore[attr-defined]


def test_where_nobody_has_it_the_library_says_so(library: Open, one: Service) -> None:
    """Never sent: its connection error. Sent, and no answer: its reading error. The `Undelivered`
    with our request is the cause."""
    with library(NOBODY, NOBODY) as session:
        with pytest.raises(session.connect_error, match="was not delivered") as caught:
            session.ask("POST", "/orders", json=1, timeout=IN_TIME)
        assert isinstance(caught.value.__cause__, Undelivered)
        assert not caught.value.__cause__.maybe_applied
    with library(one.url, one.url) as session:
        with pytest.raises(session.read_error) as caught:
            session.ask("POST", "/gone", json=1, timeout=IN_TIME)
        assert caught.value.__cause__.maybe_applied  # type: ignore[union-attr]
        assert len(set(one.keys())) == 1, "each attempt under the one key"


def test_the_librarys_timeout_is_the_deadline(library: Open, one: Service) -> None:
    ours_s = SLOW_S  # else ten seconds: they might be taken for the library's
    with library(one.url, one.url, deadline=ours_s) as session:
        began = time.monotonic()
        for deadline_s in (0.4, 2, 5):
            with pytest.raises(session.every_error) as caught:
                session.ask("GET", "/slow", timeout=deadline_s)
            if one.asked:  # so slow may a machine be: it had not even been sent by then
                break
        assert isinstance(caught.value, session.late_error)
        assert time.monotonic() - began < SLOW_S - 5, "it would take thirty"


def test_a_503_that_stands_is_a_response(library: Open, one: Service) -> None:
    """As without an adapter: code that reads `Retry-After` goes on to."""
    with library(one.url, one.url) as session:
        answer = session.ask("POST", "/busy", json=1, timeout=IN_TIME)
    assert (answer.status, answer.body) == (503, b"busy")
    assert answer.fields.get("Retry-After") or answer.fields["retry-after"]


def test_head_and_no_content(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        answer = session.ask("HEAD", "/large")
        assert (answer.status, answer.body) == (200, b"")
        assert {k.lower(): v for k, v in answer.fields.items()}["content-length"] == "3000000"
        assert session.ask("DELETE", "/empty").status == 204


def test_encodings_are_the_librarys_work(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        answer = session.ask("GET", "/zipped")
        assert answer.body == b"tea" * 1000
        assert {k.lower(): v for k, v in answer.fields.items()}["content-encoding"] == "gzip"
        assert session.ask("GET", "/chunks").body == b"teateatea"


def test_cookies_are_kept_and_sent(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        session.ask("GET", "/cookies")
        told = json.loads(session.ask("GET", "/echo").body)
    assert sorted(told["fields"]["cookie"].split("; ")) == ["a=1", "b=2"]


def test_a_large_answer_is_whole_and_a_too_large_one_an_error(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        assert session.ask("GET", "/large").body == b"x" * 3_000_000
    with (
        library(one.url, one.url, answer_max_bytes=1_000_000) as session,
        pytest.raises(session.large_error, match=r"too large|not completed"),
    ):
        session.ask("GET", "/large")


def test_a_body_that_can_be_read_once_is_kept(library: Open, one: Service, tmp_path: Path) -> None:
    box = str(tmp_path / "o.db")
    with library(NOBODY, NOBODY, outbox=box) as session, pytest.raises(Saved):
        session.ask("POST", "/orders", content=iter([b"te", b"a"]), timeout=IN_TIME)
    with library(one.url, one.url, outbox=box, destination=NOBODY) as session:
        assert session.drain().waiting == 0
    assert [asked.body for asked in one.asked] == [b"tea"]


def test_a_body_too_large_to_be_kept_is_refused_with_a_sentence(
    library: Open, one: Service
) -> None:
    with library(one.url, one.url, body_max_bytes=1000) as session:
        for body in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
            with pytest.raises(Unacceptable, match="Nothing was sent"):
                session.ask("POST", "/orders", content=body)
    assert not one.asked


def test_files_go_as_multipart(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        session.ask("POST", "/orders", files={"picture": ("tea.png", b"\x00png")})
    [asked] = one.asked
    assert asked.fields["content-type"].startswith("multipart/form-data")
    assert b"\x00png" in asked.body
    assert asked.fields["content-length"] == str(len(asked.body))


def test_redirects_are_followed_by_the_library(library: Open, one: Service) -> None:
    """With its body, to another path: as another request, under a key of its own that is the same
    each time. To a GET: without a key."""
    with library(one.url, one.url) as session:
        for _ in range(2):
            answer = session.ask("POST", "/moved", json=1, headers={"Idempotency-Key": "k"})
            assert answer.url.endswith("/orders/moved")
            assert json.loads(json.loads(answer.body)["body"]) == 1
        first, second, *again = one.keys()
        assert first == '"k"'
        assert second.startswith('"k-')
        assert again == [first, second]
        told = json.loads(session.ask("POST", "/see", json=1).body)
        assert told["method"] == "GET"
        assert "idempotency-key" not in told["fields"]


def test_a_redirect_elsewhere_takes_along_nothing_of_the_named_servers(
    library: Open, one: Service
) -> None:
    with (
        service() as other,
        library(one.url, one.url, headers={"X-Secret": "s"}, auth="Bearer s") as session,
    ):
        one.elsewhere = other.url
        told = json.loads(session.ask("GET", "/elsewhere").body)
        assert not {"x-secret", "authorization"} & set(told["fields"])
    assert one.asked[0].fields["authorization"] == "Bearer s"


def test_without_servers_each_origin_is_on_its_own(library: Open, one: Service) -> None:
    with service() as other, library(one.url) as session:
        assert session.ask("POST", "/orders", json=1).status == 201
        assert session.ask("GET", "", url=other.url + "/echo").status == 200
    assert (len(one.asked), len(other.asked)) == (1, 1)


@pytest.mark.parametrize("option", ["queues", "headers", "auth", "destination"])
def test_what_belongs_to_one_service_wants_its_name(option: str) -> None:
    given = {"queues": ["http://r.example"], "headers": {"a": "b"}, "auth": "t", "destination": "d"}
    with pytest.raises(Misconfigured, match="no servers are named"):
        LIBRARIES["requests"]("http://a.example", **{option: given[option]})


def test_an_option_that_does_not_exist_is_said_at_once() -> None:
    with pytest.raises(Misconfigured, match="Did you mean outbox"):
        LIBRARIES["requests"]("http://a.example", outbx="o.db")


def test_words_of_ours_are_taken_off(library: Open, one: Service, tmp_path: Path) -> None:
    """What is contended is kept nowhere, and the field stays here."""
    with (
        library(NOBODY, NOBODY, outbox=str(tmp_path / "o.db")) as session,
        pytest.raises(session.connect_error),
    ):
        session.ask("POST", "/o", json=1, headers={"Unspool-Contended": "?1"}, timeout=IN_TIME)
    with library(one.url, one.url) as session:
        fields = {"Unspool-Order": "c-7", "Unspool-Lifetime": "60"}
        session.ask("POST", "/orders", json=1, headers=fields)
        with pytest.raises(Unacceptable, match="number of seconds"):
            session.ask("POST", "/orders", json=1, headers={"Unspool-Lifetime": "soon"})
    assert not {"unspool-order", "unspool-lifetime"} & set(one.asked[-1].fields)


def test_auth_that_asks_twice_stays_one_request(with_ours: Open, one: Service) -> None:
    with with_ours(one.url, one.url) as session:
        assert session.ask("POST", "/guarded", json=1, digest=True).status == 201
    assert len(set(one.keys())) == 1
    assert len(one.asked) == 2


def test_a_key_used_for_another_request_is_refused(library: Open, one: Service) -> None:
    with library(one.url, one.url) as session:
        session.ask("POST", "/orders", json=1, headers={"Idempotency-Key": "k"})
        with pytest.raises(Unacceptable, match="was used for another request"):
            session.ask("POST", "/orders", json=2, headers={"Idempotency-Key": "k"})
    assert len(one.asked) == 1


@pytest.mark.parametrize("name", ["httpx", "requests", "aiohttp"])
def test_a_missing_package_says_its_pip_line(name: str) -> None:
    """And `import unspool` loads none of them."""
    code = f"""
import sys
import unspool
assert not {{"httpx", "httpx2", "requests", "aiohttp"}} & set(sys.modules)
for missing in ("httpx", "httpx2", "requests", "aiohttp"):
    sys.modules[missing] = None
try:
    import unspool.{name}
except unspool.errors.Missing as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install" in out.stdout, out.stderr


def test_the_modules_shadow_nothing() -> None:
    code = (
        "import unspool, httpx, requests, aiohttp; import unspool.httpx, unspool.requests,"
        " unspool.aiohttp; assert unspool.httpx.Transport and httpx.Client and requests.Session"
        " and aiohttp.ClientSession; assert unspool.httpx is not httpx"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
