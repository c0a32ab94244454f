"""How a Redis or Valkey is set up, and what that makes of the promise; and bad input."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest
from redis.exceptions import ResponseError

from ports import free_port
from servers.pasted import pasted
from servers.redis import Redis, redis
from unspool.errors import (
    Misconfigured,
    Newer,
    NoSpool,
    NotDone,
    PromiseBroken,
    Unavailable,
    UnspoolError,
)
from unspool.spools.open import open_spool, reach_spool
from unspool.spools.protocol import New, Survives
from unspool.spools.redis.link import Patience
from unspool.spools.redis.rows import FORM
from unspool.spools.redis.server import judge, parse_info
from unspool.spools.redis.spool import RedisSpool
from unspool.spools.redis.trouble import Stage, translate
from unspool.spools.redis.url import read_url
from unspool.testing.conformance.values import (
    LEASED_UNTIL,
    NOW,
    delivered,
    key,
    lease_all,
    settled,
    waiting,
)

WATCHFUL = Patience(measure_s=0)
"""It measures each time."""
HELD_UP = range(9)
"""So often a test may find that all stood still for a moment, and looks once more."""
GOOD = {"redis_version": "7.0.15", "role": "master", "aof_enabled": "1"}
ALWAYS = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
EVERYSEC = {**ALWAYS, "appendfsync": "everysec"}
VALKEY = {**GOOD, "redis_version": "7.2.4", "valkey_version": "9.1.2"}


@pytest.mark.parametrize(
    ("info", "config", "survives", "waits"),
    [
        (GOOD, ALWAYS, Survives.POWER, False),
        (GOOD, EVERYSEC, Survives.PROCESS, False),
        (GOOD, {**ALWAYS, "appendfsync": "no"}, Survives.PROCESS, False),
        (GOOD, {**ALWAYS, "no-appendfsync-on-rewrite": "yes"}, Survives.PROCESS, False),
        (GOOD, {}, Survives.PROCESS, False),
        ({**GOOD, "aof_enabled": "0"}, ALWAYS, Survives.NOTHING, False),
        (VALKEY, ALWAYS, Survives.POWER, False),
        (VALKEY, EVERYSEC, Survives.POWER, True),
        (VALKEY, {**ALWAYS, "no-appendfsync-on-rewrite": "yes"}, Survives.PROCESS, False),
        (VALKEY, {**ALWAYS, "appendfsync": "no"}, Survives.PROCESS, False),
        (VALKEY, {}, Survives.PROCESS, False),
        ({**GOOD, "maxmemory": "0", "maxmemory_policy": "allkeys-lru"}, ALWAYS, Survives.POWER,
         False),
        ({**GOOD, "maxmemory": "9", "maxmemory_policy": "noeviction"}, ALWAYS, Survives.POWER,
         False),
    ],
)  # fmt: skip
def test_what_it_promises(
    info: dict[str, str], config: dict[str, str], survives: Survives, waits: bool
) -> None:
    """The promise is what the server's own settings make of it; never `machine`."""
    measured = judge(info, config, read_url("redis://x"))
    assert (measured.survives, measured.waits) == (survives, waits)
    if survives < Survives.POWER:
        assert "redis-cli -h x -p 6379 CONFIG SET appendfsync always" in measured.detail


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"redis_version": "6.0.16"}, Misconfigured, "too old"),
        ({"redis_version": "?"}, Misconfigured, "too old"),
        ({"redis_mode": "cluster"}, Misconfigured, "part of a cluster"),
        ({"loading": "1"}, NotDone, "reading its data"),
        ({"role": "slave", "master_host": "10.0.0.7"}, Unavailable, "10.0.0.7"),
        ({"maxmemory": "9", "maxmemory_policy": "allkeys-lru"}, PromiseBroken,
         "CONFIG SET maxmemory-policy noeviction"),
    ],
)  # fmt: skip
def test_what_it_refuses(change: dict[str, str], error: type[UnspoolError], says: str) -> None:
    """Where messages would be lost, or cannot be written, nothing is opened, and a sentence says
    why and how to mend it."""
    with pytest.raises(error, match=says):
        judge({**GOOD, **change}, ALWAYS, read_url("redis://x"))


def test_info_is_read() -> None:
    """Headings and empty lines are no settings."""
    assert parse_info(b"# Server\r\nredis_version:7.0.15\r\n\r\nos:a:b\r\n") == {
        "redis_version": "7.0.15",
        "os": "a:b",
    }


