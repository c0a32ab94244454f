"""SqliteSpool: the spool in one SQLite file, for as many processes of one machine as like.

    spool = await SqliteSpool.open("unspool.db")
    …                                            the verbs of `protocol`
    await spool.aclose()

Promises: survives a power cut (WAL, synchronous=FULL, read back at open; a file on tmpfs: a
process), is shared, remembers, fences. `store` does the work and blocks; `BlockingSpool`
runs it on three threads, with a connection for each. Accepts, leases and settles that have queued
up are one transaction, with one sync.

Other processes' accepts are noticed by asking SQLite four times a second, while somebody waits.

Does not: gather callers into batches; that is `committer`'s.
"""

from __future__ import annotations

from pathlib import Path

from ..blocking import BlockingSpool
from .store import SqliteStore


class SqliteSpool:
    """Only opens: what it gives is a `BlockingSpool` over a `SqliteStore`."""

    @staticmethod
    async def open(
        path: str | Path, *, create: bool = True, test_hook_no_sync: bool = False
    ) -> BlockingSpool[SqliteStore]:
        """Open or make the file. `test_hook_no_sync` is for tests of power cuts that must fail."""

        def open_store() -> SqliteStore:
            where = Path(path).absolute()
            return SqliteStore.open(where, create=create, test_hook_no_sync=test_hook_no_sync)

        return await BlockingSpool.over(
            open_store, name="unspool-sqlite", together=lambda store: store.together
        )
