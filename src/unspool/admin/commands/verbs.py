"""`unspool retry`, `hold`, `release`, `drop`: an operator's word on messages that wait.

Each is a lease and a verdict, as an attempt is: seize, then settle.

    hold    Deferred(NEVER)      release   Deferred(now)
    retry   Deferred(AT_ONCE)    drop      Bounced(dropped)

AT_ONCE is seen by the relay's dispatcher in the spool, and is the next probe of a lane that is
closed. `retry --all` says it of one message of each destination: it is a probe, and no flush.

So an operator never takes a message out of the hands of an attempt: what is being tried right now
is left alone, and that is said (exit 75). The trail of attempts is not touched.

`--all` needs --yes, or a person at a terminal who says so after reading the number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import click
import msgspec

from ...core.lifecycle import Bounced, Deferred, Reason, State, Verdict
from ...core.message import AT_ONCE, NEVER, Attempt, Destination, Instant, Key
from ...core.parking import PARKED, unpark
from ...errors import Corrupt
from ...house.walk import found_of
from ...settings import Settings
from ...spools.protocol import Entry, Lease, Query
from .. import wording
from ..spool import PAGE, SCAN, Ambiguous, Desk, NoSuch, options, using, utf8
from . import corrupt as set_aside
from .show import HYPHENS, the_one

TERM_MS: Final = 60_000
"""How long an operator may take. When the command dies, the message is free again after it."""


def _unparked(entry: Entry) -> tuple[Attempt, ...]:
    parked = unpark(entry.trail)
    return parked[1] if parked else entry.trail


Decide = Callable[[Entry, Instant, Settings], Verdict]


class Verb(msgspec.Struct, frozen=True):
    """What an operator can say of a message."""

    name: str
    text: str
    done: str
    """What is printed of a message it was done to."""
    decide: Decide
    held: bool | None
    """Which messages `--all` means: held, not held, or both."""

    @property
    def scope(self) -> str:
        return {None: "that wait", True: "that are held", False: "that wait and are not held"}[
            self.held
        ]


VERBS: Final = (
    Verb(
        "retry", "Try messages now, instead of when they are due.", "due now",
        lambda entry, now, settings: Deferred(due_at=AT_ONCE, trail=entry.trail), held=False,
    ),
    Verb(
        "hold", "Keep messages back until they are released.",
        "held; `unspool release` lets it go",
        lambda entry, now, settings: Deferred(due_at=NEVER, trail=entry.trail), held=False,
    ),
    Verb(
        "release", "Let held messages go: they are due now.", "released, due now",
        lambda entry, now, settings: Deferred(due_at=now, trail=_unparked(entry)), held=True,
    ),
    Verb(
        "drop", "Give messages up: their receipts will say so.",
        "dropped; its receipt says so",
        lambda entry, now, settings: Bounced(
            reason=Reason.DROPPED, keep_until=Instant(now + settings.key_keep_ms),
            trail=entry.trail, settled_at=now,
        ), held=None,
    ),
)  # fmt: skip


def command(verb: Verb) -> click.Command:
    """The command of one verb."""

    @click.command(
        verb.name,
        help=f"{verb.text}\n\n{_HELP}",
        context_settings=HYPHENS,
    )
    @click.argument("keys", nargs=-1, metavar="KEY...")
    @options
    @click.option("--all", "everything", is_flag=True, help=f"All {verb.scope}.")
    @click.option("--destination", metavar="NAME", help="With --all: only what goes there.")
    @click.option("--yes", is_flag=True, help="With --all: do not ask.")
    @click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
    def run(
        *, keys: tuple[str, ...], spool: tuple[str, ...], config: str | None, everything: bool,
        destination: str | None, yes: bool, dry_run: bool, corrupt: bool = False,
    ) -> int:  # fmt: skip
        if bool(keys) == everything:
            raise click.UsageError("give KEYs, or --all")
        if destination and not everything:
            raise click.UsageError("--destination goes with --all")

        def at(work: Callable[[Desk], Awaitable[int]]) -> int:
            return using(work, spool=spool, config=config)

        if corrupt:
            return _set_aside(at, keys, yes=yes, dry_run=dry_run)
        if keys:
            return at(lambda desk: _these(desk, verb, keys, dry_run=dry_run))
        query = Query(
            destination=Destination(utf8(destination)) if destination else None,
            state=State.WAITING,
            held=verb.held,
        )
        # Counted, asked and done apart: nothing is open while a person thinks.
        count = at(lambda desk: _count(desk, query))
        if dry_run or not count:
            _say_dry(verb, count)
            return 0
        if not yes:
            _ask(verb.name, count)
        return at(lambda desk: _everything(desk, verb, query))

    if verb.name == "drop":
        flag = click.Option(["--corrupt"], is_flag=True, help=_CORRUPT)
        run.params.append(flag)
    return run


_CORRUPT: Final = "KEY is a mark of `queue --corrupt`: forget that record, and let its key be new."


def _set_aside(
    at: Callable[[Callable[[Desk], Awaitable[int]]], int],
    keys: Sequence[str], *, yes: bool, dry_run: bool,
) -> int:  # fmt: skip
    """`drop --corrupt`, of these marks or of all."""
    marks = list(keys)
    if not keys:

        async def count(desk: Desk) -> int:
            marks.extend(await set_aside.all_of(desk))
            return len(marks)

        at(count)
        if marks and not (yes or dry_run):
            _ask("drop", len(marks), noun="corrupt record")
    return at(lambda desk: set_aside.dropped(desk, marks, dry_run=dry_run))


_HELP: Final = (
    "KEY is the sender's Idempotency-Key, the spool's own key, or the address of the receipt. A "
    "message that is being tried right now is left alone, and the exit code is 75. A destination "
    "that the relay knows to be down is asked at once by `retry`, with one message at a time; else "
    "at its own pace, 5 minutes apart at most."
)


async def _these(desk: Desk, verb: Verb, keys: Sequence[str], *, dry_run: bool) -> int:
    """The messages of these names, as far as they can be told apart; the worst exit code."""
    found: dict[str, Entry] = {}
    worst = 0
    for key in keys:
        try:
            entry = await the_one(desk, key, verb=verb.name)
        except (NoSuch, Ambiguous, Corrupt) as error:
            click.echo(f"unspool: {wording.said(str(error))}", err=True)
            worst = max(worst, error.exit_code)
            continue
        if verb.name == "release" and entry.state is State.WAITING and not wording.held(entry):
            click.echo(f"{wording.label(entry)}: was not held")
            continue
        found[entry.message.key] = entry
    if dry_run:
        for entry in found.values():
            click.echo(f"{wording.label(entry)}: {wording.condition(entry, now=desk.now())}")
        _say_dry(verb, len(found))
        return worst
    return max(worst, await _apply(desk, verb, list(found.values())))


async def _count(desk: Desk, query: Query) -> int:
    count = 0
    async with aclosing(desk.pages(query, size=SCAN)) as entries:
        async for _ in entries:
            count += 1
    return count


async def _everything(desk: Desk, verb: Verb, query: Query) -> int:
    code = 0
    probed: set[Destination] = set()
    async with aclosing(_batches(desk, query)) as batches:
        async for batch in batches:
            code = max(code, await _apply(desk, verb, batch, probed))
    return code


def _say_dry(verb: Verb, count: int) -> None:
    noun = "message" if count == 1 else "messages"
    click.echo(f"unspool: {verb.name} would be done to {count} {noun}", err=True)


def _ask(verb: str, count: int, *, noun: str = "message") -> None:
    noun = noun if count == 1 else f"{noun}s"
    question = f"unspool: {verb} {count} {noun}?"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{verb} --all means {count} {noun} now: say --yes to do it")
    if not click.confirm(question, err=True):
        raise click.Abort


async def _batches(desk: Desk, query: Query) -> AsyncGenerator[list[Entry], None]:
    """Entries a page at a time: no more than a page is held in memory, or leased at once."""
    batch: list[Entry] = []
    async for entry in desk.pages(query):
        batch.append(entry)
        if len(batch) == PAGE:
            yield batch
            batch = []
    if batch:
        yield batch


async def _apply(
    desk: Desk, verb: Verb, entries: Sequence[Entry], probed: set[Destination] | None = None
) -> int:
    """Do it, and say of each what happened; the exit code."""
    keys = [one.message.key for one in entries if _may(verb, one, named=probed is None)]
    done = await _done(desk, verb, keys, probed)
    left = [entry.message.key for entry in entries if entry.message.key not in done]
    current = dict(zip(left, await found_of(desk.spool, left) if left else (), strict=True))
    code = 0
    for entry in entries:
        key = entry.message.key
        text, one = done.get(key, ""), 0
        if key not in done:
            text, one = _why_not(verb, current[key], now=desk.now())
        click.echo(f"{wording.label(entry)}: {text}")
        code = max(code, one)
    return code


def _may(verb: Verb, entry: Entry, *, named: bool) -> bool:
    """What is parked is its old spool's to let go. By name an operator may say that it is gone."""
    if not unpark(entry.trail):
        return True
    return verb.name == "drop" or (named and verb.name == "release")


