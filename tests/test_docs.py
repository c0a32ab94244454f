"""The docs have everything, and what is generated is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest

from unspool import errors
from unspool.admin.cli import EXIT_CODES, cli
from unspool.problems import PROBLEMS
from unspool.settings import SETTINGS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

ERRORS = {
    name: thing
    for name, thing in vars(errors).items()
    if isinstance(thing, type) and issubclass(thing, errors.UnspoolError)
}


@cache
def words() -> frozenset[str]:
    """Every word in backticks, on every page."""
    pages = "\n".join(path.read_text("utf-8") for path in sorted(DOCS.rglob("*.md")))
    return frozenset(re.findall(r"`([^`\n]+)`", pages))


def test_what_is_generated_is_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_there(name: str) -> None:
    setting = SETTINGS[name]
    assert {name, setting.flag, setting.variable} <= words()


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_and_its_options_are_there(name: str) -> None:
    assert f"unspool {name}" in words()
    text = (DOCS / "reference" / "commands.md").read_text("utf-8")
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option) and parameter.name not in SETTINGS:
            assert any(option in text for option in parameter.opts), parameter.name


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_there(name: str) -> None:
    assert name in words()


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_there_and_its_exit_code_is_explained(name: str) -> None:
    assert name in words()
    assert ERRORS[name].exit_code in EXIT_CODES


def test_links_between_pages_lead_somewhere() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_commands_named_in_messages_exist() -> None:
    """An error that ends in a command must not send anybody to one that is not there."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for found in re.findall(r": unspool ([a-z]+(?:-[a-z]+)*)", path.read_text("utf-8")):
            known = cli.get_command(click.Context(cli), found)
            assert known is not None, f"{path.relative_to(ROOT)}: unspool {found}"
