"""Export and import: a spool to a file and back, cut off anywhere, done twice, and damaged."""
# ruff: noqa: ASYNC221 - nothing else goes on in this loop that could wait

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import stat
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from desk_kit import DAY, HERE, command, environment, now, run, waiting
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from unspool.clock import SystemClock
from unspool.core.lifecycle import Reason, State
from unspool.core.message import NEVER, Attempt, Instant, Key, Message, Request, Response
from unspool.custody import SECRET_KEY, secret_entry
from unspool.house.exporting import export, look
from unspool.house.importing import BadLine, bring
from unspool.house.lines import Brought, Head, Unfit, line, read
from unspool.house.secret import OtherSecret
from unspool.house.walk import pages
from unspool.spools.desk.serving import open_desk
from unspool.spools.desk.visit import DeskSpool
from unspool.spools.log.spool import open_log
from unspool.spools.memory import MemorySpool, bare
from unspool.spools.open import open_spool, reach_spool
from unspool.spools.protocol import Entry, Query, Spool

ANSWER = Response(201, b"Created \xe9", ((b"Content-Type", b"text/plain"),), b"\x00\xff", None, -1)
SECRET = b"s" * 32


def every_kind() -> list[Entry]:
    """One entry in each state that there is, in order of acceptance."""
    at = now()
    done = dict[str, Any](settled_at=at, keep_until=Instant(at + 30 * DAY), attempt=2)
    delivered = replace(
        bare(waiting("done")), state=State.DELIVERED, answer=ANSWER,
        answer_until=Instant(at + DAY), **done,
    )  # fmt: skip
    return [
        waiting("waits", body=bytes(range(256)), order_key="line", repeat=False),
        waiting("held", due_at=NEVER),
        replace(waiting("tried"), attempt=7, trail=(Attempt(7, at, 503, "Busy", "not processed"),)),
        delivered,
        replace(delivered, message=bare(waiting("forgotten")).message, answer=None,
                answer_until=Instant(0), stored=False),
        replace(bare(waiting("bounced")), state=State.BOUNCED, reason="expired", **done),
    ]  # fmt: skip


async def filled(spool: Spool, *more: Entry) -> Spool:
    await spool.accept([secret_entry(SECRET, now=now()), *every_kind(), *more])
    return spool


async def everything(spool: Spool) -> list[Entry]:
    """All entries with requests and answers, but the secret."""
    rows = await spool.browse(Query(), after=None, limit=10_000, requests=True)
    found = await spool.find([row.message.key for row in rows])
    return [
        replace(row, answer=entry.answer)
        for row, entry in zip(rows, found, strict=True)
        if entry is not None and row.message.key != SECRET_KEY
    ]


async def exported(spool: Spool, **how: Any) -> bytes:
    out = io.BytesIO()
    await export(spool, out.write, clock=SystemClock(), **how)
    return out.getvalue()


async def brought(spool: Spool, text: bytes, **how: Any) -> Any:
    lines = text.splitlines(keepends=True)
    return await bring(spool, lines, clock=SystemClock(), key_ms=DAY, where="here", **how)


ENGINES = ["memory", "sqlite", "leveldb", "log"]


async def made(engine: str, path: Path) -> Spool:
    if engine == "leveldb":
        pytest.importorskip("plyvel")
    return await open_spool("memory:" if engine == "memory" else f"{engine}:///{path}")


@pytest.mark.parametrize("engine", ENGINES)
async def test_every_state_goes_over_whole(engine: str, tmp_path: Path) -> None:
    """Requests, answers, attempts, trails, order of acceptance and the secret: as they were."""
    source = await filled(await made(engine, tmp_path / "a"))
    target = await made(engine, tmp_path / "b")
    before = await everything(source)
    sums = await brought(target, await exported(source))
    assert (sums.new, sums.known, sums.whole) == (6, 0, True)
    assert await everything(target) == before == await everything(source)
    [secret] = await target.find([SECRET_KEY])
    assert secret is not None
    assert secret.answer is not None
    assert secret.answer.body == SECRET
    again = await brought(target, await exported(source))
    assert (again.new, again.known, again.ahead) == (0, 6, 0)
    assert await everything(target) == before
    await source.aclose()
    await target.aclose()


