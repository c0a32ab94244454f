"""Operators at a running relay that has its spool to itself: real processes, over the desk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from desk_kit import now, put, run, waiting

from crash.processes import Relay, eventually
from crash.service import Service
from crash.wire import ask
from ports import free_port
from unspool.core.lifecycle import Delivered, State
from unspool.core.message import Instant, Key, Response
from unspool.errors import TooMuch
from unspool.spools.desk import serving as desks
from unspool.spools.desk import wire
from unspool.spools.desk.serving import Desk, open_desk
from unspool.spools.desk.visit import DeskSpool, NobodyServes
from unspool.spools.log.spool import open_log
from unspool.spools.open import reach_spool
from unspool.spools.protocol import Query, Spool


async def _saved(relay: Relay, name: str) -> None:
    told = await ask(relay.port, "POST", "/orders", fields={"Idempotency-Key": name}, body=b"tea")
    assert told.status == 202


async def _at(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Once more, where the relay was trying the very message in that moment."""
    while True:
        done = await asyncio.to_thread(run, folder, *words)
        if b"is being tried right now" not in done.stdout:
            return done


@pytest.mark.parametrize("engine", ["leveldb", "log"])
async def test_operators_look_and_act_while_the_relay_runs(engine: str, tmp_path: Path) -> None:
    """queue, show, hold, release, drop: as with a spool that can be shared."""
    if engine == "leveldb":
        pytest.importorskip("plyvel")
    with Service() as service:
        service.weather = lambda _key, _body: "503"
        relay = Relay(tmp_path, to=service.url, engine=engine)
        flag = ("--spool", f"{engine}:///{relay.spool}")
        try:
            await relay.start()
            for name in ("k1", "k2"):
                await _saved(relay, name)
            listed = await _at(tmp_path, "queue", *flag)
            assert (listed.returncode, listed.stderr) == (0, b"")
            assert b"-- 2 messages" in listed.stdout
            assert stat.S_IMODE((relay.spool / "desk").stat().st_mode) == 0o600
            if engine == "log":
                body = await _at(tmp_path, "show", "k1", "--body", *flag)
                assert body.stdout == b"tea"
                held = await _at(tmp_path, "hold", "k1", *flag)
                assert b"k1: held" in held.stdout
                dropped = await _at(tmp_path, "drop", "k1", *flag)
                assert b"dropped" in dropped.stdout
            assert await relay.stop() == 0
            assert not (relay.spool / "desk").exists()
            if engine == "log":
                alone = await _at(tmp_path, "queue", "--bounced", *flag)
                assert b"bounced: dropped" in alone.stdout
        finally:
            relay.end()


async def test_retry_wakes_a_closed_lane_of_the_relay_at_once(tmp_path: Path) -> None:
    """An operator's word is the next probe, whichever process he says it in."""
    came: list[tuple[str, int]] = []

    def weather(key: str, _body: bytes) -> str:
        came.append((key, now()))
        return "503"

    with Service() as service:
        service.weather = weather
        relay = Relay(tmp_path, to=service.url, engine="log")
        closed_until = 0

        async def shut() -> bool:
            nonlocal closed_until
            lanes = (await relay.health())["lanes"].values()
            closed_until = max((lane["closed_until"] for lane in lanes), default=0)
            return closed_until > now() + 3_500

        try:
            await relay.start()
            for number in range(6):
                await _saved(relay, f"k{number}")
            # Each probe in vain closes it for twice as long: at last also for as long as a command
            # takes to start.
            for _ in range(4):
                await eventually(shut, "a lane that is closed for seconds")
                before = len(came)
                done = await _at(tmp_path, "retry", "k3", "--spool", f"log:///{relay.spool}")
                assert done.returncode == 0, done
                await eventually(lambda before=before: len(came) > before, "an attempt")  # type: ignore[misc]
                if came[before][1] < closed_until:
                    break
            assert came[before][0] == "k3"
            assert came[before][1] < closed_until
        finally:
            relay.end()


