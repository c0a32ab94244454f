"""Spools: what each engine gives, verb by verb, without a relay before it.

    python -m benchmarks --spools                        every engine, empty and filled
    python -m benchmarks.spools ENGINE FOLDER FILLED S   one engine, in this process, as JSON

accept, lease, settle (as delivered, with its answer) and find, of messages with 1 KiB bodies, in
batches of 1, 16 and 128, one caller; first in a new spool, then beside FILLED messages that wait
for another destination. Each figure is messages a second over S seconds. Then: how long opening
the filled spool took, what the process had resident, and how large the spool is on the disk.

A batch of one is what a lone caller feels; a busy relay makes batches of what comes in while the
disk syncs. Everything is synced as promised, and the disk is most of it. What hangs neither on that
nor on who else uses the machine is the processor's time for each message, at the largest batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

from unspool.core.lifecycle import Delivered, State
from unspool.core.message import Destination, Instant, Key, Message, Request, Response
from unspool.spools.open import ON_DISK, open_spool
from unspool.spools.protocol import Entry, Lease, Spool

from .bench import Bench
from .process import Failed

SERVED: Final = ("nats", "postgres", "redis")
"""Spools in servers: each is started for it, with its data in the folder."""
ENGINES: Final = (*sorted(ON_DISK), *SERVED)
BATCHES: Final = (1, 16, 128)
VERBS: Final = ("accept", "lease", "settle", "find")
NOW: Final = Instant(1_800_000_000_000)
UNTIL: Final = Instant(NOW + 60_000)
HERE: Final = Destination("http://127.0.0.1:8000")
THERE: Final = Destination("http://127.0.0.1:9000")
ANSWER: Final = Response(200, b"OK", ((b"Content-Type", b"text/plain"),), b"done " * 20)
FILL: Final = 512
LIVES_MS: Final = 5 * 24 * 3600 * 1000


def entry(number: int, destination: Destination) -> Entry:
    message = Message(
        Key(f"{number * 0x9E3779B97F4A7C15 % (1 << 64):022x}"), os.urandom(16), destination, NOW,
        Instant(NOW + LIVES_MS), os.urandom(16), name=f"order-{number}",
        request=Request(
            b"POST", b"/orders", ((b"Host", b"127.0.0.1:8000"), (b"Content-Length", b"1024")),
            os.urandom(1024),
        ),
    )  # fmt: skip
    return Entry(message, State.WAITING, NOW)


async def measure(spool: Spool, numbers: Any, *, batch: int, seconds: float) -> dict[str, float]:
    """The life of messages, a batch at a time, until each verb had its share of the time."""
    took = dict.fromkeys(VERBS, 0.0)
    busy = dict.fromkeys(VERBS, 0.0)
    done = 0

    async def timed(verb: str, work: Any) -> Any:
        began, processor = time.perf_counter(), time.process_time()
        result = await work
        took[verb] += time.perf_counter() - began
        busy[verb] += time.process_time() - processor
        return result

    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        entries = [entry(next(numbers), HERE) for _ in range(batch)]
        await timed("accept", spool.accept(entries))
        leases = await timed("lease", spool.lease({HERE: batch}, now=NOW, until=UNTIL))
        assert len(leases) == batch
        verdict = Delivered(ANSWER, Instant(NOW + LIVES_MS), Instant(NOW + LIVES_MS))
        pairs: list[tuple[Lease, Any]] = [(lease, verdict) for lease in leases]
        assert all(await timed("settle", spool.settle(pairs)))
        assert all(await timed("find", spool.find([one.message.key for one in entries])))
        done += batch
    rates = {verb: done / took[verb] for verb in VERBS}
    return rates | {f"{verb}_us": busy[verb] / done * 1e6 for verb in VERBS}


@contextmanager
def place(engine: str, folder: Path) -> Iterator[tuple[str, int]]:
    """The URL of a new spool, and the process that keeps it where that is not ours, or 0."""
    if engine not in SERVED:
        yield f"{engine}:///{folder / 'spool'}", 0
        return
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from servers.table import durable

    for above in (folder, folder.parent):
        above.chmod(0o755)  # a server may run as somebody else
    with durable(engine, folder) as server:
        for pid in server.pids():
            os.sched_setaffinity(pid, range(os.cpu_count() or 1))
        yield server.spool("bench"), 0 if engine == "postgres" else server.pids()[0]


async def run(engine: str, folder: Path, *, filled: int, seconds: float) -> dict[str, Any]:
    with place(engine, folder) as (url, pid):
        return await at(url, pid, engine, folder, filled=filled, seconds=seconds)


async def at(
    url: str, pid: int, engine: str, folder: Path, *, filled: int, seconds: float
) -> dict[str, Any]:
    numbers = count()
    spool = await open_spool(url)
    out: dict[str, Any] = {"engine": engine, "detail": spool.promises.detail, "filled": filled}
    out["empty"] = {
        batch: await measure(spool, numbers, batch=batch, seconds=seconds) for batch in BATCHES
    }
    before = _resident_bytes(pid) if pid else {}
    began = time.perf_counter()
    for _ in range(0, filled, FILL):
        await spool.accept([entry(next(numbers), THERE) for _ in range(FILL)])
    out["fill"] = filled / max(1e-9, time.perf_counter() - began)
    if pid and filled:
        grown = _resident_bytes(pid)["RssAnon"] - before["RssAnon"]
        out["detail"] += f"; its server {grown / filled / 1000:.1f} KB a message"
    await spool.aclose()
    began = time.perf_counter()
    spool = await open_spool(url)
    out["open_s"] = time.perf_counter() - began
    began = time.perf_counter()
    await spool.tally([NOW])
    out["tally_s"] = time.perf_counter() - began
    out["full"] = {
        batch: await measure(spool, numbers, batch=batch, seconds=seconds) for batch in BATCHES
    }
    out["resident"] = _resident_bytes()
    await spool.aclose()
    out["disk_bytes"] = _disk_bytes(folder)
    return out


def _resident_bytes(pid: int | str = "self") -> dict[str, int]:
    """As Linux tells it: of its own, and of files that it may drop at any time."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def all_engines(bench: Bench, *, filled: int, only: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each in a process of its own, on the measured core."""
    found: list[dict[str, Any]] = []
    for engine in only or ENGINES:
        folder = bench.new_folder(f"spool-{engine}")
        bench.settle()
        command = [sys.executable, "-m", "benchmarks.spools", engine, str(folder)]
        done = subprocess.run(
            [*command, str(filled), str(bench.seconds)],
            capture_output=True, text=True, check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {bench.measured_core}),
        )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        if done.returncode:
            raise Failed(f"{engine}: {done.stderr.strip().splitlines()[-1:]}")
        found.append(json.loads(done.stdout))
    return found