UNKNOWN: Final = (
    "given up as unknown: its last attempt was cut short and may have been applied, and it may not"
    " be repeated"
)


async def _done(
    desk: Desk, verb: Verb, keys: Sequence[Key], probed: set[Destination] | None
) -> Mapping[Key, str]:
    """Seize and settle; of which it was done, and what. `probed`: one at once of each destination
    is enough, and these have theirs."""
    if not keys:
        return {}
    now = desk.now()
    seized = await desk.spool.seize(keys, now=now, until=Instant(now + TERM_MS))
    leases = [lease for lease in seized if lease is not None]
    if not leases:
        return {}
    settings = desk.settings
    verdicts = [
        (lease, _unknown(lease, now, settings) or verb.decide(lease.entry, now, settings))
        for lease in leases
    ]
    if probed is not None:
        verdicts = [(lease, _in_turn(lease, verdict, now, probed)) for lease, verdict in verdicts]
    settled = await desk.spool.settle(verdicts)
    return {
        lease.entry.message.key: UNKNOWN if _unknown(lease, now, settings) else verb.done
        for lease, good in zip(leases, settled, strict=True)
        if good
    }


def _in_turn(lease: Lease, verdict: Verdict, now: Instant, probed: set[Destination]) -> Verdict:
    """The first of each destination at once, the others when they are due: now."""
    destination = lease.entry.message.destination
    if not isinstance(verdict, Deferred) or verdict.due_at != AT_ONCE:
        return verdict
    if destination in probed:
        return Deferred(due_at=now, trail=verdict.trail)
    probed.add(destination)
    return verdict


def _unknown(lease: Lease, now: Instant, settings: Settings) -> Bounced | None:
    """A message whose last attempt was abandoned and may not be repeated ends here, whatever the
    operator says: to let it go would be to send it twice without a word."""
    if not lease.abandoned or lease.entry.message.repeat:
        return None
    return Bounced(
        reason=Reason.UNKNOWN,
        keep_until=Instant(now + settings.key_keep_ms),
        trail=lease.entry.trail,
        settled_at=now,
    )


def _why_not(verb: Verb, entry: Entry | None, *, now: int) -> tuple[str, int]:
    """Why a message could not be seized, as it is now."""
    if entry is None:
        return "is gone, or set aside (`unspool queue --corrupt`); nothing was done", os.EX_NOINPUT
    if entry.state is State.WAITING and unpark(entry.trail):
        return f"is {PARKED}", os.EX_TEMPFAIL
    if entry.state in (State.DELIVERED, State.BOUNCED):
        text = f"{wording.condition(entry, now=now)}; there is nothing to {verb.name}"
        return text, os.EX_DATAERR
    return "is being tried right now; nothing was done. Try again.", os.EX_TEMPFAIL


COMMANDS: Final = tuple(command(verb) for verb in VERBS)
