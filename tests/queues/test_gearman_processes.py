"""Custody through a real gearmand: other people's programs on one side, a service on the other,
and processes that are killed in between."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import apsw
import pytest
from collecting import CLIENT, WORKER, Collecting, environ, perl, submit, tool, written

from crash.processes import Relay, eventually
from crash.service import Service
from servers.gearmand import Gearmand, gearmand
from unspool.admin.cli import cli
from unspool.core.handover import Handover, pack, unpack
from unspool.core.message import Request
from unspool.errors import Misconfigured
from unspool.queues.open import open_queue
from unspool.queues.protocol import Queue
from unspool.spools.log.spool import open_log

ROUNDS = 4 * max(1, int(os.environ.get("UNSPOOL_CRASH_ROUNDS", "1")))
NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Gearmand]:
    with gearmand() as server:
        yield server


@pytest.fixture
def function() -> str:
    return f"orders-{next(NUMBERS)}"


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


@pytest.fixture
def collector(
    tmp_path: Path, server: Gearmand, function: str, service: Service
) -> Iterator[Collecting]:
    collector = Collecting(tmp_path, server.url(function), to=service.url)
    yield collector
    collector.end()


@pytest.fixture
def relay(tmp_path: Path, service: Service) -> Iterator[Relay]:
    relay = Relay(tmp_path, to=service.url)
    yield relay
    relay.end()


OPENED: list[Queue] = []


async def opened(url: str) -> Queue:
    OPENED.append(await open_queue(url))
    return OPENED[-1]


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while OPENED:
        await OPENED.pop().aclose()


def effects(service: Service, key: str) -> int:
    return sum(one.effect for one in service.of(key))


def entries(collector: Collecting) -> int:
    """Messages in the spool, without its secret."""
    if not collector.spool.exists():
        return 0
    connection = apsw.Connection(str(collector.spool), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(60_000)
    try:
        [[found]] = connection.execute("SELECT count(*) FROM message WHERE destination != ''")
        return int(str(found))
    except apsw.SQLError:
        return 0
    finally:
        connection.close()


class Blocked:
    """Nobody can write into the spool meanwhile."""

    def __init__(self, spool: Path) -> None:
        self._connection = apsw.Connection(str(spool))
        self._connection.set_busy_timeout(60_000)
        self._connection.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


def taken_by_a_shell(server: Gearmand, function: str, folder: Path) -> bytes:
    """What a worker that is a shell command was given."""
    tool(server, "-w", "-c", "1", "-f", function, "--", "sh", "-c", f"cat >{folder}/taken")
    return (folder / "taken").read_bytes()


# --- other people's programs ------------------------------------------------------------------


async def test_a_shell_script_hands_over(
    server: Gearmand,
    function: str,
    service: Service,
    collector: Collecting,
    relay: Relay,
    tmp_path: Path,
) -> None:
    """Debian's `gearman` submits a request; it is delivered once, by a relay that runs beside the
    collector; what nobody can read is set aside, and can be taken from there as it was."""
    await relay.start()
    collector.start()
    submit(server, function, written("from-a-shell"))
    submit(server, function, b"this is no JSON\n")
    submit(server, function, written("from-a-shell"))
    await eventually(lambda: service.of("from-a-shell"), "delivery")
    await eventually(lambda: server.status()[function][0] == 0, "an empty queue")
    assert service.of("from-a-shell")[0].body == b"from-a-shell"
    assert taken_by_a_shell(server, f"{function}.aside", tmp_path) == b"this is no JSON\n"
    assert "was set aside: JSON is malformed" in collector.text()
    assert collector.stop() == 0
    assert effects(service, "from-a-shell") == 1


async def test_perl_hands_over(
    server: Gearmand, function: str, service: Service, collector: Collecting
) -> None:
    """Perl's Gearman::Client submits a request; the relay that is started later delivers it."""
    payload = written("from-perl", body="t\u00e9")
    perl(CLIENT, f"127.0.0.1:{server.port}", function, "any-unique", stdin=payload)
    assert collector.once() == 0
    assert entries(collector) == 1
    assert function not in server.status() or server.status()[function][0] == 0
    assert service.handled == []


