"""`unspool serve`: the relay. Every setting is a flag of it; the table makes them."""

from __future__ import annotations

import os
from typing import Any

import click

from ...config import load
from ...errors import Misconfigured
from ...settings import SETTINGS, Setting, shown


def _flag(setting: Setting) -> click.Option:
    """The flag of a setting. Every value stays a text: `config` reads flags and files alike."""
    default = shown(setting, setting.default).replace('"', "").strip("[]") or "none"
    text = f"{setting.text} [{default}]"
    if setting.kind == "switch":
        name = setting.name.replace("_", "-")
        return click.Option([f"--{name}/--no-{name}"], default=None, help=text)
    metavar = {"list": "TEXT", "number": "N", "fraction": "X", "text": "TEXT"}.get(
        setting.kind, "|".join(setting.choices)
    )
    if setting.unit in ("ms", "bytes"):
        metavar = "TIME" if setting.unit == "ms" else "SIZE"
    return click.Option(
        [setting.flag], multiple=setting.kind == "list", default=None, metavar=metavar, help=text
    )


CONFIG = click.Option(["--config"], metavar="FILE", help="The file with the settings.")


def with_flags(command: click.Command) -> click.Command:
    """The command with every setting as a flag, and --config."""
    command.params.extend([_flag(setting) for setting in SETTINGS.values()])
    command.params.append(CONFIG)
    return command


@click.command()
def serve(**flags: Any) -> int:
    """Run the relay in front of a service.

    For example: unspool serve --to http://127.0.0.1:8000

    TIME is 30s, 5m, 24h, 5d or milliseconds; SIZE is 64KiB, 1MiB or bytes. Flags that take a list
    may be repeated. Each setting is also a variable (--window-max: UNSPOOL_WINDOW_MAX) and a key of
    the file (window_max).
    """
    config = flags.pop("config") or ""
    settings = load(flags, os.environ, config=config).settings
    if not settings.to:
        raise Misconfigured(
            "to is not set: where shall requests go? For example: "
            "unspool serve --to http://127.0.0.1:8000"
        )
    from ..serve import serve as run

    return run(settings)


with_flags(serve)
