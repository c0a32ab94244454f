"""The command line, as a person or a script meets it: real processes on a real spool.

The spool stays open here while the commands run, as it does in a relay.
"""
# ruff: noqa: ASYNC220, ASYNC221, ASYNC230 - nothing else goes on in this loop that could wait

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ports import free_port
from unspool import __version__
from unspool.admin import logs
from unspool.core import heads
from unspool.core.lifecycle import Bounced, Deferred, Delivered, Reason, State
from unspool.core.message import (
    AT_ONCE,
    NEVER,
    Attempt,
    Destination,
    Instant,
    Key,
    Request,
    Response,
    mint,
    seal,
)
from unspool.custody import SECRET_KEY
from unspool.receipts import token
from unspool.spools.open import open_spool
from unspool.spools.protocol import Entry, Spool

HERE = Destination("http://127.0.0.1:8000")
THERE = Destination("http://127.0.0.1:9000")
MINUTE = 60_000

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def now() -> Instant:
    return Instant(time.time_ns() // 1_000_000)


@pytest.fixture
def unspool(tmp_path: Path) -> Run:
    """Run `unspool` in a folder of its own, away from a terminal."""

    def run(*words: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "unspool", *words],
            cwd=tmp_path,
            env=clean(tmp_path) | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


def clean(folder: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UNSPOOL_")}
    return ours | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """The spool that `unspool` finds in its folder, held open as a relay would."""
    opened = await open_spool(f"sqlite:///{tmp_path}/unspool.db")
    yield opened
    await opened.aclose()


REFUSED = Attempt(1, Instant(0), 0, "connection_refused: nobody listens", "never sent")


async def put(
    spool: Spool,
    name: str = "",
    *,
    destination: Destination = HERE,
    age_ms: int = 5 * MINUTE,
    due_at: Instant | None = None,
    trail: tuple[Attempt, ...] = (REFUSED,),
    body: bytes = b"tea",
    scope: str = "a",
) -> Key:
    """One message that waits."""
    at = Instant(now() - age_ms)
    key = Key(f"{scope}{name}".ljust(22, ".")) if name else mint(now=at, chance=os.urandom(11))
    fields = (
        (b"Host", b"shop"),
        (b"Authorization", b"Bearer hunter2"),
        (b"X-Api-Key", b"hunter3"),
        (b"Content-Type", b"text/plain"),
    )
    message = seal(
        Request(b"POST", b"/orders?a=1", fields, body),
        key=key, name=name, destination=destination, now=at, lifetime_ms=5 * 24 * 60 * MINUTE,
        nonce=os.urandom(16), repeat=True,
    )  # fmt: skip
    due = Instant(now() + 10 * MINUTE) if due_at is None else due_at
    await spool.accept([Entry(message=message, state=State.WAITING, due_at=due, trail=trail)])
    return key


async def settle(spool: Spool, key: Key, verdict: Delivered | Bounced | Deferred) -> None:
    [lease] = await spool.seize([key], now=now(), until=Instant(now() + MINUTE))
    assert lease is not None
    assert list(await spool.settle([(lease, verdict)])) == [True]


async def found(spool: Spool, key: Key) -> Entry:
    [entry] = await spool.find([key])
    assert entry is not None
    return entry


def objects(out: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


# --- queue ------------------------------------------------------------------------------------


async def test_the_queue_says_what_waits_why_and_when_it_goes(unspool: Run, spool: Spool) -> None:
    await put(spool, "due", due_at=Instant(1), trail=())
    await put(spool, "later")
    await put(spool, "held", due_at=NEVER)
    minted = await put(spool)
    tried = await put(spool, "tried")
    await spool.seize([tried], now=now(), until=Instant(now() + MINUTE))

    result = unspool("queue")

    assert (result.returncode, result.stderr) == (0, b"")
    heading, *lines, footer = result.stdout.decode().splitlines()
    assert heading.startswith("--Key--")
    assert footer == "-- 5 messages, 1 held, oldest 5m."
    rows, causes = lines[::2], lines[1::2]
    assert [row[:2] for row in rows] == ["  ", "  ", "! ", "  ", "* "]
    words = [row[2:].split() for row in rows]
    assert [row[0] for row in words] == ["due", "later", "held", minted, "tried"]
    assert [row[1] for row in words] == ["5m"] * 5
    assert [row[2] for row in words] == ["0", "1", "1", "1", "1"]
    assert [row[3] for row in words] == ["due", "in", "held", "in", "now"]
    assert all(row[-1] == HERE for row in words)
    assert causes[0].strip() == "(not tried yet)"
    assert {cause.strip() for cause in causes[1:]} == {"(connection_refused: nobody listens)"}


async def test_an_empty_spool_says_so_and_mailq_is_the_queue(unspool: Run, spool: Spool) -> None:
    assert spool.promises.remembers
    assert unspool("mailq").stdout == b"The spool is empty.\n"
    assert unspool("mailq", "--bounced").stdout == b"Nothing has bounced.\n"
    assert (
        unspool("queue", "--destination", THERE).stdout == f"Nothing waits for {THERE}.\n".encode()
    )
    assert unspool("queue", "--json").stdout == b""


async def test_the_queue_by_state_and_destination(unspool: Run, spool: Spool) -> None:
    keep = Instant(now() + MINUTE)
    await put(spool, "waits")
    await put(spool, "elsewhere", destination=THERE)
    dropped = await put(spool, "bounced")
    await settle(spool, dropped, Bounced(reason=Reason.EXPIRED, keep_until=keep, trail=(REFUSED,)))
    went = await put(spool, "delivered")
    answer = Response(200, b"OK", (), b"thanks")
    await settle(spool, went, Delivered(answer=answer, keep_until=keep, answer_until=keep))

    def names(*flags: str) -> list[object]:
        return [line["name"] for line in objects(unspool("queue", "--json", *flags).stdout)]

    assert names() == ["waits", "elsewhere"]
    assert names("--destination", HERE) == ["waits"]
    assert names("--bounced") == ["bounced"]
    assert names("--all") == ["waits", "elsewhere", "bounced", "delivered"]
    assert b"(bounced: expired; last: connection_refused" in unspool("queue", "--bounced").stdout
    assert unspool("queue", "--bounced", "--all").returncode == os.EX_USAGE


async def test_json_lines_carry_what_a_program_needs(unspool: Run, spool: Spool) -> None:
    key = await put(spool, "k1", due_at=NEVER)
    [line] = objects(unspool("queue", "--json").stdout)
    assert line["key"] == key
    assert (line["name"], line["destination"], line["state"]) == ("k1", HERE, "waiting")
    assert (line["held"], line["due_at"], line["leased_until"]) == (True, None, None)
    assert line["attempts"] == 1
    assert line["trail"] == [
        {"number": 1, "at": 0, "status": None, "cause": REFUSED.cause, "sent": "never sent"}
    ]


async def test_a_long_queue_comes_in_pages_and_a_limit_is_said(unspool: Run, spool: Spool) -> None:
    oldest_at = now() - 500_000
    for number in range(450):
        await put(spool, f"k{number}", age_ms=500_000 - number)
    lines = objects(unspool("queue", "--json").stdout)
    assert [line["name"] for line in lines] == [f"k{number}" for number in range(450)]
    for limit, sums in (
        ("3", "-- the first 3 messages, oldest {}m. There are more."),
        ("450", "-- 450 messages, oldest {}m."),
    ):
        before = (now() - oldest_at) // MINUTE
        last = unspool("queue", "--limit", limit).stdout.decode().splitlines()[-1]
        after = (now() - oldest_at) // MINUTE
        assert last in (sums.format(before), sums.format(after))


async def test_what_came_over_the_wire_does_not_reach_the_terminal(
    unspool: Run, spool: Spool
) -> None:
    cause = "503 \x1b]0;owned\x07 \x9b31m \x7f \u202egnp.\u2066 \U000e0041"
    evil = Attempt(1, Instant(0), 503, cause, "maybe applied")
    await put(spool, "k1", trail=(evil,))
    for words in (("queue",), ("show", "k1")):
        out = unspool(*words).stdout
        assert rb"503 \x1b]0;owned\x07 \x9b31m \x7f \u202egnp.\u2066 \U000e0041" in out
        assert harmless(out)
    for words in (("queue", "--json"), ("show", "k1", "--json")):
        out = unspool(*words).stdout
        [shown] = objects(out)
        assert shown["trail"][0]["cause"] == cause, "to a program it is what it was"  # type: ignore[index]
        assert harmless(out)


def harmless(out: bytes) -> bool:
    """Nothing in it but letters, signs, spaces and line ends."""
    return all(line.isprintable() for line in out.decode().split("\n"))


async def test_what_was_typed_does_not_reach_the_terminal_either(
    unspool: Run, spool: Spool
) -> None:
    """A key that somebody pasted comes back in the message that it is not there."""
    for words in (("show", "k\x9b31m"), ("retry", "k\x9b31m"), ("k\x9b31m",)):
        done = unspool(*words)
        assert done.returncode != 0
        assert rb"\x9b31m" in done.stderr
        assert harmless(done.stderr)


async def test_a_body_that_would_act_on_the_terminal_is_not_written_to_it(
    spool: Spool, tmp_path: Path, unspool: Run
) -> None:
    """To a pipe it goes byte for byte; to a terminal if it is text."""
    await put(spool, "evil", body=b"\x1b]0;owned\x07")
    await put(spool, "good", body="Grüße,\tTee\n".encode())
    assert unspool("show", "evil", "--body").stdout == b"\x1b]0;owned\x07"
    codes, seen = [], []
    for key in ("evil", "good"):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "unspool", "show", key, "--body"],
            cwd=tmp_path, env=clean(tmp_path), stdin=theirs, stdout=theirs, stderr=theirs,
        ) as child:  # fmt: skip
            os.close(theirs)
            seen.append(told(ours))
            codes.append(child.wait(timeout=60))
        os.close(ours)
    assert codes == [os.EX_USAGE, 0]
    assert b"\x1b" not in seen[0]
    assert "Grüße,".encode() in seen[1]


def told(terminal: int) -> bytes:
    """All that is written to it, until nobody has it open any longer."""
    said = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 1000):
            said += part
    return said


