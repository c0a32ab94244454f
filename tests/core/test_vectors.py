"""The golden cases: they are what the code does, and what `vectors/make.py` writes."""

from __future__ import annotations

import importlib.util
import json
from base64 import b64decode
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unspool.core.handover import Unfit, pack, unpack
from unspool.core.message import (
    NEVER,
    Answer,
    Cause,
    Destination,
    Failure,
    Instant,
    Key,
    Message,
    Request,
    Response,
    Sent,
    fingerprint,
)
from unspool.core.outcome import judge, repeatable, retry_after
from unspool.core.schedule import Pace, next_due, spread
from unspool.house.lines import Brought, line, read
from unspool.house.lines import Unfit as UnfitLine

VECTORS = Path(__file__).parents[2] / "vectors"
NOW = Instant(1_750_000_000_000)


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / name).read_text(encoding="ascii"))
    return found


def made_by() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vectors_make", VECTORS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    ["export.json", "outcome.json", "schedule.json", "fingerprint.json", "handover.json"],
)
def test_the_file_is_what_make_would_write(name: str) -> None:
    """Whoever changes a table writes the vectors again, so that other languages hear of it."""
    make = made_by()
    assert (VECTORS / name).read_text(encoding="ascii") == make.text_of(name)
    assert name in make.FILES


def test_check_tells_a_stale_file_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make.py --check` is fit for a pipeline: silent and 0, or a sentence and 1."""
    make = made_by()
    assert make.main(["--check"]) == 0
    make.HERE = tmp_path
    assert make.main(["--check"]) == 1
    assert "outcome.json" in capsys.readouterr().err
    assert make.main([]) == 0
    assert make.main(["--check"]) == 0


@pytest.mark.parametrize("case", cases("outcome.json"), ids=str)
def test_outcomes(case: dict[str, Any]) -> None:
    """An answer means what its vector says."""
    answer: Answer
    if "status" in case:
        hint = case.get("retry_after")
        fields = () if hint is None else ((b"Retry-After", hint.encode("latin-1")),)
        answer = Response(status=case["status"], reason=b"", fields=fields)
    else:
        answer = Failure(Cause(case["cause"]), "", Sent(case["sent"]))
    judged, expect = judge(answer), case["expect"]
    assert judged.outcome.value == expect["outcome"]
    assert judged.sent.value == expect["sent"]
    assert judged.weather.value == expect["weather"]
    assert judged.suspects == expect["suspects"]
    assert repeatable(judged, repeat=False) == expect["repeatable_always"]
    assert retry_after(answer, now=NOW) == expect["retry_after_ms"]


@pytest.mark.parametrize("case", cases("schedule.json"), ids=str)
def test_schedules(case: dict[str, Any]) -> None:
    """An attempt that failed is tried again when its vector says."""
    message = Message(
        key=Key(case["key"]), fingerprint=b"", destination=Destination(""), nonce=b"",
        accepted_at=Instant(NOW - case["age_ms"]), expires_at=Instant(NOW + case["left_ms"]),
    )  # fmt: skip
    due = next_due(
        message, attempt=case["attempt"], now=NOW, retry_after_ms=case["retry_after_ms"],
        pace=Pace(least_ms=case["least_ms"], most_ms=case["most_ms"]),
    )  # fmt: skip
    assert spread(message.key, case["attempt"]) == case["expect"]["spread"]
    assert due - NOW == case["expect"]["wait_ms"]


@pytest.mark.parametrize("case", cases("fingerprint.json"), ids=lambda case: case["why"])
def test_fingerprints(case: dict[str, Any]) -> None:
    """A request has the print its vector says."""
    media = case["content_type"]
    fields = () if media is None else ((b"Content-Type", media.encode()),)
    asked = Request(
        case["method"].encode(), case["target"].encode(), fields, b64decode(case["body"])
    )
    assert fingerprint(asked).hex() == case["expect"]


def test_the_vectors_say_which_requests_are_the_same() -> None:
    """Read by a person: exactly these are one request."""
    by_why = {case["why"]: case["expect"] for case in cases("fingerprint.json")}
    assert (
        len({value for why, value in by_why.items() if why.startswith(("an object", "the same"))})
        == 1
    )
    assert by_why["nested, in order"] == by_why["nested members are sorted too"]
    forms = ("a form", "the form with another boundary", "the form with its boundary in quotes")
    assert len({by_why[why] for why in forms}) == 1
    assert len(set(by_why.values())) == len(by_why) - 5 - 2


@pytest.mark.parametrize("case", cases("handover.json"), ids=lambda case: case["why"])
def test_handovers(case: dict[str, Any]) -> None:
    """A handed-over message is read as its vector says, or refused; and written again the same."""
    payload, expect = case["text"].encode(), case["expect"]
    if expect is None:
        with pytest.raises(Unfit):
            unpack(payload)
        return
    found = unpack(payload)
    request = found.request
    assert request == Request(
        expect["method"].encode(),
        expect["target"].encode(),
        tuple((name.encode(), value.encode("latin-1")) for name, value in expect["fields"]),
        b64decode(expect["body"]),
    )
    assert (found.key, found.order_key) == (expect["key"], expect["order"])
    assert found.expires_at == (NEVER if expect["expires_at"] is None else expect["expires_at"])
    assert pack(found).decode() == case["packed"]
    assert unpack(case["packed"].encode()) == found


def test_most_forms_are_refused() -> None:
    """Read by a person: what is accepted is exactly this."""
    good = [case["why"] for case in cases("handover.json") if case["expect"] is not None]
    assert len(good) == 18, good


@pytest.mark.parametrize("case", cases("export.json"), ids=lambda case: case["why"])
def test_a_line_of_an_export(case: dict[str, Any]) -> None:
    """What is read is what stands there, and written again it reads the same."""
    text = case["text"].encode()
    if case["expect"] is None:
        with pytest.raises(UnfitLine):
            read(text)
        return
    found = read(text)
    if "written" in case:
        written = case["written"].encode() + b"\n"
        assert line(found.entry if isinstance(found, Brought) else found) == written
        assert read(written) == found
