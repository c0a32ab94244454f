"""Metrics of a client, for Prometheus: a listener that counts, and the page to be scraped.

    metrics = Metrics()
    client = Client(…, on_event=metrics)
    metrics.page(client.statistics())        text in the exposition format; serve it at /metrics

Needs no package. Several clients may have one listener; then give their statistics one by one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .events import Ended, Event, News, Offered, Tried

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

HELP: Final = {
    "unspool_client_calls_total": "Calls, by the result they gave.",
    "unspool_client_call_seconds_total": "Seconds that calls took, by their result.",
    "unspool_client_attempts_total": "Direct attempts, by server and by what is known of each.",
    "unspool_client_offers_total": "Offers to relays and queues, by whom and by what is known.",
    "unspool_client_settled_total": "Requests that had been queued, by what became of them.",
    "unspool_client_waiting": "Requests that wait in the outbox.",
    "unspool_client_budget_tokens": "What is left for further attempts, of 500.",
    "unspool_client_drop_ratio": "With which chance a request is not sent directly.",
    "unspool_client_server_open": "1 where a server may be tried.",
}


class Metrics:
    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._locked = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._locked:
            match event:
                case Ended():
                    self._add("unspool_client_calls_total", 1, result=event.result)
                    seconds = event.took_ms / 1000
                    self._add("unspool_client_call_seconds_total", seconds, result=event.result)
                case Tried():
                    one = event.attempt
                    self._add("unspool_client_attempts_total", 1, server=one.where, sent=one.sent)
                case Offered():
                    one = event.attempt
                    self._add("unspool_client_offers_total", 1, queue=one.where, sent=one.sent)
                case News():
                    result = type(event.settled.result).__name__
                    self._add("unspool_client_settled_total", 1, result=result)

    def _add(self, name: str, count: float, **labels: str) -> None:
        self._counts[name, tuple(labels.items())] += count  # type: ignore[assignment]

    def page(self, statistics: Mapping[str, Any] | None = None) -> str:
        """Everything as text, `statistics` of a client included."""
        with self._locked:
            rows = [(name, labels, float(count)) for (name, labels), count in self._counts.items()]
        rows += _gauges(statistics or {})
        lines: list[str] = []
        for name, text in HELP.items():
            found = [(labels, count) for one, labels, count in rows if one == name]
            if found:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{_labels(labels)} {count:g}" for labels, count in sorted(found)]
        return "\n".join(lines) + "\n" if lines else ""


_Row = tuple[str, tuple[tuple[str, str], ...], float]


def _gauges(statistics: Mapping[str, Any]) -> Iterator[_Row]:
    if not statistics:
        return
    yield "unspool_client_waiting", (), float(statistics["waiting"])
    yield "unspool_client_budget_tokens", (), float(statistics["budget"])
    yield "unspool_client_drop_ratio", (), float(statistics["drops"])
    for where, lane in statistics["servers"].items():
        is_open = lane["phase"] != "closed" and not lane["parked_until"]
        yield "unspool_client_server_open", (("server", where),), float(is_open)


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