async def test_real_servers() -> None:
    """Measured on real ones: as Debian sets it up nothing is promised; then it is mended while it
    runs; a promise that goes away is noticed, and nothing more is accepted."""
    with redis(settings={"appendonly": "no", "appendfsync": "everysec"}) as server:
        spool = await RedisSpool.open(server.url)
        assert spool.promises.survives is Survives.NOTHING
        assert "restart of the server loses everything" in spool.promises.detail
        await spool.aclose()
        server.redis().config_set("appendonly", "yes")
        spool = await _opened(server, Survives.PROCESS)
        await spool.aclose()
        server.redis().config_set("appendfsync", "always")
        spool = await _opened(server, Survives.POWER)
        await spool.accept([waiting("a")])
        server.redis().config_set("appendfsync", "everysec")
        with pytest.raises(Unavailable, match="promised more"):
            await spool.accept([waiting("b")])
        server.redis().config_set("appendfsync", "always")
        assert isinstance((await spool.accept([waiting("b")]))[0], New)
        server.redis().config_set("maxmemory-policy", "allkeys-lru")
        server.redis().config_set("maxmemory", "1gb")
        with pytest.raises(Unavailable, match="throws keys away"):
            await spool.accept([waiting("c")])
        with pytest.raises(PromiseBroken):
            await RedisSpool.open(server.url)
        await spool.aclose()


async def _opened(server: Redis, survives: Survives) -> RedisSpool:
    until = time.monotonic() + 60  # the AOF is written anew when it is switched on
    while server.redis().info("persistence")["aof_rewrite_in_progress"]:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    spool = await RedisSpool.open(server.url, patience=WATCHFUL)
    assert spool.promises.survives is survives
    return spool


FOR_EVER_US = 60_000_000


async def test_an_aof_that_is_still_being_made() -> None:
    """Just switched on, the AOF holds nothing until it has been written for the first time: what is
    written meanwhile is lost with the server."""
    with redis(settings={"appendonly": "no"}) as server:
        client = server.redis()
        client.config_set("rdb-key-save-delay", FOR_EVER_US)
        client.set("somebody's", "key")
        client.config_set("appendonly", "yes")
        with pytest.raises(Unavailable, match="for the first time"):
            await RedisSpool.open(server.url)
        client.config_set("appendonly", "no")  # that one is given up
        client.config_set("rdb-key-save-delay", 0)
        client.config_set("appendonly", "yes")
        spool = await _opened(server, Survives.POWER)
        await spool.aclose()


async def test_an_aof_that_is_made_smaller() -> None:
    """The first rewrite of an AOF that was there from the beginning is no reason to refuse."""
    with redis() as server:
        spool = await RedisSpool.open(server.url, patience=WATCHFUL)
        await spool.accept([waiting("a"), waiting("b")])
        client = server.redis()
        client.config_set("rdb-key-save-delay", FOR_EVER_US)
        client.bgrewriteaof()
        while not client.info("persistence")["aof_rewrite_in_progress"]:
            await asyncio.sleep(0.01)
        await spool.accept([waiting("c")])
        assert client.info("persistence")["aof_rewrite_in_progress"]
        assert client.info("persistence")["aof_base_size"] == 0
        await spool.aclose()
        client.config_set("appendonly", "no")  # or whoever rewrites it would outlive the server


class Witness:
    """Stands before a server and answers WAITAOF itself: in `after_s`, or that it was not synced.
    Counts how often it was asked. (No server that answers it truly could be had for the tests.)"""

    def __init__(self, port: int, *, after_s: float) -> None:
        self._port = port
        self.after_s = after_s
        self.synced = True
        self.says = b""
        """Instead of an answer."""
        self.asked = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: Any, writer: Any) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._back(there, writer))
        self._tasks |= {back, asyncio.current_task()}  # type: ignore[arg-type]
        try:
            while sent := await reader.read(1 << 16):
                if b"\r\nWAITAOF\r\n" in sent:
                    self.asked += 1
                    await asyncio.sleep(self.after_s)
                    writer.write(self.says or b"*2\r\n:%d\r\n:0\r\n" % self.synced)
                else:
                    to.write(sent)
        finally:
            back.cancel()
            to.close()
            writer.close()

    async def _back(self, there: Any, writer: Any) -> None:
        while sent := await there.read(1 << 16):
            # what Debian has calls itself older than it would have to be
            writer.write(sent.replace(b"redis_version:7.0.15", b"redis_version:7.4.15"))
        writer.close()


