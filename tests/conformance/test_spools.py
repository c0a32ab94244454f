"""Every spool of ours against the contract: one line for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.nats import Nats, nats
from unspool.spools.leveldb import open_leveldb
from unspool.spools.logfile import open_log
from unspool.spools.memory import MemorySpool
from unspool.spools.nats import open_nats
from unspool.spools.protocol import Spool
from unspool.spools.sqlite import SqliteSpool
from unspool.testing.conformance import SpoolConformance

BUCKETS = itertools.count()


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


@pytest.fixture(scope="module")
def nats_server() -> Iterator[Nats]:
    with nats() as server:
        yield server


class TestNats(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _bucket(self, nats_server: Nats) -> None:
        self.url = nats_server.url(f"bucket{next(BUCKETS)}")

    async def open(self) -> Spool:
        return await open_nats(self.url)
