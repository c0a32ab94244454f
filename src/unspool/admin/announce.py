"""What `serve` says when it has started: where, where to, what it keeps, where to look.

    await announce(settings, listening, node)

Four lines, one more for each further spool, and warnings.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from .. import __version__
from ..core.message import Instant
from ..core.urls import concealed
from ..ingress.listen import Opened
from ..node import Node
from ..problems import PREFIX
from ..settings import Settings
from ..spools.open import path_of
from .wording import SURVIVES, custodian, flags, span


def _known_as(settings: Settings) -> str:
    return f", known as {' '.join(settings.destination)}" if settings.destination else ""


def _exposed(url: str) -> str:
    """Whom the spool's file is open to beyond its owner; empty where to nobody.

    A word and no chmod: a group that may read it may be somebody's backup, on purpose.
    """
    path = path_of(url)
    try:
        mode = path.stat().st_mode if path is not None else 0
    except OSError:
        return ""
    who = ["others"] * bool(mode & 0o007) + ["its group"] * bool(mode & 0o070)
    return " and ".join(who)


_LOCAL: Final = ({"localhost", "127.0.0.1", "0.0.0.0"}, {"localhost", "::1", "::"})


def _is_itself(url: str, address: str) -> bool:
    """Does this address listen where that URL leads, as far as one can see without asking?"""
    there, here = urlsplit(url), urlsplit(address)
    hosts = {there.hostname, here.hostname}
    same = len(hosts) == 1 or any(hosts <= local for local in _LOCAL)
    return same and (there.scheme, there.port) == (here.scheme, here.port)


async def announce(settings: Settings, listening: Sequence[Opened], node: Node) -> None:
    spool, chain = node.custody.spool, node.custody.chain
    rows = await spool.tally([Instant(0)])
    waiting = sum(sum(row.counts) + row.held for row in rows)
    oldest = min((row.oldest_at for row in rows), default=None)
    depth = f"{waiting} waiting"
    if waiting and oldest is not None:
        depth += f", oldest {span(node.clock.now() - oldest)}"
    promises = spool.promises
    survives = SURVIVES[promises.survives]
    where = " ".join(one.address for one in listening)
    urls = [concealed(url) for url in settings.spool]
    if chain is None:
        kept = f"  spool        {urls[0]}: {depth}; {survives} ({promises.detail})\n"
    else:
        first, *others = map(custodian, chain.views())
        kept = f"  spool        {first}\n"
        kept += "".join(f"  and then     {other}\n" for other in others)
        kept += f"  in all       {depth}\n"
    look = f"unspool queue {flags(settings.spool)} · {listening[0].address}{PREFIX}health"
    say = (
        f"unspool {__version__} listens at {where}\n"
        f"  delivers to  {' '.join(settings.to)}{_known_as(settings)}\n"
        f"{kept}"
        f"  look         {look}\n"
    )
    for url in settings.to:
        if any(_is_itself(url, one.address) for one in listening):
            say += (
                f"  WARNING      {url} is this relay itself: what is sent there comes back, and is"
                " answered 508.\n               Name the service behind it: --to http://host:port\n"
            )
    if promises.survives < node.plan.required:
        say += (
            f"  WARNING      this spool {survives}, and `survives` asks for "
            f"{node.plan.required.name.lower()}: nothing will be saved.\n"
            f"               Use another spool, or say --survives "
            f"{promises.survives.name.lower()}\n"
        )
    for url in settings.spool:
        if who := _exposed(url):
            path = shlex.quote(str(path_of(url)))
            say += (
                f"  WARNING      the spool's file is open to {who}: it holds requests whole, with"
                f" bodies and credentials.\n               Close it: chmod 600 {path}*\n"
            )
    sys.stderr.write(say)
    sys.stderr.flush()
