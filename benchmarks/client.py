"""Rows of the smart client: what it costs a call when all is well, beside bare libraries.

The program that calls has the measured core, the service (nginx, `return 200`) the other. All kinds
of one row run in turn; `senders` says what each is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Final

from .bench import Bench, Row
from .nginx import upstream
from .process import Failed

WIDE: Final = 16
PAIRS: Final = (
    ("unspool", ("aiohttp", "httpx2")),
    ("unspool, outbox", ("aiohttp", "httpx2")),
    ("unspool, before", ("aiohttp", "httpx2")),
    ("aiohttp on unspool", ("aiohttp",)),
    ("httpx2 on unspool", ("httpx2",)),
    ("unspool, blocking", ("requests",)),
    ("requests on unspool", ("requests",)),
)
NO_DISK: Final = ("unspool", "unspool, outbox")


def _run(bench: Bench, kind: str, port: int) -> dict[str, float]:
    folder = bench.new_folder("client")
    bench.settle()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.senders", kind, str(port), str(bench.seconds),
         str(WIDE), str(folder)],
        capture_output=True, text=True, timeout=3 * bench.seconds + 60, check=False,
        stdin=subprocess.DEVNULL, cwd=Path(__file__).parent.parent,
        preexec_fn=lambda: os.sched_setaffinity(0, {bench.measured_core}),
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{kind} ended with {done.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(done.stdout)
    if found["bad"]:
        raise Failed(f"{kind}: {found['bad']:.0f} of {found['requests']:.0f} answers were errors")
    if kind in NO_DISK and found["written"]:
        raise Failed(f"{kind} wrote {found['written']:.0f} bytes to the disk when all was well")
    return found


def client(bench: Bench) -> list[Row]:
    kinds = list(dict.fromkeys(name for ours, theirs in PAIRS for name in (ours, *theirs)))
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with upstream(bench) as service:
        for _ in range(bench.runs):
            for kind in kinds:
                runs[kind].append(_run(bench, kind, service.port))
    return [_row(ours, theirs, runs) for ours, those in PAIRS for theirs in those]


def _of(runs: list[dict[str, float]], name: str) -> float:
    return median(one[name] for one in runs)


def _row(ours: str, theirs: str, runs: dict[str, list[dict[str, float]]]) -> Row:
    def told(kind: str) -> str:
        found = runs[kind]
        return (
            f"{kind}: {_of(found, 'cpu_us'):.0f} µs of processor a request, p50"
            f" {_of(found, 'p50_ms'):.2f} ms, p99 {_of(found, 'p99_ms'):.2f} ms"
        )

    used = _of(runs[ours], "cpu_us") / _of(runs[theirs], "cpu_us")
    return Row(
        what=f"client: {ours}",
        ours=_of(runs[ours], "per_s"),
        compared_with=theirs,
        theirs=_of(runs[theirs], "per_s"),
        note=f"{told(ours)}; {told(theirs)}; {used:.2f} × the processor time",
        runs={kind: [one["per_s"] for one in runs[kind]] for kind in (ours, theirs)},
        details={kind: runs[kind] for kind in (ours, theirs)},
    )
