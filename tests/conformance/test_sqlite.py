"""What is SQLite's own: the file, what it measures and promises, and how it is opened."""

# ruff: noqa: ASYNC221, ASYNC240 - nothing else runs in these loops

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from unspool.core.message import NEVER
from unspool.errors import CannotCreate, Misconfigured, Newer, Unavailable
from unspool.spools.open import OURS, open_spool
from unspool.spools.protocol import New, Query, Spool, Survives
from unspool.spools.sqlite import read
from unspool.spools.sqlite.file import IN_MEMORY
from unspool.spools.sqlite.schema import ADDITIONS, APPLICATION_ID, LEASABLE, SURVEY, SWEEPABLE
from unspool.spools.sqlite.spool import SqliteSpool
from unspool.spools.sqlite.store import SqliteStore
from unspool.spools.sqlite.write import delete
from unspool.testing.conformance.values import (
    DAY,
    HERE,
    NOW,
    key,
    later,
    waiting,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unspool.db"


def plain(path: Path) -> apsw.Connection:
    """The file as anybody else would open it."""
    return apsw.Connection(str(path))


# -- what is promised is measured --------------------------------------------------------------


async def test_the_file_is_in_wal_and_fully_synced(path: Path) -> None:
    store = SqliteStore.open(path)
    assert store._db.pragma("journal_mode") == "wal"
    assert store._db.pragma("synchronous") == 2
    assert store._db.pragma("page_size") == 4096
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)
    in_memory = any(name in store.promises.detail for name in IN_MEMORY)
    assert store.promises.survives is (Survives.PROCESS if in_memory else Survives.POWER)
    assert "synchronous=FULL" in store.promises.detail
    store.close()


async def test_without_sync_it_does_not_promise_a_power_cut(path: Path) -> None:
    spool = await SqliteSpool.open(path, test_hook_no_sync=True)
    assert spool.promises.survives is Survives.PROCESS
    assert "synchronous=OFF" in spool.promises.detail
    await spool.aclose()


async def test_a_file_in_memory_does_not_promise_a_power_cut() -> None:
    folder = Path("/dev/shm/unspool-test-" + str(os.getpid()))
    try:
        folder.mkdir()
        shutil.copy("/proc/self/mountinfo", folder)
    except OSError:
        pytest.skip("no /dev/shm to write in")
    try:
        spool = await SqliteSpool.open(folder / "unspool.db")
        assert spool.promises.survives is Survives.PROCESS
        assert "tmpfs" in spool.promises.detail
        await spool.aclose()
    finally:
        shutil.rmtree(folder)


