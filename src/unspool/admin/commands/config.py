"""`unspool config`: what holds, and where each value came from."""

from __future__ import annotations

import os
from typing import Any

import click

from ...config import Effective, load
from ...core.urls import concealed
from ...settings import SETTINGS, commented, shown
from ..wording import encode
from .serve import with_flags


@click.command()
@click.option("--defaults", is_flag=True, help="A whole unspool.toml, every key commented out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one for a setting.")
def config(*, defaults: bool, as_json: bool, **flags: Any) -> int:
    """Show every setting's value, and where it came from.

    Takes the flags of `serve`, so that a command line can be tried before it is run. Exits 78 where
    a setting is wrong.
    """
    if defaults:
        click.echo(commented(), nl=False)
        return 0
    effective = load(flags, os.environ, config=flags.pop("config") or "")
    for line in _lines(effective) if as_json else _table(effective):
        click.echo(line)
    return 0


def _table(effective: Effective) -> list[str]:
    rows = [
        (f"{name} = {shown(setting, getattr(effective.settings, name))}", effective.origins[name])
        for name, setting in SETTINGS.items()
    ]
    width = min(44, max(len(text) for text, _ in rows))
    head = f"# file: {effective.file or 'none'}"
    return [head, *(f"{text:<{width}}  # {origin}" for text, origin in rows)]


def _lines(effective: Effective) -> list[str]:
    return [
        encode(
            {
                "name": name,
                "value": _plain(getattr(effective.settings, name)),
                "origin": effective.origins[name],
                "default": setting.default,
            }
        )
        for name, setting in SETTINGS.items()
    ]


def _plain(value: Any) -> Any:
    """A value for a program, which may write it to a log: without passwords all the same."""
    if isinstance(value, str):
        return concealed(value)
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


with_flags(config)