async def test_a_command_that_is_stopped_or_killed_holds_nobody_up(tmp_path: Path) -> None:
    """The relay answers on, other operators get in, and what was seized comes free again."""
    with Service() as service:
        service.weather = lambda _key, _body: "503"
        relay = Relay(tmp_path, to=service.url, engine="log")
        url = f"log:///{relay.spool}"
        try:
            await relay.start()
            for number in range(20):
                await _saved(relay, f"k{number}")
            script = (
                "import asyncio, os, signal, time\n"
                "from unspool.spools.open import reach_spool\n"
                "from unspool.spools.protocol import Query\n"
                "async def main():\n"
                f"    spool = await reach_spool({url!r})\n"
                "    rows = await spool.browse(Query(), after=None, limit=500, requests=True)\n"
                "    keys = [row.message.key for row in rows if row.message.name]\n"
                "    now = time.time_ns() // 1_000_000\n"
                "    for some, ms in ((keys[:10], 60_000), (keys[10:], 1_000)):\n"
                "        leases = await spool.seize(some, now=now, until=now + ms)\n"
                "        print(next(filter(None, leases)).entry.message.key, flush=True)\n"
                "    os.kill(os.getpid(), signal.SIGSTOP)\n"
                "asyncio.run(main())\n"
            )
            stopped = subprocess.Popen(  # noqa: ASYNC220 - it says one word
                [sys.executable, "-c", script], stdout=subprocess.PIPE
            )
            visit = await reach_spool(url)
            try:
                told = stopped.stdout
                assert told is not None
                held, briefly = [
                    Key((await asyncio.to_thread(told.readline)).decode().strip()) for _ in range(2)
                ]
                assert await _seized(visit, held) is False
                assert (await relay.health())["ready"]
            finally:
                stopped.kill()
                stopped.wait()
                told.close()
            await eventually(lambda: _seized(visit, briefly), "its lease to run out")
            await visit.aclose()
        finally:
            relay.end()


async def _seized(spool: Spool, key: Key) -> bool:
    [lease] = await spool.seize([key], now=now(), until=Instant(now() + 60_000))
    return lease is not None


async def test_a_relay_that_dies_in_the_middle_is_said(tmp_path: Path) -> None:
    """Nobody knows whether the verb was done, and the command says so (12); then the folder is
    free, and the next command opens it itself."""
    relay = Relay(tmp_path, to=f"http://127.0.0.1:{free_port()}", engine="log")
    try:
        await relay.start()
        await _saved(relay, "k1")
        spool = await reach_spool(f"log:///{relay.spool}")
        assert isinstance(spool, DeskSpool)
        relay.kill()
        with pytest.raises(Exception, match=r"did not answer|No relay answers"):
            await spool.find([Key("x")])
        await spool.aclose()
        assert (relay.spool / "desk").exists(), "the dead leave it behind"
        for _ in range(2):  # nobody has it; then a relay again
            found = await reach_spool(f"log:///{relay.spool}")
            assert len(await found.browse(Query(state=State.WAITING), after=None, limit=9)) == 1
            await found.aclose()
            if not isinstance(found, DeskSpool):
                await relay.start()
        assert isinstance(found, DeskSpool)
    finally:
        relay.end()


# -- strangers and clumsy visitors -----------------------------------------------------------------


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    folder = tmp_path / "unspool.log"
    spool = await open_log(folder, test_hook_no_sync=True)
    await put(spool, "a", "b")
    opened = await open_desk(spool, folder)
    assert opened is not None
    yield opened
    await opened.close()
    await spool.aclose()


async def _visitor(desk: Desk) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    with desks.address(desk._folder) as name:
        reader, writer = await asyncio.open_unix_connection(name)
    length = int.from_bytes(await reader.readexactly(4), "big")
    wire.greeted(await reader.readexactly(length), where="here")
    return reader, writer


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 5) + b"hello",
        struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
        wire.frame(b"\x92\xa6accept\x91\xc0"),
    ],
)
async def test_what_is_no_call_is_hung_up_on(desk: Desk, sent: bytes) -> None:
    """Whatever it is; the others are served."""
    reader, writer = await _visitor(desk)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.transport.abort()
    spool = await DeskSpool.open(desk._folder)
    assert len(await spool.browse(Query(), after=None, limit=9)) == 2
    await spool.aclose()


async def test_too_many_visitors_are_told_so(desk: Desk) -> None:
    """VISITORS_MAX at a time: memory is bounded by them."""
    inside = [await _visitor(desk) for _ in range(desks.VISITORS_MAX)]
    with pytest.raises(Exception, match="look at the spool"):
        await DeskSpool.open(desk._folder)
    for _, writer in inside:
        writer.transport.abort()

    async def free() -> bool:
        try:
            await (await DeskSpool.open(desk._folder)).aclose()
        except Exception:
            return False
        return True

    await eventually(free, "room at the desk")


def test_a_newer_desk_is_not_guessed_at() -> None:
    """Another form: nothing is said but that."""
    told = msgspec.msgpack.encode(("unspool desk", wire.FORM + 1, {"anything": "else"}, ""))
    with pytest.raises(Exception, match="of another version of unspool"):
        wire.greeted(told, where="here")


