"""A spool that is a folder of one process: what it becomes, what it leaves alone, who has it."""

# ruff: noqa: ASYNC220, ASYNC240 - nothing else runs in these loops

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from unspool.errors import CannotCreate, InUse, Misconfigured, Missing, Newer, Unavailable
from unspool.spools.leveldb.spool import open_leveldb
from unspool.spools.log.spool import open_log
from unspool.spools.open import of_one_process, open_spool, path_of
from unspool.spools.protocol import Survives
from unspool.testing.conformance.values import HERE, LEASED_UNTIL, NOW, key, lease_all, waiting

Open = Callable[..., Coroutine[Any, Any, Any]]
ENGINES: dict[str, Open] = {"leveldb": open_leveldb, "log": open_log}
NEEDS = {"leveldb": "plyvel"}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unspool.spool"


def _all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def test_it_is_made_marked_and_nobody_elses_to_read(engine: str, path: Path) -> None:
    old = os.umask(0)
    try:
        spool = await ENGINES[engine](path)
    finally:
        os.umask(old)
    await spool.accept([waiting("a")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(f"{path}-lock").stat().st_mode) == 0o600
    assert (path / "UNSPOOL").read_text() == f"unspool {engine} 1\n"
    await spool.aclose()


async def test_what_it_survives_is_measured(engine: str, path: Path) -> None:
    """A folder in memory promises to survive a process and no more; so does one without syncs."""
    spool = await ENGINES[engine](path)
    in_memory = "tmpfs" in spool.promises.detail
    assert spool.promises.survives is (Survives.PROCESS if in_memory else Survives.POWER)
    assert not spool.promises.shared
    await spool.aclose()
    spool = await ENGINES[engine](path, test_hook_no_sync=True)
    assert spool.promises.survives is Survives.PROCESS
    await spool.aclose()
    memory = Path(f"/dev/shm/unspool-test-{os.getpid()}")
    try:
        memory.mkdir()
    except OSError:
        pytest.skip("no /dev/shm to write in")
    try:
        spool = await ENGINES[engine](memory / "spool")
        assert spool.promises.survives is Survives.PROCESS
        assert "tmpfs" in spool.promises.detail
        await spool.aclose()
    finally:
        shutil.rmtree(memory)


async def test_who_has_it_is_said(engine: str, path: Path) -> None:
    """Another process is told which process has it, and how that was called; nothing is changed."""
    program = (
        "import asyncio, sys\n"
        "from unspool.spools.open import open_spool\n"
        "async def main():\n"
        "    spool = await open_spool(sys.argv[1])\n"
        "    print('open', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "    await spool.aclose()\n"
        "asyncio.run(main())\n"
    )
    url = f"{engine}:///{path}"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"open\n"
        before = _all(path)
        with pytest.raises(InUse) as caught:
            await open_spool(url)
        assert f"process {holder.pid}: python {url}" in str(caught.value)
        assert "fuser -v" in str(caught.value)
        assert _all(path) == before
    finally:
        holder.kill()
        holder.communicate()
    spool = await open_spool(url)  # whoever is dead has nothing
    await spool.aclose()


async def test_twice_in_one_process_is_twice(engine: str, path: Path) -> None:
    spool = await ENGINES[engine](path)
    with pytest.raises(InUse, match=f"process {os.getpid()}"):
        await ENGINES[engine](path)
    await spool.accept([waiting("a")])
    await spool.aclose()


async def test_a_newer_spool_is_left_alone(engine: str, path: Path) -> None:
    await (await ENGINES[engine](path)).aclose()
    (path / "UNSPOOL").write_text(f"unspool {engine} 99\n")
    before = _all(path)
    with pytest.raises(Newer, match="pip install -U unspool"):
        await ENGINES[engine](path)
    assert _all(path) == before


async def test_somebody_elses_folder_is_left_alone(engine: str, path: Path) -> None:
    """Not even opened: to open a database is to change it."""
    path.mkdir()
    (path / "CURRENT").write_text("MANIFEST-000002\n")
    before = _all(path.parent)
    with pytest.raises(Misconfigured, match="no spool of ours"):
        await ENGINES[engine](path)
    (path / "UNSPOOL").write_text("unspool sqlite 1\n")
    with pytest.raises(Misconfigured, match="sqlite spool"):
        await ENGINES[engine](path)
    (path / "UNSPOOL").write_text("hello\n")
    with pytest.raises(Misconfigured, match="something else"):
        await ENGINES[engine](path)
    (path / "UNSPOOL").unlink()
    assert _all(path.parent) == before


async def test_a_file_is_no_folder(engine: str, path: Path) -> None:
    path.write_text("hello\n")
    with pytest.raises(Misconfigured, match="is a file"):
        await ENGINES[engine](path)
    assert path.read_text() == "hello\n"


async def test_a_missing_folder_is_said(engine: str, path: Path) -> None:
    with pytest.raises(CannotCreate, match="mkdir -p"):
        await ENGINES[engine](path.parent / "no" / "spool")
    with pytest.raises(Misconfigured, match="There is no spool"):
        await ENGINES[engine](path, create=False)
    assert list(path.parent.iterdir()) == []


async def test_closing_leaves_no_thread_and_no_lock(engine: str, path: Path) -> None:
    before = {*threading.enumerate()}
    spool = await ENGINES[engine](path)
    await spool.accept([waiting("a")])
    await spool.aclose()
    assert not {*threading.enumerate()} - before
    with pytest.raises(Unavailable, match="closed"):
        await spool.find([key("a")])
    again = await ENGINES[engine](path)
    assert (await again.find([key("a")]))[0] is not None
    await again.aclose()


async def test_open_by_url(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in (
        (f"{engine}:///relative", tmp_path / "relative"),
        (f"{engine}:///{tmp_path}/absolute", tmp_path / "absolute"),
    ):
        assert path_of(url) is not None
        assert of_one_process(url)
        await (await open_spool(url)).aclose()
        assert (path / "UNSPOOL").exists()
    with pytest.raises(Misconfigured, match="three slashes"):
        await open_spool(f"{engine}:relative")


async def test_a_missing_extra_says_how_to_install_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plyvel", None)  # as Python says that it is not there
    with pytest.raises(Missing, match=r"pip install 'unspool\[leveldb\]'") as caught:
        await open_spool(f"leveldb:///{path}")
    assert caught.value.exit_code == os.EX_UNAVAILABLE
    assert not path.exists()


def test_the_relay_runs_alone_on_it(engine: str, path: Path) -> None:
    """One process, and it says so before it listens."""
    ran = subprocess.run(
        [
            sys.executable, "-m", "unspool", "serve", "--to", "http://127.0.0.1:9",
            "--workers", "2", "--spool", f"{engine}:///{path}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == os.EX_CONFIG
    assert "one process only" in ran.stderr
    assert not path.exists()


def test_what_promises_is_synced(engine: str, path: Path, tmp_path: Path) -> None:
    """1, 4, 8. An accept, a settle and a lease of what may not be repeated end in a sync of the
    log; another lease does not, and rides on the next: seen from outside."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace"
    program = (
        "import asyncio, sys\n"
        "from unspool.testing.conformance.values import *\n"
        "from unspool.spools.open import open_spool\n"
        "def say(word): sys.stderr.write(word); sys.stderr.flush()\n"
        "async def main():\n"
        "    spool = await open_spool(sys.argv[1]); s = spool.store\n"
        "    say('accept'); s.accept([waiting('a'), waiting('b', repeat=False)])\n"
        "    say('lease'); [l] = s.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)\n"
        "    say('settle'); s.settle([(l, delivered())])\n"
        "    say('binding'); s.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)\n"
        "    say('end'); await spool.aclose()\n"
        "asyncio.run(main())\n"
    )
    trace = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=fsync,fdatasync,write"]
    ran = subprocess.run(
        [*trace, sys.executable, "-c", program, f"{engine}:///{path}"],
        capture_output=True,
        check=False,
    )
    if not log.exists() or ran.returncode:
        pytest.skip(f"strace does not run here: {ran.stderr.decode()[-200:]}")
    text = log.read_text()
    steps = ("accept", "lease", "settle", "binding", "end")
    synced = {}
    for step, following in pairwise(steps):
        part = text.split(f'"{step}"')[1].split(f'"{following}"')[0]
        synced[step] = ".log>) = 0" in part
    assert synced == {"accept": True, "lease": False, "settle": True, "binding": True}


async def test_a_lease_that_binds_is_there_after_a_restart(engine: str, path: Path) -> None:
    """4. And one that nobody holds any more is free at once, and says that it was abandoned."""
    spool = await ENGINES[engine](path)
    await spool.accept([waiting("a", repeat=False), waiting("b")])
    await spool.lease({HERE: 2}, now=NOW, until=LEASED_UNTIL)
    await spool.aclose()
    spool = await ENGINES[engine](path)
    leases = await lease_all(spool, now=NOW)
    assert [(lease.entry.attempt, lease.abandoned) for lease in leases] == [(2, True)] * 2
    await spool.aclose()