async def test_ours_is_read_by_perl_and_by_a_shell(
    server: Gearmand, function: str, tmp_path: Path
) -> None:
    """What we put, a worker in Perl and one in a shell read, byte for byte."""
    request = Request(b"POST", b"/orders", ((b"X-A", b"\xe9"),), bytes(range(256)))
    payload = pack(Handover(request, "from-us"))
    queue = await opened(server.url(function))
    await queue.put([payload])
    assert perl(WORKER, f"127.0.0.1:{server.port}", function) == payload
    raw = bytes(range(256))
    await queue.put([raw])
    assert perl(WORKER, f"127.0.0.1:{server.port}", function) == raw
    await queue.put([payload])
    assert unpack(taken_by_a_shell(server, function, tmp_path)).request == unpack(payload).request


async def test_a_sender_who_waits_is_told(
    server: Gearmand, function: str, collector: Collecting
) -> None:
    """In the foreground, `gearman` ends with 0 once the spool has it, and fails where it was set
    aside."""
    collector.start()
    good = tool(server, "-f", function, stdin=written("in-front"))
    assert good.returncode == 0
    assert entries(collector) == 1
    bad = tool(server, "-f", function, stdin=b"no JSON")
    assert bad.returncode != 0
    assert collector.stop() == 0


async def test_a_spool_that_somebody_has_to_himself(collector: Collecting, tmp_path: Path) -> None:
    """Who cannot open it beside the relay is told how the relay can do it."""
    spool = await open_log(tmp_path / "spool.log")
    try:
        collector.command += ["--spool", f"log:///{tmp_path}/spool.log"]
        at = collector.command.index("--spool")
        del collector.command[at : at + 2]
        assert await asyncio.to_thread(collector.once) == 75
        assert "let it collect itself: unspool serve --collect gearman://" in collector.text()
    finally:
        await spool.aclose()


async def test_one_process_for_both(
    server: Gearmand, function: str, service: Service, tmp_path: Path
) -> None:
    """`serve --collect`: the relay takes from the queue itself, and drains cleanly. It is one key
    by whichever way it comes: a repeat at the door gets the answer."""
    relay = Relay(tmp_path, to=service.url, arguments=["--collect", server.url(function)])
    try:
        await relay.start()
        text = [["Content-Type", "text/plain"]]
        submit(server, function, written("one-process", fields=text))
        await eventually(lambda: service.of("one-process"), "delivery")
        repeat = urllib.request.Request(
            f"http://127.0.0.1:{relay.port}/orders",
            data=b"one-process",
            headers={"Idempotency-Key": "one-process", "Content-Type": "text/plain"},
        )

        async def replayed() -> bool:  # once the verdict is written
            try:
                answer = await asyncio.to_thread(urllib.request.urlopen, repeat, timeout=60)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 409:  # it is being tried
                    raise
                return False
            with answer:
                return bool(answer.headers["Idempotent-Replayed"] == "true")

        await eventually(replayed, "the answer again")
        assert len(service.of("one-process")) == 1
        assert await relay.stop() == 0
        await eventually(lambda: server.status()[function] == (0, 0, 0), "that it has gone")
    finally:
        relay.end()


# --- killed -----------------------------------------------------------------------------------


async def test_killed_between_take_and_sync(
    server: Gearmand, function: str, collector: Collecting
) -> None:
    """I1. It was taken and is not synced: kill -9 gives it back, and it is collected once."""
    collector.start()
    blocked = Blocked(collector.spool)
    submit(server, function, written("a"))
    await eventually(lambda: server.status()[function][:2] == (1, 1), "that it is held")
    collector.kill()
    await eventually(lambda: server.status()[function][:2] == (1, 0), "that it is given back")
    blocked.end()
    assert entries(collector) == 0
    assert collector.once() == 0
    assert entries(collector) == 1
    assert server.status()[function][0] == 0


