"""The PostgreSQL spool opened: URLs, promises, whose tables it finds there and in what form."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import socket
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from servers.pasted import pasted
from servers.postgres import Postgres, postgres, standby_of
from unspool.admin.plan import plan_of
from unspool.errors import Misconfigured, Missing, Newer, NoSpool, PromiseBroken, Unavailable
from unspool.settings import Settings
from unspool.spools.open import open_spool, reach_spool
from unspool.spools.postgres.errors import TABLE, translate
from unspool.spools.postgres.form import Found, refuse
from unspool.spools.postgres.rows import FORM, FORMS
from unspool.spools.postgres.spool import PostgresSpool
from unspool.spools.postgres.target import read_target
from unspool.spools.protocol import New, Promises, Survives
from unspool.testing.conformance.values import lease_all, names_of, waiting

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    # Nothing is flushed by itself, so that what is flushed was waited for.
    with postgres(durable=True, settings={"wal_writer_delay": "10s"}) as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"opened_{next(NUMBERS)}"


async def promises(url: str) -> Promises:
    spool = await open_spool(url)
    await spool.aclose()
    return spool.promises


# --- the URL --------------------------------------------------------------------------------------


def test_a_url_is_read_as_libpq_reads_it() -> None:
    target = read_target(
        "postgresql://me:p%40ss@h1:1,h2:2/mail?sslmode=require&schema=a&connections=3"
    )
    assert (target.schema, target.connections, target.deadline_s) == ("a", 3, 5.0)
    assert target.parameters["password"] == "p@ss"
    assert target.parameters["host"] == "h1,h2"
    assert target.parameters["sslmode"] == "require"
    assert "p%40ss" not in target.shown
    own = read_target("postgres://h/db?connect_timeout=9&deadline_ms=700")
    assert (own.parameters["connect_timeout"], own.deadline_s) == ("9", 0.7)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres:db", "is no URL of a PostgreSQL database"),
        ("postgres://me:hunter2/@h/db", "is no URL of a PostgreSQL database"),
        ("postgres://h/db?spool=x", "libpq does not know"),
        ("postgres://h/db?schema=My-Spool", "no name that a spool's schema may have"),
        ("postgres://h/db?schema=pg_spool", "no name that a spool's schema may have"),
        ("postgres://h/db?connections=1", "no number from 2 to 100"),
        ("postgres://h/db?deadline_ms=soon", "no number from 100 to 60000"),
    ],
)
async def test_a_url_that_is_none_says_what_would_do(url: str, says: str) -> None:
    with pytest.raises(Misconfigured, match=says) as caught:
        await open_spool(url)
    assert "hunter2" not in str(caught.value)
    assert "Nothing was opened" in str(caught.value)


async def test_without_psycopg_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("unspool.spools.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    before = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "psycopg":
            raise ImportError(name)
        return before(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Missing, match=r"pip install 'unspool\[postgres\]'") as caught:
        await open_spool("postgres://h/db")
    assert caught.value.exit_code == 69


def test_a_relay_with_one_worker_is_not_alone_on_a_server() -> None:
    """Another host's may have the same key under way: claims are written down."""
    for url, alone in (("sqlite:///a.db", True), ("memory:", True), ("postgres://h/db", False)):
        plan = plan_of(Settings(to=("http://a:1",), spool=(url,)))
        assert (plan.alone, plan.options.claims) == (alone, not alone)


# --- promises -------------------------------------------------------------------------------------


async def test_what_is_promised_is_measured(server: Postgres, schema: str) -> None:
    found = await promises(server.spool(schema))
    assert (found.survives, found.shared, found.fences) == (Survives.POWER, True, True)
    assert found.detail.startswith("PostgreSQL 1")
    assert found.detail.endswith("fsync=on, synchronous_commit=on")


async def test_a_weak_synchronous_commit_is_overruled(server: Postgres, schema: str) -> None:
    """It is anybody's to set: ours is on, and what we wrote is on the disk when we are told."""
    url = server.spool(schema, options="-c%20synchronous_commit%3Doff")
    spool = await open_spool(url)
    assert spool.promises.survives is Survives.POWER
    assert "synchronous_commit=on, set by us" in spool.promises.detail
    for number in range(5):
        before = server.flushed()
        await spool.accept([waiting(f"{number}")])
        assert server.flushed() - before > 500
    await spool.aclose()


