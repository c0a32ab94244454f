"""The WSGI middleware in process: what the application is given, and what its caller gets."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from wsgi_kit import Answer, Environ, Orders, by_user, call, environ_of, refereed

from unspool.clock import SystemClock
from unspool.core.message import Instant, Request, fingerprint
from unspool.ingress.asgi import target_of as asgi_target_of
from unspool.middleware.running import Running
from unspool.middleware.wsgi import Idempotency, fields_of, target_of
from unspool.middleware.wsgi_call import WSGICall

Answering = Callable[[Environ, Any], Iterable[bytes]]
PLAIN = [("Content-Type", "text/plain")]


def made(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("201 Created", [*PLAIN, ("Location", "/orders/7")])
    return [b"or", b"der 7"]


class Shop:
    """An application behind the middleware, and a caller."""

    def __init__(self, answer: Answering = made, *, bare: bool = False, **options: Any) -> None:
        self.orders = Orders(answer)
        given = {"spool": "memory:", "scope": by_user, "survives": "nothing"} | options
        self.made: list[Idempotency] = []

        def wrap(app: Any) -> Idempotency:
            self.made.append(Idempotency(app, **given))
            return self.made[0]

        self.app = wrap(self.orders) if bare else refereed(self.orders, wrap)

    def post(self, body: bytes = b"{}", **environ: Any) -> Answer:
        return call(self.app, environ_of(body=body, **environ))

    def close(self) -> None:
        self.made[0].close()


@pytest.fixture
def open_shop() -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def make(*arguments: Any, **options: Any) -> Shop:
        shops.append(Shop(*arguments, **options))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


OpenShop = Callable[..., Shop]


def test_a_repeat_gets_the_same_answer_and_nothing_runs(open_shop: OpenShop) -> None:
    """Status, fields and body; the first caller is told for how long keys are kept."""
    shop = open_shop()
    first, again = shop.post(key='"k1"'), shop.post(key="k1")
    assert shop.orders.count == shop.orders.closed == 1
    assert (first.status, first.body) == ("201 Created", b"order 7")
    assert (again.status, again.body, again["Location"]) == ("201 Created", b"order 7", "/orders/7")
    assert first["Idempotency-Retention"] == "answer=86400, key=2592000"
    assert not first["Idempotent-Replayed"]
    assert again["Idempotent-Replayed"] == "true"
    assert again["Cache-Control"] == "no-store"
    assert again["Content-Length"] == "7"


def test_twice_around_one_application_is_once(open_shop: OpenShop) -> None:
    """The inner one sees that the request runs under a key, as the ASGI one does: one record, and
    one mark of each kind."""
    inner = open_shop(bare=True)  # the referee does not know what is ours in the environ
    outer = Idempotency(inner.app, spool="memory:", scope=by_user, survives="nothing", name="out")
    try:
        first, again = (call(outer, environ_of(body=b"{}", key="k1")) for _ in "12")
    finally:
        outer.close()
    assert (first.code, again.code, inner.orders.count) == (201, 201, 1)
    for answer in (first, again):
        assert answer["Idempotency-Retention"] == "answer=86400, key=2592000"
    assert (first["Idempotent-Replayed"], again["Idempotent-Replayed"]) == ("", "true")


def test_another_body_under_the_key_is_refused(open_shop: OpenShop) -> None:
    """422, and the first is unharmed."""
    shop = open_shop()
    shop.post(key="k1", body=b'{"a": 1, "b": 2}')
    assert shop.post(key="k1", body=b'{"a": 2}').code == 422
    assert shop.post(key="k1", body=b'{"b":2,"a":1}').code == 201
    assert shop.orders.count == 1


def test_each_caller_has_keys_of_its_own(open_shop: OpenShop) -> None:
    shop = open_shop()
    shop.post(key="k1", fields={"X-User": "ann"})
    answer = shop.post(key="k1", fields={"X-User": "bob"})
    assert shop.orders.count == 2
    assert not answer["Idempotent-Replayed"]


def test_without_a_key_nothing_is_touched(open_shop: OpenShop) -> None:
    """The application gets the server's own environ and start_response; no thread is made."""
    seen: list[Any] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen[:] = [environ, start_response]
        return seen

    middleware = Idempotency(app, spool="memory:", scope=by_user, survives="nothing")
    before = set(threading.enumerate())
    stream = io.BytesIO(b"abc")
    for method, key in (("POST", None), ("GET", "k1"), ("HEAD", "k1"), ("PUT", "k1")):
        environ = environ_of(method, key=key, **{"wsgi.input": stream})
        copy = dict(environ)

        def start_response(*_: object) -> None: ...

        assert middleware(environ, start_response) is seen
        assert seen[0] is environ
        assert seen[1] is start_response
        assert environ == copy
        assert stream.tell() == 0
    assert set(threading.enumerate()) <= before  # of the tests before this one some may end


