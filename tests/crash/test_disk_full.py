"""M8, the disk is full: refused before responsibility is taken, never 202 for what is not there.

The spool is on a disk of a few MiB that fills up, once by what the relay itself accepts and once
by somebody else's file. While it is full: 503 with Retry-After for what would have to be saved,
the service's own answers for all that passes through, and what was accepted earlier is delivered.
When there is room again the relay takes custody again, without being told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .checker import check
from .disks import Disk, need_disk, ram_disk
from .history import Call, History, now_ns
from .load import note, settle
from .processes import Relay, eventually
from .service import Service
from .wire import ask

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

SIZE = 400_000
"""Bytes of a body."""
MIB = 256
"""Of the disk: room for the WAL's 32 MiB, the default reserve of 64 and a few hundred bodies."""


@pytest.fixture(params=["tmpfs", "ext4"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    need_disk()
    if request.param == "tmpfs":
        with ram_disk(tmp_path, size_mib=MIB) as mount:
            yield mount
    else:
        with Disk(tmp_path, size_mib=MIB) as disk:
            yield disk.mount


def relay_on(mount: Path, folder: Path, service: Service, *, reserve: str) -> Relay:
    arguments = (
        "--survives", "process", "--disk-free-min-bytes", reserve, "--backoff-most-ms", "2s",
    )  # fmt: skip
    return Relay(folder, to=service.url, spool=mount / "spool.db", arguments=arguments)


async def save(port: int, history: History, name: str, *, keyed: bool = True) -> Call:
    """One request that is to be saved."""
    fields = {"Prefer": "respond-async"}
    if keyed:
        fields["Idempotency-Key"] = name
    call = Call(name if keyed else "", f"<{name}>".encode().ljust(SIZE, b"."), asked_at=now_ns())
    history.calls.append(call)
    told = await ask(port, "POST", "/save", fields=fields, body=call.body)
    note(call, told)
    if not call.accepted:
        assert told.status == 503, told
        assert call.refused == "refused", told
        assert int(told.fields["retry-after"]) >= 1
        assert told.fields["proxy-status"].startswith("unspool")
    return call


async def passes(port: int, name: str, *, keyed: bool) -> None:
    """Somebody else's request goes through as if nothing were the matter."""
    fields = {"Idempotency-Key": name} if keyed else {}
    told = await ask(port, "POST", "/pass", fields=fields, body=f"<{name}>".encode())
    assert told.status == 200, told
    assert told.body.startswith(b"done"), told


async def until_refused(port: int, history: History, name: str) -> int:
    for number in range(10_000):
        if not (await save(port, history, f"{name}-{number}")).accepted:
            return number
    raise AssertionError("the disk never filled")


def mostly(kind: str) -> Callable[[str, bytes], str]:
    """What is to be saved fares so; the rest is well. 425 leaves the lane open."""
    return lambda _key, body: "ok" if body.startswith(b"<pass") else kind


async def test_filled_by_what_it_accepts(mount: Path, tmp_path: Path) -> None:
    """It stops at its reserve, delivers out of it, and takes custody again when it has."""
    history = History()
    with Service() as service:
        service.weather = mostly("425")
        relay = relay_on(mount, tmp_path, service, reserve="64MiB")
        try:
            await relay.start()
            taken = await until_refused(relay.port, history, "a")
            await refused_and_passed(relay.port, history)
            service.weather = mostly("ok")
            await settle(relay.port, history, seconds=60)
            assert all(one.state == "delivered" for one in history.finals.values())
            await eventually(lambda: _takes(relay.port, history), "custody again", seconds=40)
            await settle(relay.port, history, seconds=60)
        finally:
            code = relay.ended_with()
            relay.end()
            assert code is None, f"the relay ended with {code}:\n{relay.tail()}"
    history.handled = [one for one in service.handled if b"<pass" not in one.body]
    print(f"\nfull to the reserve: {taken} taken, all delivered, and custody again")
    assert taken > 50
    assert check(history) == []
    assert refused_were_not_done(history)


async def test_filled_to_the_last_byte(mount: Path, tmp_path: Path) -> None:
    """Without a reserve it fills the disk. Nothing is lost by that; with room, all goes out."""
    history = History()
    ballast = mount / "ballast"
    with Service() as service:
        service.weather = mostly("425")
        relay = relay_on(mount, tmp_path, service, reserve="0")
        try:
            await relay.start()
            ballast.write_bytes(b"\0" * (64 << 20))
            taken = await until_refused(relay.port, history, "a")
            await refused_and_passed(relay.port, history)
            service.weather = mostly("ok")
            ballast.unlink()
            await settle(relay.port, history, seconds=60)
            await eventually(lambda: _takes(relay.port, history), "custody again", seconds=40)
            await settle(relay.port, history, seconds=60)
        finally:
            code = relay.ended_with()
            relay.end()
            assert code is None, f"the relay ended with {code}:\n{relay.tail()}"
    history.handled = [one for one in service.handled if b"<pass" not in one.body]
    print(f"\nfull to the last byte: {taken} taken, all delivered once there was room")
    assert taken > 50
    assert check(history) == []
    assert refused_were_not_done(history)


async def refused_and_passed(port: int, history: History) -> None:
    """While it is full: others pass, and what would have to be saved is refused each time."""
    before = len(history.calls)
    for number in range(20):
        await passes(port, f"pass-{number}", keyed=number % 2 == 0)
        await save(port, history, f"b-{number}")
        await asyncio.sleep(0.05)
    refused = [call for call in history.calls[before:] if call.refused]
    assert len(refused) > 10


def refused_were_not_done(history: History) -> bool:
    accepted = {call.body for call in history.accepted()}
    done = {one.body for one in history.effects()}
    return not any(call.body in done - accepted for call in history.calls if call.refused)


async def _takes(port: int, history: History) -> bool:
    name = f"again-{len(history.calls)}"
    return (await save(port, history, name)).accepted


async def test_filled_by_somebody_else(mount: Path, tmp_path: Path) -> None:
    """Not a byte is left, from one moment to the next; then there is room again."""
    history = History()
    with Service() as service:
        service.weather = mostly("425")
        relay = relay_on(mount, tmp_path, service, reserve="0")
        try:
            await relay.start()
            for number in range(30):
                assert (await save(relay.port, history, f"before-{number}")).accepted
            hog = mount / "hog"
            fill(hog)
            refused = 0
            for number in range(30):
                refused += not (await save(relay.port, history, f"full-{number}")).accepted
                await passes(relay.port, f"pass-{number}", keyed=number % 2 == 0)
            health = await relay.health()
            hog.unlink()
            await eventually(lambda: _takes(relay.port, history), "custody again", seconds=40)
            service.weather = mostly("ok")
            await settle(relay.port, history, seconds=60)
            # And the file is sound: a restart finds the same.
            assert await relay.stop() == 0
            await relay.start()
            history.finals.clear()
            await settle(relay.port, history, seconds=60)
        finally:
            code = relay.ended_with()
            relay.end()
            assert code is None, f"the relay ended with {code}:\n{relay.tail()}"
    history.handled = [one for one in service.handled if b"<pass" not in one.body]
    print(f"\nfilled by somebody else: {refused} of 30 refused while full")
    assert refused > 20
    assert health["takes_custody"] is False
    assert check(history) == []


def fill(path: Path) -> None:
    """Write until nothing more goes, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 512, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


async def test_a_full_disk_at_the_start_is_said_and_nothing_is_begun(
    mount: Path, tmp_path: Path
) -> None:
    with Service() as service:
        fill(mount / "hog")
        relay = relay_on(mount, tmp_path, service, reserve="0")
        with pytest.raises(AssertionError, match="the relay ended with 7"):
            await relay.start()
        relay.end()
        assert "Make room" in relay.tail() or "cannot be" in relay.tail()
        (mount / "hog").unlink()
        try:
            await relay.start()
            assert (await relay.health())["takes_custody"]
        finally:
            code = relay.ended_with()
            relay.end()
            assert code is None, f"the relay ended with {code}:\n{relay.tail()}"
