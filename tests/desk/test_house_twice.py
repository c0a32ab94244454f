"""Moving on from where something was moved in or out before: never live twice, never lost."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from desk_kit import DAY, now, waiting
from msgspec.structs import replace
from test_house import SECRET, brought, exported
from test_move import moved

from unspool.core.lifecycle import Reason, State
from unspool.core.message import Instant, Key
from unspool.custody import secret_entry
from unspool.house.lines import Secret, Unfit, line, read
from unspool.spools.memory import MemorySpool, bare
from unspool.spools.protocol import Entry
from unspool.spools.secret import HOME_KEY


class Cut(MemorySpool):
    """The mover dies before it has told the source."""

    async def settle(self, settlements: Any, /) -> Any:
        raise ConnectionAbortedError


async def _cut_off(entry: Entry) -> tuple[MemorySpool, MemorySpool]:
    """Moved from the first to the second, until the first was to be told."""
    first, second = Cut(), MemorySpool()
    await first.accept([secret_entry(SECRET, now=now()), entry])
    with pytest.raises(ConnectionAbortedError):
        await moved(first, second)
    whole = MemorySpool()
    whole.entries = first.entries
    return whole, second


async def test_what_is_parked_is_not_moved_on() -> None:
    """Its old spool still has it live: a move from here would make it live in two places."""
    a = waiting("a", order_key="x")
    first, second = await _cut_off(a)
    behind = waiting("b", order_key="x")
    await second.accept([behind])
    third = MemorySpool()
    sums = await moved(second, third)
    assert (sums.moved, sums.coming, sums.later) == (0, 1, 1), "and its line stays behind it"
    assert a.message.key not in third.entries
    assert first.entries[a.message.key].state is State.WAITING
    for entry in first.entries.values():  # the dead mover's lease runs out
        first.entries[entry.message.key] = replace(entry, leased_until=Instant(0))
    assert (await moved(first, second)).moved == 1
    assert (await moved(second, third)).moved == 2
    there = third.entries[a.message.key]
    assert (there.due_at, there.trail) == (a.due_at, a.trail)


async def test_an_end_there_is_no_end_of_another_promise_here() -> None:
    """A repeat at the new place was cancelled by its sender; what was promised here waits on."""
    a = waiting("a")
    old, new = MemorySpool(), MemorySpool()
    await old.accept([secret_entry(SECRET, now=now()), a])
    ended = replace(
        bare(a), message=replace(a.message, nonce=b"another nonce...", request=None),
        state=State.BOUNCED, reason="cancelled", settled_at=now(), keep_until=Instant(now() + DAY),
    )  # fmt: skip
    await new.accept([ended])
    sums = await moved(old, new)
    assert (sums.moved, sums.other) == (0, 1)
    assert old.entries[a.message.key].state is State.WAITING


async def test_two_exports_of_one_move_make_it_whole() -> None:
    """A note that something was moved is no message: where both files are brought together, the
    message is there, whichever came first."""
    a = waiting("a")
    old, new = MemorySpool(), MemorySpool()
    await old.accept([secret_entry(SECRET, now=now()), a])
    await moved(old, new)
    note = old.entries[a.message.key]
    assert (note.state, note.reason) == (State.BOUNCED, Reason.MOVED)
    both = MemorySpool()
    sums = await brought(both, await exported(old))
    assert (sums.new, sums.elsewhere) == (0, 1)
    await brought(both, await exported(new))
    assert both.entries[a.message.key].state is State.WAITING


async def test_no_secret_goes_out_as_a_message() -> None:
    """A second of a chain keeps the first one's secret beside its own."""
    old, new = MemorySpool(), MemorySpool()
    theirs = b"h" * 32
    await old.accept([secret_entry(SECRET, now=now())])
    await old.accept([secret_entry(theirs, now=now(), key=HOME_KEY), waiting("a")])
    text = await exported(old, secret=False)
    assert HOME_KEY.encode() not in text
    assert await _lines(text) == ["export", "message", "end"]
    await moved(old, new)
    assert HOME_KEY not in new.entries
    forged = line(replace(secret_entry(theirs, now=now()), message=_named(HOME_KEY)))
    head, *rest = (await exported(old)).splitlines(keepends=True)
    third = MemorySpool()
    await brought(third, b"".join([head, rest[0], forged, *rest[1:]]))
    assert HOME_KEY not in third.entries


def _named(key: Key) -> Any:
    return secret_entry(b"h" * 32, now=now(), key=key).message


async def _lines(text: bytes) -> list[str]:
    import msgspec

    return [msgspec.json.decode(one)["line"] for one in io.BytesIO(text)]


def test_a_secret_is_as_long_as_ours() -> None:
    """A short one could be guessed, and with it whose keys are whose."""
    assert read(line(Secret(os.urandom(32))))
    with pytest.raises(Unfit, match="secret"):
        read(line(Secret(b"short")))
