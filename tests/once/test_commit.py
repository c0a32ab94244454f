"""Co-commit: the record and the rows in one transaction, with every kind of session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from unspool.errors import Misconfigured, Reused, Stale, Unkeepable

from .kinds import Kind, Write


@asynccontextmanager
async def sessions(kind: Kind, count: int = 1) -> AsyncIterator[list[Any]]:
    try:
        yield [await kind.open() for _ in range(count)]
    finally:
        if kind.waits:
            await kind.shut()


async def order(done: Any, write: Write) -> Any:
    """What an application writes."""
    if done.known:
        return done.value
    await write("tea")
    done.value = {"order": 7}
    return done.value


class Declined(Exception):
    pass


async def test_the_first_does_it_and_a_repeat_is_given_what_was_kept(kind: Kind) -> None:
    """Rows and record are there after the block, and a repeat is told (L1)."""
    async with sessions(kind, 2) as (one, other):
        assert await kind.block(one, order) == {"order": 7}
        assert kind.orders() == ["tea"]
        assert kind.records() == [("orders", "k1", 1)]
        for session in (one, other, one):
            assert await kind.block(session, order) == {"order": 7}
        assert await kind.block(other, order, "k2") == {"order": 7}
        assert await kind.block(other, order, "k1", scope="returns") == {"order": 7}
        assert kind.orders() == ["tea", "tea", "tea"]


async def test_what_raises_leaves_nothing(kind: Kind) -> None:
    """Neither the rows nor the record; the next one runs."""

    async def declined(done: Any, write: Write) -> None:
        await write("tea")
        raise Declined

    async with sessions(kind) as (session,):
        with pytest.raises(Declined):
            await kind.block(session, declined)
        assert (kind.orders(), kind.records()) == ([], [])
        await kind.block(session, order)
        assert kind.orders() == ["tea"]


async def test_a_block_that_does_not_listen_is_undone(kind: Kind) -> None:
    """What is written though the thing is known does not stand."""

    async def deaf(done: Any, write: Write) -> Any:
        await write("coffee")
        return done.known

    async with sessions(kind) as (session,):
        await kind.block(session, order)
        assert await kind.block(session, deaf) is True
        assert kind.orders() == ["tea"]


async def test_other_work_under_the_key_is_refused(kind: Kind) -> None:
    """Another fingerprint: nothing runs, the first is unharmed, its words are not given away."""
    async with sessions(kind) as (session,):
        await kind.block(session, order, fingerprint=b"one")
        with pytest.raises(Reused) as caught:
            await kind.block(session, order, fingerprint=b"other")
        assert "7" not in str(caught.value)
        assert await kind.block(session, order, fingerprint=b"one") == {"order": 7}
        assert kind.orders() == ["tea"]


async def test_a_value_that_cannot_be_kept_undoes_the_work(kind: Kind) -> None:
    """It is said before anything is lost: the rows go with it."""

    async def odd(done: Any, write: Write) -> None:
        await write("tea")
        done.value = object()

    async with sessions(kind) as (session,):
        with pytest.raises(Unkeepable, match="encode="):
            await kind.block(session, odd)
        assert (kind.orders(), kind.records()) == ([], [])


async def test_an_open_transaction_is_joined(kind: Kind) -> None:
    """Whoever opened it commits: then both are there, and neither if they do not (F6)."""

    async def joined(done: Any, write: Write) -> None:
        assert done.joined
        await order(done, write)

    async with sessions(kind) as (session,):
        await kind.begin(session)
        await kind.block(session, joined)
        await kind.end(session, commit=False)
        assert (kind.orders(), kind.records()) == ([], [])
        await kind.begin(session)
        await kind.execute(session, "INSERT INTO orders (item) VALUES ('outer')")
        await kind.block(session, joined)
        assert await kind.block(session, order) == {"order": 7}
        await kind.end(session, commit=True)
        assert kind.orders() == ["outer", "tea"]
        assert len(kind.records()) == 1


async def test_an_error_in_a_joined_block_undoes_the_block_alone(kind: Kind) -> None:
    """There is a savepoint before it."""

    async def declined(done: Any, write: Write) -> None:
        await write("tea")
        raise Declined

    async with sessions(kind) as (session,):
        await kind.begin(session)
        await kind.execute(session, "INSERT INTO orders (item) VALUES ('outer')")
        with pytest.raises(Declined):
            await kind.block(session, declined)
        await kind.end(session, commit=True)
        assert (kind.orders(), kind.records()) == (["outer"], [])


async def test_a_later_attempt_does_not_wait_and_the_stale_one_is_undone(kind: Kind) -> None:
    """F4: its owner slept, its successor did the work; when it wakes its rows roll back."""
    if kind.engine == "sqlite":
        pytest.skip("one writer at a time: see test_a_right_that_has_passed_on")

    async with sessions(kind, 2) as (one, other):

        async def sleeper(done: Any, write: Write) -> None:
            await write("stale")
            assert await kind.block(other, order, attempt=2) == {"order": 7}
            assert kind.orders() == ["tea"]

        with pytest.raises(Stale, match="Attempt 1"):
            await kind.block(one, sleeper, attempt=1)
        assert kind.orders() == ["tea"]
        assert kind.records() == [("orders", "k1", 2)]
        assert await kind.block(one, order, attempt=1) == {"order": 7}


async def test_a_right_that_has_passed_on(kind: Kind) -> None:
    """F4, where the owner can tell by itself: asked at the end, when all else is done."""
    asked: list[list[str]] = []

    def lost() -> bool:
        asked.append(kind.orders())
        return False

    async with sessions(kind) as (session,):
        with pytest.raises(Stale, match="passed on"):
            await kind.block(session, order, held=lost)
        assert asked == [[]]
        assert (kind.orders(), kind.records()) == ([], [])


async def test_the_wrong_form_says_which_is_right(kind: Kind) -> None:
    """`with` for a session that blocks, `async with` for one that does not."""
    from unspool.middleware.once import once

    async with sessions(kind) as (session,):
        commit = once.commit(session, "k1", scope="orders")
        if kind.waits:
            with pytest.raises(Misconfigured, match="async with"), commit:
                pass
        else:
            with pytest.raises(Misconfigured, match=": with"):
                async with commit:
                    pass