def test_a_log_line_for_a_terminal_has_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger("unspool")
    for name in ("handlers", "propagate", "level"):  # others' tests go on as before
        monkeypatch.setattr(root, name, getattr(root, name))
    root.handlers = []
    logs.start(level="info", form="text")
    logging.getLogger("unspool.test").warning("it said %s", "503 \x9b31m \x1b]0;owned\x07")
    assert r"503 \x9b31m \x1b]0;owned\x07" in capsys.readouterr().err


async def test_the_secret_of_the_spool_is_nobodys_business(unspool: Run, spool: Spool) -> None:
    from unspool.core.admission import Terms
    from unspool.custody import Custody

    await Custody(spool=spool, terms=Terms(survives=2, required=2)).open(now=now())
    assert await found(spool, SECRET_KEY)
    assert unspool("queue", "--all", "--json").stdout == b""
    assert unspool("show", SECRET_KEY).returncode == os.EX_NOINPUT
    assert unspool("drop", SECRET_KEY).returncode == os.EX_NOINPUT


def test_looking_makes_no_spool(unspool: Run, tmp_path: Path) -> None:
    for words in (("queue",), ("show", "k"), ("retry", "k"), ("drop", "--all", "--yes")):
        result = unspool(*words)
        assert result.returncode == os.EX_NOINPUT
        assert result.stderr.startswith(b"unspool: there is no spool at unspool.db")
        assert result.stdout == b""
    assert list(tmp_path.iterdir()) == []
    assert unspool("queue", "--spool", "memory:").returncode == os.EX_NOINPUT