async def test_waitaof() -> None:
    """With `everysec` each write waits until the server says that it has synced. One that does not
    sync is no custody: Unavailable, in time."""
    with redis(settings={"appendfsync": "everysec"}) as server:
        witness = Witness(server.port, after_s=0.35)
        async with witness as url:
            spool = await RedisSpool.open(url)
            assert spool.promises.survives is Survives.POWER
            assert "WAITAOF" in spool.promises.detail
            assert witness.asked == 2, "it was tried before it was believed"
            await spool.accept([waiting("a", repeat=False), waiting("b")])
            leases = await lease_all(spool)
            assert await spool.settle([(lease, delivered()) for lease in leases]) == [True, True]
            assert witness.asked == 5
            await spool.accept([waiting("c")])
            await lease_all(spool)
            await spool.expire(now=NOW, until=LEASED_UNTIL, limit=1)
            assert witness.asked == 8, "a token that a power cut takes back would be given twice"
            await spool.find([key("c")])
            assert witness.asked == 8
            await spool.find([key("c"), key("a")])
            assert witness.asked == 9, "who is shown an answer may rely on it"
            witness.synced = False
            with pytest.raises(Unavailable, match="not synced it"):
                await spool.accept([waiting("d")])
            await spool.aclose()


@pytest.mark.parametrize("says", ["BUSY Redis is busy", "NOPERM no", "MISCONF no disk"])
async def test_what_was_taken_and_not_confirmed(says: str) -> None:
    """12. Whatever the server says once it has the batch, it has it: nobody is told otherwise."""
    with redis(settings={"appendfsync": "everysec"}) as server:
        witness = Witness(server.port, after_s=0.35)
        async with witness as url:
            spool = await RedisSpool.open(url)
            witness.says = f"-{says}\r\n".encode()
            with pytest.raises(Unavailable, match="may or may not be kept") as raised:
                await spool.accept([waiting("a")])
            assert not isinstance(raised.value, NotDone)
            assert await spool.find([key("a")]) != [None]
            await spool.aclose()


async def test_out_of_memory_with_waitaof() -> None:
    """12. What is asked to be synced beside the batches takes no memory that is not there: answers
    are shown, and a relay can be started, or there would never be room again."""
    with redis(settings={"appendfsync": "everysec", "maxmemory-policy": "noeviction"}) as server:
        witness = Witness(server.port, after_s=0.35)
        async with witness as url:
            spool = await RedisSpool.open(url)
            await spool.accept([settled("a"), waiting("b")])
            client = server.redis()
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
            assert await spool.find([key("a")]) != [None]
            await spool.aclose()
            spool = await RedisSpool.open(url)
            assert spool.promises.survives is Survives.POWER
            [lease] = await lease_all(spool)
            assert await spool.settle([(lease, delivered())]) == [True]
            await spool.aclose()


async def test_a_waitaof_that_is_slow_once() -> None:
    """A server that was believed, and after its restart seems to lie for once (a sync that took
    long), is tried again: it is not shut out for as long as it runs."""
    with redis(settings={"appendfsync": "everysec"}) as server:
        witness = Witness(server.port, after_s=0.35)
        async with witness as url:
            for number in HELD_UP:  # then what comes at once seems to have been waited for
                witness.after_s = 0.35
                spool = await RedisSpool.open(url, patience=WATCHFUL)
                server.kill()
                server.start()
                witness.after_s = 0
                with pytest.raises(NotDone):  # what was connected is no more
                    await spool.accept([waiting("a")])
                again = spool.accept([waiting(f"{number}")])
                [told] = await asyncio.gather(again, return_exceptions=True)
                if isinstance(told, NotDone):
                    break
                await spool.aclose()
            assert "promised more" in str(told)
            witness.after_s = 0.35
            assert isinstance((await spool.accept([waiting("a")]))[0], New)
            await spool.aclose()


async def test_a_waitaof_that_lies() -> None:
    """One that says it has synced before it can have is not believed."""
    with redis(settings={"appendfsync": "everysec"}) as server:
        async with Witness(server.port, after_s=0) as url:
            for _ in HELD_UP:  # then what comes at once seems to have been waited for
                spool = await RedisSpool.open(url)
                await spool.aclose()
                if spool.promises.survives is Survives.PROCESS:
                    break
            assert spool.promises.survives is Survives.PROCESS
            assert "before it has synced" in spool.promises.detail


