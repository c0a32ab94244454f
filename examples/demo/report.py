"""The words: what is about to be seen, what was seen, and what to try next."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from .sender import PATIENCE_S
from .table import WIDTH, Ink
from .tally import Order, Tally

LOST_SHOWN = 10


def introduce(
    ink: Ink, *, rate: float, seconds: float, to: int, flags: Sequence[tuple[str, str, str]]
) -> None:
    print(ink.bold("unspool: orders survive a broken service"))
    print(f"  the service   python -m examples.orders --port {to}")
    print(f"  the relay     unspool serve --to http://127.0.0.1:{to} --spool sqlite:///…")
    for flag, value, why in flags:
        print(ink.dim(f"                {f'{flag} {value}':<20}  {why}"))
    print(f"  the load      {rate:g} orders a second for {seconds:g} s, each with its own key;")
    print("                the sender sends again, same key, where the relay is not there")
    print("  the control   the same orders straight to a second such service, in the same")
    print("                weather, by a plain client that does not try again, as most are")
    print(f"                today (both wait at most {PATIENCE_S:g} s for an answer)")
    print(flush=True)


def conclude(
    ink: Ink, through: Tally, straight: Tally, *, orders: Sequence[Order], waiting: int | None
) -> None:
    """The tally, side by side."""
    rows: list[tuple[str, int | str, int | str]] = [
        ("sent", through.sent, straight.sent),
        ("answered at once", through.answered, straight.answered),
        ("saved (202) and delivered later", through.delivered_later, "-"),
        ("times sent again with the same key", through.sent_again, "-"),
        ("ended with an error", through.failed + through.unresolved, straight.failed),
        ("  done all the same: in doubt", through.in_doubt, straight.in_doubt),
        ("bounced", through.bounced, "-"),
        ("doubled", len(through.doubled), len(straight.doubled)),
        ("LOST", len(through.lost), len(straight.lost)),
    ]
    print()
    print(ink.dim(f"  {'counted by the ledgers of the services':<40}{'relay':>6}{'straight':>10}"))
    for name, mine, theirs in rows:
        line = f"  {name:<36}{mine:>10}{theirs:>10}"
        print(ink.bold(line) if name in ("doubled", "LOST") else line)
    print()
    _verdict(ink, "through the relay", through)
    _verdict(ink, "straight to the service", straight)
    _say("errors the plain client saw", straight.troubles)
    if through.troubles:
        _say("errors the sender through the relay saw", through.troubles)
    states = Counter(order.state for order in orders if order.receipt)
    _say("what the relay's receipts say of the orders it saved", states)
    if waiting:
        print(ink.bad(f"  {waiting} still wait in the spool, which is too late for this tally"))
    if through.crossed:
        print(ink.bad(f"  {through.crossed} got somebody else's answer"))
    if through.promised:
        print(ink.bad(f"  of those lost, {through.promised} had been promised (2xx or 202)"))
    known = {order.key: order for order in orders}
    for key in (through.lost + through.doubled)[:LOST_SHOWN]:
        order = known[key]
        why = f" ({order.trouble})" if order.trouble else ""
        receipt = f"; its receipt says {order.state}" if order.state else ""
        print(ink.bad(f"    {key}: its sender was told {order.ending.value}{why}{receipt}"))
    print(flush=True)


def _verdict(ink: Ink, road: str, result: Tally) -> None:
    text = f"{road}: lost {len(result.lost)}, doubled {len(result.doubled)}"
    print("  " + (ink.good(text) if result.clean else ink.bad(text)))


def _say(title: str, counts: Mapping[str, int]) -> None:
    found = sorted(counts.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{name} {count}" for name, count in found) or "none"
    indent = " " * 4
    print(textwrap.fill(f"  {title}: {listed}", WIDTH, subsequent_indent=indent))


def invite(ink: Ink) -> None:
    """Three commands, to do it by hand."""
    program, here = Path(sys.executable), Path.cwd()
    python = program.relative_to(here) if program.is_relative_to(here) else "python"
    order = """curl -i -H 'Idempotency-Key: "k1"' -d '{"item": "tea"}'"""
    print(ink.bold("Try it yourself, in three terminals:"))
    print(f"  1  {python} -m examples.orders")
    print("  2  ./run serve --to http://127.0.0.1:8000")
    print(f"  3  {order} http://127.0.0.1:8700/orders")
    print("Stop 1 with Ctrl-C and send k2: you get 202 and a receipt. Start 1 again and look at")
    print("orders.ledger: k2 is there. Send k2 again: you get the service's answer, and no second")
    print("order. `./run queue` says what waits, why, and when it goes next.")
