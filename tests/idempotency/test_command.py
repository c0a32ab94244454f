"""`unspool check-idempotency`, as a person or a script meets it: real processes, real sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from targets import bare

from unspool.testing.idempotency import ROWS


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without any idempotency, whose rows fail."""
    with bare(tmp_path_factory.mktemp("bare")) as target:
        yield target.service.url


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unspool", "check-idempotency", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_row_that_must_hold_and_does_not_is_76(url: str) -> None:
    """The row, its level, what was seen instead; and a summary beside the data."""
    done = check(url, "--row", "b1", "--row", "A10")
    assert done.returncode == os.EX_PROTOCOL
    first, second, seen = done.stdout.splitlines()
    assert first.split()[:3] == ["A10", "M", "passed"]
    assert second.split()[:3] == ["B1", "M", "failed"]
    assert "the repeat got" in seen
    assert done.stderr == "2 of 2 rows asked: 1 hold; must hold and do not: B1.\n"


def test_what_should_hold_and_does_not_is_told_and_is_0(url: str) -> None:
    """Only M rows decide."""
    done = check(url, "--row", "B6")
    assert done.returncode == 0
    assert done.stderr == "1 of 1 rows asked: 0 hold; should hold and do not: B6.\n"


def test_a_section_is_its_rows_and_a_reason_keeps_one_back(url: str) -> None:
    """And a row that is not asked does not count."""
    words = [f"--by-design={row}=because" for row in ROWS if row[0] == "D" and row not in "D1"]
    done = check(url, "--row", "D", *words, "--json")
    assert done.returncode == os.EX_PROTOCOL
    found = {row["row"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {row for row in ROWS if row[0] == "D"}
    assert (found["D1"]["came"], found["D2"]["came"]) == ("failed", "by design")
    assert found["D2"]["seen"] == "because"
    assert found["D1"]["sentence"] == ROWS["D1"].sentence
    assert done.stderr == ""


def test_a_server_that_is_not_ours_is_asked_by_two_targets(url: str) -> None:
    """A POST that counts, a GET that tells; each need by a route; callers by their fields."""
    ours = ["--post", "/count/{subject}", "--count", "/count/{subject}"]
    route = 'cookie=/count/{subject}?do=[{"fields":[["Set-Cookie","a=b"]]}]'.replace('"', "%22")
    more = ["--route", route, "--caller", "X-Who: a", "--other", "X-Who: b", "--body", '{"a":1}']
    rows = ["--row", "B5", "--row", "D1", "--row", "D2", "--row", "F7", "--row", "C6"]
    done = check(url, *ours, *more, *rows, "--json")
    found = {row["row"]: row["came"] for row in map(json.loads, done.stdout.splitlines())}
    assert found == {
        "B5": "failed", "C6": "passed", "D1": "failed", "D2": "not asked", "F7": "not asked",
    }  # fmt: skip


def test_the_counts_may_be_asked_elsewhere(url: str) -> None:
    done = check(url, "--counts", url, "--row", "A10")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "say which server"),
        (("ftp://127.0.0.1",), "no http:// or https:// URL"),
        (("http://127.0.0.1", "--post", "/x"), "go together"),
        (("http://127.0.0.1", "--row", "Z9"), "--list prints them all"),
        (("http://127.0.0.1", "--by-design", "Z9=x"), "--list prints them all"),
        (("http://127.0.0.1", "--route", "slow"), "NAME=VALUE"),
        (("http://127.0.0.1", "--route", "slow=/x"), "--post and --count"),
        (("http://127.0.0.1", "--route", "nothing=/x"), "there is no 'nothing'"),
        (("http://127.0.0.1", "--mount", "nothing=/x"), "there is no 'nothing'"),
        (("http://127.0.0.1?a=b",), "no query"),
        (("http://127.0.0.1:x",), "ort"),
        (("http://127.0.0.1", "--post", "orders", "--count", "/x"), "/orders"),
        (("http://127.0.0.1", "--post", "/a b", "--count", "/x"), "/orders"),
        (("http://127.0.0.1", "--caller", "alice"), "Name: value"),
        (("http://127.0.0.1", "--caller", "A: \u20ac"), "Name: value"),
        (("http://127.0.0.1", "--caller", "A: b\r\nC: d"), "Name: value"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_64(words: tuple[str, ...], why: str) -> None:
    done = check(*words)
    assert done.returncode == os.EX_USAGE
    assert why in done.stderr
    assert done.stdout == ""


def test_a_server_that_cannot_be_asked_is_69(url: str) -> None:
    """Not there, or not keeping the contract: one line, and nothing was asked."""
    gone = check("http://127.0.0.1:9")
    none = check(url, "--post", "/count/a", "--count", "/counter")
    other = check(url + "/elsewhere")
    for done, why in ((gone, "no whole answer"), (none, "tells no count"), (other, "is not the")):
        assert done.returncode == os.EX_UNAVAILABLE
        assert why in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_the_list_has_every_row_and_what_it_needs(tmp_path: Path) -> None:
    done = check("--list")
    assert done.returncode == 0
    for name in ROWS:
        assert f"\n{name} " in f"\n{done.stdout}"
    assert "takes 1000 ms" in done.stdout
    rows = [json.loads(line) for line in check("--list", "--json").stdout.splitlines()]
    assert [row["row"] for row in rows] == list(ROWS)