async def test_the_spool_is_found_by_flag_variable_and_file(
    unspool: Run, spool: Spool, tmp_path: Path
) -> None:
    await put(spool, "k1")
    url = f"sqlite:///{tmp_path}/unspool.db"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "unspool.toml").write_text(f'spool = "{url}"')
    for words, environ in (
        (("queue", "--json", "--spool", url), {}),
        (("queue", "--json"), {"UNSPOOL_SPOOL": url}),
        (("queue", "--json", "--config", str(elsewhere / "unspool.toml")), {}),
    ):
        assert [line["name"] for line in objects(unspool(*words, **environ).stdout)] == ["k1"]


# --- show -------------------------------------------------------------------------------------


async def test_show_tells_all_but_credentials(unspool: Run, spool: Spool) -> None:
    second = Attempt(2, now(), 503, "503 Service Unavailable", "maybe applied")
    key = await put(spool, "k1", trail=(REFUSED, second))
    out = unspool("show", "k1").stdout.decode()
    assert f"spool key    {key}" in out
    assert "state        waiting, next try in 9m" in out
    assert out.index("503 Service Unavailable (maybe") < out.index("connection_refused: nobody")
    assert "request      POST /orders?a=1" in out
    assert "  Content-Type: text/plain" in out
    assert "body         3 bytes" in out
    assert "hunter" not in out
    assert "hunter" not in unspool("show", "k1", "--json").stdout.decode()
    revealed = unspool("show", "k1", "--reveal").stdout.decode()
    assert "  Authorization: Bearer hunter2" in revealed
    assert "  X-Api-Key: hunter3" in revealed
    with_own_scope = unspool("show", "k1", UNSPOOL_SCOPE_FIELDS="content-type").stdout.decode()
    assert "Content-Type: (hidden" in with_own_scope
    assert "hunter2" not in with_own_scope


