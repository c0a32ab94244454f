"""What one does by hand: the table, the keys that are stuck, the broom."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from shop_kit import Shop

from unspool.core.lifecycle import State
from unspool.core.message import Destination, Instant, Key, Message
from unspool.ledger import Ask, Claim
from unspool.middleware.commit_table import DDL
from unspool.middleware.django.keeper import Keeper
from unspool.spools.protocol import Entry


def told(*words: str) -> str:
    out = io.StringIO()
    call_command(*words, stdout=out, stderr=out)
    return out.getvalue()


def keeper() -> Keeper:
    config: Any = apps.get_app_config("unspool")
    found: Keeper = config.keeper()
    return found


def columns() -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, type, \"notnull\", pk FROM pragma_table_info('unspool_once')")
        return list(cursor.fetchall())


def test_the_table_is_the_one_of_co_commit(shop: Shop) -> None:
    """The migration makes what `commit_table` says, and takes it back; Django sees no change."""
    made = columns()
    call_command("migrate", "unspool", "zero", verbosity=0)
    assert columns() == []
    with connection.cursor() as cursor:
        for statement in DDL["sqlite"]:
            cursor.execute(statement)
    assert columns() == made != []
    call_command("migrate", "unspool", verbosity=0)
    assert columns() == made
    assert "No changes" in told("makemigrations", "unspool", "--check", "--dry-run")


def cut_short(name: str) -> str:
    """A claim whose owner has died: its lease has run out."""
    one = keeper()
    key = Key(f"key-of-{name}".ljust(22, "."))

    async def claims() -> None:
        ledger, _ = await one.opening.ledger()
        now = ledger.now()
        entry = Entry(
            message=Message(
                key=key, fingerprint=b"f" * 16, destination=Destination(one.rules.name),
                accepted_at=Instant(now - 2), expires_at=Instant(now + 60_000), nonce=b"n" * 16,
                name=name,
            ),
            state=State.CLAIMED, due_at=now, attempt=1, leased_until=Instant(now - 1),
            keep_until=Instant(now + 60_000),
        )  # fmt: skip
        await ledger.custody.spool.accept([entry])

    one.portal.call(claims)
    return key


def test_keys_that_need_a_look_are_listed(shop: Shop) -> None:
    """Cut short and unknown; others with --all, or by name."""
    assert "No key is stuck" in told("unspool_keys")
    shop.post("/create", "good")
    shop.post("/plain/effect", "doubtful")
    stuck = cut_short("stuck")
    rows = [line.split("\t") for line in told("unspool_keys").splitlines()]
    assert [(row[1], row[2]) for row in rows] == [("doubtful", "unknown"), ("stuck", "cut short")]
    assert rows[1][0] == stuck
    assert [line.split("\t")[1:3] for line in told("unspool_keys", "good").splitlines()] == [
        ["good", "done"]
    ]
    assert len(told("unspool_keys", "--all").splitlines()) == 3
    assert "There may be more" in told("unspool_keys", "--all", "--limit", "1")


@pytest.mark.parametrize(
    ("way", "state"), [("--unknown", "unknown"), ("--status=201", "done"), ("--release", "")]
)
def test_one_key_is_settled_by_hand(shop: Shop, way: str, state: str) -> None:
    """J8: released it is gone; else a repeat is told what was found out."""
    key = cut_short("stuck")
    assert told("unspool_settle", key, way)
    assert ([*told("unspool_keys", "stuck").split("\t"), "", ""])[2] == state
    if state:
        with pytest.raises(CommandError, match="has ended"):
            told("unspool_settle", key, way)


def test_what_cannot_be_settled_is_left_alone(shop: Shop) -> None:
    with pytest.raises(CommandError, match="no such key"):
        told("unspool_settle", "nothing", "--release")
    with pytest.raises(CommandError, match="200 to 499"):
        told("unspool_settle", "nothing", "--status", "500")
    with pytest.raises(CommandError):
        told("unspool_settle", "nothing")

    async def claims() -> Claim:
        ledger, _ = await keeper().opening.ledger()
        ask = Ask(key=Key("running-now..........."), name="now", fingerprint=b"f" * 16,
                  destination=Destination(keeper().rules.name))  # fmt: skip
        claim = await ledger.claim(ask)
        assert isinstance(claim, Claim)
        return claim

    claim = keeper().portal.call(claims)
    with pytest.raises(CommandError, match="under way"):
        told("unspool_settle", "running-now...........", "--release")
    keeper().portal.call(claim.release)


def test_the_broom(shop: Shop) -> None:
    """Records of atomic views go when they have been kept long enough; others stay."""
    shop.post("/atomic/x", "k1")
    shop.post("/atomic/x", "k2")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE unspool_once SET keep_until = 1 WHERE name = 'k1'")
    assert told("unspool_sweep") == "0 keys and answers, 1 records of atomic views.\n"
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM unspool_once")
        assert cursor.fetchall() == [("k2",)]