async def test_out_of_a_running_relay_and_into_one(tmp_path: Path) -> None:
    """Spools of one process, through the desks of those that have them."""
    async with AsyncExitStack() as stack:
        visits: list[Spool] = []
        for name in "ab":
            kept = await open_log(tmp_path / name, test_hook_no_sync=True)
            stack.push_async_callback(kept.aclose)
            desk = await open_desk(kept, tmp_path / name)
            assert desk is not None
            stack.push_async_callback(desk.close)
            visits.append(await reach_spool(f"log:///{tmp_path}/{name}"))
            assert isinstance(visits[-1], DeskSpool)
            stack.push_async_callback(visits[-1].aclose)
        await filled(visits[0], *(waiting(f"m{number}") for number in range(700)))
        sums = await brought(visits[1], await exported(visits[0]))
        assert (sums.new, sums.whole) == (706, True)
        assert await everything(visits[1]) == await everything(visits[0])


async def test_claims_stay_and_the_tried_that_may_not_be_repeated_is_unknown() -> None:
    """Nothing was promised of a claim. An attempt whose end is not in the file may have had its
    effect: it is not made a second time elsewhere."""
    source, target = MemorySpool(), MemorySpool()
    claim = replace(
        waiting("claim"), state=State.CLAIMED, leased_until=Instant(now() + 9999),
        keep_until=Instant(now() + 9999), attempt=1,
    )  # fmt: skip
    once = waiting("once", repeat=False, due_at=0)
    often = waiting("often", due_at=0)
    await source.accept([claim, once, often])
    await source.lease({HERE: 9}, now=now(), until=Instant(now() + 60_000))
    await brought(target, await exported(source))
    assert claim.message.key not in target.entries
    ended = target.entries[once.message.key]
    assert (ended.state, ended.reason) == (State.BOUNCED, Reason.UNKNOWN)
    assert target.entries[often.message.key].state is State.WAITING


