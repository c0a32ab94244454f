"""The PostgreSQL spool opened: is it ours, is it of a form that we know, and what does it promise?

    promises, commit = await prepare(link, create=True)
    promises = await measure(link, within_s=5)          again, of a spool that is open

The tables are made, or brought to our form, in one transaction under a lock that all who open have
to take. A form that names ours among those that can work with it is left as it is, so an older
relay goes on beside a newer one; one that does not is refused, and so is a schema of somebody
else's.

Measured, not believed: the server's version, whether it may write, `fsync`, `full_page_writes`,
whether somebody made the tables unlogged, and what a commit waits for. `synchronous_commit = off`
is anybody's to overrule, and is, in each transaction; `fsync = off` is not, and lowers the promise.

Bugs: what lies under the server's data (a disk that lies, a tmpfs, a standby on the same host)
cannot be seen from here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ...errors import Misconfigured, Newer, NoSpool, PromiseBroken
from ..protocol import Promises, Survives
from .link import Link, Transaction
from .rows import FORM, FORMS, PROGRAM, in_schema
from .target import Target

log: Final = logging.getLogger("unspool.spool")

SERVER_MIN: Final = 120000
"""12: MATERIALIZED; older ones have had no corrections since 2024."""
WITHIN_S: Final = 30.0
COMMITS: Final = {
    "off": "on",
    "local": "local",
    "remote_write": "remote_write",
    "on": "on",
    "remote_apply": "remote_apply",
}
"""synchronous_commit as it was found, and as we set it: what is more than nothing was meant."""
BEYOND_THE_HOST: Final = frozenset({"on", "remote_apply"})


class Found(NamedTuple):
    """What `measure` gives."""

    number: int
    version: str
    fsync: str
    full_page_writes: str
    synchronous_commit: str
    standbys: str
    standby: bool
    unlogged: bool
    relations: list[str] | None
    exists: bool


async def prepare(link: Link, *, create: bool = True) -> tuple[Promises, str]:
    """What it promises, and the synchronous_commit by which it does. Raises a `Broken` that says
    what to do, or `Unavailable`."""
    target = link.target
    found = await link.run(_measured, within_s=WITHIN_S, begin="begin_looking")
    refuse(found, target)
    if not _is_there(found):
        if not create:
            raise NoSpool(
                f"There is no spool in the schema {target.schema} of {target.shown}: nothing was"
                " ever accepted there, and looking makes none. Name the one that the relay has:"
                " --spool 'postgres://…?schema=…'"
            )
        await link.run(lambda transaction: _make(transaction, target), within_s=WITHIN_S)
    elif (await link.run(_about, within_s=WITHIN_S))[1] < FORM:
        await link.run(lambda transaction: _make(transaction, target), within_s=WITHIN_S)
    _check_form(await link.run(_about, within_s=WITHIN_S), target)
    found = await link.run(_measured, within_s=WITHIN_S)
    promises = _promises(found)
    if promises.survives < Survives.POWER:
        log.warning(
            "the spool's server would lose messages at a power cut: %s. See its settings:"
            " %s -c 'SHOW fsync' -c 'SHOW full_page_writes'", promises.detail,
            target.command("psql"),
        )  # fmt: skip
    return promises, COMMITS.get(found.synchronous_commit, "on")


async def measure(link: Link, *, within_s: float) -> Promises:
    """What the server gives now. Raises as `prepare`."""
    found = await link.run(_measured, within_s=within_s, begin="begin_looking")
    refuse(found, link.target)
    return _promises(found)


async def _measured(transaction: Transaction) -> Found:
    [found] = await (await transaction.ask("measure")).fetchall()
    return Found(*found)


async def _about(transaction: Transaction) -> tuple[str, int, int]:
    """Nobody's, where there is no such table as ours."""
    [[ours]] = await (await transaction.ask("is_about")).fetchall()
    if not ours:
        return "", 0, 0
    rows: Sequence[Any] = await (await transaction.ask("about")).fetchall()
    return rows[0] if len(rows) == 1 else ("", 0, 0)


def refuse(found: Found, target: Target) -> None:
    if found.number < SERVER_MIN:
        raise PromiseBroken(
            f"The server of the spool {target.shown} is PostgreSQL {found.version}, and this"
            " unspool needs 12 or newer. Nothing was changed. Upgrade it: pg_upgrade"
        )
    if found.standby:
        raise PromiseBroken(
            f"The server of the spool {target.shown} is a standby: it takes no writes. Nothing was"
            " changed. Name the primary, or all hosts:"
            " postgres://h1,h2/db?target_session_attrs=read-write"
        )
    if found.relations and not _is_there(found):
        raise Misconfigured(
            f"The schema {target.schema} of {target.shown} has tables, and they are not a spool's:"
            f" {', '.join(sorted(found.relations)[:5])}. It was not changed. Name another schema:"
            " --spool '…?schema=spool'"
        )


def _is_there(found: Found) -> bool:
    return {"about", "message", "body"} <= set(found.relations or ())


def _check_form(about: tuple[str, int, int], target: Target) -> None:
    program, form, oldest = about
    if program != PROGRAM:
        raise Misconfigured(
            f"The tables in the schema {target.schema} of {target.shown} belong to another program"
            f" ({program or 'nobody knows which'}). They were not changed. Name another schema:"
            " --spool '…?schema=spool'"
        )
    if oldest > FORM:
        raise Newer(
            f"The spool {target.shown} was written by a newer unspool (form {form}; this one knows"
            f" {FORM}). It was not changed, and everything in it is kept. Upgrade:"
            " pip install -U unspool"
        )


async def _make(transaction: Transaction, target: Target) -> None:
    """All of it or nothing, whoever else is opening it."""
    await transaction.ask("lock_form", lock_class=target.lock_class)
    found = await _measured(transaction)
    refuse(found, target)
    form = 0
    if _is_there(found):
        program, form, _ = about = await _about(transaction)
        if program != PROGRAM:
            _check_form(about, target)
    elif not found.exists:
        await transaction.do(f'CREATE SCHEMA "{target.schema}"')
    for number in range(form + 1, FORM + 1):
        oldest, statements = FORMS[number]
        for statement in statements:
            await transaction.do(in_schema(statement, target.schema))
        if number > 1:
            await transaction.ask("written", form=number, oldest=oldest)


def _promises(found: Found) -> Promises:
    """From what was measured."""
    commit = COMMITS.get(found.synchronous_commit, "on")
    survives = Survives.POWER
    if found.standbys and commit in BEYOND_THE_HOST:
        survives = Survives.MACHINE
    detail = [f"PostgreSQL {found.version.split()[0]}", f"fsync={found.fsync}"]
    weak = [
        name
        for name, bad in (
            ("fsync", found.fsync != "on"),
            ("full_page_writes", found.full_page_writes != "on"),
        )
        if bad
    ]
    if "full_page_writes" in weak:
        detail.append("full_page_writes=off")
    overruled = ", set by us" if commit != found.synchronous_commit else ""
    detail.append(f"synchronous_commit={commit}{overruled}")
    if found.standbys:
        detail.append(f"standbys: {found.standbys}")
    if found.unlogged:
        detail.append("unlogged tables")
    if weak or found.unlogged:
        survives = Survives.PROCESS
    return Promises(
        survives=survives, shared=True, remembers=True, fences=True, detail=", ".join(detail)
    )
