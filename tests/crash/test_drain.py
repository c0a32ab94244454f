"""Drain: SIGTERM ends a relay in order. SIGTERM again ends it now; nothing is lost by either."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from servers import process

from .checker import check
from .history import History, now_ns
from .load import ASYNC, KEYED, PLAIN, Load, at_stake, settle
from .processes import ROUNDS, Relay, both, eventually, listens, unread
from .service import Service
from .wire import Severed, ask

pytestmark = pytest.mark.slow

DRAINS = 6 * ROUNDS
DRAIN_S = 5
LATE_S = 15
"""How much later than that it may end, on a machine that has something else to do."""
ARGUMENTS = ("--drain-ms", f"{DRAIN_S}s", "--backoff-most-ms", "2s")
PATIENT = ("--drain-ms", "60s", "--backoff-most-ms", "2s")
"""Where everything in flight ends, and so the drain."""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.timeout(240 + 10 * DRAINS)
async def test_deployed_again_and_again_under_load(tmp_path: Path, workers: int) -> None:
    """Exit 0 in time, every time; what was in flight is answered; nothing goes a second time.

    No crash excuses anything here: the checker is told of none.
    """
    history = History()
    took: list[float] = []
    codes: list[int] = []
    more = ("--workers", "2") if workers == 2 else ()
    with Service() as service:
        service.weather = lambda key, _body: "425" if key.endswith(("1", "6")) else "ok"
        relay = Relay(tmp_path, to=service.url, arguments=(*ARGUMENTS, *more))
        try:
            await relay.start()
            load = Load(relay.port, history, name="d", senders=8, jobs=(KEYED, ASYNC, PLAIN))
            running = asyncio.create_task(load.run())
            for _ in range(DRAINS):
                if workers == 2:
                    await both(relay)
                begun = len(history.calls)
                await asyncio.sleep(0.5)
                await at_stake(history, since=begun, accepted=11)
                began = time.monotonic()
                codes.append(await relay.stop())
                took.append(time.monotonic() - began)
                await relay.start()
            service.weather = lambda _key, _body: "ok"
            load.stop()
            await running
            await settle(relay.port, history)
            codes.append(await relay.stop())
        finally:
            relay.end()
    history.handled = list(service.handled)
    cut_off = [
        call for call in history.calls if not call.told_at and "no connection" not in call.error
    ]
    print(
        f"\ndrains: {DRAINS} with {workers} worker(s), slowest {max(took):.2f} s;"
        f" {len(cut_off)} calls cut off; {history.summary()}"
    )
    assert codes == [0] * len(codes)
    assert max(took) < DRAIN_S + LATE_S
    assert check(history) == []
    assert len(history.accepted()) > 10 * DRAINS  # each had something at stake
    # An idle connection may be closed just as its sender speaks. But whoever was heard is answered:
    # a request that has no key is sent once, so if it is known to the service, its sender was told.
    seen = {one.body for one in service.handled}
    assert [call for call in cut_off if call.body in seen and not call.key] == []


@pytest.mark.parametrize("workers", [1, 2])
async def test_told_to_stop_as_soon_as_it_answers(tmp_path: Path, workers: int) -> None:
    """A deployment that is taken back at once: whoever answers can be asked to go in order."""
    with Service() as service:
        arguments = (*ARGUMENTS, "--workers", str(workers))
        relay = Relay(tmp_path, to=service.url, arguments=arguments)
        codes = []
        try:
            for _ in range(10):
                await relay.start()
                codes.append(await relay.stop())
        finally:
            relay.end()
    assert codes == [0] * 10


async def test_what_is_in_flight_is_answered(tmp_path: Path) -> None:
    """A request that is at the service when the signal comes gets its answer; a newcomer none."""
    with Service() as service:
        service.weather = lambda _key, _body: "hold"
        relay = Relay(tmp_path, to=service.url, arguments=PATIENT)
        try:
            await relay.start()
            asking = [
                asyncio.create_task(
                    ask(relay.port, "POST", "/", fields={"Idempotency-Key": f"k{n}"}, body=b"x")
                )
                for n in range(10)
            ]
            for _ in asking:
                assert await asyncio.to_thread(service.held.acquire, True, 60)
            relay.signal(signal.SIGTERM)
            await eventually(lambda: not listens(relay.port), "it accepts no more")
            service.release()
            told = await asyncio.gather(*asking)
            code = await relay.ended(seconds=50)
        finally:
            relay.end()
    assert {one.status for one in told} == {200}
    assert {one.fields.get("connection") for one in told} == {"close"}
    assert code == 0


async def test_a_request_that_came_with_its_connection_is_in_flight_too(tmp_path: Path) -> None:
    """The relay is held still, so that it finds the connection and its request at once."""
    with Service() as service:
        service.weather = lambda _key, _body: "hold"
        relay = Relay(tmp_path, to=service.url, arguments=PATIENT)
        try:
            await relay.start()
            process.stop(relay.pid)
            asking = asyncio.create_task(
                ask(relay.port, "POST", "/", fields={"Idempotency-Key": "k"}, body=b"x")
            )
            await eventually(lambda: unread(relay.port), "connection and request wait for it")
            relay.signal(signal.SIGCONT)
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            relay.signal(signal.SIGTERM)
            await eventually(lambda: not listens(relay.port), "it accepts no more")
            await asyncio.sleep(0.5)
            service.release()
            told = await asking
            code = await relay.ended(seconds=50)
        finally:
            relay.end()
    assert (told.status, code) == (200, 0)


async def test_who_waits_for_an_answer_gets_the_receipt(tmp_path: Path) -> None:
    """`Prefer: wait` is cut short: a receipt is as good elsewhere."""
    with Service(up=False) as service:
        relay = Relay(tmp_path, to=service.url, arguments=("--drain-ms", "40s"))
        try:
            await relay.start()
            fields = {"Idempotency-Key": "k", "Prefer": "wait=50"}
            asking = asyncio.create_task(ask(relay.port, "POST", "/", fields=fields, timeout=60))

            async def saved() -> bool:
                return bool((await relay.health())["backlog"])

            await eventually(saved, "it was saved, and its sender waits")
            began = now_ns()
            code = await relay.stop()
            told = await asking
        finally:
            relay.end()
    assert told.status == 202
    assert code == 0
    assert now_ns() - began < 30_000_000_000


async def test_what_does_not_end_is_left_to_the_spool(tmp_path: Path) -> None:
    """The service hangs: the relay goes when its time is up, and the next one delivers."""
    with Service() as service:
        service.weather = lambda _key, _body: "hang"
        relay = Relay(tmp_path, to=service.url, arguments=ARGUMENTS)
        history = History()
        try:
            await relay.start()
            load = Load(relay.port, history, name="h", senders=4, jobs=(ASYNC,))
            await load.run(jobs=10)
            await eventually(lambda: service.handled, "the first attempts")
            began = time.monotonic()
            code = await relay.stop()
            took = time.monotonic() - began
            history.crashes.append(now_ns())
            service.weather = lambda _key, _body: "ok"
            await relay.start()
            await settle(relay.port, history)
        finally:
            relay.end()
    history.handled = list(service.handled)
    assert code == 0
    assert DRAIN_S - 1 < took < DRAIN_S + LATE_S
    assert check(history) == []
    assert len(history.accepted()) == 40


async def test_nobody_is_cut_off_by_a_service_that_outlasts_the_drain(tmp_path: Path) -> None:
    """What may be sent again is saved in the last second: 202, and one delivery after the restart.
    The others are told 503, and those who may safely send again, when."""
    with Service() as service:
        service.weather = lambda _key, _body: "hang"
        relay = Relay(tmp_path, to=service.url, arguments=ARGUMENTS)
        try:
            await relay.start()
            fields = {"keyed": {"Idempotency-Key": '"k"', "Prefer": "wait=50"}}
            asking = {
                name: asyncio.create_task(
                    ask(
                        relay.port, method, f"/{name}", fields=fields.get(name, {}),
                        body=b"" if method == "GET" else name.encode(), timeout=30,
                    )
                )
                for name, method in {
                    "keyed": "POST", "put": "PUT", "plain": "POST", "get": "GET",
                }.items()
            }  # fmt: skip
            await eventually(lambda: len(service.handled) >= 4, "they are all at the service")
            began = time.monotonic()
            code = await relay.stop()
            took = time.monotonic() - began
            told = {name: await task for name, task in asking.items()}
            service.weather = lambda _key, _body: "ok"
            await relay.start()
            for name in ("keyed", "put"):
                where = told[name].fields["location"]
                final = await ask(relay.port, "GET", f"{where}/response?wait=20", timeout=30)
                receipt = await ask(relay.port, "GET", f"{where}?wait=20", timeout=30)
                assert json.loads(receipt.body)["state"] == "delivered", final
        finally:
            relay.end()
    assert code == 0
    assert took < DRAIN_S + LATE_S
    assert {name: one.status for name, one in told.items()} == {
        "keyed": 202, "put": 202, "plain": 503, "get": 503,
    }  # fmt: skip
    problems = {name: json.loads(told[name].body)["type"] for name in ("plain", "get")}
    assert problems["plain"].endswith("/cut-short")
    assert problems["get"].endswith("/closing")
    assert "retry-after" in told["get"].fields
    assert "retry-after" not in told["plain"].fields
    assert all("unspool" in told[name].fields["proxy-status"] for name in told)
    effects = [one.body for one in service.handled if one.effect]
    assert sorted(effects) == [b"keyed", b"put"]


async def test_a_group_that_is_told_drains_however_late_its_parent_passes_it_on(
    tmp_path: Path,
) -> None:
    """As systemd and a terminal do. The parent's word is the one that all have heard: no second."""
    with Service() as service:
        service.weather = lambda _key, _body: "hold"
        relay = Relay(tmp_path, to=service.url, arguments=(*PATIENT, "--workers", "2"))
        try:
            await relay.start()
            await both(relay)
            asking = [
                asyncio.create_task(ask(relay.port, "POST", "/", body=b"%d" % number))
                for number in range(8)
            ]
            for _ in asking:
                assert await asyncio.to_thread(service.held.acquire, True, 60)
            process.stop(relay.pid)
            os.killpg(relay.pid, signal.SIGTERM)
            await eventually(lambda: relay.tail().count("draining") == 2, "both have heard")
            await asyncio.sleep(0.3)
            relay.signal(signal.SIGCONT)
            await asyncio.sleep(0.3)
            service.release()
            told = await asyncio.gather(*asking)
            code = await relay.ended(seconds=50)
        finally:
            relay.end()
    assert [one.status for one in told] == [200] * 8
    assert code == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_terminal_that_closes_is_a_word_to_stop(tmp_path: Path, workers: int) -> None:
    """SIGHUP, from it or from a hand that means "read your settings", cuts nobody off. Under nohup
    it is nothing."""
    more = ("--workers", "2") if workers == 2 else ()
    with Service() as service:
        service.weather = lambda _key, _body: "hold"
        heeding = ("env", "--default-signal=HUP")  # whoever runs these tests may be careless, too
        relay = Relay(tmp_path, to=service.url, arguments=(*PATIENT, *more), under=heeding)
        careless = Relay(tmp_path, to=service.url, spool=tmp_path / "n.db", under=("nohup",))
        try:
            await relay.start()
            if workers == 2:
                await both(relay)
            await careless.start()
            careless.signal(signal.SIGHUP)
            asking = asyncio.create_task(ask(relay.port, "POST", "/", body=b"x"))
            assert await asyncio.to_thread(service.held.acquire, True, 60)
            relay.signal(signal.SIGHUP)
            await eventually(lambda: relay.tail().count("draining") == workers, "all have heard")
            service.release()
            told = await asking
            code = await relay.ended(seconds=50)
            assert (await careless.health())["ready"]
        finally:
            relay.end()
            careless.end()
    assert (told.status, code) == (200, 0)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_stops_now(tmp_path: Path, workers: int) -> None:
    more = ("--workers", "2") if workers == 2 else ()
    history = History()
    with Service() as service:
        service.weather = lambda _key, _body: "hang"
        arguments = ("--drain-ms", "60s", "--backoff-most-ms", "2s", *more)
        relay = Relay(tmp_path, to=service.url, arguments=arguments)
        try:
            await relay.start()
            if workers == 2:
                await both(relay)
            load = Load(relay.port, history, name="s", senders=4, jobs=(ASYNC,))
            await load.run(jobs=5)
            await eventually(lambda: service.handled, "the first attempts")
            hanging = asyncio.create_task(ask(relay.port, "POST", "/", body=b"x"))
            await eventually(lambda: b"x" in [one.body for one in service.handled], "it is there")
            relay.signal(signal.SIGTERM)
            await eventually(lambda: relay.tail().count("draining") == workers, "all have heard")
            await asyncio.sleep(0.5)  # two that come before it could hear the first are one
            assert relay.ended_with() is None, "it drains"
            began = time.monotonic()
            code = await relay.stop()
            took = time.monotonic() - began
            with pytest.raises(Severed):
                await hanging
            service.handled = [one for one in service.handled if one.body != b"x"]
            history.crashes.append(now_ns())
            service.weather = lambda _key, _body: "ok"
            await relay.start()
            await settle(relay.port, history)
        finally:
            relay.end()
    history.handled = list(service.handled)
    assert took < 20, "it drains for 60 s"
    assert code == 128 + signal.SIGTERM
    assert check(history) == []