@pytest.mark.parametrize(
    ("key", "code"),
    [("", 400), ('"k', 400), ("k1, k2", 400), ('"k1","k2"', 400), ("k" * 256, 400), ("k\xe9", 400)],
)
def test_a_key_that_cannot_be_read_is_refused(open_shop: OpenShop, key: str, code: int) -> None:
    """Servers join two fields with a comma; neither they nor others run anything."""
    shop = open_shop()
    assert shop.post(key=key).code == code
    assert shop.orders.count == 0


def test_the_handler_runs_in_the_servers_thread_and_knows_its_run(open_shop: OpenShop) -> None:
    seen: list[Any] = []

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        running = environ["unspool"]
        assert isinstance(running, Running)
        seen.append((threading.get_ident(), running.name, running.child_key("charge")))
        return made(environ, start_response)

    open_shop(answer).post(key="k1")
    assert seen[0][:2] == (threading.get_ident(), "k1")
    assert len(seen[0][2]) == 32


class ByHand:
    """A clock that goes when it is told to: no pause of the machine ends a lease."""

    def __init__(self) -> None:
        self.ms = SystemClock().now()

    def now(self) -> Instant:
        return Instant(self.ms)


def leased_until(file: Path) -> int:
    database = apsw.Connection(str(file))  # the spool's own library: see `spools.sqlite.file`
    try:
        [(until,)] = database.execute("SELECT max(leased_until) FROM message")
        return int(until)
    finally:
        database.close()


def test_a_slow_handler_keeps_its_claim(open_shop: OpenShop, tmp_path: Path) -> None:
    """The portal's loop renews it while the handler sits in the server's thread (F2)."""
    file, lease_ms, clock = tmp_path / "idem.db", 300, ByHand()
    runs, ends = threading.Event(), threading.Event()

    def slow(environ: Environ, start_response: Any) -> Iterable[bytes]:
        runs.set()
        assert ends.wait(60)
        return made(environ, start_response)

    options: dict[str, Any] = {"survives": "nothing", "lease_ms": lease_ms}
    first, second = (open_shop(slow, spool=f"sqlite:///{file}", **options) for _ in "12")
    for shop in (first, second):
        shop.made[0]._opening.clock = clock  # type: ignore[misc]
    thread = threading.Thread(target=first.post, kwargs={"key": "k1"})
    thread.start()
    assert runs.wait(60)
    first_lease = leased_until(file)
    give_up_at = time.monotonic() + 60
    while clock.now() <= first_lease:
        clock.ms += lease_ms // 2
        while leased_until(file) < clock.now() + lease_ms:
            assert time.monotonic() < give_up_at, "it is not renewed"
            time.sleep(0.01)
    assert second.post(key="k1").code == 409
    ends.set()
    thread.join()
    assert second.post(key="k1").code == 201
    assert (first.orders.count, second.orders.count) == (1, 0)


