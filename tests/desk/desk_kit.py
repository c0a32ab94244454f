"""What operators do, as a person does it: the command in a process of its own.

run(folder, "queue", "--all")            `unspool …` there, away from a terminal
put(spool, "a", …)                       a message that waits
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from unspool.core.lifecycle import State
from unspool.core.message import Attempt, Destination, Instant, Key, Request, seal
from unspool.spools.protocol import Entry, Spool

HERE = Destination("http://127.0.0.1:8000")
MINUTE = 60_000
DAY = 24 * 60 * MINUTE
REFUSED = Attempt(1, Instant(0), 0, "connection_refused: nobody listens", "never sent")


def now() -> Instant:
    return Instant(time.time_ns() // 1_000_000)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "unspool", *words]


def environment(folder: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UNSPOOL_")}
    return ours | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*words),
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def waiting(
    name: str, *, due_at: int | None = None, age_ms: int = 5 * MINUTE, body: bytes = b"tea",
    order_key: str = "", repeat: bool = True, destination: Destination = HERE,
    trail: tuple[Attempt, ...] = (REFUSED,),
) -> Entry:  # fmt: skip
    at = Instant(now() - age_ms)
    fields = (
        (b"Host", b"shop"),
        (b"Authorization", b"Bearer hunter2"),
        (b"X-Tea", b"caf\xe9 \xff"),
    )
    message = seal(
        Request(b"POST", b"/orders?a=1", fields, body),
        key=Key(name.ljust(22, ".")), name=name, destination=destination, now=at,
        lifetime_ms=5 * DAY, nonce=os.urandom(16), repeat=repeat, order_key=order_key,
    )  # fmt: skip
    due = Instant(now() + 10 * MINUTE if due_at is None else due_at)
    return Entry(message=message, state=State.WAITING, due_at=due, trail=trail)


async def put(spool: Spool, *names: str) -> list[Key]:
    entries = [waiting(name) for name in names]
    await spool.accept(entries)
    return [entry.message.key for entry in entries]
