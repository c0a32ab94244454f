"""What a Redis or Valkey, as it is set up now, makes of a message: measured, not believed.

    measured = judge(parse_info(info), config, place)   raises what keeps a spool from being opened
    measured.survives · .waits · .detail

    eviction              it would throw messages away: refused
    no AOF                a restart of the server loses everything: NOTHING
    appendfsync always    synced before anybody is told: POWER
    everysec, WAITAOF     (Redis 7.2, Valkey) each write waits until the server has synced: POWER,
                          where it tells the truth: see `honest`
    everysec or no        a power cut takes the last second, or more: PROCESS

WAITAOF is tried before it is believed. Since redis/redis#12622 servers answer it at once where the
last sync was less than a second ago (mended in #13793, of February 2025; Valkey 9.1.2 still does
it): "synced", of what a power cut takes. But with `everysec` two syncs are a second apart, so two
writes that are both confirmed within a moment tell a server that lies.

Never MACHINE: replicas are asynchronous, and a failover may lose what was acknowledged. Where the
server does not show its settings (CONFIG is often closed on hosted ones), PROCESS is what is left.

Does not see: a data directory on tmpfs, a disk that lies, an AOF that was switched off and on again
and is not whole yet, and a WAITAOF that lies on a disk whose syncs take longer than a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...core.message import Value
from ...errors import Misconfigured, NotDone, PromiseBroken
from ..protocol import Survives
from .url import Place

LEAST: Final = (6, 2)
HAS_WAITAOF: Final = (7, 2)
TOGETHER_MS: Final = 300
BETTER: Final = (
    "{cli} CONFIG SET appendfsync always && {cli} CONFIG SET no-appendfsync-on-rewrite no"
    " && {cli} CONFIG REWRITE"
)
"""How a promise is bettered; {cli} is how the server is asked."""
SETTINGS: Final = ("appendfsync", "no-appendfsync-on-rewrite")


class Measured(Value, frozen=True):
    survives: Survives
    waits: bool
    """Each write must be followed by WAITAOF on its connection."""
    detail: str
    run: str = ""
    """Which run of the server this was measured in."""


def _better(place: Place) -> str:
    return BETTER.replace("{cli}", place.cli)


def honest(second_ms: float) -> bool:
    """Did the second of two writes, one behind the other, wait for a sync of its own?"""
    return second_ms >= TOGETHER_MS


def lowered(measured: Measured, place: Place) -> Measured:
    """Its WAITAOF does not wait."""
    return Measured(
        Survives.PROCESS,
        False,
        measured.detail + " (answers before it has synced): a power cut takes the last writes; mend"
        f" it: {_better(place)}",
        measured.run,
    )


def parse_info(text: bytes) -> dict[str, str]:
    """The answer to INFO, without its headings."""
    lines = text.decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def judge(
    info: Mapping[str, str],
    config: Mapping[str, str],
    place: Place,
    *,
    before: Measured | None = None,
) -> Measured:
    """`config` holds those of SETTINGS that the server shows. `before`: the last time. Raises
    `Misconfigured`, `PromiseBroken`, `NotDone`."""
    where, cli = place.shown, place.cli
    name, version = _version(info)
    server = f"{name} {info.get('valkey_version') or info.get('redis_version', '?')}"
    if version < LEAST:
        raise Misconfigured(
            f"{where} is {server}, which is too old for a spool: it takes Redis 6.2 or newer, or"
            f" Valkey. Nothing was opened. See what runs there: {cli} INFO server"
        )
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == "1":
        raise Misconfigured(
            f"{where} is part of a cluster, where a spool's keys move from server to server."
            " Nothing was opened. Name a server of its own: unspool serve --spool redis://HOST/0"
        )
    if info.get("loading") == "1":
        raise NotDone(
            f"{where} is still reading its data from the disk. Nothing was opened, and nothing is"
            f" lost. Start again in a moment; see how far it is: {cli} INFO persistence"
        )
    if info.get("role") == "slave":
        raise NotDone(
            f"{where} is a replica, and takes no writes. Nothing was opened. Name its master: "
            f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        )
    # What had an AOF before, in the same run, is only writing it anew.
    had = before is not None and before.survives > 0 and before.run == info.get("run_id", "")
    making = info.get("aof_rewrite_in_progress") == "1" and info.get("aof_base_size") == "0"
    if making and not had:
        raise NotDone(
            f"{where} is writing its AOF for the first time, or anew for the first time, which"
            " cannot be told apart; and until the first is done, what it is given is lost with it."
            f" Nothing was done. Start again in a moment; see how far: {cli} INFO persistence"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":
        raise PromiseBroken(
            f"{where} throws keys away when its memory is full (maxmemory-policy {policy}):"
            " accepted messages would be lost without a word. Nothing was opened. Mend it:"
            f" {cli} CONFIG SET maxmemory-policy noeviction && {cli} CONFIG REWRITE"
        )
    return _durability(info, config, place, server=server, version=version)


def _version(info: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """Valkey tells the version of Redis that it is compatible with, and then its own."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = info.get("redis_version", "0")
    return name, tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _durability(
    info: Mapping[str, str],
    config: Mapping[str, str],
    place: Place,
    *,
    server: str,
    version: tuple[int, ...],
) -> Measured:
    run = info.get("run_id", "")
    if info.get("aof_enabled", "0") != "1":
        return Measured(
            Survives.NOTHING,
            False,
            f"{server}, no AOF: a restart of the server loses everything; mend it: {place.cli}"
            f" CONFIG SET appendonly yes && {_better(place)}",
            run,
        )
    policy = config.get("appendfsync")
    resting = config.get("no-appendfsync-on-rewrite") == "yes"
    told = f"{server}, AOF, " + (f"appendfsync={policy}" if policy else "appendfsync not shown")
    if policy == "always" and not resting:
        return Measured(Survives.POWER, False, told, run)
    if policy == "everysec" and version >= HAS_WAITAOF:
        return Measured(Survives.POWER, True, f"{told}, WAITAOF", run)
    if resting:
        told += ", no-appendfsync-on-rewrite=yes"
    return Measured(
        Survives.PROCESS,
        False,
        f"{told}: a power cut takes the last writes; mend it: {_better(place)}",
        run,
    )
