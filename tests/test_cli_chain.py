"""Operators' commands over several spools: what can be seen is shown, what cannot is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from unspool.core.lifecycle import State
from unspool.core.message import Destination, Instant, Request, seal
from unspool.spools.open import open_spool
from unspool.spools.protocol import Entry

NOW = Instant(time.time_ns() // 1_000_000)


async def put(url: str, name: str) -> None:
    message = seal(
        Request(b"POST", b"/", (), b"tea"),
        key=f"{name:.<22}", name=name, destination=Destination("http://shop"), now=NOW,
        lifetime_ms=10**9, nonce=os.urandom(16), repeat=True,
    )  # type: ignore[arg-type]  # fmt: skip
    spool = await open_spool(url)
    await spool.accept([Entry(message=message, state=State.WAITING, due_at=NOW)])
    await spool.aclose()


def unspool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UNSPOOL_")}
    return subprocess.run(
        [sys.executable, "-m", "unspool", *words],
        cwd=folder, env=ours | {"HOME": str(folder)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


async def test_the_queue_is_of_all_in_their_order_and_says_how_each_does(tmp_path: Path) -> None:
    """Order, state and cause: which is first, what lies where, and what each keeps."""
    spools = [f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second")]
    for url, name in zip(spools, ("home", "away"), strict=True):
        await put(url, name)
    flags = [word for url in spools for word in ("--spool", url)]
    out = unspool(tmp_path, "queue", *flags).stdout
    at = [out.index(word) for word in (f"-- {spools[0]}", "home", f"-- {spools[1]}", "away")]
    assert at == sorted(at)
    assert f"-- spool 1: {spools[0]}: up; survives a power cut" in out
    assert f"-- spool 2: {spools[1]}: up; survives a power cut" in out
    rows = [
        json.loads(line)
        for line in unspool(tmp_path, "queue", *flags, "--json").stdout.split("\n")[:2]
    ]
    assert [row["spool"] for row in rows] == spools
    assert unspool(tmp_path, "hold", "away", *flags).stdout.startswith("away: held")
    assert "held by an operator" in unspool(tmp_path, "show", "away", *flags).stdout


async def test_one_that_cannot_be_looked_at_is_named_and_the_other_is_shown(tmp_path: Path) -> None:
    spools = [f"sqlite:///{tmp_path}/nowhere.db", f"sqlite:///{tmp_path}/second.db"]
    await put(spools[1], "away")
    flags = [word for url in spools for word in ("--spool", url)]
    done = unspool(tmp_path, "queue", *flags)
    assert done.returncode == 0
    assert "away" in done.stdout
    assert f"cannot be looked at: {spools[0]} (there is no spool at" in done.stderr
    assert f"-- spool 1: {spools[0]}: down, there is no spool at" in done.stdout
    assert not (tmp_path / "nowhere.db").exists(), "looking makes none"


async def test_nothing_can_be_looked_at(tmp_path: Path) -> None:
    done = unspool(tmp_path, "queue", "--spool", "sqlite:///a.db", "--spool", "sqlite:///b.db")
    assert done.returncode == os.EX_NOINPUT
    assert "there is no spool at a.db" in done.stderr


async def test_two_messages_under_one_key_are_told_apart(tmp_path: Path) -> None:
    """A key that was accepted away while home was not to be asked may wait at both: what is done is
    done to home's, and it is said that there is another, and how that is reached."""
    spools = [f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second")]
    for url in spools:
        await put(url, "order-7")
    flags = [word for url in spools for word in ("--spool", url)]
    key = f"{'order-7':.<22}"
    for word in ("order-7", key):
        shown = unspool(tmp_path, "show", word, *flags)
        assert shown.returncode == 0, shown.stderr
        assert f"what {spools[0]} has" in shown.stderr
        assert f"unspool show {key} --spool {spools[1]}" in shown.stderr
    dropped = unspool(tmp_path, "drop", "order-7", *flags)
    assert dropped.stdout.startswith("order-7: dropped")
    command = dropped.stderr.partition("for that: unspool ")[2].split()
    assert "dropped" not in unspool(tmp_path, "show", "order-7", "--spool", spools[1]).stdout
    assert unspool(tmp_path, *command).stdout.startswith("order-7: dropped")
    await put(spools[0], "alone")
    assert not unspool(tmp_path, "show", "alone", *flags).stderr
