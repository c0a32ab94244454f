"""A spool from its URL.

    spool = await open_spool("sqlite:///unspool.db")      relative, as in SQLAlchemy
    spool = await open_spool("sqlite:////var/lib/x.db")   absolute
    spool = await open_spool("leveldb:///unspool.leveldb")   a folder of one process
    spool = await open_spool("log:///unspool.log")            another
    spool = await open_spool("postgres://me:pw@host/db")      a database that relays share
    spool = await open_spool("redis://127.0.0.1:6379/0")      a server: rediss:, valkey:, valkeys:
    spool = await open_spool("memory:")                   survives nothing; for trying things out
    await reach_spool(url)              for an operator: through the relay, where one has it open
    path_of(url) · of_one_process(url) · of_one_machine(url)    what can be told before it is opened

Other packages add schemes by an entry point in the group `unspool.spools`: its name is the scheme,
its object an async function from the URL to a Spool.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Protocol

from ..core.urls import concealed
from ..errors import InUse, Misconfigured, Missing
from .protocol import Spool

GROUP: Final = "unspool.spools"
QUEUES: Final = "unspool.queues"
"""The group of the queues that others add."""

Opener = Callable[[str], Awaitable[Spool]]


class Server(Protocol):
    def __call__(self, url: str, /, *, create: bool = True) -> Awaitable[Spool]: ...


async def _open_memory(url: str) -> Spool:
    from .memory import MemorySpool

    if url not in ("memory:", "memory://"):
        raise Misconfigured(
            f"{concealed(url)!r} names something in memory, which has no names. Nothing was opened."
            " Write: --spool memory:"
        )
    return MemorySpool()


async def _open_sqlite(url: str) -> Spool:
    from .sqlite.spool import SqliteSpool

    return await SqliteSpool.open(_named_path(url, example="unspool.db"))


async def _open_leveldb(url: str) -> Spool:
    from .leveldb.spool import open_leveldb

    return await open_leveldb(_named_path(url, example="unspool.leveldb"))


async def _open_postgres(url: str, *, create: bool = True) -> Spool:
    try:
        from .postgres.spool import open_postgres
    except ImportError as error:
        raise Missing(
            "The PostgreSQL spool needs psycopg, which is not installed. Nothing was opened."
            " Install it: pip install 'unspool[postgres]'"
        ) from error
    return await open_postgres(url, create=create)


async def _open_log(url: str) -> Spool:
    from .log.spool import open_log

    return await open_log(_named_path(url, example="unspool.log"))


async def _open_redis(url: str, *, create: bool = True) -> Spool:
    try:
        from .redis.spool import RedisSpool
    except ImportError as error:
        raise Missing(
            "A spool in Redis or Valkey needs the package redis, which is not installed. Nothing"
            " was opened. Install it: pip install 'unspool[redis]'"
        ) from error
    return await RedisSpool.open(url, create=create)


async def _open_nats(url: str, *, create: bool = True) -> Spool:
    from .nats.open import open_nats

    return await open_nats(url, create=create)


def _named_path(url: str, *, example: str) -> Path:
    scheme = url.partition(":")[0]
    path = path_of(url)
    if path is None:
        kind = "file" if scheme == "sqlite" else "folder"
        raise Misconfigured(
            f"{concealed(url)!r} names no {kind}. Nothing was opened. Write three slashes and a"
            f" path, four for an absolute one: --spool {scheme}:///{example}"
        )
    return path


SERVED: Final[Mapping[str, Server]] = {
    "nats": _open_nats,
    "postgres": _open_postgres,
    "postgresql": _open_postgres,
    "redis": _open_redis,
    "rediss": _open_redis,
    "valkey": _open_redis,
    "valkeys": _open_redis,
}
"""Spools in servers, which opening makes unless it is told not to."""
OURS: Final[Mapping[str, Opener]] = {
    "leveldb": _open_leveldb,
    "log": _open_log,
    "memory": _open_memory,
    "sqlite": _open_sqlite,
    **SERVED,
}
ON_DISK: Final = frozenset({"leveldb", "log", "sqlite"})
"""Schemes of which the rest is a path on this machine."""
OF_ONE_PROCESS: Final = frozenset({"leveldb", "log"})


QUEUE_SCHEMES: Final = frozenset({"amqp", "amqps", "gearman", "s3"})
"""What `queues/open.py` has and is no spool; who names one here is told where it belongs."""


def path_of(url: str) -> Path | None:
    """Where on this machine's disks a spool is; None where that is not ours to know."""
    scheme, slashes, path = url.partition(":///")
    return Path(path) if scheme in ON_DISK and slashes and path else None


