"""python -m benchmarks: measure what the design promises, side by side, and print one table.

    python -m benchmarks                        everything; about ten minutes
    python -m benchmarks --only pass --runs 5   one group of rows
    python -m benchmarks --json numbers.json    every single run, too

pass      pass through, against nginx proxy_pass
keyed     the same with a key of its own for each request: the answer is synced before it goes on
replay    a kept answer again and again
accept    the service is down: 202 after the sync; against Restate /send
redeliver a backlog of 50 000, once the service is back
latency   what the relay adds at 1000 requests a second
memory    resident: idle, busy, with a backlog
floors    the door, the transport and the spool alone, with nothing decided between them
inside    the ASGI middleware in an application, against none and against other packages
client    the smart client and its adapters when all is well, against bare aiohttp, httpx2, requests
deep      accept, redelivery, start and memory with ten million waiting; only where it is asked for

    python -m benchmarks --spools               instead: the engines, without a relay; see spools

The thing measured has one core alone; load generator, service and this program share another.
Everything listens on loopback, keeps its files in a temporary folder, and is gone afterwards. Runs
alternate between what is compared, each number is a median, and every row checks its answers.
Numbers of a noisy machine differ; ratios less so. Nothing here is a test: it passes whatever the
numbers are, and exits 1 only where something measured was wrong.

Wants Linux, nginx and wrk; node and npm for Restate; for `inside`, pip and an index of packages.
What is missing says so in its row.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from . import client, custody, deep, floors, inside, machine, passing, restate, spools, table
from .bench import Bench, Row
from .process import Failed

GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "pass": passing.pass_through,
    "keyed": passing.keyed,
    "replay": passing.replay,
    "accept": custody.accept,
    "redeliver": custody.redeliver,
    "latency": passing.latency,
    "memory": custody.memory,
    "floors": floors.floors,
    "inside": inside.inside,
    "client": client.client,
    "deep": deep.deep,
}
UNASKED = frozenset(GROUPS) - {"deep"}
"""What is measured where nothing is named."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _facts(bench: Bench) -> dict[str, str]:
    facts = machine.facts(bench.folder)
    try:
        facts["Restate"] = restate.version(restate.cache())
    except OSError:
        facts["Restate"] = ""
    facts["cores"] = (
        f"{bench.measured_core} for what is measured, {bench.load_core} for load and service"
    )
    facts["runs"] = f"{bench.runs} of {bench.seconds:g} s, {bench.connections} connections; medians"
    return facts


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _sync(bench: Bench) -> str:
    p50, p99 = machine.sync_latency(bench.folder)
    return f"p50 {p50:.0f} µs, p99 {p99:.0f} µs"


def _spools(bench: Bench, engine: tuple[str, ...], filled: int, into: Path | None) -> None:
    before = _sync(bench)
    results = spools.all_engines(bench, filled=filled, only=engine)
    facts = machine.facts(bench.folder)
    for name in ("unspool", "python", "kernel", "processor", "file system"):
        print(f"{name}: {facts[name]}")
    print(f"load averages: {_load()}\nfdatasync of 4 KiB: {before} before; {_sync(bench)} after\n")
    print(spools.render(results))
    if into is not None:
        into.write_text(json.dumps(results, indent=2) + "\n")


@click.command(help=__doc__.split("\n")[0] if __doc__ else "")
@click.option("--only", multiple=True, type=click.Choice(list(GROUPS)), help="These rows alone.")
@click.option("--seconds", default=4.0, show_default=True, help="How long each run lasts.")
@click.option("--runs", default=3, show_default=True, help="How often each is run.")
@click.option("--backlog", default=50_000, show_default=True, help="Messages to deliver again.")
@click.option("--deep", "waiting", default=10_000_000, show_default=True, help="Waiting in `deep`.")
@click.option("--no-restate", is_flag=True, help="Leave Restate out: it is not installed.")
@click.option("--spools", "engines", is_flag=True, help="The spools side by side, and no relay.")
@click.option("--engine", multiple=True, type=click.Choice(spools.ENGINES), help="This one alone.")
@click.option("--filled", default=100_000, show_default=True, help="Messages in a full spool.")
@click.option("--json", "into", type=click.Path(path_type=Path), help="Every run, as JSON.")
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to measure with.")
@click.option("--extra", multiple=True, help="One more argument for `unspool serve`; repeatable.")
def main(
    only: tuple[str, ...],
    seconds: float,
    runs: int,
    backlog: int,
    waiting: int,
    no_restate: bool,
    engines: bool,
    engine: tuple[str, ...],
    filled: int,
    into: Path | None,
    folder: Path | None,
    extra: tuple[str, ...],
) -> None:
    cores = machine.two_cores()
    if cores is None:
        raise click.ClickException("not run: this wants Linux and two cores, one for the load")
    machine.pin(cores[1])
    temporary = Path(tempfile.mkdtemp(prefix="unspool-bench-", dir=folder))
    bench = Bench(
        measured_core=cores[0],
        load_core=cores[1],
        folder=temporary,
        seconds=seconds,
        runs=runs,
        backlog=backlog,
        deep=waiting,
        restate=not no_restate,
        extra=extra,
    )
    if engines:
        try:
            _spools(bench, engine, filled, into)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    rows: list[Row] = []
    wrong = False
    try:
        before, load = _sync(bench), _load()
        for name, measure in GROUPS.items():
            if name not in (only or UNASKED):
                continue
            _say(f"{name} …")
            try:
                rows += measure(bench)
            except (Failed, TimeoutError, OSError) as error:
                wrong = wrong or "not installed" not in str(error)
                rows.append(Row(what=name, not_run=str(error).replace("\n", " ")))
        facts = _facts(bench)
        facts["load averages"] = f"{load} before, others' work alone; {_load()} after"
        facts["fdatasync of 4 KiB"] = f"{before} before; {_sync(bench)} after"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(table.render(rows, facts))
    if into is not None:
        into.write_text(json.dumps(table.as_json(rows, facts), indent=2) + "\n")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
