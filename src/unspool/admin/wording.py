"""How things are said to people at a terminal.

    span(ms)        "12s", "5m", "2h 10m", "4d 23h"
    instant(at)     "2026-11-23 09:12:03 UTC"
    plain(text)     a text from the network, safe to print; said(text): one of several lines
    encode(value)   a line of JSON, safe to print
    condition(e)    one line on where an entry is in its life
    custodian(view) one spool of several, in a line
    flags(urls)     "--spool URL", to be pasted into a shell
    mark(e)         mailq's mark: "*" being tried, "!" held, " "

Whatever came over the wire goes through `plain`: a reason phrase may carry a terminal's control
sequences, and an operator's terminal obeys them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..core.lifecycle import TRAIL_MAX, State
from ..core.message import NEVER
from ..core.urls import concealed
from ..spools.protocol import Entry, Survives

if TYPE_CHECKING:
    from ..spools.chain.custodian import View  # with all that it needs; the command line does not

_SPANS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def span(ms: int) -> str:
    """A duration in at most two units: what matters at a glance."""
    seconds = max(0, ms) // 1000
    if seconds == 0:
        return "0s"
    for index, (size, unit) in enumerate(_SPANS):
        if seconds >= size:
            text = f"{seconds // size}{unit}"
            if size <= 60 or index + 1 == len(_SPANS):
                return text
            lesser, lesser_unit = _SPANS[index + 1]
            rest = seconds % size // lesser
            return f"{text} {rest}{lesser_unit}" if rest else text
    raise AssertionError("a second is the least span")


def instant(at: int) -> str:
    """A number that is no date, as of a record that rotted, is shown as what it is."""
    try:
        return datetime.fromtimestamp(at / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{at} ms after 1970"


def plain(text: str) -> str:
    """`text` with everything that does not print written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def said(text: str) -> str:
    """The same for words of our own, which may have lines, with others' words in them."""
    return text if text.isprintable() else "\n".join(map(plain, text.split("\n")))


def encode(value: Any) -> str:
    """JSON in a line. C1 controls and marks that turn the reading direction are JSON as they are,
    and act on a terminal all the same: they are escaped, and mean the same to every program."""
    text = _encode(value).decode()
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


_encode: Final = msgspec.json.Encoder().encode


def label(entry: Entry) -> str:
    """What people call a message: the sender's key, or the one we minted."""
    return plain(entry.message.name or entry.message.key)


def leased(entry: Entry, *, now: int) -> bool:
    return entry.leased_until > now and entry.state in (State.WAITING, State.CLAIMED)


def held(entry: Entry) -> bool:
    return entry.state is State.WAITING and entry.due_at >= NEVER


def mark(entry: Entry, *, now: int) -> str:
    return "*" if leased(entry, now=now) else "!" if held(entry) else " "


def attempts(entry: Entry) -> int:
    """Attempts that came to an end. `entry.attempt` also rises when an operator seizes it."""
    if len(entry.trail) < TRAIL_MAX:
        return len(entry.trail)
    return max(TRAIL_MAX, entry.trail[-1].number)


def cause(entry: Entry) -> str:
    """Why it is still here, or how it ended, in the newest words there are."""
    last = plain(entry.trail[-1].cause) if entry.trail else ""
    if entry.state is State.BOUNCED:
        return f"bounced: {plain(entry.reason)}" + (f"; last: {last}" if last else "")
    return last or ("not tried yet" if entry.state is State.WAITING else "")


def next_try(entry: Entry, *, now: int) -> str:
    if entry.state in (State.DELIVERED, State.BOUNCED):
        return entry.state.name.lower()
    if leased(entry, now=now):
        return "now"
    if held(entry):
        return "held"
    wait = entry.due_at - now
    return "due" if wait <= 0 else f"in {span(wait)}" if wait >= 1000 else "in <1s"


def condition(entry: Entry, *, now: int) -> str:
    """Where it is in its life, in a line."""
    if entry.state in (State.DELIVERED, State.BOUNCED):
        status = f" ({entry.answer.status})" if entry.answer else ""
        ago = f" {span(now - entry.settled_at)} ago" if entry.settled_at else ""
        why = f": {plain(entry.reason)}" if entry.reason else ""
        return f"{entry.state.name.lower()}{status}{ago}{why}"
    if entry.state is State.CLAIMED:
        return "being tried for a sender who waits; not saved yet"
    if leased(entry, now=now):
        return f"being tried now, until {instant(entry.leased_until)} at the latest"
    if held(entry):
        return "held by an operator"
    return f"waiting, next try {next_try(entry, now=now)}"


SURVIVES: Final = {
    Survives.NOTHING: "survives nothing",
    Survives.PROCESS: "survives kill -9",
    Survives.POWER: "survives a power cut",
    Survives.MACHINE: "survives the host",
}


def custodian(view: View) -> str:
    """One spool of several, in a line."""
    text = f"{view.spool}: {view.state}"
    if view.state != "up" and view.cause:
        text += f", {plain(view.cause)}"
    if view.survives:
        text += f"; {SURVIVES[Survives[view.survives.upper()]]} ({view.detail})"
    return text


def flags(urls: Iterable[str]) -> str:
    """What names these spools on a command line; without their passwords."""
    return " ".join(f"--spool {shlex.quote(concealed(url))}" for url in urls)
