"""A custody chain against the contract: of one, of two that are well, and as the second alone.

With the first down it is the second, but for one clause: what has an order key is refused (5).
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from unspool.core.message import Instant
from unspool.errors import Homeless, Unavailable
from unspool.spools.chain.custodian import Custodian
from unspool.spools.chain.spool import ChainSpool
from unspool.spools.log.spool import open_log
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Lease, Spool
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.testing.conformance import SpoolConformance
from unspool.testing.conformance.values import LEASED_UNTIL, NOW, delivered, waiting


async def down() -> Spool:
    raise Unavailable("switched off")


async def chain_of(*opens: object) -> ChainSpool:
    chain = ChainSpool(
        [
            Custodian(name=f"custodian {n}", open=open_, deadline_ms=10_000)  # type: ignore[arg-type]
            for n, open_ in enumerate(opens)
        ],
        now=lambda: Instant(NOW),
    )
    await chain.begin()
    return chain


class _InAFolder(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "unspool"

    __test__ = False


class TestOfOne(_InAFolder):
    __test__ = True

    async def open(self) -> Spool:
        return await chain_of(partial(SqliteSpool.open, self.path, test_hook_no_sync=True))


class TestOfTwo(_InAFolder):
    """The first takes everything; the second is there, and asked where it may know something."""

    __test__ = True

    async def open(self) -> Spool:
        return await chain_of(
            partial(SqliteSpool.open, self.path, test_hook_no_sync=True),
            partial(SqliteSpool.open, f"{self.path}-2", test_hook_no_sync=True),
        )


class TestOfTheSecond(_InAFolder):
    __test__ = True

    @pytest.fixture(autouse=True)
    def _ordered(self, request: pytest.FixtureRequest) -> None:
        if "order_key=" in inspect.getsource(request.function):
            pytest.skip("what has an order key waits for the first: see below")

    async def open(self) -> Spool:
        return await chain_of(down, partial(open_log, self.path, test_hook_no_sync=True))

    async def test_a_settle_of_what_is_unknown(self, spool: Spool) -> None:
        """6. Nobody can tell whether the one that is down knows the lease: nobody says no."""
        stranger = Lease(replace(waiting("a"), attempt=1), LEASED_UNTIL)
        with pytest.raises(Unavailable):
            await spool.settle([(stranger, delivered())])


async def test_what_has_an_order_key_is_taken_by_the_first_alone() -> None:
    """5. Those before it may wait at the one that cannot be asked."""

    async def memory() -> Spool:
        return MemorySpool()

    chain = await chain_of(down, memory)
    answers = await chain.accept_each([waiting("a", order_key="x"), waiting("b")])
    await chain.aclose()
    assert isinstance(answers[0], Homeless)
    assert "keep its order" in str(answers[0])
    assert not isinstance(answers[1], Exception)
