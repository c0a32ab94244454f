"""Commits: how many transactions a SQLite file's WAL has, counted in the file itself.

    before = commits(spool); …; made = commits(spool) - before

Each frame of a WAL tells whether a commit ends with it (the size of the database, else 0;
sqlite.org/fileformat2.html §4.1). True as long as the WAL was not begun anew in between, which a
few hundred small transactions do not bring about; `Failed` where it was.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from .process import Failed

HEAD: Final = 32
FRAME_HEAD: Final = 24


def commits(spool: Path) -> int:
    raw = Path(f"{spool}-wal").read_bytes()
    if len(raw) < HEAD:
        return 0
    page, checkpoint = struct.unpack_from(">8xII", raw)
    if checkpoint:
        raise Failed("the WAL was begun anew: too much was written to be counted")
    salt = raw[16:24]
    count, at = 0, HEAD
    while at + FRAME_HEAD + page <= len(raw):
        size, frame_salt = struct.unpack_from(">4xI8s", raw, at)
        if frame_salt != salt:
            break
        count += size != 0
        at += FRAME_HEAD + page
    return count
