"""Rows with the service down: durable accept, redelivery of the backlog, memory.

Accept is compared with Restate's `/send`, in turn, each time with a fresh server and store. Each
row looks into the spool's file afterwards: what was answered 202 must be there.
"""

from __future__ import annotations

import threading
import time
from statistics import median
from typing import Final

from . import restate
from .bench import Bench, Goal, Row
from .load import WARM_S, good, load
from .nginx import upstream
from .process import Failed, fetch, free_port, wait_for
from .relay import Relay

WAITING: Final = 0
DELIVERED: Final = 2
FIRST_S: Final = 60.0
"""How long the first delivery may be in coming: a closed lane is probed now and then."""
DRAIN_S: Final = 120.0
REST_S: Final = 0.5
"""So long nothing new has come in: then nothing will."""
WIDE: Final = ("--window-start", "64", "--window-max", "64", "--attempts-max", "128")
MB: Final = 1e6


def _saved(relay: Relay, requests: int) -> None:
    """What was answered 202 is in the file; single answers look as they should."""
    waiting = relay.in_spool().get(WAITING, 0)
    if waiting < requests:
        raise Failed(f"{requests} were answered 202, but {waiting} are in the spool")
    status, named, _ = fetch(relay.port, "/orders", method="POST", body=b"x")
    if status != 202 or "location" not in named:
        raise Failed(f"an answer was {status} and not 202 with a receipt")


def _accept(bench: Bench, script: str) -> tuple[float, float]:
    """Requests a second, and the processor time of one in µs."""
    bench.settle()
    with Relay(bench, to=free_port()) as relay:
        warm = good(load(bench, relay.port, script, seconds=WARM_S, tag="warm"), "accept")
        found = good(load(bench, relay.port, script, tag="run", server=relay), "accept")
        _saved(relay, warm.requests + found.requests)
        return found.per_s, found.cpu_us


def _send(bench: Bench, *, partitions: int, cores: set[int]) -> tuple[float, float]:
    """Restate's rate, and its memory in MB afterwards."""
    bench.settle()
    home = restate.install()
    with restate.Restate(bench, home, partitions=partitions, cores=cores) as server:
        load(bench, server.port, "plain", seconds=WARM_S, path=server.path)
        found = good(load(bench, server.port, "plain", path=server.path), "Restate /send")
        return found.per_s, server.rss_bytes() / MB


def accept(bench: Bench) -> list[Row]:
    both = {bench.measured_core, bench.load_core}
    rivals = {
        "Restate /send, 1 partition, 1 core": (1, {bench.measured_core}),
        "Restate /send, 1 partition, 2 cores": (1, both),
        "Restate /send, as it comes (24), 2 cores": (24, both),
    }
    ours: dict[str, list[float]] = {"plain": [], "keyed": []}
    cpu: dict[str, list[float]] = {"plain": [], "keyed": []}
    theirs: dict[str, list[float]] = {name: [] for name in rivals}
    memory: dict[str, list[float]] = {name: [] for name in rivals}
    why = "" if bench.restate else "--no-restate"
    for _ in range(bench.runs):
        for script in ours:
            per_s, cpu_us = _accept(bench, script)
            ours[script].append(per_s)
            cpu[script].append(cpu_us)
        for name, (partitions, cores) in rivals.items():
            if why:
                continue
            try:
                rate, used = _send(bench, partitions=partitions, cores=cores)
            except (Failed, TimeoutError, OSError) as error:
                why = str(error)
                continue
            theirs[name].append(rate)
            memory[name].append(used)
    rate = median(ours["plain"])
    rows = [
        Row(
            what="durable accept", ours=rate, goal=Goal(35_000, 50_000),
            note=f"{median(cpu['plain']):.0f} µs of processor a request",
            runs={"unspool": ours["plain"]},
        ),
        Row(
            what="durable accept, keyed", ours=median(ours["keyed"]),
            note=f"{median(cpu['keyed']):.0f} µs of processor a request",
            runs={"unspool": ours["keyed"]},
        ),
    ]  # fmt: skip
    for name in rivals:
        row = Row(
            what="durable accept", compared_with=name, goal=Goal(8, 12), goal_on="ratio",
            runs={"unspool": ours["plain"], name: theirs[name]},
        )  # fmt: skip
        if theirs[name]:
            row.ours, row.theirs = rate, median(theirs[name])
            row.note = f"{name} then used {median(memory[name]):.0f} MB"
        else:
            row.not_run = why
        rows.append(row)
    return rows


