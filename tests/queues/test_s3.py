"""S3: the contract against moto, and its own kinds of trouble."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from collecting import Collecting, check_page, written
from somebody import somebody
from taking import PATIENCE_MS, all_of, at_last

from ports import free_port
from servers.moto import Moto, moto
from unspool.errors import Misconfigured, Missing, Unavailable
from unspool.queues.open import open_queue
from unspool.queues.protocol import PAYLOAD_MAX_BYTES, Queue, Survives
from unspool.queues.s3 import Limits, open_s3
from unspool.queues.s3_names import listing
from unspool.testing.queues import QueueConformance

pytest.importorskip("obstore")

QUICK = Limits(connect_ms=500, answer_ms=700)
"""Where nobody answers."""
SOON = Limits(connect_ms=3_000, answer_ms=1_200)
"""Where somebody does, until he is paused."""
NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Moto]:
    with moto() as server:
        server.bucket("shop")
        yield server


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Moto.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def prefix() -> str:
    return f"parked/orders-{next(NUMBERS)}"


class TestS3(QueueConformance):
    quiet_ms = 10

    @pytest.fixture(autouse=True)
    def _prefix(self, server: Moto, prefix: str) -> None:
        self.server = server
        self.prefix = prefix

    async def open(self, *, aside: bool = False) -> Queue:
        return await open_queue(self.server.url(f"shop/{self.prefix}" + ".aside" * aside))


async def test_a_file_that_somebody_drops(server: Moto, prefix: str) -> None:
    """The drop box takes files under any name, from whoever may write there."""
    server.drop("shop", f"{prefix}/2026/order-7.json", written("order-7"))
    queue = open_s3(server.url(f"shop/{prefix}"))
    [taken] = await queue.take(limit=9, wait_ms=PATIENCE_MS)
    assert taken.payload == written("order-7")
    assert taken.name.endswith("/2026/order-7.json")
    await queue.complete([taken])
    assert list(await queue.take(limit=9, wait_ms=0)) == []
    await queue.aclose()


async def test_a_name_that_is_used_again(server: Moto, prefix: str) -> None:
    """5. What was written under the name meanwhile is another message: it stays, and is taken."""
    path = f"{prefix}/order.json"
    server.drop("shop", path, b"first")
    queue = open_s3(server.url(f"shop/{prefix}"))
    [taken] = await queue.take(limit=9, wait_ms=PATIENCE_MS)
    server.drop("shop", path, b"second")
    await queue.complete([taken])
    [again] = await queue.take(limit=9, wait_ms=PATIENCE_MS)
    assert again.payload == b"second"
    server.drop("shop", path, None)
    await queue.complete([again])
    await queue.aclose()


async def test_round_and_round(server: Moto, prefix: str) -> None:
    """What is given back does not stand before the others for ever."""
    for name in "abcd":
        server.drop("shop", f"{prefix}/{name}", name.encode())
    queue = open_s3(server.url(f"shop/{prefix}"))
    seen = []
    for _ in range(6):
        [taken] = await queue.take(limit=1, wait_ms=PATIENCE_MS)
        seen.append(taken.payload)
        await queue.give_back([taken])
    assert seen == [b"a", b"b", b"c", b"d", b"a", b"b"]
    await queue.aclose()


async def test_a_giant_is_left_where_it_is(
    server: Moto, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """3. It is not read, is told once, and holds nothing up."""
    server.drop("shop", f"{prefix}/giant", bytes(PAYLOAD_MAX_BYTES + 1))
    queue = open_s3(server.url(f"shop/{prefix}"))
    await queue.put([b"small"])
    with caplog.at_level(logging.ERROR):
        for _ in "123":
            [taken] = await queue.take(limit=9, wait_ms=PATIENCE_MS)
            assert taken.payload == b"small"
            await queue.give_back([taken])
    [record] = caplog.records
    assert "is left where it is" in record.getMessage()
    await queue.aclose()


@pytest.mark.parametrize("name", ["/7.json", "../7.json", "./7.json", "%097.json"])
async def test_a_name_that_cannot_be_read(
    server: Moto, prefix: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """10. S3 has names that obstore does not take: one of these is told, and holds nothing up."""
    server.ask("PUT", f"shop/{prefix}/{name}", b"strange")
    queue = open_s3(server.url(f"shop/{prefix}"))
    await queue.put([b"one", b"two"])
    with caplog.at_level(logging.ERROR):
        taken = await queue.take(limit=9, wait_ms=PATIENCE_MS)
        await queue.complete(taken)
        assert list(await queue.take(limit=9, wait_ms=0)) == []
    assert {one.payload for one in taken} == {b"one", b"two"}
    [record] = caplog.records
    assert "has a name that obstore does not take" in record.getMessage()
    await queue.aclose()


async def test_a_server_that_is_paused(server: Moto, prefix: str) -> None:
    """10. No answer, no custody, and no waiting beyond the deadline."""
    queue = open_s3(server.url(f"shop/{prefix}"), limits=SOON)
    server.pause()
    try:
        with pytest.raises(Unavailable, match="is safe to hand over again"):
            await queue.put([b"one"])
        with pytest.raises(Unavailable):
            await queue.take(limit=1, wait_ms=60_000)
    finally:
        server.go_on()
    await at_last(lambda: queue.put([b"two"]))
    found = await all_of(queue, least={b"two"}, hasty=True)
    assert {b"two"} <= {*found} <= {b"one", b"two"}
    await queue.aclose()


async def test_no_such_bucket(server: Moto) -> None:
    """A person must act, and is told what to look at."""
    queue = open_s3(server.url("nowhere/orders"))
    with pytest.raises(Misconfigured, match="there is no such bucket"):
        await queue.put([b"one"])
    with pytest.raises(Misconfigured, match="there is no such bucket"):
        await queue.take(limit=1, wait_ms=0)


@pytest.mark.parametrize(
    "say",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 33\r\n\r\n<Error><Code>SlowDown</Code></Err>",
        b"\0RES\0\0\0\x06\0\0\0\0",
    ],
    ids=["silence", "HTTP", "slow down", "garbage"],
)
async def test_no_s3(say: bytes) -> None:
    """10. Each verb ends within its deadline."""
    async with somebody(say) as port:
        queue = open_s3(f"s3://shop/orders?endpoint=http://127.0.0.1:{port}", limits=QUICK)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await queue.put([b"one"])
        with pytest.raises(Unavailable):
            await queue.take(limit=1, wait_ms=60_000)
        assert asyncio.get_running_loop().time() - began < 30


async def test_many_callers_wait_for_one_deadline_together() -> None:
    """10. Who comes behind a failure is told of it, and does not wait as long again."""
    async with somebody(b"") as port:
        queue = open_s3(f"s3://shop/orders?endpoint=http://127.0.0.1:{port}", limits=QUICK)
        began = asyncio.get_running_loop().time()
        calls = (queue.put([b"%d" % number]) for number in range(100))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in ended)
        assert asyncio.get_running_loop().time() - began < 100 * 0.7 / 4
        await queue.aclose()


async def test_an_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    """What obstore can only panic at is the operator's to mend, too."""
    monkeypatch.setenv("AWS_ENDPOINT", "nonsense")
    with pytest.raises(Misconfigured, match="AWS_ENDPOINT"):
        await open_s3("s3://shop/orders").put([b"one"])