# --- the request's body -----------------------------------------------------------------------


def test_the_body_is_given_back(open_shop: OpenShop) -> None:
    """Whole, with its length, wherever the server had it from."""
    shop = open_shop()
    shop.post(b'{"item": "tea"}', key="k1")
    assert shop.orders.bodies == [b'{"item": "tea"}']


class Chunks(io.BytesIO):
    """A server's stream: it gives little at a time, and ends by itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size if size is not None and size >= 0 else 3, 3))


def test_a_chunked_body_is_read_where_the_server_ends_it(open_shop: OpenShop) -> None:
    """`wsgi.input_terminated`; the application gets it with a Content-Length and not chunked."""
    seen: list[Any] = []

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ.get("HTTP_TRANSFER_ENCODING"))
        return made(environ, start_response)

    shop = open_shop(answer)
    chunked: dict[str, Any] = {
        "CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": Chunks(b"0123456789"), "wsgi.input_terminated": True,
    }  # fmt: skip
    assert shop.post(key="k1", **chunked).code == 201
    assert shop.orders.bodies == [b"0123456789"]
    assert seen == [None]
    del chunked["wsgi.input_terminated"]
    refused = shop.post(key="k2", **chunked)
    assert refused.code == 400
    assert b"Content-Length" in refused.body


def test_no_length_means_no_body(open_shop: OpenShop) -> None:
    """PEP 3333: a server that does not say where a body ends must not be read from."""
    shop = open_shop()
    assert shop.post(key="k1", CONTENT_LENGTH=None).code == 201
    assert shop.post(key="k2", CONTENT_LENGTH="").code == 201
    assert shop.orders.bodies == [b"", b""]


class Breaks(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise ConnectionResetError("gone")


@pytest.mark.parametrize("stream", [Chunks(b"abc"), Breaks()])
def test_a_body_that_breaks_off_does_not_run(open_shop: OpenShop, stream: io.BytesIO) -> None:
    """Half a request is none; whole, it may come under the same key."""
    shop = open_shop()
    broken: dict[str, Any] = {"wsgi.input": stream, "CONTENT_LENGTH": "10"}
    assert shop.post(key="k1", **broken).code == 400
    assert shop.orders.count == 0
    assert shop.post(b"0123456789", key="k1").code == 201


@pytest.mark.parametrize("length", ["-1", "1e3", "ten", "+5", "\xb2"])
def test_a_length_that_is_none_is_refused(open_shop: OpenShop, length: str) -> None:
    shop = open_shop(bare=True)
    assert shop.post(key="k1", CONTENT_LENGTH=length).code == 400


def test_a_body_over_the_limit_is_refused_before_it_is_read(open_shop: OpenShop) -> None:
    """413; a chunked one is read as far as shows it."""
    shop = open_shop(body_max_bytes=10)
    stream = io.BytesIO(b"x" * 11)
    declared: dict[str, Any] = {"wsgi.input": stream, "CONTENT_LENGTH": "11"}
    assert shop.post(key="k1", **declared).code == 413
    assert stream.tell() == 0
    chunked: dict[str, Any] = {
        "wsgi.input": stream, "CONTENT_LENGTH": None, "wsgi.input_terminated": True
    }  # fmt: skip
    assert shop.post(key="k1", **chunked).code == 413
    assert shop.post(b"x" * 10, key="k1").code == 201


# --- who is asking ----------------------------------------------------------------------------


def raises(environ: Environ) -> str:
    raise LookupError("who?")


async def later(environ: Environ) -> str:
    return "ann"


@pytest.mark.parametrize(
    ("scope", "code"),
    [
        (lambda environ: None, 403),
        (lambda environ: "", 403),
        (raises, 500),
        (lambda environ: object(), 500),
        (lambda environ: repr(object()), 500),
        (lambda environ: True, 500),
        (lambda environ: time.monotonic_ns(), 500),
        (later, 500),
    ],
)
def test_nobody_and_nonsense_run_nothing(
    open_shop: OpenShop, scope: Callable[[Environ], Any], code: int
) -> None:
    """D4: a scope that raises, gives nothing, or gives what changes."""
    shop = open_shop(scope=scope)
    assert shop.post(key="k1").code == code
    assert shop.orders.count == 0
    assert shop.post().code == 201  # without a key nobody asks


def test_it_is_not_made_without_a_scope() -> None:
    """D3: there is no default."""
    with pytest.raises(TypeError):
        Idempotency(made, spool="memory:")  # type: ignore[call-arg]


# --- the answer -------------------------------------------------------------------------------


def answers(
    status: str, fields: list[tuple[str, str]], parts: Callable[[], Iterable[bytes]]
) -> Answering:
    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(status, fields)
        return parts()

    return answer


def generator() -> Iterator[bytes]:
    yield b""
    yield b"a"
    yield b"b"


BODIES: dict[str, tuple[Answering, bytes]] = {
    "empty list": (answers("200 OK", PLAIN, list), b""),
    "zero": (answers("200 OK", PLAIN, lambda: [b"0"]), b"0"),
    "null": (answers("200 OK", PLAIN, lambda: [b"null"]), b"null"),
    "binary": (answers("200 OK", PLAIN, lambda: [bytes(range(256))]), bytes(range(256))),
    "generator": (answers("200 OK", PLAIN, generator), b"ab"),
    "tuple": (answers("200 OK", PLAIN, lambda: (b"a", b"b")), b"ab"),
    "nothing at 204": (answers("204 No Content", [], list), b""),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_replayed_exactly(open_shop: OpenShop, name: str) -> None:
    """B7, B8: falsy, empty and binary ones, from whatever iterable."""
    answer, body = BODIES[name]
    shop = open_shop(answer)
    first, again = shop.post(key="k1"), shop.post(key="k1")
    assert first.body == again.body == body
    assert first.status == again.status
    assert (shop.orders.count, shop.orders.closed) == (1, 1)


def late_start(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("202 Accepted", PLAIN)
    yield b"from within"


def written(environ: Environ, start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", PLAIN)
    write(b"pushed, ")
    write(b"then ")
    return [b"given"]


def replaced(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    try:
        raise ValueError("half way")
    except ValueError:
        start_response("409 Conflict", PLAIN, sys.exc_info())
    return [b"changed its mind"]


@pytest.mark.parametrize(
    ("answer", "code", "body"),
    [
        (late_start, 202, b"from within"),
        (written, 200, b"pushed, then given"),
        (replaced, 409, b"changed its mind"),
    ],
)
def test_the_ways_to_answer(open_shop: OpenShop, answer: Answering, code: int, body: bytes) -> None:
    """start_response from within a generator, write(), and a second head with exc_info."""
    shop = open_shop(answer)
    for _ in range(2):
        found = shop.post(key="k1")
        assert (found.code, found.body) == (code, body)
    assert shop.orders.count == 1


def too_late(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"sent"
    try:
        raise ValueError("too late")
    except ValueError:
        start_response("500 Oh", PLAIN, sys.exc_info())


def silent(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return [b"no head"]


def nothing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return []


def twice(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    start_response("200 OK", PLAIN)
    return []


def splits(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("X-Note", "a\r\nSet-Cookie: b=c")])
    return []


def words(environ: Environ, start_response: Any) -> Iterable[Any]:
    start_response("200 OK", PLAIN)
    return ["text"]


def strange(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("X-Note", "\u2603")])
    return []


def fails(environ: Environ, start_response: Any) -> Iterable[bytes]:
    raise LookupError("no such order")


def fails_within(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"half"
    raise LookupError("no such order")


RETURN = (too_late, silent, nothing, words, fails_within)
"""Those that return something, which has to be closed."""


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (too_late, ValueError), (silent, AssertionError), (nothing, AssertionError),
        (twice, AssertionError), (splits, ValueError), (words, TypeError),
        (strange, UnicodeEncodeError), (fails, LookupError), (fails_within, LookupError),
    ],
)  # fmt: skip
def test_what_the_application_raises_goes_on_and_a_repeat_runs_again(
    open_shop: OpenShop, answer: Answering, error: type[Exception]
) -> None:
    """F7: its mistakes are its server's to see; what it returned is closed, and nothing is kept."""
    shop = open_shop(answer, bare=True)
    for count in (1, 2):
        with pytest.raises(error):
            shop.post(key="k1")
        assert shop.orders.count == count
    assert shop.orders.closed == (2 if answer in RETURN else 0)


