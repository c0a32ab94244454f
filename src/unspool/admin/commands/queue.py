"""`unspool queue`, also `unspool mailq`: what waits, why, and when it goes next.

A line a message in order of acceptance, its last cause in parentheses under it, and a footer, as
Postfix's mailq has it. Reads the spool in pages: a backlog of millions begins to print at once.

With --json, one object a line. Readers must ignore members they do not know: there will be more.
Instants are milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click
import msgspec

from ...core.lifecycle import State
from ...core.message import Destination
from ...spools.protocol import Entry, Query
from .. import wording
from ..spool import Desk, options, using, utf8
from . import corrupt as set_aside

HEADING = "--Key-------------------- ---Age-- Tries --Next try- -Destination--------------"


class Sums(msgspec.Struct):
    """What the footer says."""

    messages: int = 0
    held: int = 0
    oldest_at: int = 0
    more: bool = False
    place: str = ""
    """Of several spools, the one that is being listed."""


@click.command()
@options
@click.option("--bounced", is_flag=True, help="What was given up, and why.")
@click.option("--all", "everything", is_flag=True, help="Settled messages and claims too.")
@click.option("--corrupt", is_flag=True, help="Records that were set aside, and where they are.")
@click.option("--destination", metavar="NAME", help="Only what goes there.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=0), default=0, help="At most so many; 0: all."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def queue(
    *, spool: tuple[str, ...], config: str | None, bounced: bool, everything: bool,
    corrupt: bool, destination: str | None, limit: int, as_json: bool,
) -> int:  # fmt: skip
    """List what waits: why, and when it goes next.

    Marks: * is being tried now, ! is held. With --json, readers must ignore members they do not
    know.
    """
    if bounced and everything:
        raise click.UsageError("--all has the bounced ones in it: give one of the two")
    if corrupt:
        if bounced or everything or destination:
            raise click.UsageError("--corrupt goes with --limit and --json only")
        return using(
            lambda desk: set_aside.listed(desk, limit=limit, as_json=as_json),
            spool=spool, config=config,
        )  # fmt: skip
    state = None if everything else State.BOUNCED if bounced else State.WAITING
    query = Query(destination=Destination(utf8(destination)) if destination else None, state=state)

    async def work(desk: Desk) -> int:
        sums = Sums()
        async with aclosing(desk.pages(query)) as entries:
            if as_json:
                await _lines(entries, desk=desk, limit=limit)
            else:
                await _table(entries, desk=desk, limit=limit, sums=sums)
                empty = _empty(bounced=bounced, destination=destination)
                click.echo(_footer(sums, now=desk.now()) if sums.messages else empty)
                for number, view in enumerate(desk.views(), 1):
                    click.echo(f"-- spool {number}: {wording.custodian(view)}")
                if await desk.spool.damaged(after=None, limit=1):
                    click.echo(f"unspool: {set_aside.HINT}", err=True)
        return 0

    return using(work, spool=spool, config=config)


async def _lines(entries: AsyncGenerator[Entry, None], *, desk: Desk, limit: int) -> None:
    count = 0
    async for entry in entries:
        found = members(entry, now=desk.now())
        if place := desk.place(entry):
            found["spool"] = place
        click.echo(wording.encode(found))
        count += 1
        if count == limit:
            return


async def _table(
    entries: AsyncGenerator[Entry, None], *, desk: Desk, limit: int, sums: Sums
) -> None:
    async for entry in entries:
        if limit and sums.messages == limit:
            sums.more = True
            return
        if not sums.messages:
            click.echo(HEADING)
        if (place := desk.place(entry)) != sums.place:
            sums.place = place
            click.echo(f"-- {place}")
        sums.messages += 1
        sums.held += wording.held(entry)
        accepted_at = entry.message.accepted_at
        sums.oldest_at = min(sums.oldest_at or accepted_at, accepted_at)
        click.echo(row(entry, now=desk.now()))


def row(entry: Entry, *, now: int) -> str:
    """Two lines, as mailq has them. A long key pushes the rest aside: it is there to be copied."""
    key = f"{wording.mark(entry, now=now)} {wording.label(entry)}"
    age = wording.span(now - entry.message.accepted_at)
    text = (
        f"{key:<25} {age:>8} {wording.attempts(entry):>5} "
        f"{wording.next_try(entry, now=now):>11} {wording.plain(entry.message.destination)}"
    )
    cause = wording.cause(entry)
    return f"{text}\n{'':<6}({cause})" if cause else text


def _empty(*, bounced: bool, destination: str | None) -> str:
    what = "Nothing has bounced" if bounced else "Nothing waits" if destination else ""
    where = f" for {wording.plain(destination)}" if destination else ""
    return f"{what}{where}." if what else "The spool is empty."


def _footer(sums: Sums, *, now: int) -> str:
    noun = "message" if sums.messages == 1 else "messages"
    parts = [f"{sums.messages} {noun}"]
    if sums.held:
        parts.append(f"{sums.held} held")
    parts.append(f"oldest {wording.span(now - sums.oldest_at)}")
    more = " There are more." if sums.more else ""
    return f"-- {'the first ' if sums.more else ''}{', '.join(parts)}.{more}"


def members(entry: Entry, *, now: int) -> dict[str, Any]:
    """An entry for programs. Without request and answer: `unspool show` has those."""
    message = entry.message
    held = wording.held(entry)
    leased = wording.leased(entry, now=now)
    waits = entry.state is State.WAITING
    return {
        "key": message.key,
        "name": message.name or None,
        "destination": message.destination,
        "state": entry.state.name.lower(),
        "held": held,
        "leased_until": entry.leased_until if leased else None,
        "accepted_at": message.accepted_at,
        "expires_at": message.expires_at,
        "due_at": max(entry.due_at, message.accepted_at) if waits and not held else None,
        "settled_at": entry.settled_at or None,
        "order_key": message.order_key or None,
        "repeat": message.repeat,
        "reason": entry.reason or None,
        "attempts": wording.attempts(entry),
        "trail": [
            {
                "number": attempt.number,
                "at": attempt.at,
                "status": attempt.status or None,
                "cause": attempt.cause,
                "sent": attempt.sent,
            }
            for attempt in entry.trail
        ],
    }
