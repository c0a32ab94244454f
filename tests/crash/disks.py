"""Disks: file systems of our own to cut off, fill up and lay waste to. Linux, root.

    with Disk(folder, size_mib=96) as disk:      ext4 on a loop device, mounted at disk.mount
        disk.cut()                               the power fails, now
        disk.remount()                           and comes back
    with ram_disk(folder, size_mib=4) as mount:  a small tmpfs
    why_not()                                    why this machine cannot, or None

The cut is EXT4_IOC_SHUTDOWN with NOLOGFLUSH: from that instant on nothing reaches the device any
more, neither data nor journal; what the page cache alone had is gone after the remount. The device
itself is honest: everything that was submitted to it before is there, whole. So the cut tells who
has synced from who has not; it does not tell what a disk does that lies about its own cache, nor
what happens to a sector that was half written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

import pytest

EXT4_IOC_SHUTDOWN: Final = 0x8004587D
NOLOGFLUSH: Final = 2
MUST = os.environ.get("UNSPOOL_CRASH_MUST_CUT", "") == "1"
"""Fail instead of skipping where no disk can be had."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


@cache
def why_not() -> str | None:
    """Why no loop device can be cut off here; None if it can."""
    if sys.platform != "linux":
        return "it takes Linux"
    if os.geteuid() != 0:
        return "it takes root: sudo"
    for tool in ("losetup", "mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    try:
        with TemporaryDirectory() as folder, Disk(Path(folder), size_mib=16) as disk:
            disk.cut()
            disk.remount()
    except OSError as error:
        return str(error)
    return None


def need_disk() -> None:
    """Skip where there is no disk to cut; say so loudly where somebody counts on it."""
    reason = why_not()
    if reason is None:
        return
    loud = f"NO POWER WAS CUT, durability is NOT proved by this run: {reason}"
    if MUST:
        pytest.fail(loud)
    if os.environ.get("CI"):
        print(f"::warning title=Power cuts not tested::{loud}", file=sys.__stderr__, flush=True)
        warnings.warn(loud, RuntimeWarning, stacklevel=2)
    pytest.skip(loud)


class Disk:
    """An ext4 in a file in `folder`, on a loop device, mounted at `mount`."""

    def __init__(self, folder: Path, *, size_mib: int) -> None:
        self._image = folder / "disk.img"
        self.mount = folder / "disk"
        self._size_mib = size_mib
        self._device = ""
        self._mounted = False

    def __enter__(self) -> Self:
        self.mount.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size_mib << 20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._device = _run("losetup", "--find", "--show", str(self._image))
        try:
            self._mount()
        except OSError:
            _run("losetup", "--detach", self._device)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._mounted:
            self._unmount()
        _run("losetup", "--detach", self._device)
        self._image.unlink()

    def _mount(self) -> None:
        _run("mount", "-t", "ext4", self._device, str(self.mount))
        self._mounted = True

    def _unmount(self) -> None:
        """Whoever had files open may take a moment to be gone."""
        for attempt in range(2_000):
            try:
                _run("umount", str(self.mount))
            except OSError:
                if attempt == 1_999:
                    raise
                time.sleep(0.01)
            else:
                self._mounted = False
                return

    def cut(self) -> None:
        """The power fails. Nothing reaches the device after this has begun."""
        fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(fd)

    def remount(self) -> None:
        """The power is back. Nobody may have a file open on it."""
        self._unmount()
        self._mount()


@contextmanager
def ram_disk(folder: Path, *, size_mib: int) -> Iterator[Path]:
    """A tmpfs of this size."""
    mount = folder / "ram"
    mount.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(mount))
    try:
        yield mount
    finally:
        for _ in range(2_000):
            try:
                _run("umount", str(mount))
                break
            except OSError:
                time.sleep(0.01)
