"""The checker, tested with planted violations: what it cannot find, it cannot rule out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .checker import Call, Round, check
from .ledger import Line

Evidence = tuple[list[Round], list[Line]]


def clean() -> Evidence:
    """One first, one replay, one who was told to come back, one who waited; repeats afterwards."""
    calls = [
        Call(201, b"done a"),
        Call(201, b"done a", replayed=True),
        Call(409, retry_after="1", problem="running"),
        Call(201, b"done a", replayed=True, waits=True),
    ]
    after = [Call(201, b"done a", replayed=True)]
    lines = [Line("begin", "k", "a", 1, 1), Line("end", "k", "a", 1, 2)]
    return [Round("k", calls, after)], lines


def run_twice(rounds: list[Round], lines: list[Line]) -> None:
    lines.append(Line("begin", "k", "b", 2, 3))


def never_run(rounds: list[Round], lines: list[Line]) -> None:
    lines.clear()


def another_answer(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[1].body = b"done b"


def of_another_key(rounds: list[Round], lines: list[Line]) -> None:
    for call in [*rounds[0].calls, *rounds[0].after]:
        call.body = b"done z"


def two_firsts(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[1].replayed = False


def no_first(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[0].replayed = True


def an_error(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[2] = Call(500)


def no_retry_after(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[2].retry_after = ""


def another_409(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[2].problem = "outcome-unknown"


def waited_in_vain(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].calls[2].waits = True


def still_running(rounds: list[Round], lines: list[Line]) -> None:
    rounds[0].after.append(Call(409, retry_after="1", problem="running"))


PLANTS: list[tuple[Callable[[list[Round], list[Line]], None], str]] = [
    (run_twice, "doubled"),
    (never_run, "doubled"),
    (another_answer, "two answers"),
    (of_another_key, "foreign"),
    (two_firsts, "unmarked"),
    (no_first, "unmarked"),
    (an_error, "refused"),
    (no_retry_after, "refused"),
    (another_409, "refused"),
    (waited_in_vain, "impatient"),
    (still_running, "forgotten"),
]


def test_a_clean_race_is_clean() -> None:
    """No violation is invented."""
    assert check(*clean()) == []


@pytest.mark.parametrize(("plant", "kind"), PLANTS, ids=lambda one: getattr(one, "__name__", one))
def test_what_is_planted_is_found(
    plant: Callable[[list[Round], list[Line]], None], kind: str
) -> None:
    """Each kind of violation is named."""
    rounds, lines = clean()
    plant(rounds, lines)
    found = check(rounds, lines)
    assert any(violation.startswith(kind) for violation in found), found
