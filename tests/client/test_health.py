"""Health: the worse server is left alone, and found again."""

from __future__ import annotations

import random

from unspool.client.health import Health
from unspool.core.message import Answer, Cause, Failure, Instant, Key, Response, Sent

DOWN = Failure(Cause.CONNECTION_REFUSED, "refused", Sent.NEVER)
OK = Response(200, b"", ())
SLOW_DOWN = Response(429, b"", ((b"Retry-After", b"10"),))
EMPTY = Response(200, b"", ((b"RateLimit", b'"hour";r=0;t=20'),))


class Scene:
    def __init__(self, count: int) -> None:
        self.health = Health(count, luck=random.Random(7).random)
        self.now = 1_000_000
        self.count = 0

    def ask(self, server: int, answer: Answer) -> bool:
        self.count += 1
        at = Instant(self.now)
        self.health.began(server, at)
        return self.health.ended(server, answer, key=Key(f"k{self.count}"), now=at)

    def open(self) -> set[int]:
        return set(self.health.open(Instant(self.now)))


def test_a_dead_server_costs_nothing_and_is_probed() -> None:
    """Five failures in a row; then one request after a few seconds, and it is back."""
    scene = Scene(2)
    for _ in range(5):
        scene.ask(0, DOWN)
    assert scene.open() == {1}
    scene.now += 6_000
    assert scene.open() == {0, 1}
    scene.health.began(0, Instant(scene.now))
    assert scene.open() == {1}, "one probe at a time"
    assert scene.health.ended(0, OK, key=Key("p"), now=Instant(scene.now))
    assert scene.open() == {0, 1}


def test_a_server_that_says_when_is_left_alone_until_then() -> None:
    scene = Scene(2)
    scene.ask(0, SLOW_DOWN)
    assert scene.open() == {1}
    scene.now += 11_000
    assert scene.open() == {0, 1}


def test_an_exhausted_rate_limit_is_a_park_without_a_429() -> None:
    scene = Scene(2)
    scene.ask(0, EMPTY)
    assert scene.open() == {1}
    scene.now += 21_000
    assert scene.open() == {0, 1}


def test_the_server_that_answers_well_goes_first() -> None:
    """One that fails two in five is tried first only by those who drew nothing better."""
    scene = Scene(2)
    for number in range(40):
        scene.ask(0, Response(500, b"", ()) if number % 5 < 2 else OK)
        scene.ask(1, OK)
    first = [scene.health.open(Instant(scene.now))[0] for _ in range(200)]
    assert first.count(1) == 200


def test_the_less_busy_of_two_goes_first() -> None:
    scene = Scene(3)
    for _ in range(4):
        scene.health.began(0, Instant(scene.now))
    first = [scene.health.open(Instant(scene.now))[0] for _ in range(300)]
    assert first.count(0) == 0
    assert 100 < first.count(1) < 200, "and the others share"


def test_a_probe_that_nobody_waited_for_makes_room_for_another() -> None:
    """A caller who is cancelled must not shut a server for a minute."""
    scene = Scene(2)
    for _ in range(5):
        scene.ask(0, DOWN)
    scene.now += 6_000
    scene.health.began(0, Instant(scene.now))
    assert scene.open() == {1}
    scene.health.given_up(0, Instant(scene.now))
    assert scene.open() == {0, 1}


def test_the_spare_is_any_of_them() -> None:
    health = Health(3, luck=random.Random(1).random)
    assert {health.spare() for _ in range(100)} == {0, 1, 2}