async def test_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """10. A refused connection, and the command asks there, and not at Amazon."""
    there = f"http://127.0.0.1:{free_port()}"
    queue = open_s3(f"s3://shop/orders?endpoint={there}&region=eu-x", limits=QUICK)
    command = f"aws s3 ls s3://shop/orders/ --endpoint-url {there} --region eu-x"
    with pytest.raises(Unavailable, match=rf"Try: {command}$"):
        await queue.put([b"one"])
    monkeypatch.setenv("AWS_ENDPOINT", there)
    with pytest.raises(Unavailable, match=rf"--endpoint-url {there}$"):
        await open_s3("s3://shop/orders", limits=QUICK).put([b"one"])
    at_six = listing("shop/orders", {"endpoint": "http://[::1]:9"})
    assert at_six == "aws s3 ls s3://shop/orders/ --endpoint-url 'http://[::1]:9'"


def test_collected(server: Moto, prefix: str, tmp_path: Path) -> None:
    """`unspool collect s3://…`: the same collector, and what nobody can read is set aside."""
    for name, payload in {"a": written("a"), "b": written("b"), "c": b"no JSON"}.items():
        server.drop("shop", f"{prefix}/{name}.json", payload)
    collector = Collecting(tmp_path, server.url(f"shop/{prefix}"), to="http://127.0.0.1:9")
    assert collector.once() == 0
    assert "collected: 2, set aside: 1" in collector.text()
    assert server.names("shop", f"{prefix}/") == []

    async def aside() -> list[bytes]:
        queue = open_s3(server.url(f"shop/{prefix}.aside"))
        return [one.payload for one in await queue.take(limit=9, wait_ms=PATIENCE_MS)]

    assert asyncio.run(aside()) == [b"no JSON"]


