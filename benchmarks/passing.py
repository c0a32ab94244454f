"""Rows with the service up: pass through, keyed pass through, replay, latency at a steady rate.

Each checks its answers. wrk counts those of 400 and more; the service's own count says how many
requests really reached it; single exchanges before and after look at status, body and fields.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from .bench import Bench, Goal, Row
from .load import KEYS, WARM_S, Load, good, load
from .nginx import ANSWER, Nginx, proxy, upstream
from .pace import pace
from .process import Failed, fetch
from .relay import Relay

RATE: Final = 1000
FILL_S: Final = 2.0
BUSY_MS: Final = 1.0
BUSY: Final = "the machine was busy with other work: even direct is slow, so this says little"


def _look(port: int, *, key: str = "", replayed: bool = False) -> None:
    """One exchange: the service's own answer, and a replay if it should be one."""
    fields = {"Content-Type": "application/octet-stream"}
    if key:
        fields["Idempotency-Key"] = f'"{key}"'
    status, named, body = fetch(port, "/orders", method="POST", body=b"x" * 1024, fields=fields)
    if status != 200 or body != ANSWER:
        raise Failed(f"an answer was {status} with {body[:80]!r} and not the service's")
    if replayed and named.get("idempotent-replayed") != "true":
        raise Failed("a repeat was not answered with Idempotent-Replayed: true")


def _forwarded(
    bench: Bench, service: Nginx, server: Nginx | Relay, script: str, tag: str = ""
) -> Load:
    """One run in which every answer must have been the service's own."""
    before = service.count()
    found = good(load(bench, server.port, script, tag=tag, server=server), "pass through")
    reached = service.count() - before
    if reached < found.requests:
        raise Failed(f"{found.requests} answers, but the service had {reached} requests")
    return found


def pass_through(bench: Bench) -> list[Row]:
    """Against nginx's proxy_pass, in turn, and against the service itself: the ceiling."""
    runs: dict[str, list[float]] = {"unspool": [], "nginx": [], "direct": []}
    slow: dict[str, list[float]] = {"unspool": [], "nginx": [], "direct": []}
    cpu: dict[str, list[float]] = {"unspool": [], "nginx": [], "direct": []}
    with (
        upstream(bench) as service,
        proxy(bench, to=service.port) as nginx,
        Relay(bench, to=service.port) as relay,
    ):
        servers: dict[str, Nginx | Relay] = {"unspool": relay, "nginx": nginx, "direct": service}
        for server in servers.values():
            _look(server.port)
            load(bench, server.port, "plain", seconds=WARM_S)
        for _ in range(bench.runs):
            for name, server in servers.items():
                found = _forwarded(bench, service, server, "plain")
                runs[name].append(found.per_s)
                slow[name].append(found.p99_ms)
                cpu[name].append(found.cpu_us)
        _look(relay.port)
    return [
        Row(
            what="pass through",
            ours=median(runs["unspool"]),
            compared_with="nginx proxy_pass",
            theirs=median(runs["nginx"]),
            goal=Goal(0.6, 0.8),
            goal_on="ratio",
            note=f"a request costs us {median(cpu['unspool']):.0f} µs of processor, nginx"
            f" {median(cpu['nginx']):.0f}; straight to the service: {median(runs['direct']):.0f}/s",
            runs=runs,
            details={"p99_ms": slow, "cpu_us": cpu},
        )
    ]


def keyed(bench: Bench) -> list[Row]:
    """Every request with a key of its own: the answer is synced before it is passed on."""
    runs: list[float] = []
    cpu: list[float] = []
    with upstream(bench) as service:
        for number in range(bench.runs):
            bench.settle()
            with Relay(bench, to=service.port) as relay:
                warm = load(bench, relay.port, "keyed", seconds=WARM_S, tag="warm")
                found = _forwarded(bench, service, relay, "keyed", f"r{number}")
                kept = relay.in_spool().get(2, 0)
                if kept < found.requests + warm.requests:
                    raise Failed(f"{found.requests} answers, but {kept} of them are kept")
                _look(relay.port, key=f"r{number}-99", replayed=True)
            runs.append(found.per_s)
            cpu.append(found.cpu_us)
    return [
        Row(
            what="keyed pass through",
            ours=median(runs),
            goal=Goal(20_000),
            note=f"{median(cpu):.0f} µs of processor a request",
            runs={"unspool": runs},
        )
    ]


def replay(bench: Bench) -> list[Row]:
    """The same keys again and again: the kept answer, and nothing at the service."""
    runs: list[float] = []
    cpu: list[float] = []
    with upstream(bench) as service, Relay(bench, to=service.port) as relay:
        good(load(bench, relay.port, "repeated", seconds=FILL_S, tag="k"), "filling")
        before = service.count()
        if before < KEYS:
            raise Failed(f"only {before} of {KEYS} keys were filled")
        for _ in range(bench.runs):
            found = good(load(bench, relay.port, "repeated", tag="k", server=relay), "replay")
            runs.append(found.per_s)
            cpu.append(found.cpu_us)
        _look(relay.port, key="k-1", replayed=True)
        if (again := service.count() - before) > 0:
            raise Failed(f"{again} repeats reached the service")
    return [
        Row(
            what=f"replay of a kept answer, {KEYS} keys",
            ours=median(runs),
            goal=Goal(30_000),
            note=f"{median(cpu):.0f} µs of processor a request",
            runs={"unspool": runs},
        )
    ]


def latency(bench: Bench) -> list[Row]:
    """What the relay adds at a steady rate; nginx beside it."""
    names = ("direct", "unspool", "nginx")
    p50: dict[str, list[float]] = {name: [] for name in names}
    p99: dict[str, list[float]] = {name: [] for name in names}
    seconds = max(5.0, bench.seconds)
    with (
        upstream(bench) as service,
        proxy(bench, to=service.port) as nginx,
        Relay(bench, to=service.port) as relay,
    ):
        ports = dict(zip(names, (service.port, relay.port, nginx.port), strict=True))
        for _ in range(bench.runs):
            for name, port in ports.items():
                found = pace(bench, port, rate=RATE, seconds=seconds)
                p50[name].append(found.p50_ms)
                p99[name].append(found.p99_ms)
    rows = []
    for label, taken, figure in (("p50", p50, 0.3), ("p99", p99, 2.0)):
        direct = median(taken["direct"])
        rows.append(
            Row(
                what=f"latency at {RATE}/s, {label}",
                ours=median(taken["unspool"]),
                unit="ms",
                compared_with="direct",
                theirs=direct,
                goal=Goal(figure, at_most=True),
                goal_on="difference",
                note=f"nginx proxy_pass adds {median(taken['nginx']) - direct:.2f} ms"
                + (f"; {BUSY}" if direct > BUSY_MS else ""),
                runs=taken,
            )
        )
    return rows
