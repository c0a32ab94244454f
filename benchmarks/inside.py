"""Rows inside the application: what the ASGI middleware costs a keyed POST, beside another's.

One process of uvicorn on the measured core; an application that answers 201 with a little JSON.
Without a middleware; with ours on a shared spool (a claim and an answer: two commits) and on a
private one (one); and with two other packages that keep their records in memory, so that nothing of
theirs survives the process: their price is that of a lookup, ours includes the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from .bench import Bench, Row
from .commits import commits
from .compare.packages import SUBJECTS, Subject, running, versions
from .load import KEYS, WARM_S, good, load
from .process import Failed, Process, fetch

OURS: Final = {"shared": "", "private": "alone", "none": "none"}
ONE_BY_ONE: Final = 100
"""Requests, one after the other, whose commits are counted."""
OTHERS: Final = ("asgi-idempotency-header", "fastapi-idempotency")


def subject_of(name: str) -> Subject:
    package = "" if name in OURS else name
    found = [subject for subject in SUBJECTS if subject.package == package]
    return next((subject for subject in found if subject.best), found[0])


@contextmanager
def served(bench: Bench, name: str) -> Iterator[tuple[Process, Path]]:
    folder = bench.new_folder("inside")
    os.environ["SPOOL"] = OURS.get(name, "")
    with running(subject_of(name), folder, cores={bench.measured_core}, quiet=True) as process:
        yield process, folder


def _look(name: str, port: int, tag: str) -> None:
    """A repeat is replayed, where anybody is there to do it."""
    for repeat in (False, True):
        status, named, _ = fetch(
            port, "/orders", method="POST", body=b"x" * 1024,
            fields={"Idempotency-Key": f'"{tag}-look"'},
        )  # fmt: skip
        if status != 201:
            raise Failed(f"{name}: an answer was {status}")
        if repeat and name != "none" and named.get("idempotent-replayed") != "true":
            raise Failed(f"{name}: a repeat was not replayed")


def _run(bench: Bench, name: str, script: str, tag: str) -> tuple[float, float]:
    """Requests a second, and the processor time of one in µs."""
    bench.settle()
    with served(bench, name) as (process, _):
        _look(name, process.port, tag)
        good(load(bench, process.port, script, seconds=WARM_S, tag="warm"), name)
        if script == "repeated":  # each of the keys once, before they are repeated
            good(load(bench, process.port, script, seconds=WARM_S, tag=tag), name)
        found = good(load(bench, process.port, script, tag=tag, server=process), name)
        return found.per_s, found.cpu_us


def _commits(bench: Bench, name: str) -> float:
    """Commits for one keyed POST, one by one, so that none is shared."""
    with served(bench, name) as (process, folder):
        _look(name, process.port, "count")
        spool = folder / "idem.db"
        before = commits(spool)
        for number in range(ONE_BY_ONE):
            fetch(
                process.port, "/orders", method="POST", body=b"x",
                fields={"Idempotency-Key": f"one-{number}"},
            )  # fmt: skip
        return (commits(spool) - before) / ONE_BY_ONE


def inside(bench: Bench) -> list[Row]:
    rows: list[Row] = []
    names = (*OURS, *OTHERS)
    why: dict[str, str] = {}
    for script, what in (
        ("keyed", "ASGI middleware, new keys"),
        ("repeated", f"ASGI middleware, replays of {KEYS} keys"),
    ):
        runs: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for number in range(bench.runs):
            for name in names:
                if name in why:
                    continue
                try:
                    rate, used = _run(bench, name, script, f"run{number}")
                except (Failed, TimeoutError, OSError) as error:
                    why[name] = str(error)
                    continue
                runs[name].append(rate)
                cpu[name].append(used)
        rows += _rows(what, runs, cpu, why, counted=script == "keyed", bench=bench)
    return rows


def _named(name: str) -> str:
    return versions(subject_of(name)).partition(" (")[0]


def _rows(
    what: str,
    runs: dict[str, list[float]],
    cpu: dict[str, list[float]],
    why: dict[str, str],
    *,
    counted: bool,
    bench: Bench,
) -> list[Row]:
    rows = []
    for ours in ("private", "shared"):
        made = ""
        if counted and ours not in why:
            made = f"; {_commits(bench, ours):.2f} commits a request, one by one"
        for theirs in ("none", *OTHERS):
            row = Row(
                what=f"{what}, {ours} spool",
                compared_with="without it" if theirs == "none" else _named(theirs),
                runs={ours: runs[ours], theirs: runs[theirs]},
            )
            if runs[ours] and runs[theirs]:
                row.ours, row.theirs = median(runs[ours]), median(runs[theirs])
                row.note = (
                    f"{median(cpu[ours]):.0f} µs of processor a request, {row.compared_with}"
                    f" {median(cpu[theirs]):.0f} µs{made if theirs == 'none' else ''}"
                )
            else:
                row.not_run = why.get(ours) or why.get(theirs, "")
            rows.append(row)
    return rows
