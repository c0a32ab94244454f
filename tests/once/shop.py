"""A shop as a process of its own, that a test can stop, kill and talk to.

    python shop.py commit sqlite:FILE|CONNINFO ATTEMPT      one co-commit; says where it is
    python shop.py rivals sqlite:FILE|CONNINFO KEYS         each of these keys, one after another
    python shop.py once URL LOG LEASE_MS ABANDONED          `@once` around a line in LOG
    python shop.py held URL sqlite:FILE|CONNINFO LEASE_MS   `@once` around a co-commit, or a refusal

It prints a word at each stage and goes on when it is told a line.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from typing import Any

from unspool.errors import Crossed, UnspoolError
from unspool.middleware.once import Done, once
from unspool.middleware.running import Running


def say(*words: object) -> None:
    print(*words, flush=True)


def wait() -> None:
    if not sys.stdin.readline():
        os._exit(3)  # the test has gone


def connect(where: str) -> Any:
    if where.startswith("sqlite:"):
        return sqlite3.connect(where.removeprefix("sqlite:"), timeout=50)
    import psycopg

    return psycopg.connect(where)


def commit(where: str, attempt: str) -> None:
    session = connect(where)
    try:
        with once.commit(session, "k1", scope="orders", attempt=int(attempt)) as done:
            if not done.known:
                session.execute(f"INSERT INTO orders (item) VALUES ('by {attempt}')")
                done.value = f"kept by {attempt}"
            say("begun")
            wait()
        say("committed", done.known, done.value)
        wait()
    except UnspoolError as error:
        say(type(error).__name__)
    session.close()


def rivals(where: str, keys: str) -> None:
    session = connect(where)
    say("ready")
    wait()
    ran = 0
    for number in range(int(keys)):
        while True:
            try:
                # A rival that is held up is waited for, and nobody is told that it is busy.
                with once.commit(session, f"k{number}", scope="orders", wait_ms=50_000) as done:
                    if not done.known:
                        session.execute(f"INSERT INTO orders (item) VALUES ('{number}')")
                        ran += 1
                break
            except Crossed:
                continue
    say("ran", ran)
    session.close()


def reconcile(m: str, ctx: Running) -> Done:
    say("asked")
    return Done("found out")


def as_once(url: str, log: str, lease_ms: str, abandoned: str) -> None:
    @once(
        url, key=lambda m: m, scope="orders", lease_ms=int(lease_ms), abandoned=abandoned,  # type: ignore[arg-type]
        on_unknown=reconcile,
    )  # fmt: skip
    def handle(m: str, ctx: Running) -> str:
        say("begun", ctx.attempt)
        wait()
        with open(log, "a") as file:
            file.write(f"{m}\n")
        return f"kept by {ctx.attempt}"

    say("ready")
    for line in iter(sys.stdin.readline, ""):
        try:
            say("done", handle(line.strip()))
        except UnspoolError as error:
            say(type(error).__name__)


class Declined(Exception):
    pass


def held(url: str, where: str, lease_ms: str) -> None:
    @once(url, key=lambda m: m, scope="orders", lease_ms=int(lease_ms), final=(Declined,))
    def handle(m: str, ctx: Running) -> str:
        say("begun", ctx.attempt)
        if sys.stdin.readline().strip() == "decline":
            raise Declined("no funds")
        with ctx.commit(session) as done:
            if not done.known:
                session.execute(f"INSERT INTO orders (item) VALUES ('by {ctx.attempt}')")
        return f"kept by {ctx.attempt}"

    session = connect(where)
    say("ready")
    for line in iter(sys.stdin.readline, ""):
        try:
            say("done", handle(line.strip()))
        except (Declined, UnspoolError) as error:
            say(type(error).__name__)


if __name__ == "__main__":
    {"held": held, "commit": commit, "rivals": rivals, "once": as_once}[sys.argv[1]](*sys.argv[2:])
