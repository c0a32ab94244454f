"""The blocking client: many threads, forks, and the end of the interpreter."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from ports import free_port
from unspool import Accepted, Client, Delivered, FellBack, Queued, Undelivered
from unspool.client.forks import Again
from unspool.errors import Misconfigured


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.headers["Idempotency-Key"], body))  # type: ignore[attr-defined]
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """With the usual five, who connects with seven others waits for a second."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    found = Listening(("127.0.0.1", 0), Handler)
    found.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def nobody() -> str:
    """Where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def test_many_threads_share_one_client(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    results: dict[int, object] = {}
    with Client(url(server), outbox=str(tmp_path / "o.db"), connections_max=8) as client:

        def work(number: int) -> None:
            for part in range(10):
                results[10 * number + part] = client.post("/o", json=10 * number + part)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 80
    for number, result in results.items():
        assert isinstance(result, Delivered)
        assert result.response.json() == number, "each thread its own answer"


def test_the_fallback_plan_runs_in_the_thread_that_asked() -> None:
    here = threading.get_ident()
    seen: list[int] = []
    with Client(nobody(), fallback=lambda _: seen.append(threading.get_ident())) as client:
        assert isinstance(client.post("/o", json=1, deadline=0.5), FellBack)
    assert seen == [here]


def test_what_was_queued_is_waited_for_and_drained(tmp_path: Path) -> None:
    told: list[object] = []
    with Client(nobody(), outbox=str(tmp_path / "o.db")) as client:
        queued = client.post("/o", json=1, key="k", deadline=0.3)
        assert isinstance(queued, Queued)
        assert queued.survives in ("power", "process")
        assert isinstance(client.wait("k", timeout=0.1), Queued)
        assert client.drain(0.2, progress=told.append).waiting == 1
        assert told
        with pytest.raises(KeyError):
            client.wait("another", timeout=0)
    with pytest.raises(Misconfigured, match="it is closed"):
        client.post("/o", json=1)


def run(code: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code), *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_made_and_used_before_a_fork_each_process_goes_on(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """As gunicorn --preload does it: the parent lets go for the fork, children begin anew, and the
    parent goes on; each answer is right, and both send from one outbox."""
    out = run(
        """
        import os, sys
        from unspool import Client, Delivered, Queued
        client = Client(sys.argv[1], outbox="o.db")
        assert isinstance(client.post("/o", json="before"), Delivered)
        children = []
        for number in range(3):
            pid = os.fork()
            if not pid:
                result = client.post("/o", json=f"child {number}")
                client.close()
                os._exit(0 if result.response.json() == f"child {number}" else 1)
            children.append(pid)
        assert client.post("/o", json="parent").response.json() == "parent"
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        client.close()
        print("well")
        """,
        url(server), cwd=tmp_path,
    )  # fmt: skip
    assert out == "well\n"
    bodies = sorted(body for _, body in server.asked)  # type: ignore[attr-defined]
    assert bodies == [b'"before"', b'"child 0"', b'"child 1"', b'"child 2"', b'"parent"']


def test_after_a_fork_the_parent_sends_on_what_waits_by_itself(tmp_path: Path) -> None:
    """Nobody need call it: what it let go of for the fork is opened again."""
    run(
        """
        import os, sys, time
        from unspool import Client, Queued
        client = Client([sys.argv[1]], outbox="o.db", destination="shop")
        assert isinstance(client.post("/o", json=1, key="k", deadline=0.3), Queued)
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        until = time.monotonic() + 40
        while not client.statistics().get("sends") and time.monotonic() < until:
            time.sleep(0.02)
        assert client.statistics()["sends"]
        client.close()
        """,
        nobody(), cwd=tmp_path,
    )  # fmt: skip


def test_a_fork_waits_for_what_is_just_being_opened_again() -> None:
    """Else the child would find the client in use, and be refused for nothing."""
    did: list[str] = []

    def start() -> bool:
        did.append("begun")
        time.sleep(0.2)
        did.append("done")
        return True

    again = Again(start)
    again.soon()
    while not did:
        time.sleep(0.01)
    again.stop()
    assert did == ["begun", "done"]
    again.soon()
    again.stop()
    assert did == ["begun", "done"], "and what has not begun does not begin"


def test_forked_in_the_middle_of_a_call_the_child_is_refused_with_a_sentence(
    tmp_path: Path,
) -> None:
    """Its connections, and SQLite's, are the parent's; the parent goes on."""
    out = run(
        """
        import os, socket, threading
        from unspool import Client, Queued, Unknown
        deaf = socket.create_server(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", outbox="o.db")
        results = []
        thread = threading.Thread(
            target=lambda: results.append(client.post("/o", json=1, deadline=30))
        )
        client.start()
        thread.start()
        held, _ = deaf.accept()
        pid = os.fork()
        if not pid:
            try:
                client.post("/o", json=2)
            except Exception as error:
                os._exit(0 if "was forked while" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        held.close()
        deaf.close()
        thread.join()
        assert isinstance(results[0], Queued), results
        client.close()
        print("well")
        """,
        cwd=tmp_path,
    )
    assert out == "well\n"


def test_an_async_client_that_came_through_a_fork_says_so(tmp_path: Path) -> None:
    """Its loop and its connections are the parent's, which goes on."""
    out = run(
        """
        import asyncio, os, sys
        from unspool import AsyncClient, Queued
        from unspool.errors import Misconfigured

        async def main():
            async with AsyncClient(sys.argv[1], outbox="o.db", sends=False) as client:
                pid = os.fork()
                if not pid:
                    for call in (client.post("/o", json=1), client.wait("k"), client.drain()):
                        try:
                            await call
                            os._exit(1)
                        except Misconfigured as error:
                            if "before this process was forked" not in str(error):
                                os._exit(2)
                        except BaseException:
                            os._exit(3)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                print(type(await client.post("/o", json=1, deadline=1)).__name__)

        asyncio.run(main())
        """,
        nobody(),
        cwd=tmp_path,
    )
    assert out == "Queued\n"


def test_a_program_that_forgets_to_close_ends_all_the_same(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """And what it had queued is found by the next one."""
    code = """
        import sys
        from unspool import Client
        print(type(Client(sys.argv[1], outbox="o.db", destination="shop").post(
            "/o", json=1, key="k", deadline=0.5)).__name__)
        """
    assert run(code, nobody(), cwd=tmp_path) == "Queued\n"
    with Client(url(server), outbox=str(tmp_path / "o.db"), destination="shop") as client:
        assert isinstance(client.wait("k", timeout=60), Delivered)
    assert [key for key, _ in server.asked] == ['"k"']  # type: ignore[attr-defined]


def test_at_the_end_of_the_interpreter_it_is_refused_with_a_sentence(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """In atexit and in a finalizer: no hang, no traceback of ours; what cannot be sent says so."""
    out = run(
        """
        import atexit, sys
        from unspool import Client, Delivered, Undelivered
        client = Client(sys.argv[1])
        def late():
            try:
                print(type(client.post("/o", json="atexit")).__name__)
            except Undelivered as error:
                print(error)
        atexit.register(late)
        client.post("/o", json="first")
        class Last:
            def __del__(self):
                try:
                    print(type(client.post("/o", json="del")).__name__)
                except Exception as error:
                    print(type(error).__name__, "shutting down" in str(error))
        keep = Last()
        sys.modules["kept"] = keep
        """,
        url(server), cwd=tmp_path,
    )  # fmt: skip
    first, last = out.splitlines()
    assert first == "Delivered" or "shutting down" in first or "shutdown" in first
    assert last in ("Undelivered True", "Delivered")


def test_closing_gives_what_is_being_sent_all_of_its_time(tmp_path: Path) -> None:
    """`drain_ms` also where it is longer than other portals have to end: first for calls, then for
    what goes out from the outbox."""
    asked, may_answer = threading.Event(), threading.Event()

    class Late(Handler):
        def do_POST(self) -> None:
            asked.set()
            may_answer.wait(60)
            super().do_POST()

    found = Listening(("127.0.0.1", 0), Late)
    found.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = Client([url(found)], outbox=str(tmp_path / "outbox.db"), drain_ms=60_000)
    portal = client._portal
    assert portal._closes_s >= 60
    assert portal._lets_go_s >= 60
    told: list[object] = []
    calling = threading.Thread(target=lambda: told.append(client.post("/orders", json=1)))
    calling.start()
    assert asked.wait(60)
    threading.Timer(0.2, may_answer.set).start()
    client.close()
    calling.join()
    assert isinstance(told[0], Delivered)
    found.shutdown()
    thread.join()
    found.server_close()


def test_a_client_that_is_not_used_costs_no_thread() -> None:
    before = threading.active_count()
    client = Client(nobody(), outbox="o.db")
    assert threading.active_count() == before
    client.close()
    assert not os.path.exists("o.db")


def test_import_alone_is_cheap() -> None:
    """`import unspool` opens no driver and no loop; the client comes when it is asked for."""
    code = "import sys, unspool; print('unspool.client' in sys.modules, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
    assert Accepted.__module__ == "unspool.client.results"
    assert issubclass(Undelivered, Exception)


def test_behind_gunicorn_preload_every_worker_sends(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """The client is made, and used, before gunicorn forks its workers."""
    (tmp_path / "shop.py").write_text(
        textwrap.dedent(
            """
            import os
            from unspool import Client

            client = Client(os.environ["SHOP"], outbox="o.db")
            client.post("/o", json="at import")

            def app(environ, start_response):
                result = client.post("/o", json=os.getpid())
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [f"{type(result).__name__} {os.getpid()}".encode()]
            """
        )
    )
    port = free_port()
    gunicorn = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "2",
         "--bind", f"127.0.0.1:{port}", "--log-level", "error", "shop:app"],
        cwd=tmp_path, env={**os.environ, "SHOP": url(server)},
    )  # fmt: skip
    try:
        until, told = time.monotonic() + 60, Counter[str]()
        while len(told) < 2 and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as response:
                    told[response.read().decode()] += 1
            except urllib.error.URLError:
                time.sleep(0.05)
    finally:
        gunicorn.terminate()
        gunicorn.wait(timeout=60)
    assert len(told) == 2, told
    assert all(one.startswith("Delivered ") for one in told)
    bodies = [body for _, body in server.asked]  # type: ignore[attr-defined]
    assert len(bodies) == 1 + sum(told.values())


def test_https_is_verified_by_the_trust_that_was_given(server: ThreadingHTTPServer) -> None:
    """A certificate that nobody vouches for is never sent to; with its own trust store it is."""
    authority = trustme.CA()
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(inside)
    server.socket = inside.wrap_socket(server.socket, server_side=True)
    origin = f"https://localhost:{server.server_address[1]}"
    trust = ssl.create_default_context()
    with Client(origin, deadline=2) as client, pytest.raises(Undelivered) as caught:
        client.post("/o", json=1)
    assert not caught.value.maybe_applied
    authority.configure_trust(trust)
    with Client(origin, tls=trust) as client:
        assert isinstance(client.post("/o", json=1), Delivered)