async def test_show_by_spool_key_quoted_name_receipt_and_of_a_minted_key(
    unspool: Run, spool: Spool
) -> None:
    key = await put(spool, "k1")
    minted = [await put(spool, body=b"%d" % number) for number in range(3)]
    receipt = token((await found(spool, key)).message.nonce, key)
    same = unspool("show", key, "--json").stdout
    assert json.loads(same)["name"] == "k1"
    for word in ('"k1"', receipt, f"http://relay/_unspool/receipts/{receipt}"):
        assert unspool("show", word, "--json").stdout == same
    for number, one in enumerate(minted):
        assert unspool("show", one, "--body").stdout == b"%d" % number


def test_a_key_that_begins_with_a_hyphen_is_no_flag(unspool: Run, tmp_path: Path) -> None:
    """One key in 64 does, and half of those receipts have an h in them, which was taken for -h."""
    asyncio.run(_make(tmp_path))
    for verb in ("show", "hold"):
        done = unspool(verb, "-Rhx8Qhaaaaaaaaaaaaaaa")
        assert done.returncode == os.EX_NOINPUT, done
        assert b"no message is called -Rhx8Qh" in done.stderr


async def _make(folder: Path) -> None:
    await (await open_spool(f"sqlite:///{folder}/unspool.db")).aclose()


async def test_the_body_comes_byte_for_byte(unspool: Run, spool: Spool) -> None:
    body = bytes(range(256)) * 8
    await put(spool, "k1", body=body)
    assert unspool("show", "k1", "--body").stdout == body


async def test_what_has_settled_shows_its_end(unspool: Run, spool: Spool) -> None:
    keep = Instant(now() + MINUTE)
    key = await put(spool, "k1")
    fields = ((b"Set-Cookie", b"a"), (b"Content-Type", b"text/html"))
    answer = Response(201, b"Created", fields, b"<p>")
    then = Instant(now() - 2 * MINUTE)
    verdict = Delivered(answer=answer, keep_until=keep, answer_until=keep, settled_at=then)
    await settle(spool, key, verdict)
    out = unspool("show", "k1").stdout.decode()
    assert "state        delivered (201) 2m ago" in out
    assert "request      gone" in out
    assert "answer       201 Created, body 3 bytes" in out
    document = json.loads(unspool("show", "k1", "--json").stdout)
    assert document["answer"]["status"] == 201
    assert "request" not in document
    result = unspool("show", "k1", "--body")
    assert (result.returncode, result.stdout) == (os.EX_NOINPUT, b"")


async def test_a_name_of_several_messages_lists_them(unspool: Run, spool: Spool) -> None:
    keys = [await put(spool, "k1", scope=scope) for scope in "ab"]
    for verb in ("show", "drop"):
        result = unspool(verb, "k1")
        assert (result.returncode, result.stdout) == (os.EX_DATAERR, b"")
        assert b"2 messages are called k1" in result.stderr
        assert all(key.encode() in result.stderr for key in keys)
    assert unspool("show", keys[1]).returncode == 0
    assert unspool("show", "k2").returncode == os.EX_NOINPUT


