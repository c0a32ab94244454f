"""Disk: how much room there is for what a spool takes in.

    free = disk_free(url)       a function that looks, each time; None: it is nobody's to say here
    free()                      in bytes; None: it cannot be told just now

What the disk has left for its users, and what an SQLite file has room for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import apsw

from .open import path_of


def disk_free(url: str) -> Callable[[], int | None] | None:
    path = path_of(url)
    if path is None:
        return None

    def free() -> int | None:
        try:
            found = os.statvfs(path.parent)
            reusable = _reusable(path) if path.is_file() else 0
        except OSError:
            return None
        return found.f_bavail * found.f_frsize + reusable

    return free


def _reusable(path: Path) -> int:
    """What an SQLite file has room for itself: it keeps the pages of what has gone."""
    try:
        looking = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            [[pages]] = looking.execute("PRAGMA freelist_count")
            [[page_bytes]] = looking.execute("PRAGMA page_size")
            return int(str(pages)) * int(str(page_bytes))
        finally:
            looking.close()
    except apsw.Error:
        return 0
