"""Engines: the spools that are killed and cut off, and how each is opened.

    await open_spool("leveldb", path, synced=False)     as a relay has it
    open_store("leveldb", path)                         as somebody who looks at it afterwards
    need("leveldb")                                     skip where it is not installed

Imported by tests, and by `launch` as a program of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

NEEDS = {"sqlite": "apsw", "leveldb": "plyvel", "log": "unspool"}
SHARE = {"sqlite": 1.0, "leveldb": 0.2, "log": 0.2}
"""How much of a crash test each engine gets: the default most."""
ENGINES = tuple(NEEDS)


def need(engine: str) -> None:
    import pytest

    if importlib.util.find_spec(NEEDS[engine]) is None:
        pytest.skip(f"{NEEDS[engine]} is not installed")


async def open_spool(engine: str, path: str | Path, *, synced: bool = True) -> Any:
    """Without syncs it is the control, which must lose."""
    from unspool.spools.leveldb import open_leveldb
    from unspool.spools.logfile import open_log
    from unspool.spools.sqlite import SqliteSpool

    opens = {"sqlite": SqliteSpool.open, "leveldb": open_leveldb, "log": open_log}
    return await opens[engine](path, test_hook_no_sync=not synced)


def open_store(engine: str, path: Path) -> Any:
    from unspool.spools import leveldb, logfile
    from unspool.spools.sqlite_store import SqliteStore

    opens = {"sqlite": SqliteStore.open, "leveldb": leveldb.open_store, "log": logfile.open_store}
    return opens[engine](path, create=False)
