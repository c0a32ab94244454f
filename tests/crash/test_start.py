"""Start: what a relay says of itself to whoever starts it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from .processes import Relay


async def said_at_start(relay: Relay) -> str:
    try:
        await relay.start()
        assert await relay.stop() == 0
    finally:
        relay.end()
    return relay.tail(60)


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        (0o600, ""),
        (0o640, "its group"),
        (0o604, "others"),
        (0o666, "others and its group"),
        (0o620, "its group"),
    ],
)
async def test_a_spool_that_others_may_read_is_warned_of(
    tmp_path: Path, mode: int, who: str
) -> None:
    """It is used as it is, and not changed behind its owner's back; but nobody can say he did not
    know."""
    relay = Relay(tmp_path, to="http://127.0.0.1:1")
    assert "WARNING" not in await said_at_start(relay)
    assert stat.S_IMODE(relay.spool.stat().st_mode) == 0o600, "as we make it"
    relay.spool.chmod(mode)
    relay.log.unlink()
    said = await said_at_start(relay)
    assert (f"open to {who}:" in said) == bool(who), said
    assert (f"chmod 600 {relay.spool}*" in said) == bool(who)
    assert stat.S_IMODE(relay.spool.stat().st_mode) == mode
