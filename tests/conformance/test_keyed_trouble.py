"""A spool on a shelf in trouble: spoilt records, whatever the shelf is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from unspool.core.message import NEVER, Destination
from unspool.errors import Corrupt
from unspool.spools.keyed.rows import data_row, key_row, number_of
from unspool.spools.protocol import LaneDue, Lease, Query
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    LEASED_UNTIL,
    NOW,
    claimed,
    delivered,
    key,
    later,
    lease_all,
    lease_one,
    names_of,
    waiting,
)

from .test_folder import ENGINES, engine

__all__ = ["engine"]


@pytest.fixture
async def spool(engine: str, tmp_path: Path) -> AsyncIterator[Any]:
    spool = await ENGINES[engine](tmp_path / "spool", test_hook_no_sync=True)
    yield spool
    await spool.aclose()


def spoil(spool: Any, family: bytes, name: str) -> None:
    """Flip one bit of a record, behind everybody's back."""
    shelf = spool.store.shelf
    with shelf.view() as view:
        row = data_row(family, number_of(view.get(key_row(key(name)))))
        record = bytearray(view.get(row))
    record[-1] ^= 1
    shelf.write({row: bytes(record)}, sync=False)


@pytest.mark.parametrize("family", [b"r", b"s", b"m"])
async def test_what_is_spoilt_is_set_aside(spool: Any, family: bytes) -> None:
    """12. It is set aside and counted, and the rest goes on; its key is never run again."""
    await spool.accept([waiting("a", order_key="x"), waiting("b", order_key="x"), waiting("c")])
    spoil(spool, family, "a")
    assert names_of(await lease_all(spool)) == ["c"]
    assert spool.corrupt == 1
    assert names_of(await lease_all(spool)) == ["b"], "its line goes on without it"
    with pytest.raises(Corrupt, match="set aside"):
        await spool.find([key("b"), key("a")])
    with pytest.raises(Corrupt, match="set aside"):
        await spool.accept([waiting("d"), waiting("a")])
    assert list(await spool.find([key("d")])) == [None], "a batch is atomic"
    assert spool.corrupt == 1
    assert names_of(list(await spool.browse(Query(), after=None, limit=9))) == ["b", "c"]


async def test_it_stays_set_aside(engine: str, tmp_path: Path) -> None:
    """12. Its bytes stay, and the count outlives a restart."""
    path = tmp_path / "spool"
    spool = await ENGINES[engine](path)
    await spool.accept([waiting("a")])
    spoil(spool, b"s", "a")
    assert list(await spool.seize([key("a")], now=NOW, until=LEASED_UNTIL)) == [None]
    await spool.aclose()
    spool = await ENGINES[engine](path)
    assert spool.corrupt == 1
    with spool.store.shelf.view() as view:
        assert [len(value) > 20 for _, value in view.walk(b"x")] == [True]
        place = number_of(view.get(key_row(key("a"))))
        assert view.get(data_row(b"r", place))
    await spool.aclose()


@pytest.mark.parametrize("family", [b"a", b"s", b"m"])
async def test_a_spoilt_answer_fails_closed(spool: Any, family: bytes) -> None:
    """12. What may have been done is not done again because we cannot read what came of it."""
    await spool.accept([waiting("a")])
    await spool.settle([(await lease_one(spool), delivered())])
    spoil(spool, family, "a")
    for _ in "12":
        with pytest.raises(Corrupt):
            await spool.find([key("a")])
        with pytest.raises(Corrupt):
            await spool.accept([claimed("a")])
    assert spool.corrupt == 1
    assert await spool.sweep(now=later(10_000 * DAY), limit=9) == 0, "kept for whoever mends it"


@pytest.mark.parametrize("family", [b"s", b"m"])
async def test_what_is_spoilt_can_neither_end_nor_expire(spool: Any, family: bytes) -> None:
    await spool.accept([waiting("a"), waiting("b")])
    first, second = await lease_all(spool)
    spoil(spool, family, "a")
    assert list(await spool.settle([(first, delivered()), (second, delivered())])) == [False, True]
    assert list(await spool.expire(now=later(9 * DAY), until=later(10 * DAY), limit=9)) == []
    assert list(await spool.renew([first], until=later(DAY))) == [False]
    assert spool.corrupt == 1


async def test_names_with_a_nul_in_them_are_names(spool: Any) -> None:
    """9. A destination that begins as another does is another, whatever comes then."""
    odd = [Destination(name) for name in ("a", "a\0", "a\0b", "a\x01", "")]
    await spool.accept(
        [
            waiting(f"{number}", destination=name, order_key="x\0" * number)
            for number, name in enumerate(odd)
        ]
    )
    lanes = await spool.survey(after=None, limit=9)
    assert list(lanes) == [LaneDue(name, NOW) for name in sorted(odd)]
    for number, name in enumerate(odd):
        leases = await lease_all(spool, destination=name)
        assert names_of(leases) == [f"{number}"]
        await spool.settle([(leases[0], delivered())])
    assert list(await spool.survey(after=None, limit=9)) == []


async def test_nothing_in_memory_grows_with_the_backlog(spool: Any) -> None:
    """What is remembered of 3 000 messages in two lanes: two names, and the leases."""
    await spool.accept([waiting(f"{number:05}", due_at=NEVER) for number in range(10)])
    await spool.accept([waiting(f"w{number:04}") for number in range(3_000)])
    lanes = spool.store._lanes
    assert (lanes._names, lanes._leased) == ([HERE], {})
    leases = await lease_all(spool, limit=7)
    assert len(lanes._leased[HERE]) == 7
    await spool.settle([(lease, delivered()) for lease in leases])
    assert lanes._leased == {}
    [claim] = await spool.accept([claimed("c", keep_until=later(1))])
    await spool.renew([Lease(claim.entry, LEASED_UNTIL)], until=later(9))
    assert await spool.sweep(now=later(DAY), limit=1) == 1
    assert lanes._leased == {}, "a claim that nobody ended"
