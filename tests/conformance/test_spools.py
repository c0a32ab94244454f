"""Every spool of ours against the contract: one line for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from servers.nats import Nats, nats
from servers.postgres import Postgres, postgres
from servers.redis import Redis, redis
from unspool.core.message import Destination, Instant, Key
from unspool.spools.keyed.rows import data_row, key_row, number_of
from unspool.spools.leveldb.spool import open_leveldb
from unspool.spools.log.spool import open_log
from unspool.spools.memory import MemorySpool
from unspool.spools.nats.open import open_nats
from unspool.spools.nats.records import FACTS, Mail
from unspool.spools.open import open_spool
from unspool.spools.protocol import Lease, Spool
from unspool.spools.redis.spool import RedisSpool
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.testing.clock import virtually
from unspool.testing.conformance import SpoolConformance
from unspool.testing.conformance.together import Cancellation

BUCKETS = itertools.count()
SCHEMAS = itertools.count()


class TestMemory(SpoolConformance):
    async def open(self) -> Spool:
        return MemorySpool()


class TestSqlite(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "unspool.db"

    async def open(self) -> Spool:
        return await SqliteSpool.open(self.path)

    async def spoil(self, spool: Spool, key: Key) -> bool:
        db = apsw.Connection(str(self.path))
        db.execute("UPDATE message SET status = zeroblob(9) WHERE key = ?", (key,))
        db.close()
        return True


class TestLevelDB(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        pytest.importorskip("plyvel")
        self.path = tmp_path / "unspool.leveldb"

    async def open(self) -> Spool:
        return await open_leveldb(self.path)

    async def spoil(self, spool: Any, key: Key) -> bool:
        return _spoil_on_shelf(spool, key)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


class TestPostgres(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _schema(self, server: Postgres) -> None:
        self.schema = f"spool_{next(SCHEMAS)}"
        self.server = server

    async def open(self) -> Spool:
        return await open_spool(self.server.spool(self.schema))

    async def spoil(self, spool: Spool, key: Key) -> bool:
        self.server.execute(
            f"UPDATE {self.schema}.message SET status = '\\x00' WHERE key = %s", key.encode()
        )
        return True


class TestLog(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "unspool.log"

    async def open(self) -> Spool:
        return await open_log(self.path)

    async def spoil(self, spool: Any, key: Key) -> bool:
        return _spoil_on_shelf(spool, key)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Redis]:
    with redis(memory=True) as server:
        yield server


class TestRedis(SpoolConformance):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Redis, request: pytest.FixtureRequest) -> None:
        self.server, self.name = redis_server, request.node.name[:64]

    async def open(self) -> Spool:
        return await RedisSpool.open(self.server.spool(self.name))

    async def spoil(self, spool: Spool, key: Key) -> bool:
        self.server.redis().hset(f"{{{self.name}}}:e:{key}", "m", "nonsense")
        return True


def _spoil_on_shelf(spool: Any, key: Key) -> bool:
    """Its standing alone, or, of every other, its envelope too: then nobody can tell its key."""
    shelf = spool.store.shelf
    with shelf.view() as view:
        place = number_of(view.get(key_row(key)))
    families = (b"s", b"m") if place % 2 else (b"s",)
    shelf.write({data_row(family, place): b"nonsense" for family in families}, sync=True)
    return True


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

    async def spoil(self, spool: Any, key: Key) -> bool:
        """Its payload alone, or, of every other, its facts."""
        name = spool._link.names.message(key)
        kept = (await spool._link.last([name]))[name].headers[FACTS]
        payload, facts = (b"nonsense", kept) if key < Key("b") else (b"", kept[:-8] + "nonsense")
        await spool._link.commit([Mail(name, payload, {FACTS: facts})])
        return True


class Once(MemorySpool):
    """It lends each message once, and never again; and never lets go of the loop."""

    leases = 0

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        self.leases += 1
        assert self.leases < 100_000, "the suite goes round and round"
        return await super().lease(wants, now=now, until=until) if self.leases == 1 else []


@virtually
async def test_the_suite_does_not_wait_for_ever_for_what_never_comes() -> None:
    """It tells that the spool is at fault, and does not hang with it."""
    with pytest.raises(TimeoutError):
        await Cancellation().test_a_cancelled_lease_comes_back(Once())