def render(results: list[dict[str, Any]]) -> str:
    """Two Markdown tables: the verbs, and what else it costs."""
    lines = ["| messages/s, one caller | batch | " + " | ".join(VERBS) + " |"]
    lines.append("|---|---|" + "---|" * len(VERBS))
    for one in results:
        for batch in BATCHES:
            empty, full = one["empty"][str(batch)], one["full"][str(batch)]
            cells = [f"{_short(empty[verb])} · {_short(full[verb])}" for verb in VERBS]
            lines.append(f"| {one['engine']} | {batch} | " + " | ".join(cells) + " |")
    lines += ["", "| processor µs a message | " + " | ".join(VERBS) + " |"]
    lines.append("|---|" + "---|" * len(VERBS))
    for one in results:
        empty, full = (one[name][str(BATCHES[-1])] for name in ("empty", "full"))
        cells = [f"{empty[verb + '_us']:.0f} · {full[verb + '_us']:.0f}" for verb in VERBS]
        lines.append(f"| {one['engine']} | " + " | ".join(cells) + " |")
    lines += ["", "| | filling | opening | counting | memory: ours, files | disk |"]
    lines.append("|---|---|---|---|---|---|")
    for one in results:
        resident = one["resident"]
        lines.append(
            f"| {one['engine']} ({one['detail']}) | {_short(one['fill'])}/s"
            f" | {one['open_s']:.2f} s | {one['tally_s']:.2f} s"
            f" | {resident.get('RssAnon', 0) / 1e6:.0f} MB,"
            f" {resident.get('RssFile', 0) / 1e6:.0f} MB | {one['disk_bytes'] / 1e6:.0f} MB |"
        )
    filled = f"{results[0]['filled']:,}".replace(",", " ") if results else "0"
    return f"each figure: in a new spool · beside {filled} waiting\n\n" + "\n".join(lines)


def _short(value: float) -> str:
    return f"{value / 1000:.1f} k" if value >= 1000 else f"{value:.0f}"


if __name__ == "__main__":
    name, where, filled_, seconds_ = sys.argv[1:]
    json.dump(
        asyncio.run(run(name, Path(where), filled=int(filled_), seconds=float(seconds_))),
        sys.stdout,
    )