async def test_a_real_waitaof() -> None:
    """A real server that knows it: either it is not believed, or it makes us wait."""
    with redis(valkey=True, settings={"appendfsync": "everysec"}) as server:
        for number in HELD_UP:
            spool = await RedisSpool.open(server.url)
            began = time.monotonic()
            await spool.accept([waiting(f"a{number}")])
            await spool.accept([waiting(f"b{number}")])
            waited = time.monotonic() - began > 0.8
            await spool.aclose()
            if (spool.promises.survives is Survives.POWER) == waited:
                break
        assert (spool.promises.survives is Survives.POWER) == waited


async def test_passwords() -> None:
    """Wrong, missing, or one too many: a sentence, and never the password itself."""
    with redis(settings={"requirepass": "s3cret"}) as server:
        good = f"redis://:s3cret@127.0.0.1:{server.port}"
        await (await open_spool(good)).aclose()
        for url, says in (
            (f"redis://:wr0ng@127.0.0.1:{server.port}", "password"),
            (f"redis://127.0.0.1:{server.port}", "asks for a password"),
        ):
            with pytest.raises(Misconfigured, match=says) as raised:
                await open_spool(url)
            assert "wr0ng" not in str(raised.value)
        server.redis().execute_command(
            "ACL", "SETUSER", "weak", "on", ">pw", "~{unspool}:*", "+@read", "+auth", "+client"
        )
        with pytest.raises(Misconfigured, match="does not let this user"):
            await open_spool(f"redis://weak:pw@127.0.0.1:{server.port}")
        server.redis().execute_command(
            "ACL", "SETUSER", "mute", "on", ">pw", "~{unspool}:*", "resetchannels", "+@all",
            "-@dangerous", "+info",
        )  # fmt: skip
        with pytest.raises(Misconfigured, match="does not let this user"):  # not after a batch
            await open_spool(f"redis://mute:pw@127.0.0.1:{server.port}")
        server.redis().execute_command(
            "ACL", "SETUSER", "able", "on", ">pw", "~{unspool}:*", "&{unspool}:*", "+@all",
            "-@dangerous", "+info",
        )  # fmt: skip
        able = f"redis://able:pw@127.0.0.1:{server.port}"
        spool = await open_spool(able)
        assert spool.promises.survives is Survives.PROCESS  # it may not see appendfsync
        await spool.accept([waiting("a")])
        assert len(await lease_all(spool)) == 1
        await spool.aclose()
        server.redis().execute_command("ACL", "SETUSER", "able", "+config|get")
        spool = await open_spool(able)
        assert spool.promises.survives is Survives.POWER
        waiter = asyncio.create_task(spool.wait_arrival())  # it may listen
        await spool.accept([waiting("b")])
        await waiter
        await spool.aclose()


async def test_another_programs_keys() -> None:
    """What is not ours is not touched; what a newer unspool has written is not read."""
    with redis() as server:
        client = server.redis()
        client.set("{theirs}:about", "x")
        client.hset("{cart}:about", "colour", "red")
        client.sadd("{set}:all", "x")
        for name in ("theirs", "cart", "set"):
            with pytest.raises(Misconfigured, match="another program"):
                await RedisSpool.open(server.spool(name))
        for _ in "12":
            with pytest.raises(NoSpool, match="looking makes none"):
                await reach_spool(server.spool("typo"), create=False)
        assert client.dbsize() == 3
        client.hset("{newer}:about", mapping={"unspool": "9", "id": "x", "rings": 0, "seq": 0})
        with pytest.raises(Newer, match=f"reads {FORM.decode()}"):
            await RedisSpool.open(server.spool("newer"))


async def test_replicas_and_clusters() -> None:
    """A replica takes no writes; a cluster would send us from server to server."""
    with redis() as server:
        spool = await RedisSpool.open(server.url, patience=Patience(measure_s=60))
        server.redis().execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        with pytest.raises(Unavailable, match="has become a replica"):
            await spool.accept([waiting("a")])
        with pytest.raises(Unavailable, match="is a replica"):
            await RedisSpool.open(server.url)
        await spool.aclose()
    with (
        redis(settings={"cluster-enabled": "yes", "cluster-port": str(free_port())}) as server,
        pytest.raises(Misconfigured, match="part of a cluster"),
    ):
        await RedisSpool.open(server.url)


