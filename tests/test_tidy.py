"""The house stays liveable: sizes, words, and nothing that belongs to one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "unspool"

LINES_MAX = 400
FUNCTION_LINES_MAX = 60

SAY_INSTEAD = {
    "job": "message",
    "letter": "message",
    "endpoint": "destination",
    "breaker": "lane",
    "broker": "spool, or queue for somebody else's",
    "enqueue": "accept",
    "dequeue": "lease",
    "nack": "reject or settle",
    "ack": "settle",
    "ticket": "receipt",
    "eta": "due_at",
    "gc": "sweep",
    "checksum": "fingerprint, or crc for what finds spoilt bytes",
    "carrier": "transport",
    "inlet": "ingress",
    "runner": "dispatcher",
}
"""The glossary's other words. Not here: words that HTTP, asyncio or the system call their own
things by (target, status, token, task, item, handle, lock, worker, fail)."""

NO_NOUN = {"util", "utils", "helper", "helpers", "common", "misc"}
"""No file is called so: the noun it is about is the address of its verbs."""

NOT_OUR_CHOICE = {"gc"}
"""Modules of the standard library that are called so."""


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


@cache
def texts() -> list[tuple[Path, str]]:
    """Every text that is ours: what git has, and what it would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:  # an unpacked sdist
        paths = [path for path in ROOT.rglob("*") if not {".venv"} & set(path.parts)]
    found = []
    for path in paths:
        if path.is_file() and path != Path(__file__):
            try:
                found.append((path, path.read_text("utf-8")))
            except (
                UnicodeDecodeError,
                FileNotFoundError,
            ):  # the latter: another test has been there
                continue
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=named)
def test_files_and_functions_fit_a_head(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = len(text.splitlines())
    assert lines <= LINES_MAX, f"{named(path)} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{named(path)}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", sources(), ids=named)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), named(path)


def given_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a file gives: it cannot help those that it uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


def words(name: str) -> set[str]:
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {word.lower() for word in apart.split("_")}


@pytest.mark.parametrize("path", sources(), ids=named)
def test_one_word_for_each_thing(path: Path) -> None:
    assert not words(path.stem) & NO_NOUN, named(path)
    found = [(path.stem, 0), *given_names(ast.parse(path.read_text("utf-8")))]
    for name, line in found:
        for word in words(name) & set(SAY_INSTEAD):
            if name.isupper() and word in NOT_OUR_CHOICE:
                continue
            pytest.fail(f"{named(path)}:{line}: {name}: say {SAY_INSTEAD[word]}, not {word}")


def test_what_is_left_to_do_has_an_issue() -> None:
    for path, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"\b(TODO|FIXME|XXX)\b", line):
                assert re.search(r"\b(TODO|FIXME|XXX)\(#\d+\)", line), f"{named(path)}:{number}"


def test_nothing_belongs_to_one_machine() -> None:
    here = {str(ROOT), str(Path.home()), sys.prefix} - {"/", "/usr", "/usr/local"}
    homes = re.compile(r"(?<![\w.])/(?:home/\w+|Users/\w+|root|work)/")
    index = re.compile(r"https?://\S+/simple\b|--index-url|--extra-index-url")
    for path, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{named(path)}:{number}: {line.strip()[:80]}"
            assert not any(f"{place}/" in line for place in here), where
            assert not homes.search(line), where
            assert not index.search(line), where


def test_the_scripts_can_be_run() -> None:
    for name in ("run", ".ci/run"):
        path = ROOT / name
        assert path.stat().st_mode & 0o111, name
        assert path.read_text().startswith("#!"), name