async def test_a_batch_goes_over_in_parts(desk: Desk) -> None:
    """Of any size, and comes back whole: entries, leases, answers in their order."""
    spool = await DeskSpool.open(desk._folder)
    entries = [waiting(f"m{number}", due_at=0) for number in range(1_100)]
    big = [waiting(f"big{number}", due_at=0, body=os.urandom(2 << 20)) for number in range(5)]
    answers = await spool.accept([*entries, *big])
    assert len(answers) == 1_105
    rows = await spool.browse(Query(), after=None, limit=5_000, requests=True)
    assert [row.message for row in rows][2:] == [entry.message for entry in [*entries, *big]]
    keys = [row.message.key for row in rows]
    leases = await spool.seize(keys, now=now(), until=Instant(now() + 60_000))
    assert [lease is not None for lease in leases] == [True] * 1_107
    assert [entry.state for entry in await spool.find(keys) if entry] == [State.WAITING] * 1_107
    await spool.aclose()


async def test_answers_go_over_in_parts(desk: Desk) -> None:
    """More of them than a frame holds: a move settles what had ended, by the page."""
    spool = await DeskSpool.open(desk._folder)
    entries = [waiting(f"m{number}", due_at=0) for number in range(17)]
    await spool.accept(entries)
    keys = [entry.message.key for entry in entries]
    leases = await spool.seize(keys, now=now(), until=Instant(now() + 60_000))
    answer = Response(200, b"OK", (), bytes(wire.FRAME_MAX_BYTES // 16))
    end = Delivered(answer, Instant(now() + 60_000), Instant(now() + 60_000))
    assert await spool.settle([(one, end) for one in leases if one]) == [True] * 17
    await spool.aclose()


async def test_a_message_too_large_for_the_desk_is_refused(desk: Desk) -> None:
    """Before anything is sent, in a sentence."""
    spool = await DeskSpool.open(desk._folder)
    with pytest.raises(Exception, match="Stop the relay"):
        await spool.accept([waiting("huge", body=bytes(wire.FRAME_MAX_BYTES))])
    await spool.aclose()


async def test_a_folder_deep_below_is_reached(tmp_path: Path) -> None:
    """A socket's name has 107 bytes at most; a folder's may have more."""
    folder = tmp_path / ("deep" * 20) / ("er" * 40)
    folder.parent.mkdir(parents=True)
    spool = await open_log(folder, test_hook_no_sync=True)
    opened = await open_desk(spool, folder)
    assert opened is not None
    visit = await reach_spool(f"log:///{folder}")
    assert isinstance(visit, DeskSpool)
    await visit.aclose()
    await opened.close()
    await spool.aclose()


async def test_nobody_serves_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(NobodyServes):
        await DeskSpool.open(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_sent_away(desk: Desk) -> None:
    """By what the kernel says of him, even where the modes were opened by mistake."""
    for path in (desk._folder / "desk", desk._folder, *list(desk._folder.parents)[:-2]):
        path.chmod(0o777)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        f"s.connect({str(desk._folder / 'desk')!r}); s.settimeout(60); print(len(s.recv(9)))"
    )
    said = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert said.stdout in (b"0\n", b""), said
    assert b"Reset" in said.stderr or said.stdout == b"0\n", said


async def test_large_messages_are_asked_for_one_by_one(desk: Desk) -> None:
    """More than a frame holds at once: fewer are asked for. What was seized in vain is as good as
    in another's hands until the term is over; one that fits in no frame is said."""
    desk.frame_max_bytes = 300_000
    spool = await DeskSpool.open(desk._folder)
    entries = [waiting(f"m{number}", due_at=0, body=bytes(100_000)) for number in range(9)]
    for entry in entries:
        await spool.accept([entry])
    rows = await spool.browse(Query(), after=None, limit=99, requests=True)
    assert [row.message for row in rows][2:] == [entry.message for entry in entries]
    keys = [row.message.key for row in rows]
    assert [entry is not None for entry in await spool.find(keys)] == [True] * 11
    leases = await spool.seize(keys, now=now(), until=Instant(now() + 60_000))
    assert all(leases), "the size is known by now"
    fresh = await DeskSpool.open(desk._folder)
    later = Instant(now() + 120_000)
    leases = await fresh.seize(keys, now=later, until=Instant(later + 60_000))
    assert [lease is not None for lease in leases] == [False] * 11
    desk.frame_max_bytes = 50_000
    with pytest.raises(TooMuch, match="Stop the relay"):
        await fresh.browse(Query(), after=None, limit=99, requests=True)
    await spool.aclose()
    await fresh.aclose()
