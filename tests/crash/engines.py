"""Engines: the spools that are killed and cut off, and how each is opened.

    await open_spool("leveldb", path, synced=False)     as a relay has it
    open_store("leveldb", path)                         as somebody who looks at it afterwards
    open_spool("redis", url) · open_store("redis", url)      those of servers, which run already
    need("leveldb")                                     skip where it is not installed

Imported by tests, and by `launch` as a program of its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from pathlib import Path
from typing import Any

NEEDS = {
    "sqlite": "apsw", "leveldb": "plyvel", "log": "unspool", "redis": "redis",
    "postgres": "psycopg", "nats": "nats",
}  # fmt: skip
SHARE = {"sqlite": 1.0, "leveldb": 0.2, "log": 0.2, "redis": 0.2, "postgres": 0.2, "nats": 0.2}
"""How much of a crash test each engine gets: the default most."""
SERVED = ("redis", "postgres", "nats")
"""Spools in servers: what is a path elsewhere is their URL."""
ENGINES = tuple(engine for engine in NEEDS if engine not in SERVED)


def need(engine: str) -> None:
    import pytest

    if importlib.util.find_spec(NEEDS[engine]) is None:
        pytest.skip(f"{NEEDS[engine]} is not installed")


async def open_spool(engine: str, path: str | Path, *, synced: bool = True) -> Any:
    """Without syncs it is the control, which must lose."""
    from unspool.spools.leveldb.spool import open_leveldb
    from unspool.spools.log.spool import open_log
    from unspool.spools.sqlite.spool import SqliteSpool

    if engine in SERVED:  # whether it syncs is the server's affair
        from unspool.spools.open import open_spool as open_url

        return await open_url(str(path))
    opens = {"sqlite": SqliteSpool.open, "leveldb": open_leveldb, "log": open_log}
    return await opens[engine](path, test_hook_no_sync=not synced)


class Looking:
    """The spool of a server for who blocks: its verbs as functions, from a loop of its own."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self._spool = self._run(open_spool(SERVED[0], url))
        except BaseException:
            self._stop()
            raise

    def _run(self, verb: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(verb, self._loop).result(60)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._spool, name)
        return (lambda *a, **k: self._run(found(*a, **k))) if callable(found) else found

    def close(self) -> None:
        self._run(self._spool.aclose())
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def open_store(engine: str, path: str | Path) -> Any:
    if engine in SERVED:
        return Looking(str(path))
    from unspool.spools.leveldb import spool as leveldb
    from unspool.spools.log import spool as log
    from unspool.spools.sqlite.store import SqliteStore

    opens = {"sqlite": SqliteStore.open, "leveldb": leveldb.open_store, "log": log.open_store}
    return opens[engine](Path(path), create=False)
