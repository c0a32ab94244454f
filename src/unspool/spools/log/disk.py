"""Disk: the files of one folder, as a log needs them. Appended to, synced, read, removed.

    disk = OsDisk(path)
    disk.create(name) · append(name, data) · sync(name) · sync_names() · unlink(name)
    disk.names() · size(name) · read(name, offset, length) · truncate(name, size)

`unspool.testing.disk` has another, whose power can be cut. Raises OSError. What `append` wrote is
on the disk once `sync` has returned; what `create` and `unlink` did to names, once `sync_names`
has. An append that raises may have written some of it.

Reads may come from any thread, the rest from one.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final, Protocol

from ..folder import sync_folder

OPEN_MAX: Final = 32
"""Files kept open for reading."""


class Disk(Protocol):
    def names(self) -> list[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str, offset: int, length: int) -> bytes: ...

    def create(self, name: str) -> None: ...

    def append(self, name: str, data: bytes) -> None: ...

    def truncate(self, name: str, size: int) -> None: ...

    def sync(self, name: str) -> None: ...

    def unlink(self, name: str) -> None: ...

    def sync_names(self) -> None: ...

    def close(self) -> None: ...


class OsDisk:
    def __init__(self, folder: Path, *, synced: bool = True) -> None:
        self._folder: Final = folder
        self._synced: Final = synced
        self._lock = threading.Lock()
        self._reading: OrderedDict[str, int] = OrderedDict()
        self._writing: tuple[str, int] | None = None
        """The file that is appended to stays open: an error that a sync must tell is the open
        file's."""

    def names(self) -> list[str]:
        return sorted(os.listdir(self._folder))

    def size(self, name: str) -> int:
        return os.stat(self._folder / name).st_size

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            found = self._reading.get(name)
            if found is None:
                found = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
                self._reading[name] = found
                if len(self._reading) > OPEN_MAX:
                    os.close(self._reading.popitem(last=False)[1])
            else:
                self._reading.move_to_end(name)
            return os.pread(found, length, offset)

    def create(self, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(self._folder / name, flags, 0o600))

    def append(self, name: str, data: bytes) -> None:
        file = self._open(name)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def truncate(self, name: str, size: int) -> None:
        os.ftruncate(self._open(name), size)

    def sync(self, name: str) -> None:
        if not self._synced:
            return
        file = self._open(name)
        if hasattr(fcntl, "F_FULLFSYNC"):  # where the system's fsync is less than its name
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(file)

    def _open(self, name: str) -> int:
        if self._writing is None or self._writing[0] != name:
            self._let_go()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._writing = (name, os.open(self._folder / name, flags))
        return self._writing[1]

    def _let_go(self) -> None:
        if self._writing is not None:
            os.close(self._writing[1])
            self._writing = None

    def unlink(self, name: str) -> None:
        with self._lock:
            found = self._reading.pop(name, None)
            if found is not None:
                os.close(found)
        if self._writing is not None and self._writing[0] == name:
            self._let_go()
        os.unlink(self._folder / name)

    def sync_names(self) -> None:
        if self._synced:
            sync_folder(self._folder)

    def close(self) -> None:
        self._let_go()
        with self._lock:
            for found in self._reading.values():
                os.close(found)
            self._reading.clear()
