"""The checker, tested with planted violations: what it cannot find, it cannot rule out.

Each plant is a clean history with one thing wrong; the checker must name that thing. And a clean
history must be clean, whatever excuses are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from .checker import check, known_to
from .history import Call, Final, Handled, History

R1, R2 = "/_unspool/receipts/one", "/_unspool/receipts/two"


def clean() -> History:
    """One keyed answer, one 202 that was delivered after a crash, one keyless 202."""
    return History(
        calls=[
            Call("a", b"A", asked_at=10, told_at=20, status=200, answer=b"done 1"),
            Call("b", b"B", asked_at=11, error="reset"),
            Call("b", b"B", asked_at=40, told_at=45, status=202, receipt=R1),
            Call("", b"C", asked_at=12, told_at=22, status=202, receipt=R2),
            Call("d", b"D", asked_at=13, told_at=15, status=503, refused="refused"),
            Call("a", b"A", asked_at=50, told_at=55, status=200, answer=b"done 1"),
        ],
        handled=[
            Handled(12, "a", b"A", "ok", effect=True, answer=b"done 1", answered_at=13),
            Handled(14, "b", b"B", "ok", effect=True, answer=b"done 2", answered_at=15),
            Handled(60, "b", b"B", "again", answer=b"done 2", answered_at=61),
            Handled(62, "", b"C", "503", answered_at=63),
            Handled(64, "", b"C", "ok", effect=True, answer=b"done 3", answered_at=65),
        ],
        finals={
            R1: Final(R1, "delivered", answer=b"done 2"),
            R2: Final(R2, "delivered", answer=b"done 3"),
        },
        crashes=[30],
    )


def never_done(h: History) -> None:
    h.handled = [one for one in h.handled if one.body != b"C"]


def answered_and_never_done(h: History) -> None:
    h.handled = [one for one in h.handled if one.body != b"A"]


def receipt_gone(h: History) -> None:
    h.finals[R2] = Final(R2, "missing", reason="404")


def still_waiting(h: History) -> None:
    h.finals[R1] = replace(h.finals[R1], state="waiting")


def never_asked(h: History) -> None:
    del h.finals[R1]


def keyed_unknown(h: History) -> None:
    h.finals[R1] = Final(R1, "bounced", reason="unknown")


def expired_early(h: History) -> None:
    h.finals[R2] = Final(R2, "bounced", reason="expired")


def done_twice(h: History) -> None:
    h.handled.append(Handled(90, "", b"C", "ok", effect=True, answer=b"done 4", answered_at=91))
    h.crashes.append(80)


def forwarded_for_nothing(h: History) -> None:
    h.crashes.clear()


def another_answer(h: History) -> None:
    h.calls[-1].answer = b"done 9"


def another_answer_by_receipt(h: History) -> None:
    h.finals[R1].answer = b"done 9"


def another_receipt(h: History) -> None:
    h.calls.append(Call("b", b"B", asked_at=70, told_at=71, status=202, receipt=R2))


def back_to_waiting(h: History) -> None:
    h.calls.append(Call("a", b"A", asked_at=70, told_at=71, status=202, receipt=R1))


def from_nowhere(h: History) -> None:
    h.handled.append(Handled(70, "z", b"Z", "ok", effect=True, answer=b"done 5"))


def changed_body(h: History) -> None:
    h.handled.append(Handled(70, "d", b"A", "503"))


PLANTS: list[tuple[Callable[[History], None], str]] = [
    (never_done, "lost"),
    (answered_and_never_done, "lost"),
    (receipt_gone, "unsettled"),
    (still_waiting, "unsettled"),
    (never_asked, "unsettled"),
    (keyed_unknown, "unsettled"),
    (expired_early, "unsettled"),
    (done_twice, "doubled"),
    (forwarded_for_nothing, "needless"),
    (another_answer, "two answers"),
    (another_answer_by_receipt, "two answers"),
    (another_receipt, "two receipts"),
    (back_to_waiting, "went back"),
    (from_nowhere, "phantom"),
    (changed_body, "phantom"),
]


def test_a_clean_history_is_clean() -> None:
    assert check(clean()) == []
    assert check(History()) == []


def test_a_keyless_message_may_end_as_unknown() -> None:
    history = clean()
    history.finals[R2] = Final(R2, "bounced", reason="unknown")
    history.handled = [one for one in history.handled if one.body != b"C"]
    assert check(history) == []


@pytest.mark.parametrize(("plant", "kind"), PLANTS, ids=lambda one: getattr(one, "__name__", one))
def test_what_is_planted_is_found(plant: Callable[[History], None], kind: str) -> None:
    history = clean()
    plant(history)
    found = check(history)
    assert any(violation.startswith(kind) for violation in found), found


def test_what_a_spool_forgot_is_found() -> None:
    calls = clean().calls
    bodies = {R1: b"B", R2: b"C"}

    def lost(*, bodies: dict[str, bytes], answers: dict[str, bytes]) -> int:
        found = known_to(calls, waiting=lambda c: bodies.get(c.receipt), answers=answers)
        return len(found)

    assert lost(bodies=bodies, answers={"a": b"done 1"}) == 0
    assert lost(bodies={R1: b"B"}, answers={"a": b"done 1"}) == 1
    assert lost(bodies={**bodies, R2: b"c"}, answers={"a": b"done 1"}) == 1
    assert lost(bodies=bodies, answers={}) == 2
    assert lost(bodies=bodies, answers={"a": b"done 2"}) == 2
