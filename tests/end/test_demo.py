"""The demonstration: does it detect what it claims to detect, and does it leave nothing behind?

First the arithmetic, with losses and doubles planted. Then the orders service, killed with kill -9.
Then the whole demonstration as a person runs it, once well, once with a double planted into the
ledger behind its back, once interrupted and once killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.demo.processes import Child, Family, free_ports  # noqa: E402
from examples.demo.sender import Sender  # noqa: E402
from examples.demo.tally import CROSSED, Ending, Order, tally  # noqa: E402
from examples.demo.wire import Broken, Pool, Reply, request  # noqa: E402
from examples.orders.ledger import Follower, Ledger  # noqa: E402
from examples.orders.weather import Weather  # noqa: E402

# --- the arithmetic -----------------------------------------------------------------------------


def test_a_clean_run_is_clean() -> None:
    orders = [
        Order("a", ending=Ending.ANSWERED),
        Order("b", ending=Ending.SAVED, sent_again=2),
        Order("c", ending=Ending.ANSWERED),
    ]
    result = tally(orders, {"a": 1, "b": 1, "c": 1})
    assert result.clean
    assert (result.sent, result.answered, result.saved, result.delivered_later) == (3, 2, 1, 1)
    assert (result.missing, result.sent_again, result.lost, result.doubled) == (0, 2, (), ())


@pytest.mark.parametrize("ending", list(Ending))
def test_what_is_not_in_the_ledger_is_lost_whatever_the_sender_was_told(ending: Ending) -> None:
    result = tally([Order("a", ending=Ending.ANSWERED), Order("b", ending=ending)], {"a": 1})
    assert result.lost == ("b",)
    assert result.missing == 1
    assert not result.clean
    assert result.promised == (ending in (Ending.ANSWERED, Ending.SAVED))


def test_two_effects_under_one_key_are_a_double() -> None:
    orders = [Order("a", ending=Ending.ANSWERED), Order("b", ending=Ending.SAVED)]
    result = tally(orders, {"a": 1, "b": 2})
    assert result.doubled == ("b",)
    assert not result.lost
    assert not result.clean


def test_a_double_does_not_make_up_for_a_loss() -> None:
    orders = [Order("a", ending=Ending.SAVED), Order("b", ending=Ending.SAVED)]
    result = tally(orders, {"a": 2})
    assert (result.lost, result.doubled) == (("b",), ("a",))


def test_a_bounce_gives_responsibility_back_and_is_no_loss() -> None:
    result = tally([Order("a", ending=Ending.SAVED, state="bounced")], {})
    assert (result.bounced, result.missing, result.lost) == (1, 1, ())


def test_an_error_that_was_done_all_the_same_is_in_doubt_and_not_lost() -> None:
    orders = [
        Order("a", ending=Ending.FAILED, trouble="status 500"),
        Order("b", ending=Ending.FAILED, trouble="status 500"),
    ]
    result = tally(orders, {"a": 1})
    assert (result.failed, result.in_doubt, result.lost) == (2, 1, ("b",))
    assert result.troubles == {"status 500": 2}


def test_somebody_elses_answer_is_not_clean() -> None:
    result = tally([Order("a", ending=Ending.FAILED, trouble=CROSSED)], {"a": 1})
    assert result.crossed == 1
    assert not result.clean


def test_effects_of_others_are_nobodys() -> None:
    assert tally([Order("a", ending=Ending.ANSWERED)], {"a": 1, "z": 2}).clean


# --- the ledger ---------------------------------------------------------------------------------


def test_losses_and_doubles_planted_in_a_ledger_are_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    orders = [Order(f"k{n}", ending=Ending.ANSWERED) for n in range(10)]
    for order in orders:
        ledger.write(order.key, "tea", 1)
    follower = Follower(path).look()
    assert tally(orders, follower.counts).clean

    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:], lines[7]]))  # k3 away, k7 twice
    result = tally(orders, Follower(path).look().counts)
    assert (result.lost, result.doubled) == (("k3",), ("k7",))


def test_half_a_line_was_not_done(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).write("a", "tea", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 2, "key": "b"')
    assert Follower(path).look().counts == {"a": 1}
    ledger = Ledger(path)
    assert ledger.find("b") is None
    assert path.read_bytes() == whole
    assert ledger.write("b", "ink", 2).number == 2
    assert Follower(path).look().counts == {"a": 1, "b": 1}


def test_a_follower_takes_a_line_in_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    follower = Follower(path)
    assert not follower.look().counts
    Ledger(path).write("a", "tea", 1)
    line = path.read_bytes()
    path.write_bytes(line + line[:10])
    assert follower.look().counts == {"a": 1}
    path.write_bytes(line + line)
    assert follower.look().counts == {"a": 2}


# --- the service --------------------------------------------------------------------------------


class Shop:
    """A running orders service, for a test."""

    def __init__(self, family: Family) -> None:
        port, weather_port = free_ports(2)
        self.ledger = family.folder / "ledger"
        argv = [sys.executable, "-m", "examples.orders", "--port", str(port)]
        argv += ["--weather-port", str(weather_port), "--ledger", str(self.ledger)]
        self.child: Child = family.child("shop", argv, port=port, cwd=ROOT, environ=os.environ)
        self.pool = Pool(port)
        self.forecast = Pool(weather_port)

    async def order(self, key: str, item: str = "tea") -> Reply:
        body = json.dumps({"item": item}).encode()
        fields = [("Idempotency-Key", f'"{key}"')]
        return await self.pool.exchange(request("POST", "/orders", body, fields), patience_s=20.0)

    async def weather(self, weather: str) -> Reply:
        data = request("POST", "/weather", weather.encode())
        return await self.forecast.exchange(data, patience_s=20.0)

    def effects(self) -> dict[str, int]:
        return dict(Follower(self.ledger).look().counts)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    with Family(tmp_path) as family:
        shop = Shop(family)
        yield shop
        shop.pool.close()
        shop.forecast.close()
        await asyncio.sleep(0)  # for the loop to close the sockets


async def test_a_key_is_done_once_and_answered_the_same_even_after_kill_9(shop: Shop) -> None:
    await shop.child.start()
    first = await shop.order("k1")
    assert first.status == 201
    again = await shop.order("k1")
    assert (again.status, again.body) == (201, first.body)
    assert (await shop.order("k1", "rope")).status == 422
    shop.child.kill()
    with pytest.raises(Broken):
        await shop.order("k1")
    await shop.child.start()
    later = await shop.order("k1")
    assert (later.status, later.body) == (201, first.body)
    assert shop.effects() == {"k1": 1}


async def test_the_weather_is_as_it_says(shop: Shop) -> None:
    await shop.child.start()
    assert (await shop.weather("hail")).status == 400
    await shop.weather(Weather.RESET)
    with pytest.raises(Broken, match="connection broken"):
        await shop.order("reset")
    await shop.weather(Weather.UNAVAILABLE)
    assert (await shop.order("503")).status == 503
    await shop.weather(Weather.RETRY_AFTER)
    assert (await shop.order("503")).fields["retry-after"] == "2"
    await shop.weather(Weather.ERROR)
    assert [(await shop.order(key)).status for key in ("e1", "e2")] == [500, 500]
    assert shop.effects() == {"reset": 1, "e1": 1}
    await shop.weather(Weather.FINE)
    assert (await shop.order("reset")).status == 201
    assert shop.effects() == {"reset": 1, "e1": 1}


async def test_a_plain_client_gives_up_and_a_sender_with_a_key_does_not(shop: Shop) -> None:
    await shop.child.start()
    await shop.weather(Weather.UNAVAILABLE)
    plain, stubborn = (
        Sender(shop.child.port, resends=resends, patience_s=20.0) for resends in (False, True)
    )
    lost, kept = Order("lost"), Order("kept")
    body = b'{"item": "tea"}'
    await plain.send(lost, body)
    assert (lost.ending, lost.trouble) == (Ending.FAILED, "status 503")
    sending = asyncio.create_task(stubborn.send(kept, body))
    while not kept.sent_again:
        await asyncio.sleep(0.01)
    await shop.weather(Weather.FINE)
    await sending
    assert kept.ending is Ending.ANSWERED
    assert tally([lost, kept], shop.effects()).lost == ("lost",)
    plain.close()
    stubborn.close()


# --- the whole demonstration --------------------------------------------------------------------


@contextmanager
def demonstration(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demonstration as a process. Everything it starts names `folder` in its command line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--plain", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left_behind(folder: Path) -> list[str]:
    """Command lines of processes that have to do with this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def counted(output: str, road: str) -> tuple[int, int]:
    found = re.search(rf"{road}: lost (\d+), doubled (\d+)", output)
    assert found, output
    return int(found[1]), int(found[2])


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read until a line with these words."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if words in line:
            return read
    raise AssertionError(f"it ended without {words!r}:\n{read}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_through_the_relay(tmp_path: Path) -> None:
    with demonstration(tmp_path, "--seconds", "15", "--rate", "60") as process:
        output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    assert counted(output, "through the relay") == (0, 0)
    lost, doubled = counted(output, "straight to the service")
    assert lost > 0, output
    assert doubled == 0
    assert "the RELAY is killed: kill -9" in output
    assert "Traceback" not in output
    assert "\x1b" not in output
    assert not left_behind(tmp_path)
    assert not list(tmp_path.iterdir()), "the folder is cleaned up"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_double_behind_its_back_is_found(tmp_path: Path) -> None:
    """Somebody orders twice in the service's name: the demonstration must not call that clean."""
    with demonstration(tmp_path, "--seconds", "6", "--rate", "40") as process:
        wait_for(process, "Retry-After")
        [ledger] = tmp_path.glob("*/service-1.ledger")
        with ledger.open("ab") as file:
            file.write(ledger.read_bytes().splitlines(keepends=True)[0])
        output, _ = process.communicate(timeout=250)
    assert process.returncode == 1, output
    assert counted(output, "through the relay") == (0, 1)
    assert "are kept in" in output
    assert list(tmp_path.glob("*/relay.log"))
    assert not left_behind(tmp_path)


FULL = """
import contextlib, socket, sys
from examples.demo import __main__ as demo, processes
processes.PORTS = (10_000, 11_000)
held = [socket.socket() for _ in range(1000)]
for port, one in enumerate(held, 10_000):
    with contextlib.suppress(OSError):
        one.bind(("127.0.0.1", port))
sys.argv = ["demo"]
sys.exit(demo.main())
"""


def test_without_a_port_it_says_so(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["sh", "-c", 'ulimit -n 2048; exec "$@"', "sh", sys.executable, "-c", FULL],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "cannot go on: no 5 ports" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with demonstration(tmp_path, "--seconds", "15", "--rate", "60") as process:
        wait_for(process, "the service is killed")
        assert left_behind(tmp_path)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not left_behind(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_its_children_die_with_it_even_by_kill_9(tmp_path: Path) -> None:
    with demonstration(tmp_path, "--seconds", "15", "--rate", "60") as process:
        wait_for(process, "all is well")
        assert left_behind(tmp_path)
        process.kill()
        process.wait()
        give_up_at = time.monotonic() + 60
        while left_behind(tmp_path) and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert not left_behind(tmp_path)