def test_an_effect_and_then_an_exception_is_unknown(open_shop: OpenShop) -> None:
    """F8: it is not run again."""

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["unspool"].effect()
        raise LookupError

    shop = open_shop(answer)
    with pytest.raises(LookupError):
        shop.post(key="k1")
    assert shop.post(key="k1").code == 409
    assert shop.orders.count == 1


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt])
def test_a_server_that_gives_up_frees_the_key(
    open_shop: OpenShop, interrupt: type[BaseException]
) -> None:
    """gunicorn's sync worker raises SystemExit in a handler that takes too long."""
    gives_up = [True]

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if gives_up.pop():
            raise interrupt
        return made(environ, start_response)

    shop = open_shop(answer)
    with pytest.raises(interrupt):
        shop.post(key="k1")
    gives_up.append(False)
    assert shop.post(key="k1").code == 201


def test_cookies_reach_their_first_caller_only(open_shop: OpenShop) -> None:
    """B4, B5; and several values of one field stay several."""
    fields = [
        *PLAIN, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Link", "</a>"), ("Link", "</b>"),
        ("X-Name", "caf\xe9"),
    ]  # fmt: skip
    shop = open_shop(answers("200 OK", fields, lambda: [b""]))
    first, again = shop.post(key="k1"), shop.post(key="k1")
    assert [value for name, value in first.fields if name == "Set-Cookie"] == ["a=1", "b=2"]
    assert not again["Set-Cookie"]
    assert [value for name, value in again.fields if name == "Link"] == ["</a>", "</b>"]
    assert first["X-Name"] == again["X-Name"] == "caf\xe9"
    assert shop.orders.count == 1