# --- retry, hold, release, drop ---------------------------------------------------------------


async def test_hold_release_retry_drop(unspool: Run, spool: Spool) -> None:
    key = await put(spool, "k1")
    before = await found(spool, key)

    assert b"k1: held" in unspool("hold", "k1").stdout
    assert (await found(spool, key)).due_at == NEVER
    assert b"k1: released, due now" in unspool("release", "k1").stdout
    assert abs((await found(spool, key)).due_at - now()) < 30_000
    assert unspool("release", "k1").stdout == b"k1: was not held\n"
    await settle(spool, key, Deferred(due_at=before.due_at, trail=before.trail))
    assert unspool("retry", "k1").stdout == b"k1: due now\n"
    after = await found(spool, key)
    assert after.due_at <= now()
    assert after.trail == before.trail

    assert b"k1: dropped" in unspool("drop", "k1", UNSPOOL_KEY_KEEP_MS="2d").stdout
    dropped = await found(spool, key)
    assert (dropped.state, dropped.reason) == (State.BOUNCED, Reason.DROPPED)
    assert dropped.trail == before.trail
    assert abs(dropped.settled_at - now()) < 30_000
    assert re.search(
        r"state        bounced \d+s ago: dropped", unspool("show", "k1").stdout.decode()
    )
    assert abs(dropped.keep_until - now() - 2 * 24 * 60 * MINUTE) < 30_000
    again = unspool("retry", "k1")
    assert again.returncode == os.EX_DATAERR
    assert b"there is nothing to retry" in again.stdout


async def test_what_is_being_tried_is_left_alone(unspool: Run, spool: Spool) -> None:
    key = await put(spool, "k1")
    [lease] = await spool.seize([key], now=now(), until=Instant(now() + MINUTE))
    assert lease is not None
    for verb in ("retry", "hold", "drop"):
        result = unspool(verb, "k1")
        assert result.returncode == os.EX_TEMPFAIL
        assert b"k1: is being tried right now" in result.stdout
    keep = Instant(now() + MINUTE)
    verdict = Delivered(answer=Response(200, b"", (), b""), keep_until=keep, answer_until=keep)
    assert list(await spool.settle([(lease, verdict)])) == [True]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "--spool", "amqp://h/"], b"is a queue, and no spool"),
        (["queue", "--spool", "s3://parked/orders"], b"is a queue, and no spool"),
        (["collect", "postgres://h/mail"], b"is a spool, and no queue"),
        (["collect", "--collect", "sqlite:///unspool.db"], b"is a spool, and no queue"),
        (["serve", "--collect", "sqlite:///unspool.db"], b"is a spool, and no queue"),
    ],
)
def test_a_queue_is_no_spool_and_a_spool_is_no_queue(
    unspool: Run, words: list[str], says: bytes
) -> None:
    """Told apart in words, and refused as any other misuse is, before anything has started."""
    found = unspool(*words, UNSPOOL_TO="http://127.0.0.1:9")
    assert found.returncode == os.EX_CONFIG
    assert says in found.stderr
    assert b"delivers to" not in found.stderr


async def test_one_unknown_key_does_not_stop_the_others(unspool: Run, spool: Spool) -> None:
    key = await put(spool, "k1")
    result = unspool("hold", "nobody", "k1")
    assert result.returncode == os.EX_NOINPUT
    assert result.stdout == b"k1: held; `unspool release` lets it go\n"
    assert b"no message is called nobody" in result.stderr
    assert (await found(spool, key)).due_at == NEVER


async def test_all_asks_first_and_counts(unspool: Run, spool: Spool) -> None:
    here = [await put(spool, f"k{number}") for number in range(3)]
    there = await put(spool, "there", destination=THERE)
    held = await put(spool, "held", due_at=NEVER)

    refused = unspool("drop", "--all")
    assert refused.returncode == os.EX_USAGE
    assert b"drop --all means 5 messages now: say --yes" in refused.stderr
    dry = unspool("retry", "--all", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, b"")
    assert b"retry would be done to 4 messages" in dry.stderr
    for key in (*here, there, held):
        assert (await found(spool, key)).state is State.WAITING

    result = unspool("drop", "--all", "--destination", HERE, "--yes")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 4
    assert (await found(spool, there)).state is State.WAITING
    for key in (*here, held):
        assert (await found(spool, key)).state is State.BOUNCED