# --- the backlog ------------------------------------------------------------------------------


def _fill(bench: Bench, relay: Relay) -> None:
    """Accept until the backlog is as large as it should be."""
    for _ in range(60):
        good(load(bench, relay.port, "plain", seconds=1), "filling")
        if int(relay.health()["backlog"] or 0) >= bench.backlog:
            return
    raise Failed("the backlog did not fill within a minute")


def _at_rest(relay: Relay) -> int:
    """How many wait, once the last requests of a load that was cut off have been accepted too."""
    seen, since = -1, time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        waiting = relay.in_spool().get(WAITING, 0)
        if waiting != seen:
            seen, since = waiting, time.monotonic()
        return time.monotonic() - since > REST_S

    wait_for(still, "the last accept", FIRST_S)
    return seen


def _drain(bench: Bench, extra: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """Messages per second from the first delivery to the last, as the service counts them."""
    bench.settle()
    port = free_port()
    with Relay(bench, to=port, extra=extra) as relay:
        _fill(bench, relay)
        waiting = _at_rest(relay)
        bench.settle()
        with upstream(bench, port) as service:
            wait_for(lambda: service.count() > 0, "the first delivery", FIRST_S)
            first = time.monotonic()
            used = relay.cpu_s()
            wait_for(lambda: service.count() >= waiting, "the last delivery", DRAIN_S)
            took = time.monotonic() - first
            used = relay.cpu_s() - used
            wait_for(lambda: not relay.in_spool().get(WAITING), "the last verdict", DRAIN_S)
            rss = relay.rss_bytes() / MB
            count = service.count()
            delivered = relay.in_spool().get(DELIVERED, 0)
            if delivered != waiting or count != waiting:
                raise Failed(
                    f"{waiting} waited, the service had {count}, {delivered} are delivered"
                )
    return waiting / took, {"messages": waiting, "cpu_us": used * 1e6 / waiting, "rss_mb": rss}


def redeliver(bench: Bench) -> list[Row]:
    rows: list[Row] = []
    for label, extra in (("as it comes", ()), ("a window of 64", WIDE)):
        runs: list[float] = []
        details: dict[str, float] = {}
        for _ in range(bench.runs):
            rate, details = _drain(bench, extra)
            runs.append(rate)
        rows.append(
            Row(
                what=f"redelivery of a backlog, {label}",
                ours=median(runs),
                goal=Goal(15_000),
                note=f"{details['messages']:.0f} messages, from the first delivery to the last,"
                f" slow start included; {details['cpu_us']:.0f} µs of processor a message",
                runs={"unspool": runs},
                details=details,
            )
        )
    return rows


class Highest:
    """The most memory a process had, looked at twenty times a second."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._over = threading.Event()
        self._most = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._most = max(self._most, self._relay.rss_bytes())

    def end(self) -> float:
        self._over.set()
        self._thread.join()
        return self._most / MB


def memory(bench: Bench) -> list[Row]:
    """Resident memory: after the start, passing through, accepting, and delivering the backlog."""
    found: dict[str, float] = {}
    port = free_port()
    bench.settle()
    with Relay(bench, to=port) as relay:
        with upstream(bench, port):
            time.sleep(1)
            found["idle"] = relay.rss_bytes() / MB
            watch = Highest(relay)
            load(bench, relay.port, "plain")
            load(bench, relay.port, "keyed", tag="m")
            found["busy"] = watch.end()
        watch = Highest(relay)
        _fill(bench, relay)
        found["with the backlog"] = watch.end()
        watch = Highest(relay)
        with upstream(bench, port):
            wait_for(lambda: relay.health()["backlog"] == 0, "the last verdict", FIRST_S + DRAIN_S)
        found["delivering it"] = watch.end()
    return [
        Row(
            what="memory, the most of it",
            ours=max(found.values()),
            unit="MB",
            goal=Goal(80, at_most=True),
            note=", ".join(f"{name} {value:.0f} MB" for name, value in found.items()),
            runs={name: [value] for name, value in found.items()},
        )
    ]
