"""The machine: which cores are whose, what runs on it, and how fast its disk syncs.

    two_cores()              (measured, load): the thing measured has one alone; None without two
    pin(core)                this process from now on; children inherit it
    sync_latency(folder)     one 4 KiB append and its fdatasync, in µs: (p50, p99)
    facts(folder)            versions, kernel, processor, file system: the head of the report

Linux only, as is every number here: elsewhere `two_cores` is None and nothing is measured.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SYNCS = 300


def two_cores() -> tuple[int, int] | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else None


def pin(core: int) -> None:
    os.sched_setaffinity(0, {core})


def sync_latency(folder: Path) -> tuple[float, float]:
    path = folder / "sync-probe"
    block = os.urandom(4096)
    took: list[float] = []
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(SYNCS):
            began = time.perf_counter()
            os.write(out, block)
            os.fdatasync(out)
            took.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(out)
        path.unlink()
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def file_system(folder: Path) -> str:
    """The type of the file system that `folder` is on."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return kind
    here = str(folder.resolve())
    for line in mounts.splitlines():
        where, type_ = line.split(" ")[1:3]
        inside = here == where or here.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, kind = where, type_
    return kind


def _said(command: list[str], pattern: str) -> str:
    """What a program says of its version; empty where there is no such program."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else ""


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.machine()


def facts(folder: Path) -> dict[str, str]:
    try:
        import apsw

        sqlite = apsw.sqlite_lib_version()
    except ImportError:
        sqlite = ""
    return {
        "unspool": _package("unspool"),
        "python": sys.version.split()[0],
        "uvloop": _package("uvloop"),
        "httptools": _package("httptools"),
        "apsw": _package("apsw"),
        "SQLite": sqlite,
        "nginx": _said(["nginx", "-v"], r"nginx/(\S+)"),
        "wrk": _said(["wrk", "-v"], r"wrk (\S+)"),
        "node": _said(["node", "--version"], r"v(\S+)"),
        "kernel": platform.release(),
        "processor": _processor(),
        "file system": file_system(folder),
    }
