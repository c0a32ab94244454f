"""A spool behind a desk is a spool: the whole contract, over the socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from unspool.core.message import Key
from unspool.spools.desk.serving import Desk, open_desk
from unspool.spools.desk.visit import DeskSpool
from unspool.spools.keyed.rows import data_row, key_row, number_of
from unspool.spools.log.spool import open_log
from unspool.spools.protocol import Spool
from unspool.testing.conformance import SpoolConformance


class TestDesk(SpoolConformance):
    @pytest_asyncio.fixture(autouse=True)
    async def _relay(self, tmp_path: Path) -> AsyncIterator[None]:
        self.folder = tmp_path / "unspool.log"
        self.kept = await open_log(self.folder, test_hook_no_sync=True)
        desk = await open_desk(self.kept, self.folder)
        assert isinstance(desk, Desk)
        yield
        await desk.close()
        await self.kept.aclose()

    async def open(self) -> Spool:
        return await DeskSpool.open(self.folder)

    async def spoil(self, spool: Any, key: Key) -> bool:
        shelf = self.kept.store.shelf
        with shelf.view() as view:
            place = number_of(view.get(key_row(key)) or b"")
        shelf.write({data_row(b"s", place): b"nonsense"}, sync=True)
        return True