async def test_killed_between_sync_and_complete(
    server: Gearmand, function: str, collector: Collecting
) -> None:
    """I5. It is synced, and the queue has not heard: it is given again, and is one message."""
    collector.start()
    blocked = Blocked(collector.spool)
    submit(server, function, written("a"))
    await eventually(lambda: server.status()[function][:2] == (1, 1), "that it is held")
    server.pause()
    try:
        blocked.end()
        await eventually(lambda: entries(collector) == 1, "that it is synced")
        collector.kill()
    finally:
        server.go_on()
    await eventually(lambda: server.status()[function][1] == 0, "that it is given back")
    assert collector.once() == 0
    assert entries(collector) == 1
    assert server.status()[function][0] == 0


async def test_killed_at_random_under_load(
    server: Gearmand, function: str, service: Service, collector: Collecting, relay: Relay
) -> None:
    """I1, I5. However often the collector is killed, each message is delivered, with one effect."""
    await relay.start()
    chance = random.Random(7)
    queue = await opened(server.url(function))
    keys = []
    for round_ in range(ROUNDS):
        collector.start()
        for batch in range(4):
            some = [f"{function}-{round_}-{batch}-{number}" for number in range(25)]
            keys += some
            await queue.put([written(key) for key in some])
            await asyncio.sleep(chance.random() * 0.02)
        collector.kill()
    collector.start()
    await eventually(lambda: len({one.key for one in service.handled}) == len(keys), "delivery")
    await eventually(lambda: server.status()[function][0] == 0, "an empty queue")
    assert collector.stop() == 0
    assert entries(collector) == len(keys)
    assert [key for key in keys if effects(service, key) != 1] == []


async def test_gearmand_is_killed(tmp_path: Path, service: Service) -> None:
    """A gearmand with a database is killed and comes back: the collector goes on by itself."""
    with gearmand(database=tmp_path / "jobs.db") as server:
        collector = Collecting(tmp_path, server.url("orders"), to=service.url)
        collector.start()
        try:
            submit(server, "orders", written("a"))
            await eventually(lambda: entries(collector) == 1, "collection")
            server.kill()
            await eventually(lambda: "collecting from" in collector.text(), "a warning")
            server.start()
            submit(server, "orders", written("b"))
            await eventually(lambda: entries(collector) == 2, "collection")
            await eventually(lambda: "goes on" in collector.text(), "that word")
            assert collector.stop() == 0
        finally:
            collector.end()


# --- bad input --------------------------------------------------------------------------------


TO = ("--to", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "there is no queue to collect from"),
        (("gearman://user:secret@127.0.0.1",), "to is not set"),
        (
            ("gearman://127.0.0.1", *TO, "--spool", "memory:"),
            "serve --spool memory: --collect gearman://127.0.0.1",
        ),
        (("gearman://127.0.0.1", *TO, "--collect", "orders"), "give a URL of one server"),
    ],
)
def test_refused(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes no sense is said before anything is opened, and without passwords."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Misconfigured) as caught:
        cli.main(["collect", *arguments], standalone_mode=False)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_ended(tmp_path: Path) -> None:
    """What cannot work ends with the exit code of its kind, in one line."""
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("nats://127.0.0.1/orders",), 78, "is a spool, and no queue"),
        (("gearman://127.0.0.1", "--survives", "machine"), 78, "Nothing was collected"),
        (("gearman://127.0.0.1:1", "--once"), 75, "cannot be reached"),
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "unspool", "collect", *arguments, *TO,
             "--spool", f"sqlite:///{tmp_path}/{number}.db"],
            cwd=tmp_path, env=environ(), stderr=subprocess.PIPE, text=True,
        )
        for number, (arguments, _, _) in enumerate(cases)
    ]  # fmt: skip
    try:
        for process, (_, code, says) in zip(running, cases, strict=True):
            told = process.communicate(timeout=100)[1]
            assert process.returncode == code, told
            assert says in told
            assert "Traceback" not in told
    finally:
        for process in running:
            process.kill()
            process.communicate()
