"""Virtual time: waiting takes none, and what can never end is an error."""

from __future__ import annotations

import asyncio
import time

import pytest

from unspool.testing.clock import EPOCH, Deadlock, Livelock, VirtualClock, run, virtually

DAY_S = 86_400


@virtually
async def test_five_days_pass_at_once_and_to_the_millisecond() -> None:
    """The loop is there instead of waiting, and nothing adds up over many timers."""
    clock, began = VirtualClock(), time.monotonic()
    assert clock.now() == EPOCH
    await asyncio.sleep(5 * DAY_S)
    assert clock.now() == EPOCH + 5 * DAY_S * 1000
    for _ in range(10_000):
        await asyncio.sleep(0.001)
    assert clock.now() == EPOCH + 5 * DAY_S * 1000 + 10_000
    assert time.monotonic() - began < 60


@virtually
async def test_timers_fire_in_their_order() -> None:
    """Whatever the order in which they were set."""
    seen: list[int] = []
    loop = asyncio.get_running_loop()
    for second in (3, 1, 2):
        loop.call_later(second, seen.append, second)
    await asyncio.sleep(10)
    assert seen == [1, 2, 3]


def test_a_deadlock_is_an_error_and_not_a_hang() -> None:
    """Nothing is ready and no timer is set: nothing can ever happen."""

    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(waits())


def test_a_livelock_is_an_error_and_not_a_hang() -> None:
    """Everybody is busy, and no time passes."""

    async def spins() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run(spins())


def test_what_the_main_raises_comes_out_and_what_it_returns_too() -> None:
    """`run` is as asyncio.run."""

    async def fails() -> None:
        raise KeyError("x")

    async def gives() -> int:
        return 7

    with pytest.raises(KeyError):
        run(fails())
    assert run(gives()) == 7


@virtually
async def test_a_timeout_is_a_timeout() -> None:
    """asyncio's own tools go by virtual time."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await asyncio.get_running_loop().create_future()


@virtually
async def test_somebody_may_set_the_wall_clock() -> None:
    """Timers do not notice; `now` does, forwards and back."""
    clock = VirtualClock()
    clock.step(-3_600_000)
    assert clock.now() == EPOCH - 3_600_000
    await asyncio.sleep(1)
    assert clock.now() == EPOCH - 3_599_000


@virtually
async def test_a_thread_has_no_place_here() -> None:
    """It lives in real time; the answer is a sentence and not a deadlock."""
    with pytest.raises(RuntimeError, match="real time"):
        await asyncio.to_thread(time.sleep, 0)


def test_outside_a_loop_the_clock_stands_at_its_beginning() -> None:
    """For values made before the world begins."""
    assert VirtualClock().now() == EPOCH
