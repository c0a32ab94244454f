"""The reference pages that are made from tables in the code.

    python docs/generate.py            write them
    python docs/generate.py --check    fail where one lags behind the code

settings.md from `settings.SETTINGS`, commands.md from the commands themselves, problems.md from
`problems.PROBLEMS` and the classes of `errors`, idempotency.md from the conformance table and from
what came of it (idempotency.json, by tests/idempotency/record.py), options.md from the fields of
the middlewares' values (`options`), client.md from those of the client (`client_page`). Nobody
edits these pages.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from client_page import client
from options import options

from unspool import errors
from unspool.admin.cli import EXIT_CODES, Commands, cli
from unspool.problems import PREFIX, PROBLEMS
from unspool.settings import SETTINGS, accepts, shown
from unspool.testing.idempotency import ROWS, SECTIONS, sentence_of

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/generate.py. Do not edit. -->"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings() -> Iterator[str]:
    yield from (
        "# Settings", "", MADE, "",
        "A flag goes before a variable, a variable before the file, the file before the default.",
        "There is one file: `--config`, else `UNSPOOL_CONFIG`, else the first that exists of",
        "`./unspool.toml`, `$XDG_CONFIG_HOME/unspool/config.toml` and `/etc/unspool/unspool.toml`.",
        "Files are not merged. A key or variable that is not known is refused.",
        "",
        "`unspool config` shows what holds and where it came from; `unspool config --defaults`",
        "prints a whole file. Durations are written `500ms`, `30s`, `5m`, `24h`, `5d` or as",
        "milliseconds; sizes `64KiB`, `1MiB` or as bytes. Lists are repeated flags, TOML lists, or",
        "text with commas. An empty variable counts as not set.",
    )  # fmt: skip
    section = ""
    for setting in SETTINGS.values():
        if setting.section != section:
            section = setting.section
            yield from ("", f"## {section}", "")
            yield "| key | flag | variable | takes | default | |"
            yield "|---|---|---|---|---|---|"
        default = shown(setting, setting.default)
        yield (
            f"| `{setting.name}` | `{setting.flag}` | `{setting.variable}` "
            f"| {cell(accepts(setting))} | `{default}` | {cell(setting.text)} |"
        )
    yield from (
        "", "## Variables that are not settings", "",
        "| variable | |", "|---|---|",
        "| `UNSPOOL_CONFIG` | The file with the settings. |",
        "| `UNSPOOL_DEBUG` | Where it is set, errors of the command line come with a traceback. |",
        "", "What Kubernetes sets for a service called `unspool` (`UNSPOOL_PORT=tcp://…`,",
        "`UNSPOOL_SERVICE_HOST` and the like) is left alone.",
    )  # fmt: skip


def everything() -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, those of groups behind the group."""
    for name, command in cli.commands.items():
        yield name, command
        if isinstance(command, click.Group):
            for below, one in command.commands.items():
                yield f"{name} {below}", one


def commands() -> Iterator[str]:
    yield from (
        "# Commands", "", MADE, "",
        "Data goes to stdout, talk to stderr. Nothing needs a terminal. With `--json`, commands",
        "print one JSON object a line: ignore members that you do not know, there will be more.",
        "Instants are milliseconds since 1970, durations milliseconds.",
    )  # fmt: skip
    for name, command in everything():
        context = click.Context(command, info_name=f"unspool {name}")
        yield from ("", f"## `unspool {name}`", "")
        aliases = [alias for alias, real in Commands.ALIASES.items() if real == name]
        if aliases:
            yield from (f"Also {', '.join(f'`unspool {alias}`' for alias in aliases)}.", "")
        yield from (line.strip() for line in (command.help or "").splitlines())
        yield from ("", "```", command.get_usage(context), "```", "")
        plain = [option for option in command.params if isinstance(option, click.Option)]
        if name in ("serve", "collect", "config"):
            plain = [option for option in plain if option.name not in SETTINGS]
            yield from ("Every [setting](settings.md) is a flag of it.", "")
        if plain:
            yield from ("| option | |", "|---|---|")
        for option in plain:
            written = " ".join([*option.opts, *([option.metavar] if option.metavar else [])])
            yield f"| `{written}` | {cell(option.help or '')} |"
    yield from ("", "## Exit codes", "", "Those of sysexits.h.", "", "| code | name | |")
    yield "|---|---|---|"
    names = {getattr(os, name): name for name in dir(os) if name.startswith("EX_")}
    for code, text in EXIT_CODES.items():
        yield f"| {code} | {names.get(code, '')} | {text} |"


