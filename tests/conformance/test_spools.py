"""Every spool of ours against the contract: one line for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspool.spools.leveldb import open_leveldb
from unspool.spools.logfile import open_log
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Spool
from unspool.spools.sqlite import SqliteSpool
from unspool.testing.conformance import SpoolConformance


class TestMemory(SpoolConformance):
    async def open(self) -> Spool:
        return MemorySpool()


class TestSqlite(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "unspool.db"

    async def open(self) -> Spool:
        return await SqliteSpool.open(self.path)


class TestLevelDB(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        pytest.importorskip("plyvel")
        self.path = tmp_path / "unspool.leveldb"

    async def open(self) -> Spool:
        return await open_leveldb(self.path)


class TestLog(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "unspool.log"

    async def open(self) -> Spool:
        return await open_log(self.path)
