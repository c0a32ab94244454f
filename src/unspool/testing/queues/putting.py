"""Group putting: what was handed over is there, byte for byte (clauses 1, 2, 3, 11, 12)."""

from __future__ import annotations

import asyncio

import pytest

from ...errors import TooLarge, Unavailable
from ...queues.protocol import PAYLOAD_MAX_BYTES, Queue
from .suite import Suite, payloads


class Putting(Suite):
    async def test_what_was_put_can_be_taken_by_another(self, queue: Queue) -> None:
        """1. Each payload is the queue's: whoever asks has it, also when its sender has gone."""
        sender = await self.holder()
        await sender.put([b"one", b"two"])
        await sender.aclose()
        taken = await self.all_of(queue, at_least=2)
        assert payloads(taken) == [b"one", b"two"]
        assert all(one.name for one in taken)

    async def test_nothing_put_is_nothing(self, queue: Queue) -> None:
        """1. An empty batch is no message."""
        await queue.put([])
        assert await self.is_empty(queue)

    async def test_a_large_batch(self, queue: Queue) -> None:
        """1. However many: all of them are there."""
        batch = [b"order %03d" % number for number in range(200)]
        await queue.put(batch)
        assert payloads(await self.all_of(queue, at_least=200)) == batch

    async def test_a_repeat_is_one_or_two(self, queue: Queue) -> None:
        """2. Who does not know does it again: no fewer than one, no more than were put."""
        for _ in "12":
            await queue.put([b"the same"])
        taken = await self.all_of(queue, at_least=1)
        assert set(payloads(taken)) == {b"the same"}
        assert len(taken) <= 2

    async def test_bytes_that_differ_are_no_repeat(self, queue: Queue) -> None:
        """2. Under one key or not: nothing is dropped because it resembles something."""
        batch = [b'{"key": "k", "body": "%d"}' % number for number in range(5)]
        await queue.put(batch)
        await queue.put([b'{"key": "k", "body": "0"} '])
        assert payloads(await self.all_of(queue, at_least=6)) == sorted(
            [*batch, b'{"key": "k", "body": "0"} ']
        )

    @pytest.mark.parametrize(
        "payload",
        [
            bytes(range(256)) * 3,
            b"\0",
            b"\0leading and trailing\0",
            b"\r\n.\r\n",
            b"\0REQ\0\0\0\x07" * 9,
            "té ☃".encode("utf-16"),
            bytes(1024 * 1024) + b"end",
        ],
        ids=["every byte", "NUL", "NULs", "lines", "gearman", "UTF-16", "1 MiB"],
    )
    async def test_any_bytes(self, queue: Queue, payload: bytes) -> None:
        """3. What comes out is what went in."""
        await queue.put([payload])
        [taken] = await self.all_of(queue, at_least=1)
        assert taken.payload == payload
        await queue.complete([taken])

    async def test_too_large(self, queue: Queue) -> None:
        """3. With one too large nothing of the batch was handed over, and what fits still is."""
        most = queue.promises.payload_max_bytes
        assert most <= PAYLOAD_MAX_BYTES
        with pytest.raises(TooLarge, match=str(most)):
            await queue.put([b"small", bytes(most + 1)])
        assert await self.is_empty(queue)
        await queue.put([b"small"])
        assert payloads(await self.all_of(queue, at_least=1)) == [b"small"]

    async def test_many_put_at_once(self, queue: Queue) -> None:
        """12. Callers do not get into one another's way."""
        await asyncio.gather(*(queue.put([b"%02d" % number]) for number in range(20)))
        taken = await self.all_of(queue, at_least=20)
        assert payloads(taken) == [b"%02d" % number for number in range(20)]

    async def test_a_cancelled_put_harms_no_other(self, queue: Queue) -> None:
        """11. It may have happened or not; the others have."""
        calls = [asyncio.create_task(queue.put([b"%02d" % number])) for number in range(12)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await queue.put([b"after"])
        found = set(payloads(await self.all_of(queue, at_least=7)))
        others = {b"%02d" % number for number in range(1, 12, 2)}
        assert others | {b"after"} <= found

    async def test_closed(self, queue: Queue) -> None:
        """10. Closing twice does nothing; a closed queue takes no responsibility."""
        other = await self.holder()
        await other.put([b"one"])
        await other.aclose()
        await other.aclose()
        with pytest.raises(Unavailable):
            await other.put([b"two"])
        with pytest.raises(Unavailable):
            await other.take(limit=1, wait_ms=0)
        assert payloads(await self.all_of(queue, at_least=1)) == [b"one"]