async def test_retry_asks_a_destination_that_is_down_at_once(unspool: Run, spool: Spool) -> None:
    """Of those that are named each; with --all one of each destination: a probe, and no flush."""
    here = [await put(spool, f"h{number}") for number in range(3)]
    there = [await put(spool, f"t{number}", destination=THERE) for number in range(2)]
    assert unspool("retry", "--all", "--yes").returncode == 0
    for keys in (here, there):
        due = [(await found(spool, key)).due_at for key in keys]
        assert due[0] == AT_ONCE
        assert all(now() - MINUTE < at <= now() for at in due[1:])
    assert unspool("retry", "h1", "h2").returncode == 0
    assert [(await found(spool, key)).due_at for key in here] == [AT_ONCE] * 3
    [shown] = objects(unspool("show", "h1", "--json").stdout)
    assert shown["due_at"] == shown["accepted_at"]


async def test_release_all_means_the_held_and_retry_all_the_others(
    unspool: Run, spool: Spool
) -> None:
    waiting = await put(spool, "waiting")
    held = await put(spool, "held", due_at=NEVER)
    assert unspool("retry", "--all", "--yes").stdout == b"waiting: due now\n"
    assert (await found(spool, held)).due_at == NEVER
    await settle(spool, waiting, Deferred(due_at=Instant(now() + MINUTE)))
    assert unspool("release", "--all", "--yes").stdout == b"held: released, due now\n"
    assert (await found(spool, waiting)).due_at > now()


async def test_all_of_many_goes_in_pages(unspool: Run, spool: Spool) -> None:
    for number in range(450):
        await put(spool, f"k{number}")
    assert len(unspool("hold", "--all", "--yes").stdout.splitlines()) == 450
    assert len(unspool("release", "--all", "--yes").stdout.splitlines()) == 450
    assert len(unspool("drop", "--all", "--yes").stdout.splitlines()) == 450
    assert unspool("queue").stdout == b"The spool is empty.\n"


@pytest.mark.parametrize("yes", [False, True])
async def test_a_person_at_a_terminal_is_asked(spool: Spool, tmp_path: Path, yes: bool) -> None:
    key = await put(spool, "k1")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "unspool", "drop", "--all"],
        cwd=tmp_path, env=clean(tmp_path), stdin=theirs, stdout=theirs, stderr=theirs,
    ) as child:  # fmt: skip
        os.close(theirs)
        said = b""
        while b"?" not in said:
            said += os.read(ours, 1000)
        assert b"unspool: drop 1 message?" in said
        os.write(ours, b"y\n" if yes else b"n\n")
        code = child.wait(timeout=60)
    os.close(ours)
    assert code == (0 if yes else 130)
    assert ((await found(spool, key)).state is State.BOUNCED) is yes


@pytest.mark.parametrize(
    "words",
    [
        ("retry",),
        ("retry", "k1", "--all"),
        ("drop", "k1", "--destination", HERE),
        ("queue", "--limit", "-1"),
        ("queue", "--nosuch"),
        ("nosuch",),
        (),
        ("outbox",),
        ("send", "http://[::1/orders"),
        ("show", b"k\xff"),
    ],
)
def test_bad_command_lines_exit_64(
    unspool: Run, tmp_path: Path, words: tuple[str | bytes, ...]
) -> None:
    (tmp_path / "unspool.db").touch()
    result = unspool(*words)
    assert (result.returncode, result.stdout) == (os.EX_USAGE, b"")
    assert result.stderr.startswith((b"unspool: ", b"Usage: "))
    assert b"mistake of ours" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("show", "caf\udce9"),
        ("drop", "caf\udce9"),
        ("queue", "--destination", "caf\udce9"),
        ("hold", "--all", "--destination", "caf\udce9"),
        ("export", "--after", "caf\udce9"),
    ],
)
async def test_a_word_that_is_no_text_is_said_to_be_none(
    unspool: Run, spool: Spool, words: tuple[str, ...]
) -> None:
    """As from a terminal that is set to Latin-1: it is no mistake of ours."""
    result = unspool(*words)
    assert result.returncode == os.EX_USAGE, result
    assert rb"caf\udce9 is no text" in result.stderr


