"""The log file: the spool as an append-only log in one folder of one process.

    spool = await open_log("unspool.log")          a `BlockingSpool` over a `KeyedStore`
    store = open_store(path)                       the store alone, for whoever may block

Promises: survives a power cut (each batch that promises something ends in one fdatasync; names of
segments are synced before they are used; a folder on tmpfs: a process), is not shared, remembers,
fences. Needs nothing but the standard library.

Cannot: be opened by two processes, so `--workers` must be 1, and operators' commands go through the
relay that has it open (`desk`); hold more keys than there is memory for (some 400 bytes for a
message that waits, 250 for a key that is remembered); start at once (the whole log is read and
checked).

After a failed sync it accepts nothing more until the relay is started again: see `shelf`. What
rots is set aside and kept in `*.bad`: a batch whose rows cannot be read takes all its messages with
it, a value that cannot be read takes its message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...errors import CannotCreate
from ..blocking import BlockingSpool
from ..folder import IN_MEMORY, file_system, take
from ..keyed.store import KeyedStore
from ..protocol import Survives
from .disk import OsDisk
from .shelf import LogShelf

FORM: Final = 1


async def open_log(
    path: str | Path, *, create: bool = True, test_hook_no_sync: bool = False
) -> BlockingSpool[KeyedStore]:
    """Raises a `Broken` that says what to do. The hook is for power cuts that must lose."""
    return await BlockingSpool.over(
        lambda: open_store(Path(path), create=create, synced=not test_hook_no_sync),
        name="unspool-log",
    )


def open_store(path: Path, *, create: bool = True, synced: bool = True) -> KeyedStore:
    """For whoever may block. Raises as `open_log`."""
    where = path.absolute()
    folder = take(where, engine="log", form=FORM, create=create)
    disk = OsDisk(where, synced=synced)
    try:
        kind = file_system(where)
        durable = synced and kind not in IN_MEMORY
        shelf = LogShelf.open(
            disk,
            where_=str(where),
            survives=Survives.POWER if durable else Survives.PROCESS,
            detail=f"log, {'fdatasync' if synced else 'no syncs'}, {kind}",
            release=folder.release,
        )
    except BaseException as error:
        disk.close()
        folder.release()
        if isinstance(error, OSError):
            raise CannotCreate(
                f"The spool {where} cannot be read or written: {error.strerror}. What was accepted"
                f" earlier is kept. Mend it, then start again: ls -l {where}; df -h {where}"
            ) from error
        raise
    try:
        return KeyedStore(shelf, where)
    except BaseException:
        shelf.close()
        raise