def problems() -> Iterator[str]:
    yield from (
        "# Problems", "", MADE, "",
        "Every answer that is the relay's own and not the service's is `application/problem+json`",
        "(RFC 9457) with a `Proxy-Status` field (RFC 9209). Its `type` is",
        f"`{PREFIX}problems/NAME`.",
        "", "| name | status | what happened | where the request is | what to do |",
        "|---|---|---|---|---|",
    )  # fmt: skip
    for name, row in sorted(PROBLEMS.items(), key=lambda pair: (pair[1].status, pair[0])):
        parts = (f"`{name}`", str(row.status), row.title, row.where, row.advice)
        yield "| " + " | ".join(map(cell, parts)) + " |"
    yield from (
        "", "## Errors", "",
        "What the Python API raises, and the command line turns into exit codes: sorted by who",
        "must act.", "", "| class | a kind of | exit code | |", "|---|---|---|---|",
    )  # fmt: skip
    for thing in vars(errors).values():
        if isinstance(thing, type) and issubclass(thing, errors.UnspoolError):
            text = " ".join((thing.__doc__ or "").split())
            base = thing.__base__.__name__ if thing.__base__ else ""
            yield f"| `{thing.__name__}` | `{base}` | {thing.exit_code} | {cell(text)} |"


def idempotency() -> Iterator[str]:
    found = json.loads((REFERENCE / "idempotency.json").read_text("utf-8"))
    targets = found["targets"]
    yield from (
        "# Idempotency: the conformance table", "", MADE, "",
        "What is true of a server that takes an `Idempotency-Key`, and of which part of unspool.",
        "M must hold, S should. *yes*: the suite asked it over HTTP, and it holds. *tests*: it is",
        "not on the wire, and the tests named below show it. *by design*: it cannot hold there, or",
        "need not; why stands below. *no*: it does not hold.",
        "", "The same suite asks anybody's server:",
        "[Check that your server keeps its keys](../howto/check-your-server.md).",
    )  # fmt: skip
    for letter, title in SECTIONS.items():
        yield from ("", f"## {letter}: {title}", "")
        yield f"| | | | {' | '.join(targets)} |"
        yield "|---|---|---|" + "---|" * len(targets)
        for name, row in ROWS.items():
            if name[0] != letter:
                continue
            words = [targets[target][name].replace("elsewhere", "tests") for target in targets]
            yield f"| {name} | {row.level} | {cell(row.sentence)} | {' | '.join(words)} |"
    yield from ("", "## Not, and why", "", "| row | where | why |", "|---|---|---|")
    reasons = found["by_design"]
    for why in dict.fromkeys(why for rows in reasons.values() for why in rows.values()):
        where = [target for target in targets if why in reasons[target].values()]
        names = [name for name in ROWS if reasons[where[0]].get(name) == why]
        yield f"| {', '.join(names)} | {', '.join(where)} | {cell(why)} |"
    for name, why in found["not_done"].items():
        where = ", ".join(t for t in targets if targets[t][name] == "no") or "all"
        yield f"| {name} | {where} | {cell(why)} |"
    yield from (
        "", "## Shown by other tests", "",
        "Those that kill, pause and starve processes ask the ASGI middleware: WSGI and Django",
        "stand on the same ledger.", "", "| row | tests |", "|---|---|",
    )  # fmt: skip
    for name, where in found["elsewhere"].items():
        yield f"| {name} | {', '.join(f'`{place}`' for place in dict.fromkeys(where.values()))} |"
    yield from ("", "## What a server must offer to be asked", "")
    yield from (
        "A POST whose effect is counted and a GET that tells the count are enough for most rows.",
        "These need more:", "", "| need | rows | |", "|---|---|---|",
    )  # fmt: skip
    for need in dict.fromkeys(need for row in ROWS.values() for need in (*row.needs, *row.some)):
        rows = ", ".join(name for name, row in ROWS.items() if need in (*row.needs, *row.some))
        yield f"| `{need}` | {rows} | {cell(sentence_of(need))} |"


PAGES = {
    "options.md": lambda: options(MADE),
    "client.md": lambda: client(MADE),
    "idempotency.md": idempotency,
    "settings.md": settings,
    "commands.md": commands,
    "problems.md": problems,
}


def main() -> int:
    lagging = []
    for name, page in PAGES.items():
        path, text = REFERENCE / name, "\n".join(page()) + "\n"
        if path.exists() and path.read_text("utf-8") == text:
            continue
        lagging.append(name)
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    if lagging and "--check" in sys.argv[1:]:
        print(
            f"docs lag behind the code: {', '.join(lagging)}; run docs/generate.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
