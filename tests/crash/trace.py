"""Trace: what strace saw of a relay, in the order in which it saw it.

    events = read(path, port=relay.port, wal=spool_wal)
    judged = judge(events)

`read` keeps what matters to the question "was it synced before it was said?":

    Heard   bytes read from a sender's connection
    Wrote   bytes written to the WAL            (both ends of the call: see `line` and `end_line`)
    Synced  a sync of the WAL and its result
    Said    bytes written to a sender's connection

With `strace -f` into one file, the order of the lines is the order in which strace saw the calls
begin and end: a call that something else came between is cut in two lines, `<unfinished ...>` and
`resumed`. strace holds every thread still while it looks, so the order is true, and finer than any
clock's. `begin` and `end` of an event are line numbers.

`judge` asks of each answer on a sender's connection: the request that was read there before it has
a mark in its body; the WAL has a first frame with that mark, and behind it the frame that ends its
transaction; was a sync of the WAL begun after that frame was written, and ended with 0 before the
answer was begun? A later transaction may write the same page again: what it has not synced yet is
none of this answer's business.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from codecs import escape_decode  # type: ignore[attr-defined]
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CALLS: Final = (
    "read,recvfrom,recvmsg,write,writev,sendto,sendmsg,"
    "pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,io_uring_enter"
)
FRAME_HEAD_BYTES: Final = 24
NEVER: Final = 1 << 62
MARK: Final = re.compile(rb"<w-[0-9]+-[0-9]+>")
"""What a load named "w" writes into its bodies."""


def command(output: Path) -> list[str]:
    """strace, to be put in front of a relay."""
    return [
        "strace", "-f", "-qq", "-yy", "-s", "20000", "-e", f"trace={CALLS}",
        "-e", "signal=none", "-o", str(output),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    kind: str
    """heard · wrote · synced · said"""
    begin: int
    end: int
    data: bytes = b""
    result: int = 0
    where: str = ""
    """The connection, of what was heard and said."""


_LINE: Final = re.compile(r"(\d+) +(.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL: Final = re.compile(r"(\w+)\((\d+)<((?:->|[^>])*)>(?=[,) ])(.*)\) += (-?\d+)")
_TEXT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')


def read(path: Path, *, port: int, wal: Path) -> list[Event]:
    """The events, by the line in which they ended."""
    events = []
    for begin, end, text in _calls(path):
        found = _CALL.match(text)
        if found is None:
            continue
        name, _, target, arguments, result = found.groups()
        returned = int(result)
        if target == str(wal):
            if name in ("fsync", "fdatasync"):
                events.append(Event("synced", begin, end, result=returned))
            elif name.startswith("pwrite"):
                events.append(Event("wrote", begin, end, _bytes(arguments), returned))
            else:
                raise AssertionError(f"the WAL is written in a way that is not known: {text[:80]}")
        elif target.startswith(f"TCP:[127.0.0.1:{port}->"):
            kind = "heard" if name in ("read", "recvfrom", "recvmsg") else "said"
            data = _bytes(arguments)[: max(0, returned)]
            events.append(Event(kind, begin, end, data, returned, target))
    return events


def _calls(path: Path) -> Iterator[tuple[int, int, str]]:
    """Each call whole, with the lines in which it began and ended."""
    open_: dict[str, tuple[int, str]] = {}
    with path.open(encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file):
            found = _LINE.match(line)
            if found is None:
                continue
            pid, text = found.groups()
            if text.endswith("<unfinished ...>"):
                open_[pid] = (number, text.removesuffix("<unfinished ...>"))
            elif resumed := _RESUMED.match(text):
                begin, start = open_.pop(pid, (number, ""))
                yield begin, number, start + resumed[1]
            else:
                yield number, number, text


def _bytes(arguments: str) -> bytes:
    """The bytes of a call's texts. strace escapes as C does."""
    return b"".join(_unescaped(text) for text in _TEXT.findall(arguments))


def _unescaped(text: str) -> bytes:
    return escape_decode(text.encode("ascii"))[0]


@dataclass(slots=True)
class Judged:
    asked: int = 0
    """Answers that were judged."""
    good: int = 0
    """Those that were synced before they were begun."""
    late: list[str] = field(default_factory=list)
    """The marks of the others."""


def judge(events: Sequence[Event]) -> Judged:
    """Was each answer synced before it was begun? Requests without a mark are passed over."""
    durable = _durable_at(events)
    judged = Judged()
    asking: dict[str, bytes] = {}
    for event in events:
        if event.kind == "heard":
            if found := MARK.search(event.data):
                asking[event.where] = found[0]
        elif event.kind == "said" and event.data.startswith(b"HTTP/1.1 20"):
            mark = asking.pop(event.where, None)
            if mark is None:
                continue
            judged.asked += 1
            if durable.get(mark, NEVER) < event.begin:
                judged.good += 1
            else:
                judged.late.append(mark.decode())
    return judged


def _durable_at(events: Iterable[Event]) -> dict[bytes, int]:
    """For each mark the line in which the sync ended that made it durable."""
    syncs = [event for event in events if event.kind == "synced" and event.result == 0]
    begun = [event.begin for event in syncs]
    out: dict[bytes, int] = {}
    open_: set[bytes] = set()
    last_frame = False
    for event in events:
        if event.kind != "wrote":
            continue
        if event.result == FRAME_HEAD_BYTES:
            # A frame is its head, then its page. The head of a transaction's last frame says so.
            last_frame = int.from_bytes(event.data[4:8], "big") != 0
            continue
        open_ |= set(MARK.findall(event.data)) - out.keys()
        if last_frame:
            place = bisect_left(begun, event.end)
            end = syncs[place].end if place < len(syncs) else NEVER
            out.update(dict.fromkeys(open_, end))
            open_ = set()
    return out