@pytest.mark.parametrize(
    ("status", "runs"), [("402 Pay", 1), ("404 Not Found", 1), ("401 Who", 2), ("500 Oh", 2)]
)
def test_what_lasts_is_kept_and_what_passes_is_not(
    open_shop: OpenShop, status: str, runs: int
) -> None:
    """G1, G2, G5."""
    shop = open_shop(answers(status, PLAIN, lambda: [b"no"]))
    assert shop.post(key="k1").body == shop.post(key="k1").body == b"no"
    assert shop.orders.count == runs


def test_a_large_answer_streams_and_its_fact_is_kept(open_shop: OpenShop) -> None:
    """G6: the first caller gets it all, as it comes; a repeat learns that it was done."""
    pulled: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(10):
            pulled.append(number)
            yield b"x" * 100

    shop = open_shop(answers("200 OK", PLAIN, parts), answer_max_bytes=250, bare=True)
    head: list[Any] = []
    result = shop.app(
        environ_of(body=b"{}", key="k1"), lambda status, fields: head.extend([status, fields])
    )
    assert head[0] == "200 OK"
    assert len(pulled) == 3  # no more is pulled than shows that it is too large
    assert shop.orders.closed == 0
    assert b"".join(result) == b"x" * 1000
    result.close()
    assert shop.orders.closed == 1
    again = shop.post(key="k1")
    assert (again.code, again.body, again["Unspool-Body-Kept"]) == (200, b"", "?0")
    assert shop.orders.count == 1


