"""`unspool collect`: from queues into the spool. Every setting is a flag of it, as of `serve`."""

from __future__ import annotations

import os
from typing import Any

import click

from ...config import load
from ...core.urls import concealed
from ...errors import Misconfigured
from .serve import with_flags


@click.command()
@click.argument("urls", metavar="QUEUE...", nargs=-1)
@click.option("--once", is_flag=True, help="End when there is nothing more; 75 if some was left.")
def collect(urls: tuple[str, ...], once: bool, **flags: Any) -> int:
    """Collect handed-over messages from queues into the spool.

    For example: unspool collect gearman://127.0.0.1:4730/orders --to http://127.0.0.1:8000

    QUEUE is gearman://host:4730/function, amqp://user:password@host/?queue=name or
    s3://bucket/prefix. The relay of the same spool delivers; it may run or not.
    A message is taken off its queue once the spool has it, synced. One that nobody can read is set
    aside on its server.
    """
    config = flags.pop("config") or ""
    settings = load(flags, os.environ, config=config).settings
    urls = urls or settings.collect
    if not urls:
        raise Misconfigured(
            "there is no queue to collect from. For example: "
            "unspool collect gearman://127.0.0.1:4730/orders --to http://127.0.0.1:8000"
        )
    if not settings.to and not settings.destination:
        raise Misconfigured(
            "to is not set: for which service are the messages? For example: "
            f"unspool collect {concealed(urls[0])} --to http://127.0.0.1:8000"
        )
    from ..collect import collect as run

    return run(settings, urls, once=once)


with_flags(collect)
