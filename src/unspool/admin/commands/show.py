"""`unspool show KEY`: one message, whole. The newest attempt first.

KEY is what the sender called it, the spool's own key, or the address of its receipt. Values of
fields that carry somebody's credentials are hidden unless --reveal is given; the body goes to
stdout with --body, byte for byte, unless that is a terminal and the body would act on it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from ...core.lifecycle import TRAIL_MAX
from ...core.message import Field
from ...spools.protocol import Entry
from .. import wording
from ..spool import MATCHES_MAX, Ambiguous, Desk, NoSuch, options, using
from .queue import members

CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
HYPHENS: Final = {"ignore_unknown_options": True, "help_option_names": ["--help"]}
"""A key may begin with a hyphen, and have an h in it."""
HIDDEN: Final = "(hidden; --reveal shows it)"


@click.command(context_settings=HYPHENS)
@click.argument("key")
@options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--body", is_flag=True, help="Only the request's body, byte for byte.")
@click.option("--reveal", is_flag=True, help="Credentials too.")
def show(
    *, key: str, spool: tuple[str, ...], config: str | None, as_json: bool, body: bool, reveal: bool
) -> int:
    """Show one message: its envelope, its attempts, its request.

    KEY is the sender's Idempotency-Key, the spool's own key, or the address of the receipt.
    """

    async def work(desk: Desk) -> int:
        entry = await desk.whole(await the_one(desk, key, verb="show"))
        hidden = frozenset() if reveal else CREDENTIALS | frozenset(desk.settings.scope_fields)
        if body:
            _body(entry)
        elif as_json:
            click.echo(wording.encode(_document(entry, now=desk.now(), hidden=hidden)))
        else:
            for line in _page(entry, now=desk.now(), hidden=hidden):
                click.echo(line)
        return 0

    return using(work, spool=spool, config=config)


async def the_one(desk: Desk, word: str, *, verb: str) -> Entry:
    """The entry that `word` names, or an error that lists what it may mean. Where another of
    several spools has one under the same key, that is said, with the command that reaches it."""
    found = await desk.named(word)
    if not found:
        raise NoSuch(
            f"no message is called {wording.plain(word)}: it never was here, or was kept long "
            "enough. See what there is: unspool queue --all "
            f"{wording.flags(desk.settings.spool)}"
        )
    if len(found) > 1:
        now = desk.now()
        rows = "\n".join(
            f"  {wording.plain(entry.message.key)}  {wording.plain(entry.message.destination)}  "
            f"{wording.condition(entry, now=now)}"
            for entry in found
        )
        more = "at least " if len(found) == MATCHES_MAX else ""
        raise Ambiguous(
            f"{more}{len(found)} messages are called {wording.plain(word)}; use one of these "
            f"keys:\n{rows}"
        )
    for url, other in await desk.beside(found[0]):
        click.echo(
            f"unspool: {wording.label(found[0])} is here what {desk.place(found[0])} has. There is"
            f" another message under this key at {url} ({wording.condition(other, now=desk.now())})"
            f"; for that: unspool {verb} {shlex.quote(wording.plain(other.message.key))}"
            f" --spool {shlex.quote(url)}",
            err=True,
        )
    return found[0]


def _body(entry: Entry) -> None:
    request = entry.message.request
    if request is None:
        raise NoSuch(
            f"the request of {wording.label(entry)} is gone: it is kept no longer than it is "
            f"needed, and this message has {entry.state.name.lower()}"
        )
    text = request.body.decode("utf-8", "replace")
    if sys.stdout.isatty() and wording.said(text.replace("\t", " ")) != text.replace("\t", " "):
        raise click.UsageError(
            "the body has bytes that would act on this terminal: send it to a file or a pipe"
        )
    sys.stdout.buffer.write(request.body)
    sys.stdout.buffer.flush()


def _page(entry: Entry, *, now: int, hidden: frozenset[str]) -> Iterator[str]:
    message = entry.message
    yield f"key          {wording.label(entry)}"
    if message.name:
        yield f"spool key    {wording.plain(message.key)}"
    yield f"destination  {wording.plain(message.destination)}"
    yield f"state        {wording.condition(entry, now=now)}"
    yield f"accepted     {_ago(message.accepted_at, now=now)}"
    left = message.expires_at - now
    relative = f"in {wording.span(left)}" if left > 0 else f"{wording.span(-left)} ago"
    yield f"expires      {wording.instant(message.expires_at)} ({relative})"
    if message.order_key:
        yield f"order key    {wording.plain(message.order_key)}"
    if not message.repeat:
        yield "repeat       no: it ends as unknown if an attempt may have been applied"
    yield f"attempts     {wording.attempts(entry)}"
    for place, attempt in reversed(list(enumerate(entry.trail, 1))):
        # By their place as long as none was left out: an operator's seizure takes a number too.
        number = place if len(entry.trail) < TRAIL_MAX else attempt.number
        yield (
            f"  {number:>4}  {_ago(attempt.at, now=now)}  "
            f"{wording.plain(attempt.cause)} ({wording.plain(attempt.sent)})"
        )
    yield from _exchange(entry, hidden=hidden)


def _exchange(entry: Entry, *, hidden: frozenset[str]) -> Iterator[str]:
    request = entry.message.request
    if request is None:
        yield "request      gone: it is kept no longer than it is needed"
    else:
        yield f"request      {_words(request.method)} {_words(request.target)}"
        yield from _shown(request.fields, hidden=hidden)
        yield f"body         {len(request.body)} bytes (--body writes it out)"
    if entry.answer is not None:
        line = f"{entry.answer.status} {_words(entry.answer.reason)}".rstrip()
        kept = f"{len(entry.answer.body)} bytes" if entry.stored else "too large to keep"
        yield f"answer       {line}, body {kept}"


def _ago(at: int, *, now: int) -> str:
    return f"{wording.instant(at)} ({wording.span(now - at)} ago)"


def _words(value: bytes) -> str:
    return wording.plain(value.decode("latin-1"))


def _shown(fields: Sequence[Field], *, hidden: frozenset[str]) -> Iterator[str]:
    for name, value in fields:
        text = HIDDEN if name.decode("latin-1").lower() in hidden else _words(value)
        yield f"  {_words(name)}: {text}"


def _document(entry: Entry, *, now: int, hidden: frozenset[str]) -> dict[str, Any]:
    request, answer = entry.message.request, entry.answer
    found = members(entry, now=now)
    if request is not None:
        found["request"] = {
            "method": request.method.decode("latin-1"),
            "target": request.target.decode("latin-1"),
            "fields": _pairs(request.fields, hidden=hidden),
            "body_bytes": len(request.body),
        }
    if answer is not None:
        found["answer"] = {
            "status": answer.status,
            "reason": answer.reason.decode("latin-1"),
            "fields": _pairs(answer.fields, hidden=hidden),
            "body_bytes": len(answer.body) if entry.stored else None,
        }
    return found


def _pairs(fields: Sequence[Field], *, hidden: frozenset[str]) -> list[tuple[str, str | None]]:
    """Fields for programs; null where the value is hidden."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
    return [(name, None if name.lower() in hidden else value) for name, value in pairs]