def test_a_stream_that_fails_within_is_cut_and_its_fact_is_kept(open_shop: OpenShop) -> None:
    """The answer was on its way: the server sees the exception, and a repeat does not run."""

    def parts() -> Iterator[bytes]:
        yield b"x" * 300
        raise LookupError("half way")

    shop = open_shop(answers("200 OK", PLAIN, parts), answer_max_bytes=250)
    with pytest.raises(LookupError):
        shop.post(key="k1")
    assert shop.orders.closed == 1
    assert shop.post(key="k1")["Unspool-Body-Kept"] == "?0"
    assert shop.orders.count == 1


def test_events_and_slow_answers_stream(open_shop: OpenShop) -> None:
    """An event stream has no end to wait for; another answer has `hold_ms` to be whole."""
    events = answers("200 OK", [("Content-Type", "text/event-stream")], lambda: [b"data: 1\n\n"])
    shop = open_shop(events)
    assert shop.post(key="k1").body == b"data: 1\n\n"
    assert shop.post(key="k1")["Unspool-Body-Kept"] == "?0"

    def slow() -> Iterator[bytes]:
        yield b"a"
        time.sleep(0.31)
        yield b"b"
        yield b"c"

    one = WSGICall(answers("200 OK", PLAIN, slow), environ_of(), keep_max_bytes=100, hold_ms=300)
    response = one.response()
    assert (response.body, response.rest is None) == (b"ab", False)
    assert b"".join(one.pour()) == b"c"


def test_a_file_is_left_to_the_server() -> None:
    """What declares more than is kept is not read: a server may have a faster way (sendfile)."""

    class FileWrapper:
        def __init__(self, file: io.BytesIO) -> None:
            self.file, self.closed = file, False

        def __iter__(self) -> Iterator[bytes]:
            return iter([self.file.read()])

        def close(self) -> None:
            self.closed = True

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", environ["HTTP_X_SIZE"])])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"x" * int(environ["HTTP_X_SIZE"])))

    middleware = Idempotency(
        answer, spool="memory:", scope=by_user, survives="nothing", answer_max_bytes=10
    )
    for size, kept in (("5", True), ("50", False)):
        environ = environ_of(
            key=size, fields={"X-Size": size}, **{"wsgi.file_wrapper": FileWrapper}
        )
        head: list[Any] = []
        result: Any = middleware(environ, lambda status, fields, into=head: into.extend(fields))
        assert isinstance(result, FileWrapper) is not kept
        assert ("Content-Length", size) in head
        assert len(b"".join(result)) == int(size)
        result.close()
    middleware.close()


def test_much_that_is_pushed_goes_over_a_file(open_shop: OpenShop) -> None:
    """write() cannot be held back, and the answer may not go out before its fact is kept."""

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        for number in range(5):
            write(b"%d" % number * 100)
        return [b"end"]

    shop = open_shop(answer, answer_max_bytes=150)
    first = shop.post(key="k1")
    assert first.body == b"".join(b"%d" % n * 100 for n in range(5)) + b"end"
    assert shop.post(key="k1")["Unspool-Body-Kept"] == "?0"
    assert (shop.orders.count, shop.orders.closed) == (1, 1)


def test_closing_is_the_servers_and_its_error_is_too() -> None:
    """The application's `close` runs after the answer was sent, as it would without us."""
    order: list[str] = []

    class Result(list[bytes]):
        def close(self) -> None:
            order.append("closed")
            raise OSError("in close")

    middleware = Idempotency(
        answers("200 OK", PLAIN, lambda: Result([b"a"])),
        spool="memory:", scope=by_user, survives="nothing",
    )  # fmt: skip
    result: Any = middleware(environ_of(key="k1"), lambda *_: order.append("head"))
    assert b"".join(result) == b"a"
    assert order == ["head"]
    with pytest.raises(OSError, match="in close"):
        result.close()
    result.close()
    assert order == ["head", "closed"]
    assert call(middleware, environ_of(key="k1")).body == b"a"
    middleware.close()