async def test_every_commit_is_synced(path: Path, tmp_path: Path) -> None:
    """1, 8. An accept, a lease and a settle each end in an fsync of the WAL: seen from outside."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace"
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from unspool.testing.conformance.values import *\n"
        "from unspool.spools.sqlite.store import SqliteStore\n"
        "s = SqliteStore.open(Path(sys.argv[1]))\n"
        "for step in ('accept', 'lease', 'settle'):\n"
        "    sys.stderr.write(step); sys.stderr.flush()\n"
        "    if step == 'accept': s.accept([waiting('a')])\n"
        "    if step == 'lease': [l] = s.lease({HERE: 1}, now=NOW, until=LEASED_UNTIL)\n"
        "    if step == 'settle': s.settle([(l, delivered())])\n"
        "sys.stderr.write('end'); sys.stderr.flush()\n"
    )
    trace = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=fsync,fdatasync,write"]
    ran = subprocess.run(
        [*trace, sys.executable, "-c", program, str(path)], capture_output=True, check=False
    )
    if not log.exists() or ran.returncode:
        pytest.skip(f"strace does not run here: {ran.stderr.decode()[-200:]}")
    text = log.read_text()
    for step, following in (("accept", "lease"), ("lease", "settle"), ("settle", "end")):
        part = text.split(f'"{step}"')[1].split(f'"{following}"')[0]
        assert "unspool.db-wal>) = 0" in part, f"{step} returned before its WAL was synced"


# -- the file ------------------------------------------------------------------------------------


async def test_nobody_else_may_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        spool = await SqliteSpool.open(path)
    finally:
        os.umask(old)
    await spool.accept([waiting("a")])
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-lock")):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600, name
    await spool.aclose()


async def test_closing_leaves_one_file_and_no_thread(path: Path) -> None:
    import threading

    before = {*threading.enumerate()}
    spool = await SqliteSpool.open(path)
    await spool.accept([waiting("a")])
    assert {*threading.enumerate()} - before
    await spool.aclose()
    assert not {*threading.enumerate()} - before
    assert sorted(p.name for p in path.parent.iterdir()) == ["unspool.db", "unspool.db-lock"]
    with pytest.raises(Unavailable, match="closed"):
        await spool.find([key("a")])


def test_one_spool_serves_one_loop_after_another(path: Path) -> None:
    spool = asyncio.run(SqliteSpool.open(path))
    asyncio.run(_accept_and_wait(spool, "a"))
    asyncio.run(_accept_and_wait(spool, "b"))
    found = asyncio.run(spool.find([key("a"), key("b")]))
    assert all(found)
    asyncio.run(spool.aclose())


async def _accept_and_wait(spool: Spool, name: str) -> None:
    await spool.accept([waiting(name)])
    await asyncio.wait_for(spool.wait_arrival(), 30)


async def test_a_newer_file_is_left_alone(path: Path) -> None:
    SqliteStore.open(path).close()
    other = plain(path)
    other.pragma("user_version", 99)
    other.close()
    before = path.read_bytes()
    with pytest.raises(Newer, match="pip install -U unspool"):
        await SqliteSpool.open(path)
    assert path.read_bytes() == before


async def test_an_older_file_gets_what_it_lacks_and_keeps_all_it_has(path: Path) -> None:
    """Additions: the file of the first release, with a message leased by an attempt. It stays of
    its form, for the older program can go on with it."""
    store = SqliteStore.open(path)
    store.accept([waiting("a", repeat=False), waiting("b", repeat=False)])
    store.lease({HERE: 1}, now=NOW, until=later(DAY))
    store.close()
    old = plain(path)
    for _lacks, addition in ADDITIONS:
        old.execute(undone(addition))
    assert not any(old.execute(lacks).fetchall() for lacks, _ in ADDITIONS)
    old.close()
    store = SqliteStore.open(path)
    seized = store.seize([key("a"), key("b")], now=later(DAY), until=later(DAY + 9))
    assert [lease and lease.abandoned for lease in seized] == [True, False]
    again = store.lease({HERE: 2}, now=later(2 * DAY), until=later(3 * DAY))
    assert [lease.entry.message.key for lease in again] == [key("a"), key("b")]
    assert [lease.abandoned for lease in again] == [True, False]
    store.close()
    new = plain(path)
    assert new.pragma("user_version") == 1
    assert all(new.execute(lacks).fetchall() for lacks, _ in ADDITIONS)


def undone(addition: str) -> str:
    words = addition.split()
    if words[:2] == ["ALTER", "TABLE"]:
        return f"ALTER TABLE {words[2]} DROP COLUMN {words[5]}"
    assert words[:2] == ["CREATE", "INDEX"]
    return f"DROP INDEX {words[2]}"


async def test_what_is_no_database_is_left_alone(path: Path) -> None:
    for text in (b"hello\n", b"not a database at all. " * 1_000):
        path.write_bytes(text)
        with pytest.raises(Misconfigured, match="not a database"):
            await SqliteSpool.open(path)
        assert path.read_bytes() == text


async def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    other = plain(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(Misconfigured, match="not a spool"):
        await SqliteSpool.open(path)
    assert path.read_bytes() == before


async def test_an_empty_file_becomes_a_spool(path: Path) -> None:
    path.touch()
    spool = await SqliteSpool.open(path)
    assert list(await spool.accept([waiting("a")])) == [New(waiting("a"))]
    await spool.aclose()
    assert plain(path).pragma("application_id") == APPLICATION_ID


async def test_a_missing_folder_or_file_is_said(path: Path) -> None:
    with pytest.raises(CannotCreate, match="mkdir -p"):
        await SqliteSpool.open(path.parent / "no" / "unspool.db")
    with pytest.raises(Misconfigured, match="There is no spool"):
        await SqliteSpool.open(path, create=False)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_what_cannot_be_written_is_said(path: Path, what: str) -> None:
    """As an ordinary user: root may write anywhere."""
    if what == "file":
        SqliteStore.open(path).close()
        path.chmod(0o444)
    path.parent.chmod(0o555)
    program = (
        "import sys\nfrom pathlib import Path\nfrom unspool.errors import CannotCreate\n"
        "from unspool.spools.sqlite.store import SqliteStore\n"
        "import os\nif os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: SqliteStore.open(Path('unspool.db'))\n"
        "except CannotCreate as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=path.parent, capture_output=True, check=False
    )
    path.parent.chmod(0o755)
    assert b"cannot be opened for writing" in ran.stdout, ran.stderr
    assert b"ls -ld" in ran.stdout


# -- how it is found -----------------------------------------------------------------------------


def test_nothing_hot_looks_at_every_row(path: Path) -> None:
    store = SqliteStore.open(path)
    plans = {
        "survey": (SURVEY, ("", 10)),
        "lease": (LEASABLE, (HERE, NOW, 10)),
        "sweep": (SWEEPABLE, (NOW, 10)),
        "orphans": ("SELECT 1 FROM message WHERE state = 0 AND leased_until > 1", ()),
    }
    for name, (statement, values) in plans.items():
        rows = store._db.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
        steps = [str(row[3]) for row in rows]
        assert not [step for step in steps if step.startswith("SCAN m")], (name, steps)
        assert not [step for step in steps if "TEMP B-TREE" in step], (name, steps)
    store.close()


async def test_open_by_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("sqlite:///relative.db", tmp_path / "relative.db"),
        (f"sqlite:///{tmp_path}/absolute.db", tmp_path / "absolute.db"),
    ):
        spool = await open_spool(url)
        await spool.aclose()
        assert path.exists()
    spool = await open_spool("memory:")
    assert spool.promises.survives is Survives.NOTHING
    for url, advice in (
        ("sqllite:///x.db", "Did you mean sqlite:///x.db"),
        ("x.db", "sqlite:///x.db"),
        ("sqlite:x.db", "three slashes"),
        ("gopher://x", "Known: " + ", ".join(f"{scheme}:" for scheme in sorted(OURS))),
        ("memory:x", "no names"),
    ):
        with pytest.raises(Misconfigured) as caught:
            await open_spool(url)
        assert advice in str(caught.value)


async def test_other_packages_add_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that says so in its metadata, as pip would install it."""
    about = tmp_path / "their_spool-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-spool\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[unspool.spools]\ntheirs = their_spool:open_it\n")
    (tmp_path / "their_spool.py").write_text(
        "from unspool.spools.memory import MemorySpool\n"
        "async def open_it(url):\n"
        "    spool = MemorySpool()\n    spool.url = url\n    return spool\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spool = await open_spool("theirs://somewhere/else")
    assert vars(spool)["url"] == "theirs://somewhere/else"
    with pytest.raises(Misconfigured, match="Did you mean theirs:x"):
        await open_spool("thiers:x")


# -- looking at one of very many --------------------------------------------------------------


def test_one_message_is_found_by_its_key_without_looking_at_the_others(path: Path) -> None:
    """`unspool show KEY`: the work does not grow with what is there."""
    store = SqliteStore.open(path)
    steps: list[int] = []
    for size in (10, 2_000):
        store.accept([waiting(f"{size}-{number}") for number in range(size)])
        steps.append(0)

        def step() -> bool:
            steps[-1] += 1
            return False

        store._opened.browser.set_progress_handler(step, 1)
        query = Query(key=key(f"{size}-7"))
        [entry] = store.browse(query, after=None, limit=1, requests=True)
        assert entry.message.request is not None
    assert steps[1] <= steps[0] + 10
    store.close()


def test_what_is_held_costs_the_broom_nothing(path: Path) -> None:
    """14. `hold --all` in a long outage: all of it is too old by now, and is not looked at every
    few seconds by whoever expires the rest, while all that writes waits."""
    store = SqliteStore.open(path)
    steps: list[int] = []
    for size in (10, 2_000):
        held = [replace(waiting(f"{size}-{number}"), due_at=NEVER) for number in range(size)]
        store.accept(held)
        store.accept([waiting(f"mortal-{size}")])
        steps.append(0)

        def step() -> bool:
            steps[-1] += 1
            return False

        store._db.set_progress_handler(step, 1)
        late = later(30 * DAY)
        leases = store.expire(now=late, until=later(31 * DAY), limit=9)
        assert [lease.entry.message.key for lease in leases] == [key(f"mortal-{size}")]
        store._db.set_progress_handler(None)
    assert steps[1] <= steps[0] + 100
    store.close()


def test_browsing_in_steps_shows_what_browsing_at_once_does(path: Path) -> None:
    """However many rows are looked at in a step, and whatever has gone in between."""
    store = SqliteStore.open(path)
    store.accept([waiting(f"{number}") for number in range(40)])
    ids = store._db.execute("SELECT id FROM message WHERE id % 7 = 3").fetchall()
    delete(store._db, [id_ for (id_,) in ids])
    queries = [Query(), Query(name="name of 39"), Query(destination=HERE), Query(key=key("8"))]
    whole = [store.browse(query, after=None, limit=15) for query in queries]
    assert [len(entries) for entries in whole] == [15, 1, 15, 1]
    browser = store._opened.browser
    for step in (1, 3, 39, 40):
        found = [read.browse(browser, query, None, 15, False, step=step) for query in queries]
        assert found == [(entries, []) for entries in whole]
    store.close()
