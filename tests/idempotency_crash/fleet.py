"""A fleet: several processes of one application over one spool, for asking, killing, pausing.

fleet = Fleet(quick, folder, lease_ms=1500)
one = await fleet.start()                 a Process; more of them share its spool
told = await one.ask("k", do="hold")      one POST under a key, on a connection of its own
await fleet.began("k")                    the application has begun under it
fleet.go("k")                             let it end
one.kill() · one.pause() · one.resume()
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crash.launch import Forked, Quick
from crash.processes import eventually
from crash.wire import Told, ask
from once.process import stop_between_writes
from ports import free_port

from .ledger import Ledger

PROGRAM = (sys.executable, "-m", "idempotency_crash.serve")


def quick() -> Quick:
    return Quick(PROGRAM)


def problem(told: Told) -> str:
    """The name of the problem an answer is; empty where it is none of ours."""
    if told.fields.get("content-type") != "application/problem+json":
        return ""
    return told.body.decode().partition("/problems/")[2].partition('"')[0]


def busy(told: Told) -> bool:
    """409, it runs just now, and when to come back (E3)."""
    if told.status == 409 and problem(told) == "running":
        assert int(told.fields["retry-after"]) >= 1, told
        return True
    return False


def replayed(told: Told) -> bool:
    return told.fields.get("idempotent-replayed") == "true"


def stored(told: Told) -> bool:
    return told.fields.get("idempotency-stored") != "false"


class Process:
    """One process of it."""

    def __init__(self, forked: Forked, port: int, spool: Path) -> None:
        self.forked = forked
        self.port = port
        self.spool = spool

    async def ask(
        self,
        key: str,
        *,
        do: str = "",
        wait_s: int = 0,
        body: bytes = b'{"amount": 7}',
        timeout: float = 60,
        fields: Mapping[str, str] | None = None,
    ) -> Told:
        all_fields = {"Idempotency-Key": f'"{key}"', **(fields or {})}
        if do:
            all_fields["X-Do"] = do
        if wait_s:
            all_fields["Prefer"] = f"wait={wait_s}"
        return await ask(self.port, "POST", "/pay", fields=all_fields, body=body, timeout=timeout)

    def kill(self) -> None:
        self.forked.kill()

    async def gone(self) -> None:
        await self.forked.gone()

    def pause(self) -> None:
        stop_between_writes(self.forked.pid, self.spool)

    def resume(self) -> None:
        os.kill(self.forked.pid, signal.SIGCONT)


class Fleet:
    def __init__(
        self, quick: Quick, folder: Path, *, spool: Path | None = None, **options: Any
    ) -> None:
        self.folder = folder
        self.spool = spool or folder / "idem.db"
        self.log = folder / "log"
        self._options = options
        self.ledger = Ledger(folder / "ledger")
        self._quick = quick
        self.processes: list[Process] = []

    async def start(self, *, options: Mapping[str, Any] | None = None, **plan: Any) -> Process:
        """`options`: of this process alone, beside those of all."""
        port = free_port()
        forked = await self._quick.start(
            port=port, folder=str(self.folder), spool=f"sqlite:///{self.spool}",
            log=str(self.log), options={**self._options, **(options or {})}, **plan,
        )  # fmt: skip
        self.processes.append(Process(forked, port, self.spool))
        return self.processes[-1]

    async def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            await process.gone()
        self.ledger.close()

    def go(self, key: str) -> None:
        (self.folder / f"go-{key}").touch()

    async def began(self, key: str, *, times: int = 1) -> None:
        await eventually(lambda: self.ledger.begun(key) >= times, f"{key} began")

    def said(self) -> str:
        return self.log.read_text(errors="replace")


async def busy_or_late(process: Process, key: str, *, since: float, lease_s: float) -> bool:
    """It runs just now; or it was claimed, after `since`, longer ago than its lease lasts, for this
    machine was held up: then the key has been taken over, and nothing is shown."""
    told = await process.ask(key)
    late = time.monotonic() - since > lease_s
    assert busy(told) or late, f"its lease has not run out: {told}"
    return busy(told)


async def until_not_busy(
    process: Process, key: str, *, seconds: float, do: str = ""
) -> tuple[Told, float]:
    """Repeat under the key until the answer is another than "running"; and how long that took."""
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        told = await process.ask(key, do=do)
        if not busy(told):
            return told, time.monotonic() - began
        await asyncio.sleep(0.05)
    raise AssertionError(f"{key} was taken for {seconds:g} s")
