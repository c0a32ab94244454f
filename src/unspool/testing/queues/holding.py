"""Groups holding and aside: what was taken, and what becomes of it (clauses 4 to 8, 11)."""

from __future__ import annotations

import asyncio

from ...queues.protocol import Queue
from .suite import COME_MS, Suite, payloads


class Holding(Suite):
    async def test_an_empty_queue_waits_and_gives_nothing(self, queue: Queue) -> None:
        """4. None, once `wait_ms` has passed and not much later."""
        began = asyncio.get_running_loop().time()
        assert list(await queue.take(limit=1, wait_ms=300)) == []
        assert 0.25 < asyncio.get_running_loop().time() - began < 15

    async def test_what_is_there_is_given_at_once(self, queue: Queue) -> None:
        """4. A take does not wait to be full."""
        await queue.put([b"one"])
        [taken] = await asyncio.wait_for(queue.take(limit=50, wait_ms=60_000), COME_MS / 1000)
        assert taken.payload == b"one"

    async def test_an_arrival_ends_the_wait(self, queue: Queue) -> None:
        """4. Who waits is given what comes."""
        other = await self.holder()
        waiter = asyncio.create_task(queue.take(limit=50, wait_ms=60_000))
        await asyncio.sleep(0.1)
        await other.put([b"one"])
        [taken] = await asyncio.wait_for(waiter, COME_MS / 1000)
        assert taken.payload == b"one"

    async def test_limit(self, queue: Queue) -> None:
        """4. Up to `limit`; the rest is there for the next take, by us or by another."""
        await queue.put([b"%d" % number for number in range(5)])
        first: list[bytes] = []
        while len(first) < 2:
            some = await queue.take(limit=2 - len(first), wait_ms=COME_MS)
            assert len(some) <= 2 - len(first)
            first += [one.payload for one in some]
            await queue.complete(some)
        other = await self.holder()
        rest = payloads(await self.all_of(other, at_least=3))
        assert sorted(first + rest) == [b"%d" % number for number in range(5)]

    async def test_two_who_take(self, queue: Queue) -> None:
        """4. Nobody else is given what one holds, where that is promised; and nothing is left."""
        other = await self.holder()
        batch = [b"%02d" % number for number in range(20)]
        await queue.put(batch)
        ours = await queue.take(limit=10, wait_ms=COME_MS)
        theirs = await self.all_of(other, at_least=20 - len(ours))
        found = payloads([*ours, *theirs])
        assert set(found) == set(batch)
        if queue.promises.exclusive:
            assert found == batch

    async def test_complete_ends_it(self, queue: Queue) -> None:
        """5. What is complete is given to nobody, whoever hangs up; completing twice is once."""
        await queue.put([b"one", b"two"])
        taken = await self.all_of(queue, at_least=2)
        await queue.complete(taken)
        await queue.complete(taken)
        await queue.complete([])
        await queue.aclose()
        assert await self.is_empty(await self.holder())

    async def test_complete_some(self, queue: Queue) -> None:
        """5, 7. What was not completed is given again when its holder hangs up."""
        await queue.put([b"one", b"two", b"three"])
        taken = await self.all_of(queue, at_least=3)
        await queue.complete([one for one in taken if one.payload != b"two"])
        await queue.aclose()
        assert payloads(await self.all_of(await self.holder(), at_least=1)) == [b"two"]

    async def test_give_back(self, queue: Queue) -> None:
        """6. It can be taken again, by us and by another."""
        await queue.put([b"one"])
        [taken] = await self.all_of(queue, at_least=1)
        await queue.give_back([taken])
        [again] = await self.all_of(queue, at_least=1)
        assert again.payload == b"one"
        await queue.give_back([again])
        other = await self.holder()
        [theirs] = await self.all_of(other, at_least=1)
        await other.complete([theirs])
        assert await self.is_empty(queue)

    async def test_give_back_some(self, queue: Queue) -> None:
        """5, 6. What is complete stays complete beside what is given back."""
        await queue.put([b"one", b"two"])
        taken = await self.all_of(queue, at_least=2)
        await queue.complete([one for one in taken if one.payload == b"one"])
        await queue.give_back([one for one in taken if one.payload == b"two"])
        await queue.give_back([])
        assert payloads(await self.all_of(queue, at_least=1)) == [b"two"]

    async def test_complete_after_give_back_is_nothing(self, queue: Queue) -> None:
        """5. A word that comes too late ends nobody else's."""
        await queue.put([b"one"])
        [taken] = await self.all_of(queue, at_least=1)
        await queue.give_back([taken])
        other = await self.holder()
        [theirs] = await self.all_of(other, at_least=1)
        if queue.promises.exclusive:
            await queue.complete([taken])
            await other.give_back([theirs])
            assert payloads(await self.all_of(queue, at_least=1)) == [b"one"]

    async def test_who_hangs_up_gives_back(self, queue: Queue) -> None:
        """7. What a closed holder had taken is given to others."""
        await queue.put([b"one", b"two"])
        await self.all_of(queue, at_least=2)
        other = await self.holder()
        await queue.aclose()
        assert payloads(await self.all_of(other, at_least=2)) == [b"one", b"two"]

    async def test_a_cancelled_wait_takes_nothing(self, queue: Queue) -> None:
        """11. What comes after a take was given up is there for the next."""
        waiter = asyncio.create_task(queue.take(limit=1, wait_ms=60_000))
        await asyncio.sleep(0.1)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        other = await self.holder()
        await other.put([b"one"])
        assert payloads(await self.all_of(queue, at_least=1)) == [b"one"]

    async def test_a_cancelled_take_gives_back(self, queue: Queue) -> None:
        """11. Wherever it was cut off, nothing is lost by it."""
        await queue.put([b"%d" % number for number in range(6)])
        kept = []
        for turns in range(6):
            call = asyncio.create_task(queue.take(limit=1, wait_ms=1_000))
            for _ in range(turns * 3):
                await asyncio.sleep(0)
            call.cancel()
            [ended] = await asyncio.gather(call, return_exceptions=True)
            kept += [] if isinstance(ended, BaseException) else [*ended]
        taken = await self.all_of(queue, at_least=6 - len(kept))
        assert set(payloads([*kept, *taken])) == {b"%d" % number for number in range(6)}


class Aside(Suite):
    async def test_set_aside(self, queue: Queue) -> None:
        """8. Out of the way, with all its bytes, and to be taken under the other name."""
        await queue.put([b"good", b"\0bad\xff"])
        taken = await self.all_of(queue, at_least=2)
        await queue.set_aside([one for one in taken if one.payload != b"good"])
        await queue.complete([one for one in taken if one.payload == b"good"])
        await queue.aclose()
        assert await self.is_empty(await self.holder())
        aside = await self.holder(aside=True)
        [found] = await self.all_of(aside, at_least=1)
        assert found.payload == b"\0bad\xff"
        await aside.complete([found])
        assert await self.is_empty(await self.holder(aside=True))

    async def test_set_aside_is_told(self, queue: Queue) -> None:
        """8. People can learn where it is."""
        assert queue.promises.aside
        assert queue.promises.aside != (await self.holder(aside=True)).promises.aside

    async def test_set_aside_twice(self, queue: Queue) -> None:
        """8, 2. The same bytes set aside again are there once or twice, and nothing fails."""
        for _ in "12":
            await queue.put([b"bad"])
            await queue.set_aside(await self.all_of(queue, at_least=1))
        await queue.set_aside([])
        found = payloads(await self.all_of(await self.holder(aside=True), at_least=1))
        assert set(found) == {b"bad"}
        assert len(found) <= 2