SHORT = """
import asyncio, sys
from unspool.queues.open import open_queue

async def main(url, body):
    queue = await open_queue(url)
    await queue.put([body])
    await queue.aclose()

asyncio.run(main(sys.argv[1], sys.argv[2].encode()))
"""


@pytest.mark.timeout(300)
def test_a_short_program_ends_as_it_should(server: Moto, prefix: str) -> None:
    """Handed over, and out at once: the process does not abort because a thread of the library
    still had to do with Python. On a busy machine one in five did."""
    url = server.url(f"shop/{prefix}")

    def run(number: int) -> int:
        command = [sys.executable, "-c", SHORT, url, f"body {number}"]
        return subprocess.run(
            command, stderr=subprocess.DEVNULL, timeout=120, check=False
        ).returncode

    with ThreadPoolExecutor(6) as pool:
        assert {*pool.map(run, range(30))} == {0}
    assert len(server.names("shop", f"{prefix}/")) == 30


def test_the_page(server: Moto, tmp_path: Path) -> None:
    """docs/howto/s3.md: its commands do what it says."""
    names = [f"export {name}={value}" for name, value in Moto.environment.items()]
    check_page("s3.md", tmp_path, {"9000": str(server.port)}, before="\n".join(names))


@pytest.mark.parametrize(
    "url",
    [
        "s3:", "s3://", "s3:///orders", "s3://A/orders", "s3://bucket/a b", "s3://bucket/a//b",
        "s3://bucket/orders?survives=much", "s3://bucket?acl=public", "s3://bucket/a#b",
        "s3://key:secret@bucket/orders", "s3://bucket/a?endpoint=nonsense", "s3://bucket/a?endpoint=",
        "s3://bucket/a?region=%00", "s3://bucket/a?endpoint=http://u:secret@here",
    ],
)  # fmt: skip
def test_urls_that_make_no_sense(url: str) -> None:
    """The message says how to write one, and no password."""
    with pytest.raises(Misconfigured, match="s3://bucket/prefix") as caught:
        open_s3(url)
    assert "secret" not in str(caught.value)


def test_urls() -> None:
    """AWS keeps what it has; of others that is known by the operator's word alone."""
    assert open_s3("s3://bucket/a/b").promises.survives is Survives.MACHINE
    assert open_s3("s3://bucket/a/b").promises.aside == "a/b.aside"
    assert open_s3("s3://bucket").promises.aside == "unspool.aside"
    there = "s3://bucket/a?endpoint=http://127.0.0.1:9000"
    assert open_s3(there).promises.survives is Survives.NOTHING
    assert open_s3(f"{there}&survives=power").promises.survives is Survives.POWER


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, and exits 69."""
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(Missing, match=r"pip install 'unspool\[s3\]'") as caught:
        open_s3("s3://bucket/orders")
    assert caught.value.exit_code == 69
