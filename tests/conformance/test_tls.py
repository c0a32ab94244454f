"""Spools in servers over TLS: what is not who it says it is, is told nothing.

Real servers with certificates of an authority that is made here. Each is opened under its name;
refused under another name, and where its authority is not known; and what does not speak TLS, or
has it taken out of its greeting, never hears a password.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from crash.processes import ROUNDS
from ports import free_port
from servers.nats import nats
from servers.postgres import account, open_folder, postgres
from servers.redis import redis
from unspool.errors import Misconfigured, NotDone
from unspool.spools.open import open_spool
from unspool.spools.protocol import Spool
from unspool.spools.redis.link import Patience
from unspool.spools.redis.spool import RedisSpool

ENGINES: Final = ("postgres", "redis", "nats")
SECRET: Final = "s3cret"
NAMED: Final = r"(?i)certificate"


class Certificates:
    """Of one server, for `localhost` alone, in files that its user can read."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        self.ours, self.others = str(folder / "ca.pem"), str(folder / "other.pem")
        self.chain, self.key = folder / "server.pem", folder / "server.key"
        authority.cert_pem.write_to_path(self.ours)
        trustme.CA().cert_pem.write_to_path(self.others)
        self.chain.write_bytes(issued.cert_chain_pems[0].bytes())
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.key.chmod(0o600)
        if (who := account()) is not None:  # PostgreSQL wants a key that is its own
            os.chown(self.key, who.pw_uid, who.pw_gid)


Url = Callable[..., str]
"""Of the spool: at a host, trusting a file, perhaps at another port."""


@contextmanager
def served(engine: str) -> Iterator[tuple[Url, int, Certificates]]:
    """Its URL, a port of its where TLS is not spoken (0: there is none), and its certificates."""
    with open_folder() as folder, ExitStack() as stack:
        made = Certificates(folder)
        if engine == "postgres":
            tls = {"ssl": "on", "ssl_cert_file": str(made.chain), "ssl_key_file": str(made.key)}
            postgres_ = stack.enter_context(postgres(settings=tls))

            def url(host: str, ca: str, port: int = 0) -> str:
                where = f"{postgres_.user}:{SECRET}@{host}:{port or postgres_.port}"
                return f"postgres://{where}/postgres?sslmode=verify-full&sslrootcert={ca}"

            yield url, 0, made
        elif engine == "redis":
            port_ = free_port()
            files = {"tls-cert-file": made.chain, "tls-key-file": made.key}
            tls = {name: str(path) for name, path in files.items()}
            tls |= {"tls-port": str(port_), "tls-ca-cert-file": made.ours}
            tls |= {"tls-auth-clients": "no", "requirepass": SECRET}
            redis_ = stack.enter_context(redis(settings=tls, memory=True))

            def url(host: str, ca: str, port: int = 0) -> str:
                return f"rediss://:{SECRET}@{host}:{port or port_}/0?ssl_ca_certs={ca}"

            yield url, redis_.port, made
        else:
            tls_block = f'tls {{ cert_file: "{made.chain}", key_file: "{made.key}" }}'
            users = f"authorization {{ user: me, password: {SECRET} }}"
            nats_ = stack.enter_context(nats(settings=f"{tls_block}\n{users}"))

            def url(host: str, ca: str, port: int = 0) -> str:
                return f"nats://me:{SECRET}@{host}:{port or nats_.port}/unspool?ca={ca}"

            yield url, 0, made


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, Url, int, Certificates]]:
    with served(request.param) as (url, plain, made):
        yield request.param, url, plain, made


async def opened(url: str) -> None:
    before = sockets()
    try:
        spool: Spool = await open_spool(url)
        await spool.aclose()
    finally:
        async with asyncio.timeout(60):
            while sockets() > before:  # transports let go of theirs when the other side has
                await asyncio.sleep(0.01)


def sockets() -> int:
    """How many this process has."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the list itself
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


async def test_under_its_name_and_its_authority_it_is_opened(engine: Any) -> None:
    _, url, _, made = engine
    await opened(url("localhost", made.ours))


async def test_another_name_is_refused(engine: Any) -> None:
    """The certificate says `localhost`; an address is another name."""
    _, url, _, made = engine
    with pytest.raises(Misconfigured, match=NAMED) as refused:
        await opened(url("127.0.0.1", made.ours))
    assert SECRET not in str(refused.value)


async def test_an_unknown_authority_is_refused(engine: Any) -> None:
    _, url, _, made = engine
    with pytest.raises(Misconfigured, match=NAMED) as refused:
        await opened(url("localhost", made.others))
    assert SECRET not in str(refused.value)
    assert refused.value.exit_code == 78


async def test_what_does_not_speak_tls_is_told_nothing(engine: Any) -> None:
    """Somebody answers as a server that speaks no TLS, as whoever sits in between could. And where
    the server itself has a port for that, it is not used either."""
    name, url, plain, made = engine
    heard: list[bytes] = []
    over = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await GREETINGS[name](reader, writer, heard)
        writer.close()
        over.set()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Misconfigured, match="does not speak TLS") as refused:
            await opened(url("localhost", made.ours, server.sockets[0].getsockname()[1]))
        await asyncio.wait_for(over.wait(), 60)
    assert SECRET not in str(refused.value)
    assert refused.value.exit_code == 78
    assert not any(SECRET.encode() in said or b"CONNECT" in said for said in heard)
    if plain:
        with pytest.raises(NotDone, match="without TLS"):
            await RedisSpool.open(
                url("localhost", made.ours, plain), patience=Patience(connect_s=0.3)
            )


@pytest.mark.skipif(ROUNDS == 1, reason="the exit code is the error's; a relay takes 3 s to say it")
async def test_the_relay_does_not_start_with_it(engine: Any) -> None:
    """Exit 78, and a sentence; it is not tried again and again."""
    _, url, _, made = engine
    env = {name: value for name, value in os.environ.items() if not name.startswith("UNSPOOL_")}
    command = ["serve", "--to", "http://127.0.0.1:1", "--listen", f"127.0.0.1:{free_port()}"]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "unspool", *command, "--spool", url("localhost", made.others)],
        capture_output=True, text=True, timeout=60, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 78
    assert "certificate" in done.stderr
    assert SECRET not in done.stderr + done.stdout


async def _as_postgres(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[bytes]
) -> None:
    heard.append(await reader.readexactly(8))
    writer.write(b"N")  # no TLS here
    heard.append(await reader.read(4096))


async def _as_redis(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[bytes]
) -> None:
    heard.append(await reader.read(4096))
    writer.write(b"-ERR unknown command\r\n")
    heard.append(await reader.read(4096))


async def _as_nats(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: list[bytes]
) -> None:
    writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576}\r\n')
    heard.append(await reader.read(4096))


Greeting = Callable[[asyncio.StreamReader, asyncio.StreamWriter, list[bytes]], Awaitable[None]]
GREETINGS: Final[dict[str, Greeting]] = {
    "postgres": _as_postgres, "redis": _as_redis, "nats": _as_nats,
}  # fmt: skip