def test_nobody_there() -> None:
    """Refused at once, with a command that can be pasted as it stands: it asks that very server,
    and gets an answer once it is up again."""
    with redis() as server:
        server.kill()
        with pytest.raises(NotDone, match=r"cannot be reached.*Nothing was done") as caught:
            asyncio.run(RedisSpool.open(server.url))
        assert pasted(caught.value, behind="Is it there: ").returncode != 0
        server.start()
        assert pasted(caught.value, behind="Is it there: ").stdout == "PONG\n"


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://h", "redis-cli -h h -p 6379"),
        ("redis://h:7/0", "redis-cli -h h -p 7"),
        ("valkey://[::1]:6380/3?name=a", "valkey-cli -h ::1 -p 6380 -n 3"),
        ("redis://:hunter2@h", "redis-cli -h h -p 6379 --askpass"),
        ("redis://m%24e:hunter2@h", "redis-cli -h h -p 6379 --user 'm$e' --askpass"),
        ("rediss://h?ssl_ca_certs=/a%20b&ssl_certfile=c&ssl_keyfile=k",
         "redis-cli -h h -p 6379 --tls --sni h --cacert '/a b' --cert c --key k"),
        ("valkeys://[::1]?ssl_cert_reqs=none", "valkey-cli -h ::1 -p 6379 --tls --insecure"),
    ],
)  # fmt: skip
def test_how_an_operator_asks(url: str, command: str) -> None:
    """Every command that is told names the very server that is meant, ready for a shell; the client
    of whose scheme it is; and never a password."""
    place = read_url(url)
    assert place.cli == command
    down = translate(ConnectionError("refused"), place, at=Stage.CONNECTING)
    full = translate(
        ResponseError("OOM command not allowed when used memory"), place, at=Stage.ASKED
    )
    assert str(down).endswith(f"Is it there: {command} PING")
    assert str(full).endswith(f"Make room: {command} INFO memory")


@pytest.mark.parametrize(
    ("url", "made"),
    [
        ("redis://h", ("redis://h", "unspool")),
        ("redis://u:p%40@h:7/3?name=a.b", ("redis://u:p%40@h:7/3", "a.b")),
        ("valkey://h/", ("redis://h/", "unspool")),
        ("valkeys://h?ssl_ca_certs=/a", ("rediss://h?ssl_ca_certs=%2Fa", "unspool")),
        ("rediss://[::1]:6380/0", ("rediss://[::1]:6380/0", "unspool")),
    ],
)
def test_urls(url: str, made: tuple[str, str]) -> None:
    """Server, database and name; a password stays as it is."""
    place = read_url(url)
    assert (place.url, place.name) == made


@pytest.mark.parametrize(
    "url",
    [
        "redis:", "redis:///0", "redis://h/db", "redis://h:x", "redis://h/0?name=", "redis://h:99999",
        "redis://h/0?name={a}", "redis://h/0?ssl_ca_certs=a", "redis://h/0?sokcet_timeout=3", "redis://h/0/1",
    ],
)  # fmt: skip
async def test_bad_urls(url: str) -> None:
    """Nothing is opened, and a sentence gives an example."""
    with pytest.raises(Misconfigured, match=r"redis://127\.0\.0\.1:6379/0"):
        await open_spool(url)


def test_without_the_package() -> None:
    """The opener names the pip line, and the command exits 69."""
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from unspool.admin.cli import main\n"
        "sys.argv[1:] = ['queue', '--spool', 'valkey://127.0.0.1']\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'unspool[redis]'" in done.stderr
    assert done.returncode == 69


async def test_tls(tmp_path: Any) -> None:
    """`rediss:` speaks TLS, and asks whom it speaks to."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    with (tmp_path / "cert.pem").open("wb") as chain:
        chain.writelines(blob.bytes() for blob in issued.cert_chain_pems)
    port = free_port()
    settings = {
        "tls-port": str(port), "tls-cert-file": str(tmp_path / "cert.pem"),
        "tls-key-file": str(tmp_path / "key.pem"), "tls-ca-cert-file": str(tmp_path / "ca.pem"),
        "tls-auth-clients": "no",
    }  # fmt: skip
    with redis(settings=settings):
        url = f"rediss://localhost:{port}/0"
        spool = await RedisSpool.open(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}")
        await spool.accept([waiting("a")])
        assert await spool.seize([waiting("a").message.key], now=NOW, until=LEASED_UNTIL) != [None]
        await spool.aclose()
        with pytest.raises(Misconfigured, match="certificate"):
            await RedisSpool.open(url)