# --- config, version, serve -------------------------------------------------------------------


def test_version(unspool: Run) -> None:
    how = "compiled" if heads.COMPILED else "not compiled"
    for words in (("version",), ("--version",), ("-V",)):
        assert unspool(*words).stdout == f"unspool {__version__} ({how})\n".encode()


def test_config_says_where_each_value_came_from(unspool: Run, tmp_path: Path) -> None:
    (tmp_path / "unspool.toml").write_text("window_start = 3\nhead_ms = 20_000")
    words = ("config", "--head-ms", "15s", "--to", "http://a:1")
    lines = unspool(*words, UNSPOOL_FIELDS_MAX="50").stdout.decode().splitlines()
    assert lines[0] == "# file: unspool.toml"
    rows = {line.split(" = ")[0]: [part.strip() for part in line.split("#")] for line in lines[1:]}
    assert rows["window_start"] == ["window_start = 3", "unspool.toml"]
    assert rows["head_ms"] == ['head_ms = "15s"', "--head-ms"]
    assert rows["fields_max"] == ["fields_max = 50", "UNSPOOL_FIELDS_MAX"]
    assert rows["to"] == ['to = ["http://a:1"]', "--to"]
    assert rows["workers"] == ["workers = 1", "default"]
    by_name = {line["name"]: line for line in objects(unspool("config", "--json").stdout)}
    assert by_name["head_ms"]["value"] == 20_000
    assert by_name["head_ms"]["origin"] == "unspool.toml"


def test_config_shows_no_password(unspool: Run) -> None:
    words = ("config", "--spool", "redis://me:hunter2@a/0")
    for out in (unspool(*words).stdout, unspool(*words, "--json").stdout):
        assert b"hunter2" not in out
        assert b"redis://me:...@a/0" in out


def test_what_config_prints_is_a_file_that_gives_the_same(unspool: Run, tmp_path: Path) -> None:
    first = unspool("config", "--head-ms", "15s").stdout
    (tmp_path / "unspool.toml").write_bytes(first)
    second = unspool("config").stdout.decode()
    assert 'head_ms = "15s"' in second
    assert "# default" not in second


def test_the_defaults_are_a_file(unspool: Run, tmp_path: Path) -> None:
    defaults = unspool("config", "--defaults").stdout
    assert b"\n#window_max = 20\n" in defaults
    (tmp_path / "unspool.toml").write_bytes(
        defaults.replace(b"#window_max = 20", b"window_max = 9")
    )
    assert b"window_max = 9" in unspool("config").stdout


def test_a_wrong_setting_exits_78_with_a_line(unspool: Run) -> None:
    for words, environ in (
        (("config", "--window-max", "lots"), {}),
        (("config",), {"UNSPOOL_WINDOW_MAXX": "1"}),
        (("serve",), {}),
        (("serve", "--to", "http://a/path"), {}),
    ):
        result = unspool(*words, **environ)
        assert (result.returncode, result.stdout) == (os.EX_CONFIG, b"")
        assert result.stderr.startswith(b"unspool: ")
        assert result.stderr.count(b"\n") == 1


def test_every_setting_is_a_flag_of_serve(unspool: Run) -> None:
    from unspool.settings import SETTINGS

    out = unspool("serve", "--help").stdout.decode()
    for setting in SETTINGS.values():
        assert f"  {setting.flag} " in out


# --- manners ----------------------------------------------------------------------------------


def test_debug_adds_a_traceback_and_nothing_else_does(unspool: Run, tmp_path: Path) -> None:
    (tmp_path / "unspool.db").write_text("no database")
    plain = unspool("queue")
    assert plain.returncode == os.EX_CONFIG
    assert b"Traceback" not in plain.stderr
    debugged = unspool("queue", UNSPOOL_DEBUG="1")
    assert debugged.returncode == os.EX_CONFIG
    assert b"Traceback" in debugged.stderr