def test_a_head_request_under_a_key_has_no_body(open_shop: OpenShop) -> None:
    """Where somebody lists HEAD among the methods."""
    shop = open_shop(
        answers("200 OK", [("Content-Length", "7"), *PLAIN], list), methods={"HEAD"}, bare=True
    )
    for _ in range(2):
        answer = call(shop.app, environ_of("HEAD", key="k1"))
        assert (answer.code, answer.body) == (200, b"")
    assert shop.orders.count == 1


# --- the memory -------------------------------------------------------------------------------


def test_where_the_memory_does_not_answer_nothing_runs(open_shop: OpenShop, tmp_path: Any) -> None:
    """J7: 503 with Retry-After; requests without a key are served."""
    shop = open_shop(spool=f"sqlite:///{tmp_path}/none/idem.db", survives="nothing")
    answer = shop.post(key="k1")
    assert (answer.code, answer["Retry-After"]) == (503, "1")
    assert json.loads(answer.body)["title"] == "The memory of keys does not answer"
    assert shop.orders.count == 0
    assert shop.post().code == 201


def test_many_threads_under_one_key_run_once(open_shop: OpenShop) -> None:
    """E1: the others are told 409, or get the same answer."""

    def slow(environ: Environ, start_response: Any) -> Iterable[bytes]:
        time.sleep(0.05)
        return made(environ, start_response)

    shop = open_shop(slow)
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda n=n: codes.append(
                shop.post(key="k1", fields={"Prefer": "wait=30"} if n % 2 else {}).code
            )
        )
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shop.orders.count == 1
    assert set(codes) <= {201, 409}
    assert codes.count(201) >= 10


# --- the same request at every door -----------------------------------------------------------

TARGETS = [
    ("/orders", ""), ("/orders/a b", "q=1&r=%20"), ("/caf\u00e9/~x", ""), ("/a;b=c,d", "x"),
    ("/a%2Fb", ""),
]  # fmt: skip


@pytest.mark.parametrize(("path", "query"), TARGETS)
@pytest.mark.parametrize("raw", ["RAW_URI", "REQUEST_URI", ""])
@pytest.mark.parametrize("mounted", ["", "/shop"])
def test_the_fingerprint_is_the_one_of_asgi(path: str, query: str, raw: str, mounted: str) -> None:
    """So that an application may change its door and still know its keys."""
    from urllib.parse import quote, unquote

    whole = quote(mounted + path, safe="/!$&'()*+,;=:@-._~%")
    scope = {
        "path": unquote(whole), "query_string": query.encode(),
        **({"raw_path": whole.encode()} if raw else {}),
    }  # fmt: skip
    environ = environ_of(
        SCRIPT_NAME=mounted.encode().decode("latin-1"),
        PATH_INFO=unquote(quote(path, safe="/%")).encode().decode("latin-1"),
        QUERY_STRING=query,
        **({raw: f"{whole}?{query}" if query else whole} if raw else {}),
    )
    assert target_of(environ) == asgi_target_of(scope)
    fields = [(b"content-type", b"application/json"), (b"host", b"shop")]
    ours = Request(b"POST", target_of(environ), fields_of(environ), b'{"a": 1}')
    theirs = Request(b"POST", asgi_target_of(scope), fields, b'{"a":1}')
    assert fingerprint(ours) == fingerprint(theirs)


def test_a_target_in_absolute_form_is_cut_to_its_path() -> None:
    """RFC 9112 §3.2.2: proxies send it so."""
    assert target_of(environ_of(RAW_URI="http://shop:80/orders?q=1")) == b"/orders?q=1"
    assert target_of(environ_of(RAW_URI="http://shop")) == b"/"
    assert target_of(environ_of(RAW_URI="/orders?")) == b"/orders"
