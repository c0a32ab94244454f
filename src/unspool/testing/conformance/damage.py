"""Group damage: records that fail their checksum are set aside, listed and discarded (12, 17)."""

from __future__ import annotations

import pytest

from ...errors import Corrupt
from ...spools.protocol import Damaged, New, Query, Spool
from .values import HERE, NOW, Suite, found, key, lease_all, names_of, waiting


class Damage(Suite):
    async def test_what_is_whole_is_not_listed(self, spool: Spool) -> None:
        """17. Neither `damaged` nor `discard` touches what is whole."""
        await spool.accept([waiting("a"), waiting("b")])
        assert list(await spool.damaged(after=None, limit=10)) == []
        assert list(await spool.discard(["1", "", "no such mark", key("a")])) == [False] * 4
        assert names_of(await lease_all(spool)) == ["a", "b"]

    async def test_it_is_listed_with_what_can_be_read(self, spool: Spool) -> None:
        """12, 17. The spoilt record is set aside and listed, and the rest goes on."""
        await self._spoilt(spool, "b")
        [damaged] = await spool.damaged(after=None, limit=10)
        assert damaged.key in ("", key("b"))
        assert damaged.destination in ("", HERE)
        assert damaged.accepted_at in (0, NOW)
        assert damaged.mark
        assert damaged.where
        assert damaged.size_bytes >= 0
        assert list(await spool.damaged(after=damaged.mark, limit=10)) == []
        assert names_of(await lease_all(spool)) == ["a", "c"]
        assert names_of(list(await spool.browse(Query(), after=None, limit=9))) == ["a", "c"]

    async def test_it_outlives_the_process(self, spool: Spool) -> None:
        """17. What was set aside is listed by whoever opens the spool next, under its mark."""
        await self._spoilt(spool, "b")
        before = await spool.damaged(after=None, limit=10)
        await spool.aclose()
        again = await self.open()
        try:
            assert list(await again.damaged(after=None, limit=10)) == list(before)
        finally:
            await again.aclose()

    async def test_discarded_is_forgotten(self, spool: Spool) -> None:
        """17. Its bytes go, and its key is new again; a second time there is nothing to discard."""
        await self._spoilt(spool, "b")
        [damaged] = await spool.damaged(after=None, limit=10)
        assert list(await spool.discard([damaged.mark])) == [True]
        assert list(await spool.discard([damaged.mark])) == [False]
        assert list(await spool.damaged(after=None, limit=10)) == []
        assert await found(spool, "b") is None
        assert isinstance((await spool.accept([waiting("b")]))[0], New)
        assert names_of(await lease_all(spool)) == ["a", "c", "b"]

    async def test_they_are_listed_page_by_page(self, spool: Spool) -> None:
        """17. Behind a mark, at most `limit`, in an order that stays."""
        await self._spoilt(spool, "a", "b", "c")
        everything = list(await spool.damaged(after=None, limit=10))
        assert len(everything) == 3
        paged: list[Damaged] = []
        while page := await spool.damaged(after=paged[-1].mark if paged else None, limit=1):
            assert len(page) == 1
            paged += page
        assert paged == everything

    async def _spoilt(self, spool: Spool, *names: str) -> None:
        """Of a, b and c these, once somebody has looked."""
        await spool.accept([waiting("a"), waiting("b"), waiting("c")])
        for name in names:
            if not await self.spoil(spool, key(name)):
                pytest.skip("nothing in this spool can be damaged from here")
            with pytest.raises(Corrupt):
                await spool.find([key(name)])