def of_one_machine(url: str) -> bool:
    """Can nobody beyond this machine have it open? Then one `serve` knows all that is tried."""
    return url.partition(":")[0] in ON_DISK | {"memory"}


def of_one_process(url: str) -> bool:
    """Can only one process have it open?"""
    return url.partition(":")[0] in OF_ONE_PROCESS


def is_spool(url: str) -> bool:
    """Is this the URL of a spool, as far as its scheme tells?"""
    scheme, colon, _ = url.partition(":")
    return bool(colon) and (scheme in OURS or scheme in _plugged(GROUP))


async def open_spool(url: str) -> Spool:
    """Raises `Misconfigured` for a URL that names no spool, and what the spool itself raises."""
    scheme, colon, _ = url.partition(":")
    if opener := OURS.get(scheme) if colon else None:
        return await opener(url)
    plugged = _plugged(GROUP)
    if colon and scheme in plugged:
        found: Opener = plugged[scheme]()
        return await found(url)
    if colon and (scheme in QUEUE_SCHEMES or scheme in _plugged(QUEUES)):
        raise _queue(url)
    raise _unknown(url, scheme=scheme if colon else "", schemes=sorted({*OURS, *plugged}))


async def reach_spool(url: str, *, create: bool = True) -> Spool:
    """Open it as an operator does: where a relay has it to itself, through that relay's desk.
    Not `create`: a spool in a server is not made by looking whether there is any.

    Raises what `open_spool` does: `InUse` where another process has it that serves nobody.
    """
    path = path_of(url)
    if served := SERVED.get(url.partition(":")[0]):
        return await served(url, create=create)
    if path is None or not of_one_process(url):
        return await open_spool(url)
    from .desk.serving import NAME
    from .desk.visit import DeskSpool, NobodyServes

    folder = path.absolute()
    if (folder / NAME).exists():
        with suppress(NobodyServes):  # a dead relay leaves its socket
            return await DeskSpool.open(folder)
    try:
        return await open_spool(url)
    except InUse as error:
        try:
            return await DeskSpool.open(folder)  # it began to serve meanwhile
        except NobodyServes:
            raise error from None


def _plugged(group: str) -> dict[str, Callable[[], Opener]]:
    from importlib.metadata import entry_points  # 2 MB, and only for schemes that are not ours

    return {point.name: point.load for point in entry_points(group=group)}


def _queue(url: str) -> Misconfigured:
    url = concealed(url)
    return Misconfigured(
        f"{url!r} is a queue, and no spool: it hands messages on, and nobody can look one up there."
        f" Nothing was opened. In the smart client write queues=[{url!r}]. Bring what it has into a"
        f" spool: unspool serve --spool sqlite:///unspool.db --collect {shlex.quote(url)}"
    )


def _unknown(url: str, *, scheme: str, schemes: list[str]) -> Misconfigured:
    url = concealed(url)
    known = ", ".join(f"{name}:" for name in schemes)
    near = get_close_matches(scheme, schemes, n=1)
    if near:
        advice = f"Did you mean {near[0]}{url[len(scheme) :]}?"
    elif not scheme:
        advice = f"A path needs its scheme: sqlite:///{url}."
    else:
        advice = f"No installed spool answers to {scheme}:."
    return Misconfigured(
        f"{url!r} names no spool that is known here. Nothing was opened. {advice} Known: {known}."
        " Try: unspool serve --spool sqlite:///unspool.db"
    )
