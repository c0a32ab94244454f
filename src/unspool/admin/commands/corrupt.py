"""`unspool queue --corrupt` and `unspool drop --corrupt`: records that were set aside.

    await listed(desk, limit=0, as_json=False)       a line a record, and a footer
    await dropped(desk, marks, dry_run=False)        forget these for good
    await all_of(desk)                               the marks of all there are

A record that fails its checksum is out of everybody's way and keeps its bytes, for whoever can read
them; its key stays closed, for what it names may have been applied. To drop it is an operator's
word that this no longer matters: the key is new again.

What nobody has looked at yet is not known to be corrupt: `unspool queue --all` looks at everything.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import click

from ...spools.protocol import Damaged, Spool
from .. import wording
from ..spool import PAGE, Desk

HEADING = "--Mark---- ----Bytes -Key--------------------- -Destination--------------"
HINT = "records are set aside as corrupt. See them: unspool queue --corrupt"


async def pages(spool: Spool) -> AsyncGenerator[Damaged, None]:
    after: str | None = None
    while page := await spool.damaged(after=after, limit=PAGE):
        for damaged in page:
            yield damaged
        after = page[-1].mark


async def listed(desk: Desk, *, limit: int, as_json: bool) -> int:
    count = size = 0
    more = False
    async with aclosing(pages(desk.spool)) as found:
        async for damaged in found:
            if limit and count == limit:
                more = True
                break
            if as_json:
                click.echo(wording.encode(members(damaged)))
            else:
                if not count:
                    click.echo(HEADING)
                click.echo(row(damaged))
            count += 1
            size += damaged.size_bytes
    if not as_json:
        click.echo(_footer(count, size, more=more))
    return 0


def row(damaged: Damaged) -> str:
    """Two lines, as the queue has them: what it was, and where its bytes are."""
    label = wording.plain(damaged.name or damaged.key) or "(cannot be read)"
    at = f"; accepted {wording.instant(damaged.accepted_at)}" if damaged.accepted_at else ""
    return (
        f"{wording.plain(damaged.mark):<10} {damaged.size_bytes:>9} {label:<25}"
        f" {wording.plain(damaged.destination)}".rstrip()
        + f"\n{'':<6}({wording.plain(damaged.where)}{at})"
    )


def members(damaged: Damaged) -> dict[str, object]:
    return {
        "mark": damaged.mark,
        "where": damaged.where,
        "size_bytes": damaged.size_bytes,
        "key": damaged.key or None,
        "name": damaged.name or None,
        "destination": damaged.destination or None,
        "accepted_at": damaged.accepted_at or None,
    }


def _footer(count: int, size: int, *, more: bool) -> str:
    if not count:
        return "No record is set aside as corrupt."
    noun = "record" if count == 1 else "records"
    first, there = ("the first ", " There are more.") if more else ("", "")
    return (
        f"-- {first}{count} {noun} set aside, {size} bytes.{there}"
        " `unspool drop --corrupt MARK` forgets one."
    )


async def all_of(desk: Desk) -> list[str]:
    async with aclosing(pages(desk.spool)) as found:
        return [damaged.mark async for damaged in found]


async def dropped(desk: Desk, marks: Sequence[str], *, dry_run: bool) -> int:
    """Forget these; the exit code."""
    if dry_run:
        noun = "record" if len(marks) == 1 else "records"
        click.echo(f"unspool: {len(marks)} corrupt {noun} would be forgotten", err=True)
        return 0
    code = 0
    for start in range(0, len(marks), PAGE):
        batch = marks[start : start + PAGE]
        for mark, gone in zip(batch, await desk.spool.discard(batch), strict=True):
            text = "forgotten, and its key is new again" if gone else _why_not(mark)
            click.echo(f"{wording.plain(mark)}: {text}")
            code = code if gone else os.EX_NOINPUT
    return code


def _why_not(mark: str) -> str:
    if "/" in mark:
        return "is a file of its own, and yours to keep or to remove; nothing was done"
    return "is not the mark of a corrupt record; nothing was done. See: unspool queue --corrupt"