@pytest.mark.parametrize(
    ("words", "closed", "code"),
    [
        ("drop --all", "<&-", os.EX_USAGE),  # nobody can be asked
        ("export", ">&-", 0),
        ("queue", "<&- >&- 2>&-", 0),
    ],
)
async def test_streams_may_be_closed(
    spool: Spool, tmp_path: Path, words: str, closed: str, code: int
) -> None:
    """As some who start others leave them."""
    await put(spool, "k1")
    done = subprocess.run(
        f"exec {sys.executable} -m unspool {words} {closed}", shell=True, cwd=tmp_path,
        env=clean(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert b"mistake of ours" not in done.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """A spool's, that is, which whoever writes to stderr by number would write into."""
    script = tmp_path / "opens.py"
    script.write_text(
        "import os, sys\nfrom unspool.admin.cli import main\nsys.argv[1:] = ['version']\nmain()\n"
        "os._exit(os.open(os.devnull, os.O_RDONLY))"
    )
    command = f"exec {sys.executable} {script} <&- >&- 2>&-"
    done = subprocess.run(command, shell=True, env=clean(tmp_path), timeout=60, check=False)
    assert done.returncode > 2


async def test_what_stdout_cannot_say_is_escaped(unspool: Run, tmp_path: Path) -> None:
    """Anything else would end the command, after what it did."""
    (tmp_path / "unspool.db").touch()
    words = ("move", "--from", "sqlite:///unspool.db", "--to", "sqlite:///new.db")
    done = unspool(*words, PYTHONIOENCODING="iso8859-5")
    assert (done.returncode, done.stdout) == (0, b"moved 0 \\xb7 copied 0 \\xb7 known 0\n")


def test_a_name_that_is_not_there_comes_with_the_command_that_lists_them(
    unspool: Run, tmp_path: Path
) -> None:
    """Of the spool that was asked: an outbox is one."""
    for name in ("outbox.db", "a b.db"):
        (tmp_path / name).touch()
    for words, url in (
        (("outbox", "show", "k1"), "sqlite:///outbox.db"),
        (("retry", "k1", "--spool", "sqlite:///a b.db"), "'sqlite:///a b.db'"),
    ):
        done = unspool(*words)
        assert done.returncode == os.EX_NOINPUT
        assert f"unspool queue --all --spool {url}\n".encode() in done.stderr


def test_a_body_from_a_file_that_is_not_there_is_not_sent(unspool: Run) -> None:
    done = unspool("send", "http://127.0.0.1:1/orders", "--data", "@nosuch")
    assert done.returncode == os.EX_NOINPUT
    assert b"'nosuch' cannot be read" in done.stderr
    assert b"Nothing was sent" in done.stderr


def test_a_body_is_sent_as_it_was_typed(unspool: Run) -> None:
    """In whatever encoding."""
    nobody = f"http://127.0.0.1:{free_port()}/orders"
    assert unspool("send", nobody, "--key", "k1", "-d", b"\xff").returncode == 75
    assert unspool("outbox", "show", "k1", "--body").stdout == b"\xff"


async def test_a_full_disk_behind_stdout_is_said(
    unspool: Run, spool: Spool, tmp_path: Path
) -> None:
    await put(spool, "k1")
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "unspool", "queue"],
            cwd=tmp_path, env=clean(tmp_path), stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert result.returncode == os.EX_IOERR
    assert result.stderr == b"unspool: No space left on device\n"


async def test_a_reader_who_has_left_is_no_news(unspool: Run, spool: Spool, tmp_path: Path) -> None:
    for number in range(450):
        await put(spool, f"k{number}", trail=(Attempt(1, now(), 0, "c" * 200, "never sent"),))
    with subprocess.Popen(
        [sys.executable, "-m", "unspool", "queue"],
        cwd=tmp_path, env=clean(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=60) == 141


async def test_control_c_exits_130_without_a_word(spool: Spool, tmp_path: Path) -> None:
    await put(spool, "k1")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "unspool", "drop", "--all"],
        cwd=tmp_path, env=clean(tmp_path), stdin=theirs, stdout=theirs, stderr=theirs,
    ) as child:  # fmt: skip
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 1000)
        rests(child.pid)
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(timeout=60) == 130
        finally:
            child.kill()
    os.close(ours)


def rests(pid: int) -> None:
    """Return when a process has been asleep for a while: it reads its terminal.

    A signal between the prompt and the read is noticed only after the read, in any Python.
    """
    asleep = 0
    while asleep < 10:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.03)
