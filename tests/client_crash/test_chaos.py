"""The whole of it: what a client said it has, arrives; and every key has one effect (I1, I9).

Three servers and a relay are killed, paused, slowed and started again at random, under load, while
the senders are killed with kill -9 again and again. Two senders at a time have one outbox, each
with one of the two durabilities and one of the two clients. At the end all are well, one more opens
the outbox and drains it, and the relay delivers what it has. Then the rows of the shop are counted.

UNSPOOL_CRASH_ROUNDS=10 makes 200 kills of 20.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from crash.processes import ROUNDS

from .scene import PATIENCE_S, Scene

KILLS = 20 * ROUNDS
OWNED = ("Delivered", "Accepted", "Queued")


@pytest.mark.slow
@pytest.mark.timeout(480 + 6 * KILLS)
async def test_each_key_has_one_effect_and_what_was_accepted_arrives(tmp_path: Path) -> None:
    scene, luck = Scene(tmp_path), random.Random(5)
    await scene.begin()
    chaos = asyncio.create_task(scene.chaos(11))
    try:
        senders = [await scene.send(f"s{slot}", **kind(slot)) for slot in range(2)]
        kills = 0
        until = time.monotonic() + PATIENCE_S
        # A slow machine gets as far as that, too, and later.
        while kills < KILLS or (not at_stake(scene) and time.monotonic() < until):
            kills += 1
            await asyncio.sleep(luck.uniform(0.1, 0.4))
            slot = luck.randrange(2)
            senders[slot].kill()
            await senders[slot].gone()
            senders[slot] = await scene.send(f"k{kills}", **kind(luck.randrange(4)))
        for sender in senders:
            sender.kill()
            await sender.gone()
        scene.over = True
        await chaos
        await scene.calm()
        await scene.drain()
    finally:
        chaos.cancel()
        await scene.end()
    judge(scene, kills=kills + 2)


def at_stake(scene: Scene) -> bool:
    """Has each kind of custody been taken?"""
    kinds = {line.split(" ")[2] for line in scene.told.read_text().splitlines() if "told" in line}
    return kinds >= {"Queued", "Accepted"}


def kind(number: int) -> dict[str, object]:
    return {"durability": ("on-error", "before")[number % 2], "blocking": number >= 2}


def judge(scene: Scene, *, kills: int) -> None:
    asked: dict[str, str] = {}
    told: dict[str, str] = {}
    news: Counter[str] = Counter()
    for line in scene.told.read_text().splitlines():
        what, key, word = line.split(" ")
        if what == "asked":
            asked[key] = word
        elif what == "told":
            told[key] = word
        else:
            news[word] += 1
    rows = scene.rows()
    kinds = Counter(told.values())
    owned = [key for key, result in told.items() if result in OWNED]
    lost = [key for key in owned if not rows[key]]
    doubled = [key for key, count in rows.items() if count > 1]
    cut_off = len(asked) - len(told)
    print(
        f"\n{kills} kill -9 of senders; {sum(scene.done.values())} blows to servers and relay"
        f" ({', '.join(f'{n} × {w}' for w, n in sorted(scene.done.items()))});"
        f" {len(asked)} asked, told: {dict(kinds)}, {cut_off} cut off, news: {dict(news)};"
        f" {len(rows)} effects, {len(doubled)} doubled, {len(lost)} lost"
    )
    assert not doubled, doubled[:5]
    assert not lost, [(key, told[key], asked[key]) for key in lost[:5]]
    assert not set(kinds) - {*OWNED}, "nothing was refused, rejected or unknown: all had keys"
    assert not set(rows) - set(asked), "nothing came from nowhere"
    assert kinds["Queued"], "the outbox was not at stake"
    assert kinds["Accepted"], "the relay was not at stake"
    assert cut_off >= kills // 2, "the kills hit nobody"
