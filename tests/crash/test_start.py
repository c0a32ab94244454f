"""Start: what a relay says of itself to whoever starts it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from .processes import Relay, eventually
from .service import Service
from .wire import ask


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


async def test_a_relay_that_leads_to_itself_says_so(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost"):
        relay = Relay(tmp_path, to="http://127.0.0.1:1", name=host)
        relay.command[relay.command.index("--to") + 1] = f"http://{host}:{relay.port}"
        said = await said_at_start(relay)
        assert f"http://{host}:{relay.port} is this relay itself" in said
    assert "itself" not in await said_at_start(Relay(tmp_path, to="http://127.0.0.1:1"))


async def test_where_to_look_can_be_pasted(tmp_path: Path) -> None:
    said = await said_at_start(Relay(tmp_path, to="http://127.0.0.1:1", spool=tmp_path / "a b.db"))
    assert f"unspool queue --spool 'sqlite:///{tmp_path}/a b.db' ·" in said


async def test_stderr_may_be_closed(tmp_path: Path) -> None:
    relay = Relay(
        tmp_path, to="http://127.0.0.1:1", under=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    )
    assert await said_at_start(relay) == ""


async def test_two_names_of_a_spool_are_one_spool(tmp_path: Path) -> None:
    """Two relays that knew nothing of each other would try one key twice."""
    first = Relay(tmp_path, to="http://127.0.0.1:1")
    link = tmp_path / "link.db"
    link.symlink_to(first.spool)
    second = Relay(tmp_path, to="http://127.0.0.1:1", spool=link, name="second")
    try:
        await first.start()
        held = first.spool.with_name(f"{first.spool.name}-serve")
        assert stat.S_IMODE(held.stat().st_mode) == 0o600, "who can open it can hold it"
        with pytest.raises(AssertionError, match="ended with 73"):
            await second.start()
        assert "Another relay serves from the spool" in second.tail()
    finally:
        first.end()
        second.end()


async def test_without_the_right_to_serve_nothing_is_served(tmp_path: Path) -> None:
    """Another user's file, say: as root there is none that cannot be opened but a folder."""
    relay = Relay(tmp_path, to="http://127.0.0.1:1")
    (tmp_path / f"{relay.spool.name}-serve").mkdir()
    try:
        with pytest.raises(AssertionError, match="ended with 73"):
            await relay.start()
    finally:
        relay.end()
    assert "Nothing was started" in relay.tail()


async def test_a_service_that_moves_takes_its_messages_along(tmp_path: Path) -> None:
    """Under a name its servers can change. Without one the old address is its name: what waits
    goes on under it, and its keys are known."""
    fields = {"Idempotency-Key": "k1"}
    with Service() as first, Service() as second:
        first.weather = lambda _key, _body: "425"
        for name in (first.url, "orders"):
            spool = tmp_path / f"{name == first.url}.db"
            named = () if name == first.url else ("--destination", name)
            relay = Relay(tmp_path, to=first.url, spool=spool, arguments=named)
            try:
                await relay.start()
                told = await ask(relay.port, "POST", "/orders", fields=fields, body=b"tea")
                assert told.status == 202
                relay.kill()
                relay = Relay(tmp_path, to=second.url, spool=spool)
                if name == first.url:
                    await relay.start()
                    hint = f"--destination {second.url} --destination {first.url},"
                    await eventually(lambda r=relay, h=hint: h in r.tail(99), "the warning")
                    relay.kill()
                relay.command += ["--destination", name]
                await relay.start()
                body = b"tea"
                before = len(second.handled)
                again = await ask(
                    relay.port, "POST", "/orders",
                    fields=fields | {"Prefer": "wait=50"}, body=body, timeout=60,
                )  # fmt: skip
                assert again.status == 200
                assert len(second.handled) == before + 1, "one effect, and no new request"
            finally:
                relay.end()
