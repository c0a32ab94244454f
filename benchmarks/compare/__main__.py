"""python -m benchmarks.compare: the same suite, asked of other packages and of ours.

    python -m benchmarks.compare                     all of them, about five minutes, once installed
    python -m benchmarks.compare --only idemptx      one package
    python -m benchmarks.compare --json found.json   every row of every one, with what was seen

Installs each package into an environment of its own in the user's cache folder, starts it in front
of the counter service, asks the suite's rows, and prints one table. What needs processes killed is
not asked here: `tests/idempotency_crash` asks that of ours. A row that a package does not offer to
be asked (a way to take rights away is the service's; a short retention is set up for ours alone) is
not counted against it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from unspool.testing.idempotency import Result, Service, check

from ..process import Failed
from .packages import NOT_ASKED, SUBJECTS, Subject, running, versions

NO_SCOPE = {"D4": "has no function that is asked who is asking"}


def asked_of(subject: Subject) -> list[Result]:
    folder = Path(tempfile.mkdtemp(prefix="unspool-compare-"))
    try:
        with running(subject, folder, cores=os.sched_getaffinity(0)) as process:
            url = f"http://127.0.0.1:{process.port}"
            service = Service(url=url, limit=subject.body_max_bytes)
            return asyncio.run(check(service, by_design={} if subject.scope else NO_SCOPE))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def line(subject: Subject, results: list[Result]) -> str:
    asked = [result for result in results if result.came in ("passed", "failed")]
    must = [result for result in asked if result.level == "M"]
    should = [result for result in asked if result.level == "S"]

    def held(these: list[Result]) -> str:
        return f"{sum(result.came == 'passed' for result in these)} of {len(these)}"

    def failed(these: list[Result]) -> str:
        return " ".join(result.row for result in these if result.came == "failed")

    return (
        f"| {subject.name}: {subject.how} | {held(must)} | {failed(must)} | {held(should)} |"
        f" {failed(should)} |"
    )


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--only", multiple=True, help="This package alone; repeatable.")
@click.option("--json", "into", type=click.Path(path_type=Path), help="Every row, as JSON.")
def main(only: tuple[str, ...], into: Path | None) -> None:
    lines, told, whole = [], [], dict[str, Any]()
    for subject in SUBJECTS:
        if only and subject.name not in only:
            continue
        print(f"{subject.name}: {subject.how} …", file=sys.stderr, flush=True)
        try:
            told.append(versions(subject))
            results = asked_of(subject)
        except (Failed, TimeoutError, OSError) as error:
            lines.append(f"| {subject.name}: {subject.how} | not asked: {error} | | | |")
            continue
        lines.append(line(subject, results))
        whole[f"{subject.name}: {subject.how}"] = {
            result.row: [str(result.came), result.seen] for result in results
        }
    print("; ".join(dict.fromkeys(told)))
    print("\n| package | must: hold | must: do not | should: hold | should: do not |")
    print("|---|---|---|---|---|")
    print("\n".join(lines))
    for name, why in NOT_ASKED.items():
        print(f"\n{name} {why}.")
    if into is not None:
        into.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
