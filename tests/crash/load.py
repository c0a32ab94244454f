"""Load: senders who do what a good sender does, and write down what they were told.

    load = Load(relay.port, history, name="a", senders=16)
    await load.run(seconds=2)            or: await load.run(stop=event)
    await settle(port, history)          ask every receipt until it has settled

Each sender takes one job after the other. A job has a body of its own and, mostly, a key. When no
whole answer comes, or the relay refuses, a sender with a key sends the same again, under the same
key, until it is told something that stands: an answer, or 202. One without a key gives up: it must
not do it twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from .history import Call, Final, History, now_ns
from .wire import Severed, Told, Wire, ask

PAUSE_S = 0.02


class Job:
    """A kind of request: how it is asked for."""

    __slots__ = ("fields", "keyed", "name", "target")

    def __init__(self, name: str, *, keyed: bool, fields: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.keyed = keyed
        self.target = f"/{name}"
        self.fields = dict(fields or {})


KEYED = Job("keyed", keyed=True)
"""Tried at once; saved if the service fails."""
ASYNC = Job("async", keyed=True, fields={"Prefer": "respond-async"})
"""Saved first."""
PLAIN = Job("plain", keyed=False, fields={"Prefer": "respond-async"})
"""Saved first, and without a key: may be done once or, after a crash, end as unknown."""


class Load:
    def __init__(
        self,
        port: int,
        history: History,
        *,
        name: str,
        senders: int = 8,
        jobs: Sequence[Job] = (KEYED, ASYNC),
        size: int = 200,
        patience: float = 20,
        on_told: Callable[[Call], None] | None = None,
    ) -> None:
        self.port = port
        self._history = history
        self._name = name
        self._senders = senders
        self._jobs = jobs
        self._size = size
        self._patience = patience
        self._on_told = on_told
        self._stop = asyncio.Event()
        self._give_up = False

    async def run(self, *, seconds: float = 0, jobs: int = 0) -> None:
        """For so long, or until each sender has done so many. What is begun is finished."""
        timer = None
        if seconds:
            timer = asyncio.get_running_loop().call_later(seconds, self._stop.set)
        try:
            await asyncio.gather(*(self._send(number, jobs) for number in range(self._senders)))
        finally:
            if timer is not None:
                timer.cancel()

    def stop(self, *, give_up: bool = False) -> None:
        """Begin nothing new. `give_up`: nor resend what has no answer yet."""
        self._give_up = give_up
        self._stop.set()

    async def _send(self, sender: int, jobs: int) -> None:
        wire: Wire | None = None
        try:
            for number in count():
                if self._stop.is_set() or (jobs and number >= jobs):
                    return
                job = self._jobs[(sender + number) % len(self._jobs)]
                wire = await self._do(job, f"{self._name}-{sender}-{number}", wire)
        finally:
            if wire is not None:
                wire.close()

    async def _do(self, job: Job, name: str, wire: Wire | None) -> Wire | None:
        body = f"<{name}>".encode().ljust(self._size, b".")
        key = name if job.keyed else ""
        fields = dict(job.fields)
        if key:
            fields["Idempotency-Key"] = f'"{key}"'
        while True:
            call = Call(key=key, body=body, asked_at=now_ns(), target=job.target)
            self._history.calls.append(call)
            try:
                if wire is None or not wire.alive:
                    wire = await Wire.open(self.port)
                told = await wire.ask(
                    "POST", job.target, fields=fields, body=body, timeout=self._patience
                )
            except Severed as error:
                call.error = str(error)
                wire = None
            else:
                note(call, told)
                if self._on_told is not None:
                    self._on_told(call)
            if call.accepted or call.answered:
                return wire
            if (not key and call.refused in ("", "unknown")) or (
                self._stop.is_set() and self._give_up
            ):
                return wire
            await asyncio.sleep(PAUSE_S)


def note(call: Call, told: Told) -> None:
    """Write down what the sender was told, after its last byte was read."""
    call.status = told.status
    if told.status == 202 and "/_unspool/receipts/" in told.fields.get("location", ""):
        call.receipt = told.fields["location"]
    elif told.fields.get("content-type") == "application/problem+json":
        problem = json.loads(told.body)
        call.refused = str(problem.get("type", "problem")).rsplit("/", 1)[-1]
    else:
        call.answer = told.body
        call.stored = told.fields.get("idempotency-stored") != "false"
    call.told_at = now_ns()


async def at_stake(
    history: History, *, since: int, accepted: int, answered: int = 0, seconds: float = 60
) -> None:
    """Return when so many of the calls since then were told that: on a slow machine, too, something
    is to be lost. Or when they will not be: then it is the test's to say so."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        calls = history.calls[since:]
        if (
            sum(call.accepted for call in calls) >= accepted
            and sum(call.answered for call in calls) >= answered
        ):
            return
        await asyncio.sleep(0.01)


async def settle(port: int, history: History, *, seconds: float = 60, at_once: int = 16) -> None:
    """Ask every receipt until it has settled, and keep what it says."""
    receipts = sorted({call.receipt for call in history.accepted()} - set(history.finals))
    until = asyncio.get_running_loop().time() + seconds
    queue = iter(receipts)

    async def one_by_one() -> None:
        wire: Wire | None = None
        for receipt in queue:
            if wire is None or not wire.alive:
                wire = await Wire.open(port)
            while True:
                left = until - asyncio.get_running_loop().time()
                final = await _final(wire, receipt, wait_s=max(0, min(30, int(left))))
                if final.state != "waiting" or left <= 0:
                    break
            history.finals[receipt] = final
        if wire is not None:
            wire.close()

    await asyncio.gather(*(one_by_one() for _ in range(at_once)))


async def _final(wire: Wire, receipt: str, *, wait_s: int) -> Final:
    told = await wire.ask("GET", f"{receipt}?wait={wait_s}", timeout=wait_s + 20)
    if told.status != 200:
        return Final(receipt, "missing", reason=f"{told.status}")
    seen = json.loads(told.body)
    final = Final(receipt, seen["state"], reason=seen.get("reason", ""))
    if final.state == "delivered":
        final.answer = (await wire.ask("GET", f"{receipt}/response")).body
    return final


async def receipt_of(port: int, receipt: str, *, wait_s: int = 0) -> Final:
    """What one receipt says now, or after it has settled."""
    wire = await Wire.open(port)
    try:
        return await _final(wire, receipt, wait_s=wait_s)
    finally:
        wire.close()


__all__ = [
    "ASYNC",
    "KEYED",
    "PLAIN",
    "Job",
    "Load",
    "ask",
    "at_stake",
    "note",
    "receipt_of",
    "settle",
]
