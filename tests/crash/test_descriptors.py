"""Descriptors: a relay that may have few of them says so, and turns callers away in order."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.admin.descriptors import SPARE, Caps, fit, needed

from .processes import Relay
from .service import Service
from .wire import ask


@given(st.integers(1, 20_000), st.integers(1, 2_000), st.integers(1, 8), st.integers(80, 100_000))
def test_what_fits_is_left_alone_and_what_does_not_is_made_to(
    callers: int, upstream: int, servers: int, limit: int
) -> None:
    """Never more than the limit, never more than was asked for, and no more taken than need be."""
    wanted = Caps(callers, upstream)
    caps = fit(wanted, servers=servers, limit=limit)
    assert caps.callers <= callers
    assert 1 <= caps.upstream <= upstream
    if needed(wanted, servers=servers) <= limit:
        assert caps == wanted
    elif caps.callers and limit > SPARE + 16 * servers:
        assert needed(caps, servers=servers) <= limit
        if caps.callers < callers:
            more = Caps(caps.callers + 3, caps.upstream)
            assert needed(more, servers=servers) > limit


def limited(soft: int, hard: int) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh")


def limits_of(relay: Relay) -> tuple[int, int]:
    text = Path(f"/proc/{relay.pid}/limits").read_text()
    found = re.search(r"Max open files\s+(\d+)\s+(\d+)", text)
    assert found
    return int(found[1]), int(found[2])


async def test_a_low_soft_limit_is_raised_without_a_word(tmp_path: Path) -> None:
    """1024 is what many systems begin with, and is no reason to serve fewer."""
    relay = Relay(tmp_path, to="http://127.0.0.1:1", under=limited(256, 6000))
    try:
        await relay.start()
        soft, hard = limits_of(relay)
        assert hard == 6000
        assert 4096 + 256 < soft <= hard
        assert "connections_max" not in relay.tail(50)
    finally:
        relay.end()


@pytest.mark.parametrize("workers", [1, 2])
async def test_under_a_low_hard_limit_the_cap_is_lowered_and_it_is_said(
    tmp_path: Path, workers: int
) -> None:
    """One too many is told 503 by the door; nobody is left in the kernel's queue."""
    arguments = ("--log-format", "text", "--workers", str(workers))
    with Service() as service:
        relay = Relay(tmp_path, to=service.url, under=limited(100, 200), arguments=arguments)
        try:
            await relay.start()
            assert (await ask(relay.port, "POST", "/orders", body=b"x")).status == 200
            said = re.findall(r"at most (\d+) callers", relay.tail(50))
            assert len(said) == 1, relay.tail(50)
            cap = int(said[0])
            assert 40 < cap < 200
            assert "LimitNOFILE" in relay.tail(50)
            if workers == 1:
                async with AsyncExitStack() as stack:
                    for _ in range(cap):
                        _reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
                        stack.callback(writer.close)
                    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
                    stack.callback(writer.close)
                    told = await asyncio.wait_for(reader.read(), 60)
                assert told.startswith(b"HTTP/1.1 503 ")
                assert b"connection_limit_reached" in told
        finally:
            relay.end()


async def test_with_next_to_none_it_does_not_start(tmp_path: Path) -> None:
    relay = Relay(tmp_path, to="http://127.0.0.1:1", under=limited(72, 72))
    try:
        with pytest.raises(AssertionError):
            await relay.start()
        assert relay.ended_with() == 78
        assert "LimitNOFILE" in relay.tail()
    finally:
        relay.end()