async def test_without_fsync_it_survives_a_process(
    schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That is nobody's to overrule: the promise is lowered, loudly."""
    with postgres(durable=True, settings={"fsync": "off"}) as server:
        found = await promises(server.spool(schema))
    assert found.survives is Survives.PROCESS
    assert "fsync=off" in found.detail
    assert "lose messages at a power cut" in caplog.text


async def test_unlogged_tables_survive_a_process(server: Postgres, schema: str) -> None:
    await promises(server.spool(schema))
    server.execute(f"ALTER TABLE {schema}.body SET UNLOGGED")
    found = await promises(server.spool(schema))
    assert found.survives is Survives.PROCESS
    assert "unlogged" in found.detail


async def test_who_comes_to_promise_less_is_not_written_to(schema: str) -> None:
    """The grade stands in every receipt: nothing is accepted below it, and all goes on once the
    server is mended. What is there is delivered meanwhile."""
    with postgres(durable=True) as server:
        spool = await open_spool(server.spool(schema))
        assert isinstance(spool, PostgresSpool)
        await spool.accept([waiting("a")])
        for setting, works in (("fsync = off", False), ("fsync = on", True)):
            server.execute(f"ALTER SYSTEM SET {setting}")
            server.execute("SELECT pg_reload_conf()")
            await _until(server, setting)
            spool.measure_at = 0
            if works:
                assert isinstance((await spool.accept([waiting("b")]))[0], New)
                continue
            with pytest.raises(Unavailable, match=r"promised more .* fsync=off"):
                await spool.accept([waiting("b")])
            assert names_of(await lease_all(spool)) == ["a"]
        await spool.aclose()


async def _until(server: Postgres, setting: str) -> None:
    name, value = setting.split(" = ")
    while server.execute(f"SHOW {name}") != [(value,)]:
        await asyncio.sleep(0.02)


async def test_with_a_standby_it_survives_the_host(schema: str) -> None:
    """A commit waits for the standby, which takes no spool itself. Where it does not answer, nobody
    is told yes."""
    names = {"synchronous_standby_names": "standby"}
    with postgres(durable=True, settings=names) as server, standby_of(server) as standby:
        spool = await open_spool(server.spool(schema, deadline_ms=30_000))
        assert spool.promises.survives is Survives.MACHINE
        assert isinstance((await spool.accept([waiting("a")]))[0], New)
        with pytest.raises(PromiseBroken, match="is a standby"):
            await open_spool(standby.spool(schema))
        hasty = await open_spool(server.spool(schema, deadline_ms=1500))
        standby.stop()
        with pytest.raises(Unavailable, match=r"in time\. It may or may not"):
            await hasty.accept([waiting("b")])
        accepting = asyncio.create_task(spool.accept([waiting("c")]))
        cancelled = (
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event = 'SyncRep' AND pid <> pg_backend_pid() ORDER BY query_start DESC"
        )
        while not accepting.done():  # an administrator has no patience: it is on one host alone
            await asyncio.sleep(0.05)
            server.execute(cancelled)
        with pytest.raises(Unavailable, match="may or may not outlive the host"):
            await accepting
        await hasty.aclose()
        await spool.aclose()


# --- whose tables, in what form -------------------------------------------------------------------


async def test_many_who_open_it_first_make_it_once(server: Postgres, schema: str) -> None:
    spools = await asyncio.gather(*(open_spool(server.spool(schema)) for _ in range(6)))
    for number, spool in enumerate(spools):
        await spool.accept([waiting(f"{number}")])
    assert len(await lease_all(spools[0])) == 6
    for spool in spools:
        await spool.aclose()


@pytest.mark.parametrize("names", [("mine", "yours"), ("user", "order")])
async def test_two_spools_in_one_database(server: Postgres, names: tuple[str, str]) -> None:
    """Each schema is a spool of its own, also where its name is a word of SQL."""
    one, two = [await open_spool(server.spool(name)) for name in names]
    await one.accept([waiting("a")])
    assert await lease_all(two) == []
    assert names_of(await lease_all(one)) == ["a"]
    await one.aclose()
    await two.aclose()


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE {0}.message (id int)",
        "CREATE TABLE {0}.message (id int); CREATE TABLE {0}.body (); CREATE TABLE {0}.about ()",
        """CREATE TABLE {0}.message (x int); CREATE TABLE {0}.body (x int);
           CREATE TABLE {0}.about (program text, form int, oldest int);
           INSERT INTO {0}.about VALUES ('mailman', 1, 1)""",
    ],
)
async def test_somebody_elses_tables_are_left_alone(
    server: Postgres, schema: str, tables: str
) -> None:
    server.execute(f"CREATE SCHEMA {schema}; {tables.format(schema)}")
    with pytest.raises(Misconfigured, match=r"\?schema=") as caught:
        await open_spool(server.spool(schema))
    assert "not changed" in str(caught.value)


async def test_an_empty_schema_is_used(server: Postgres, schema: str) -> None:
    """An administrator has made it for us; we may not make schemas ourselves."""
    server.execute(f"CREATE ROLE {schema} LOGIN; CREATE SCHEMA AUTHORIZATION {schema}")
    url = server.spool(schema).replace("unspool@", f"{schema}@")
    spool = await open_spool(url)
    await spool.accept([waiting("a")])
    await spool.aclose()
    with pytest.raises(Misconfigured, match="lets this user not do") as caught:
        await open_spool(url.replace(f"schema={schema}", "schema=another"))
    assert "ALTER SCHEMA another OWNER" in str(caught.value)


