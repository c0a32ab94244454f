"""`unspool outbox`: what waits at the sender's, and sending it.

    list · show · retry · drop      as `queue`, `show`, `retry` and `drop` are for a relay's spool
    drain                           send what waits, and tell how far it has come

The first four are the operator's commands over another spool: an outbox is one. They are safe
beside the process that has it open; its dispatcher notices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import click

from ...errors import Misconfigured
from .. import wording
from ..spool import NoSuch, is_there
from .queue import queue as queue_command
from .show import show as show_command
from .verbs import COMMANDS

OUTBOX: Final = "sqlite:///outbox.db"
"""Where `send` keeps what nobody took, and these look, unless told otherwise."""


class Groups(click.Group):
    """Commands in the order of the day."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Groups, invoke_without_command=True)
@click.pass_context
def outbox(ctx: click.Context) -> None:
    """Look after what waits at the sender's: list, show, retry, drop, drain."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(os.EX_USAGE)


def outbox_option(text: str) -> click.Option:
    return click.Option(["--outbox"], metavar="URL", default=OUTBOX, show_default=True, help=text)


def _over(command: click.Command, name: str, text: str) -> click.Command:
    """An operator's command, over an outbox instead of the relay's spool."""

    def run(*, outbox: str, **given: Any) -> Any:
        assert command.callback is not None
        return command.callback(spool=existing(outbox), config=None, **given)

    params = [one for one in command.params if one.name not in ("spool", "config")]
    return click.Command(
        name,
        params=[*params, outbox_option("The outbox, as the client was told: a path or a URL.")],
        callback=run,
        help=text,
        context_settings=command.context_settings,
    )


def existing(given: str) -> str:
    """The outbox's URL. Looking must not make an empty one where somebody mistyped a name."""
    from ...client.outbox import outbox_url
    from ...spools.open import path_of

    url = outbox_url(given)
    path = path_of(url)
    if path is not None and not is_there(path):
        raise NoSuch(
            f"there is no outbox at {path}: nothing was ever kept there, or it is elsewhere. Name"
            " it with --outbox, as the client was told."
        )
    return url


_VERBS: Final = {one.name: one for one in COMMANDS}
_KEY: Final = "\n\nKEY is the request's key, as the client said `Queued(key)`."
for _one in (
    _over(queue_command, "list", "List what waits: why, and when it goes next."),
    _over(show_command, "show", f"Show one request: its attempts, its fields, its body.{_KEY}"),
    _over(
        _VERBS["retry"], "retry",
        f"Try requests now, instead of when they are due, by whoever has the outbox open.{_KEY}",
    ),
    _over(_VERBS["drop"], "drop", f"Give requests up.{_KEY}"),
):  # fmt: skip
    outbox.add_command(_one)


@outbox.command()
@click.option(
    "--outbox", "given", metavar="URL", default=OUTBOX, show_default=True,
    help="The outbox: a path or a URL.",
)  # fmt: skip
@click.option(
    "--server", "servers", metavar="ORIGIN", multiple=True,
    help="Send there, instead of to where each was meant to go.",
)  # fmt: skip
@click.option("--queue", "queues", metavar="URL", multiple=True, help="And then offer it there.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0), default=60.0, show_default=True,
    help="Go on for so long.",
)  # fmt: skip
def drain(*, given: str, servers: tuple[str, ...], queues: tuple[str, ...], timeout: float) -> int:
    """Send what waits in an outbox, now and until it is empty.

    Exit code 0: nothing waits. 75: something still does.
    """
    import asyncio

    return asyncio.run(_drain(existing(given), servers, queues, timeout))


async def _drain(url: str, servers: Sequence[str], queues: Sequence[str], timeout: float) -> int:
    import asyncio

    from ...client.client import AsyncClient
    from ...client.results import Progress

    loop = asyncio.get_running_loop()
    until = loop.time() + timeout
    left = 0
    destinations = await _destinations(url)
    for at, destination in enumerate(destinations):
        share = (until - loop.time()) / (
            len(destinations) - at
        )  # who is down leaves the others time
        to = tuple(servers) or (_origin_of(destination),)
        name = wording.plain(destination)

        def told(now: Progress, name: str = name) -> None:
            click.echo(f"unspool: {name}: {now.waiting} wait, {now.settled} settled", err=True)

        async with AsyncClient(to, queues=queues, outbox=url, destination=destination) as client:
            ended = await client.drain(max(0.0, share), progress=told)
            left += ended.waiting
    click.echo(f"{left} waiting" if left else "Nothing waits.")
    return os.EX_TEMPFAIL if left else 0


async def _destinations(url: str) -> list[str]:
    from ...core.message import Instant
    from ...spools.open import open_spool

    spool = await open_spool(url)
    try:
        return [row.destination for row in await spool.tally([Instant(0)])]
    finally:
        await spool.aclose()


def _origin_of(destination: str) -> str:
    if destination.startswith(("http://", "https://")):
        return destination
    raise Misconfigured(
        f"What waits for {wording.plain(destination)!r} says no address. Nothing was sent. Say"
        " where it is: unspool outbox drain --server https://a.example"
    )