async def test_an_export_cut_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    """At every byte: what is whole is kept, the rest is written again, and the end is the same."""
    spool = await open_spool(f"sqlite:///{tmp_path}/unspool.db")
    await filled(spool)
    whole = await exported(spool)
    step = max(1, len(whole) // 60)
    for cut in range(0, len(whole) + 1, step):
        begun = look(io.BytesIO(whole[:cut]))
        if begun.whole:
            continue
        rest = await exported(
            spool, after=begun.after, before=begun.messages, headed=not begun.size
        )
        both = whole[: begun.size] + rest
        keys = [one.entry.message.key for one in map(read, both.splitlines()) if _is_entry(one)]
        assert keys == [entry.message.key for entry in await everything(spool)], cut
        assert both.splitlines()[-1] == whole.splitlines()[-1]
    await spool.aclose()


def _is_entry(one: object) -> bool:
    return isinstance(one, Brought)


async def test_a_bad_line_is_named_and_nothing_is_lost() -> None:
    """By its number. What stands before it is in; mended, the same import does the rest."""
    source = await filled(MemorySpool())
    lines = (await exported(source)).splitlines(keepends=True)
    spoilt = [*lines[:4], b'{"line":"message","key":', *lines[5:]]
    target = MemorySpool()
    with pytest.raises(BadLine, match="Line 5 is no line of an export"):
        await brought(target, b"".join(spoilt).replace(b'"key":{', b'"key":\n{'))
    assert len(target.entries) == 3  # the secret, and lines 3 and 4
    sums = await brought(target, b"".join(lines))
    assert (sums.new, sums.known) == (4, 2)
    told: list[str] = []
    spoilt[4] += b"\n"
    fresh = MemorySpool()
    sums = await brought(fresh, b"".join(spoilt), skip_bad=told.append)
    assert (sums.new, sums.bad, len(told)) == (5, 1, 1)
    assert told[0].startswith("line 5:")


@pytest.mark.parametrize(
    "change",
    [
        {"state": "claimed"}, {"key": ""}, {"due_at": -1}, {"due_at": None}, {"request": None},
        {"nonce": "no base64!"}, {"expires_at": 2**60}, {"attempt": -1},
        {"request": {"method": "PO ST", "target": "/", "fields": [], "body": ""}},
        {"request": {"method": "POST", "target": "/ HTTP/1.1", "fields": [], "body": ""}},
        {"request": {"method": "POST", "target": "/", "fields": [["a b", "c"]], "body": ""}},
        {"request": {"method": "POST", "target": "/", "fields": [["a", "b\r\nc: d"]], "body": ""}},
        {"request": {"method": "POST", "target": "/", "fields": [["a", "\u20ac"]], "body": ""}},
        {"state": "bounced", "reason": "tired", "keep_until": 5}, {"state": "delivered"},
    ],
)  # fmt: skip
def test_what_could_do_harm_is_not_read(change: dict[str, Any]) -> None:
    """A request is sent again hours later: what could be cut into two is refused here."""
    members = json.loads(line(waiting("a"))) | change
    members = {name: value for name, value in members.items() if value is not None}
    with pytest.raises(Unfit):
        read(json.dumps(members).encode())


def test_another_version_is_not_guessed_at() -> None:
    with pytest.raises(Unfit, match="version 2"):
        read(line(Head(version=2, exported_at=1)))


_bytes = st.binary(max_size=40)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_values = st.binary(max_size=12).map(
    lambda text: text.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
)


@settings(max_examples=150, deadline=None)
@given(
    name=_texts, order_key=_texts, nonce=_bytes, print_=_bytes, body=_bytes, value=_values,
    due_at=st.sampled_from([1, 5, NEVER]), repeat=st.booleans(), cause=_texts,
)  # fmt: skip
def test_a_line_is_the_entry(
    name: str, order_key: str, nonce: bytes, print_: bytes, body: bytes, value: bytes,
    due_at: int, repeat: bool, cause: str,
) -> None:  # fmt: skip
    """Whatever bytes and texts are in it."""
    request = Request(b"PUT", b"/\xff?x", ((b"X", value), (b"x", b"")), body)
    message = Message(
        Key("k"), print_, HERE, Instant(5), Instant(9), nonce, name, order_key, repeat, request
    )
    trail = (Attempt(1, Instant(3), 0, cause, "never sent", "/there"),)
    entry = Entry(message, State.WAITING, Instant(due_at), 3, trail=trail)
    assert read(line(entry)) == Brought(entry, False)


# -- secrets ---------------------------------------------------------------------------------------


async def test_a_spool_with_another_secret_is_not_moved_into() -> None:
    """Repeats of what was brought would not be known there: only by an operator's word."""
    text = await exported(await filled(MemorySpool()))
    target = MemorySpool()
    await target.accept([secret_entry(b"o" * 32, now=now())])
    with pytest.raises(OtherSecret, match="--other-secret"):
        await brought(target, text)
    assert len(target.entries) == 1
    sums = await brought(target, text, other_secret=True)
    assert sums.new == 6
    assert "done again" in sums.word


async def test_without_its_secret_an_export_is_taken_only_where_the_secret_is() -> None:
    """The mark in the head tells whether it is the same, and nothing else."""
    source = await filled(MemorySpool())
    text = await exported(source, secret=False)
    with pytest.raises(OtherSecret, match="--no-secret"):
        await brought(MemorySpool(), text)
    same = MemorySpool()
    await same.accept([secret_entry(SECRET, now=now())])
    assert (await brought(same, text)).new == 6


# -- walking ---------------------------------------------------------------------------------------


async def test_a_walk_leaves_nothing_out_while_claims_come_and_go() -> None:
    """Contract 10: behind a key that was forgotten there is nothing; the walk goes on from one that
    stays."""
    spool = MemorySpool()

    def claim(name: str) -> Entry:
        return replace(
            waiting(name), state=State.CLAIMED, leased_until=Instant(now() + 9999),
            keep_until=Instant(now() + 9999),
        )  # fmt: skip

    for number in range(40):
        await spool.accept([waiting(f"w{number}")])
        await spool.accept([claim(f"c{number}-{i}") for i in range(number % 7)])
    seen: list[str] = []
    async for page in pages(spool, Query(), clock=SystemClock(), size=4):
        for entry in page:
            if entry.state is State.CLAIMED:
                spool.entries.pop(entry.message.key, None)
            else:
                seen.append(entry.message.name)
    assert seen == [f"w{number}" for number in range(40)]


async def test_a_walk_over_what_is_about_to_be_forgotten_ends() -> None:
    """Settled entries that are kept for seconds only, more than a page of them."""
    spool = MemorySpool()
    done = [
        replace(
            bare(waiting(f"d{number}")), state=State.BOUNCED, reason="expired", settled_at=now(),
            keep_until=Instant(now() + 20_000),
        )
        for number in range(300)
    ]  # fmt: skip
    await spool.accept(done)
    walked = [
        one async for page in pages(spool, Query(), clock=SystemClock(), size=8) for one in page
    ]
    assert [one.message.name for one in walked] == [f"d{number}" for number in range(300)]


# -- the commands ----------------------------------------------------------------------------------


async def test_export_and_import_as_commands(tmp_path: Path) -> None:
    """To a file of 0600 with the secret in it; gone on with where it was cut; through a pipe."""
    spool = await open_spool(f"sqlite:///{tmp_path}/unspool.db")
    await filled(spool)
    before = await everything(spool)
    file = tmp_path / "out.jsonl"
    old = os.umask(0)
    try:
        done = run(tmp_path, "export", "out.jsonl")
    finally:
        os.umask(old)
    assert (done.returncode, done.stdout) == (0, b""), done
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = file.read_bytes()
    assert b'"line":"secret"' in whole
    file.write_bytes(whole[: len(whole) * 2 // 3])
    assert run(tmp_path, "export", "out.jsonl").returncode == 0
    assert file.read_bytes() == whole
    taken = run(tmp_path, "import", "out.jsonl", "--spool", "log:///moved.log")
    assert (taken.returncode, taken.stderr) == (0, b""), taken
    assert taken.stdout.startswith("new 6 · known 0".encode())
    piped = subprocess.run(
        "unspool export --no-secret | unspool import - --spool sqlite:///piped.db --other-secret",
        shell=True, cwd=tmp_path, capture_output=True, check=False,
        env=environment(tmp_path) | {"PATH": f"{Path(command()[0]).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert piped.returncode == 0, piped
    await spool.aclose()
    for url in ("log:///{}/moved.log", "sqlite:///{}/piped.db"):
        moved = await open_spool(url.format(tmp_path))
        assert await everything(moved) == before
        await moved.aclose()


async def test_bad_words_to_the_commands(tmp_path: Path) -> None:
    """A sentence and an exit code for each; nothing is made, and nothing changed."""
    (tmp_path / "notes.txt").write_text("milk\n")
    nothing = [
        (("export", "out.jsonl"), os.EX_NOINPUT, b"there is no spool"),
        (("import", "notes.txt"), os.EX_DATAERR, b"Line 1 is no line of an export"),
    ]
    await _all_said(tmp_path, nothing)
    assert os.listdir(tmp_path) == ["notes.txt"]
    await (await open_spool(f"sqlite:///{tmp_path}/unspool.db")).aclose()
    words = [
        (("export", "notes.txt"), os.EX_DATAERR, b"is no export"),
        (("move", "--from", "sqlite:///unspool.db", "--to", "memory:"), os.EX_NOINPUT, b"memory"),
    ]
    await _all_said(tmp_path, words)
    assert (tmp_path / "notes.txt").read_text() == "milk\n"


async def _all_said(folder: Path, table: list[tuple[tuple[str, ...], int, bytes]]) -> None:
    done = await asyncio.gather(*(asyncio.to_thread(run, folder, *row[0]) for row in table))
    for one, (_, code, told) in zip(done, table, strict=True):
        assert one.returncode == code, one
        assert told in one.stderr, one
        assert b"Traceback" not in one.stderr


async def test_a_person_sees_how_far_it_is(tmp_path: Path) -> None:
    """A bar on stderr at a terminal, and data on stdout all the same."""
    spool = await open_spool(f"sqlite:///{tmp_path}/unspool.db")
    await filled(spool)
    await spool.aclose()
    person, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command("export"), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE,
        stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    (out, _), seen = await asyncio.gather(
        process.communicate(), asyncio.to_thread(_all_that_is_seen, person)
    )
    os.close(person)
    assert b"exporting" in seen
    assert b"exported 6 messages" in seen
    assert len(out.splitlines()) == 9  # head, secret, messages, end


def _all_that_is_seen(person: int) -> bytes:
    """Until the last who writes there has gone: it comes in pieces, and there is room for few."""
    seen = b""
    while True:
        try:
            some = os.read(person, 65_536)
        except OSError:  # EIO is the end of a terminal
            return seen
        if not some:
            return seen
        seen += some
