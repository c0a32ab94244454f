"""M7, the order witness: no 202, and no first answer under a key, leaves before its sync (I1, I6).

The relay runs under strace while senders load it. For every answer on a sender's connection the
trace is asked: was the WAL synced, with success, after the transaction with this request's mark had
been written to it, and before the first byte of the answer was? `trace.py` says how it is told.

The witness is tested too: the same relay over a spool that does not sync is convicted.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from . import launch, trace
from .history import History
from .load import ASYNC, KEYED, PLAIN, Job, Load
from .processes import ROUNDS, Relay
from .service import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace"),
]

SENDERS = 16
JOBS = 30 * ROUNDS


def weather(key: str, _body: bytes) -> str:
    """A third of what is tried fails in a way that leaves the lane alone, and is saved."""
    return "425" if key.endswith(("0", "3", "6")) else "ok"


async def witness(relay: Relay, trace_: Path, jobs: Sequence[Job]) -> tuple[trace.Judged, History]:
    history = History()
    load = Load(relay.port, history, name="w", senders=SENDERS, jobs=jobs, patience=60)
    async with asyncio.timeout(100 * ROUNDS):
        await load.run(jobs=JOBS)
    events = trace.read(trace_, port=relay.port, wal=Path(f"{relay.spool}-wal"))
    return trace.judge(events), history


async def test_nothing_is_said_before_it_is_synced(tmp_path: Path) -> None:
    output = tmp_path / "strace"
    with Service() as service:
        service.weather = weather
        relay = Relay(tmp_path, to=service.url, under=trace.command(output))
        try:
            await relay.start()
            judged, history = await witness(relay, output, (KEYED, ASYNC, PLAIN))
        finally:
            relay.end()
    accepted, answered = len(history.accepted()), len(history.answered())
    print(
        f"\norder witness: {judged.good} of {judged.asked} ({accepted} x 202, {answered} answers)"
    )
    assert accepted >= SENDERS * JOBS // 2
    assert answered >= SENDERS * JOBS // 8
    assert judged.asked == accepted + answered == SENDERS * JOBS
    assert judged.late == []


async def test_the_witness_convicts_a_spool_that_does_not_sync(tmp_path: Path) -> None:
    output = tmp_path / "strace"
    with Service() as service:
        found = {"PYTHONPATH": str(launch.TESTS)}
        relay = Relay(tmp_path, to=service.url, under=trace.command(output), environment=found)
        plan = {
            "to": service.url, "port": relay.port, "spool": str(relay.spool), "synced": False,
        }  # fmt: skip
        relay.command = [*launch.PROGRAM, "once", json.dumps(plan)]
        try:
            await relay.start()
            judged, history = await witness(relay, output, (KEYED, ASYNC, PLAIN))
        finally:
            relay.end()
    assert judged.asked == len(history.accepted()) + len(history.answered()) == SENDERS * JOBS
    print(f"\nwithout syncs: {len(judged.late)} of {judged.asked} convicted")
    assert len(judged.late) == judged.asked


@pytest.mark.parametrize(
    ("lines", "late"),
    [
        (["write", "commit", "sync", "say"], 0),
        (["write", "commit", "say", "sync"], 1),
        (["write", "commit", "say"], 1),
        (["write", "sync", "commit", "say"], 1),
        (["write", "commit", "failed sync", "say"], 1),
        (["write", "commit", "sync begins", "say", "sync ends"], 1),
        (["write", "sync begins", "commit", "sync ends", "say"], 1),
        (["write", "commit", "sync", "write", "commit", "say"], 0),
        (["say"], 1),
    ],
)
def test_the_judge_knows_right_from_wrong(lines: list[str], late: int, tmp_path: Path) -> None:
    """Traces written by hand, in strace's own form."""
    head = r'pwrite64(7</s.db-wal>, "\0\0\0\4\0\0\0%s\1\2\3\4\1\2\3\4\1\2\3\4\1\2\3\4", 24, 0) = 24'
    page = r'pwrite64(7</s.db-wal>, "\r\0<w-1-2>\0", 8192, 24) = 8192'
    forms = {
        "write": ["2 " + head % r"\0", "2 " + page],
        "commit": ["2 " + head % r"\t", "2 " + page.replace("<w-1-2>", "")],
        "sync": ["2 fdatasync(7</s.db-wal>) = 0"],
        "failed sync": ["2 fdatasync(7</s.db-wal>) = -1 EIO (Input/output error)"],
        "sync begins": ["2 fdatasync(7</s.db-wal> <unfinished ...>"],
        "sync ends": ["2 <... fdatasync resumed>) = 0"],
        "say": ['1 write(9<TCP:[127.0.0.1:80->127.0.0.1:5]>, "HTTP/1.1 202 Accepted", 21) = 21'],
    }
    heard = r'1 read(9<TCP:[127.0.0.1:80->127.0.0.1:5]>, "POST\r\n\r\n<w-1-2>...", 999) = 18'
    path = tmp_path / "strace"
    path.write_text("\n".join([heard, *(line for name in lines for line in forms[name])]))
    judged = trace.judge(trace.read(path, port=80, wal=Path("/s.db-wal")))
    assert (judged.asked, len(judged.late)) == (1, late)