async def test_a_newer_form_is_refused_or_kept(server: Postgres, schema: str) -> None:
    """A form that ours can work with is left as it is, with what it has more; others are not."""
    await promises(server.spool(schema))
    server.execute(f"ALTER TABLE {schema}.message ADD COLUMN colour text NOT NULL DEFAULT 'red'")
    server.execute(f"UPDATE {schema}.about SET form = {FORM + 1}")
    older = await open_spool(server.spool(schema))
    await older.accept([waiting("a")])
    assert names_of(await lease_all(older)) == ["a"]
    assert server.execute(f"SELECT form FROM {schema}.about") == [(FORM + 1,)]
    await older.aclose()
    server.execute(f"UPDATE {schema}.about SET oldest = {FORM + 1}")
    with pytest.raises(Newer, match=r"pip install -U unspool"):
        await open_spool(server.spool(schema))


def test_the_forms_lead_from_one_to_the_next() -> None:
    assert list(FORMS) == list(range(1, FORM + 1))
    assert all(oldest <= form for form, (oldest, _) in FORMS.items())


async def test_it_is_not_made_where_it_must_not_be(server: Postgres, schema: str) -> None:
    for _ in "12":
        with pytest.raises(NoSpool, match="looking makes none"):
            await reach_spool(server.spool(schema), create=False)


def test_a_server_that_is_too_old_is_refused() -> None:
    """None is to be had here: decided on what one says of itself."""
    old = Found(110022, "11.22", "on", "on", "on", "", False, False, None, False)
    with pytest.raises(PromiseBroken, match="needs 12 or newer"):
        refuse(old, read_target("postgres://h/db"))


# --- who cannot be reached ------------------------------------------------------------------------


async def test_wrong_credentials_say_so(schema: str) -> None:
    """Trying again is useless: the operator must act. The password is in nobody's message."""
    with postgres() as server:
        server.execute("CREATE ROLE clerk LOGIN PASSWORD 'right'")
        (server.data / "pg_hba.conf").write_text(
            "host all unspool 127.0.0.1/32 trust\nhost all clerk 127.0.0.1/32 scram-sha-256\n"
        )
        server.execute("SELECT pg_reload_conf()")
        for who, says in (
            ("clerk:hunter2@", "password authentication failed"),
            ("clerk@", "password"),
            ("stranger@", "no pg_hba.conf entry"),
        ):
            url = server.spool(schema).replace("unspool@", who)
            with pytest.raises(Misconfigured, match=says) as caught:
                await open_spool(url)
            assert "hunter2" not in str(caught.value)
        with pytest.raises(Misconfigured, match="createdb"):
            await open_spool(server.spool(schema).replace("/postgres?", "/nowhere?"))


def test_nobody_listens_there() -> None:
    """The sentence ends with a command that asks the very server, as it stands: no while it is
    down, yes when it is up again."""
    with postgres() as server:
        server.kill()
        with pytest.raises(Unavailable, match="pg_isready") as caught:
            asyncio.run(open_spool(server.spool("x").replace("unspool@", "unspool:hunter2@")))
        assert "hunter2" not in str(caught.value)
        assert pasted(caught.value, behind="runs: ").returncode == 2
        server.start()
        assert pasted(caught.value, behind="runs: ").returncode == 0
        nowhere = server.spool("x").replace("/postgres?", "/no'where?")
        with pytest.raises(Misconfigured, match="is in no database") as caught:
            asyncio.run(open_spool(nowhere))
        assert not pasted(caught.value, behind="Make one: ").stderr
        nobody = f"createuser -h 127.0.0.1 -p {server.port} nobody$"
        with pytest.raises(Misconfigured, match=nobody):
            asyncio.run(open_spool(nowhere.replace("unspool@", "nobody@")))


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("postgres://me:hunter2@db:5433/mail?schema=a&connections=4&deadline_ms=900",
         "psql -d 'user=me dbname=mail host=db port=5433'"),
        ("postgres://[::1]/mail?sslmode=require", "psql -d 'dbname=mail host=::1 sslmode=require'"),
        ("postgres://a,b/mail?target_session_attrs=read-write",
         "psql -d 'dbname=mail host=a,b port=, target_session_attrs=read-write'"),
        ("postgres:///?host=/run/pg&password=hunter2&sslpassword=hunter2", "psql -d host=/run/pg"),
        ("postgres://", "psql"),
    ],
)  # fmt: skip
def test_how_an_operator_asks(url: str, command: str) -> None:
    """Every command that is told names the very server that is meant, ready for a shell, with all
    that libpq has to know of it but a password."""
    target = read_target(url)
    assert target.command("psql") == command
    lost = translate(OSError("gone"), target, committing=True)
    assert str(lost).endswith(f"{command} -c 'TABLE pg_stat_activity'")
    for state, (_, _, help_) in TABLE.items():
        error = psycopg.errors.lookup(state)("no")
        told = str(translate(error, target, committing=False))
        assert "psql" not in help_ or command in told
        assert "{" not in told
        assert "hunter2" not in told


async def test_somebody_listens_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        took: list[float] = []
        while not took or (min(took) >= 4 and len(took) < 5):  # once more, where all stood still
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await open_spool(f"postgres://me@127.0.0.1:{port}/db?connect_timeout=2")
            took.append(asyncio.get_running_loop().time() - began)
        assert min(took) < 4
