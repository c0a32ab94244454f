"""`unspool check-idempotency`: does this server keep its Idempotency-Keys right?"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ...config import read
from ...errors import UnspoolError
from ...settings import SETTINGS
from ..wording import plain

if TYPE_CHECKING:
    from ...testing.idempotency import Result, Service

FAILED: Final = os.EX_PROTOCOL


class NoSuchServer(UnspoolError):
    """The server does not answer, or not as the contract of the suite says."""

    exit_code = os.EX_UNAVAILABLE


@click.command("check-idempotency")
@click.argument("url", required=False)
@click.option("--post", metavar="TARGET", help="The target of a POST whose effect is counted.")
@click.option("--count", metavar="TARGET", help="The target of a GET that tells the count.")
@click.option(
    "--counts", metavar="URL", help="Where the count is asked, if not at URL: behind a relay."
)
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="NEED=TARGET",
    help="A target that does what some rows need, such as slow=/orders?slow=1.",
)
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="NAME=URL",
    help="A part of the server that is set up otherwise: required, short.",
)
@click.option(
    "--caller", multiple=True, metavar="FIELD", help="Who asks: 'Authorization: Bearer a'."
)
@click.option("--other", multiple=True, metavar="FIELD", help="Another caller, by its fields.")
@click.option(
    "--renewed", multiple=True, metavar="FIELD", help="The same caller, with another token."
)
@click.option("--body", metavar="TEXT", help="The body of each POST.")
@click.option("--other-body", metavar="TEXT", help="Another body that the POST takes.")
@click.option("--media", metavar="TYPE", help="The Content-Type of the bodies.")
@click.option("--parks", is_flag=True, help="It saves what fails and answers 202: ask section H.")
@click.option("--lifetime", is_flag=True, help="It takes Unspool-Lifetime: a relay of ours.")
@click.option("--limit", metavar="SIZE", help="Request bodies above it are refused; 0: unknown.")
@click.option("--key-max", type=click.IntRange(1), help="The longest key. [255]")
@click.option(
    "--retention",
    metavar="TARGET",
    help="A document that tells how long keys are kept, where no field does.",
)
@click.option("--row", "rows", multiple=True, metavar="ROW", help="Ask this row, or section, only.")
@click.option(
    "--by-design",
    multiple=True,
    metavar="ROW=WHY",
    help="Do not ask this row: it cannot hold here, and why.",
)
@click.option("--list", "lists", is_flag=True, help="Print every row and need, and ask nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one for a row.")
def check_idempotency(*, url: str | None, lists: bool, as_json: bool, **given: Any) -> int:
    """Ask a server, ours or anybody's, whether it keeps its Idempotency-Keys right.

    For example: unspool check-idempotency http://127.0.0.1:8000 --post /orders --count
    /orders/count

    Sends real requests, with real effects. Without --post the server is asked as one that runs
    the counter service that is shipped (unspool.testing.counter). Exits 0 if every row that must
    hold and could be asked holds, 76 if one does not, 69 if the server cannot be asked.
    """
    if lists:
        for line in _list(as_json=as_json):
            click.echo(line)
        return 0
    if not url:
        raise click.UsageError("say which server to ask: unspool check-idempotency URL")
    rows = _rows(given["rows"])
    by_design = _pairs("--by-design", given["by_design"])
    _rows(tuple(by_design))
    service = _service(url, given)
    import asyncio

    from ...testing.idempotency import Unfit, check

    printer = _Printer(rows, as_json=as_json)
    try:
        results = asyncio.run(check(service, rows=rows, by_design=by_design, told=printer.hear))
    except Unfit as error:
        raise NoSuchServer(str(error)) from error
    if not as_json:
        click.echo(_summary(results), err=True)
    return FAILED if any(_weighs(result) for result in results) else 0


def _weighs(result: Result) -> bool:
    return result.level == "M" and result.came == "failed"


def _service(url: str, given: Mapping[str, Any]) -> Service:
    from ...testing.idempotency import Service
    from ...testing.idempotency.service import MOUNTS, NEEDS
    from ...testing.idempotency.wire import Wire

    try:
        for each in (url, given["counts"]):
            if each:
                Wire(each)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if bool(given["post"]) != bool(given["count"]):
        raise click.UsageError("--post and --count go together")
    how: dict[str, Any] = {"url": url, "parks": given["parks"], "lifetime": given["lifetime"]}
    if given["post"]:  # what is true of the shipped service is not true of this one
        how |= {"caller": (), "other": (), "renewed": (), "limit": 0}
    for name in ("post", "count", "retention"):
        if given[name] is not None:
            how[name] = _target(given[name])
    for name in ("counts", "media", "key_max"):
        if given[name] is not None:
            how[name] = given[name]
    for name in ("body", "other_body"):
        if given[name] is not None:
            how[name] = given[name].encode()
    for name in ("caller", "other", "renewed"):
        if given[name]:
            how[name] = tuple(_field(text) for text in given[name])
    if given["limit"] is not None:
        how["limit"] = read(SETTINGS["body_max_bytes"], given["limit"], origin="--limit")
    routes = _pairs("--route", given["routes"], known=NEEDS)
    how["routes"] = {need: _target(target) for need, target in routes.items()}
    how["mounts"] = _pairs("--mount", given["mounts"], known=MOUNTS)
    if how["routes"] and not given["post"]:
        raise click.UsageError("--route is for servers that are named by --post and --count")
    return Service(**how)


def _pairs(
    flag: str, texts: tuple[str, ...], *, known: Mapping[str, object] | None = None
) -> dict[str, str]:
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value:
            raise click.UsageError(f"{flag} takes NAME=VALUE, and not {text!r}")
        if known is not None and name not in known:
            raise click.UsageError(f"{flag}: there is no {name!r}; there are {', '.join(known)}")
        found[name] = value
    return found


def _rows(names: tuple[str, ...]) -> tuple[str, ...]:
    """The rows that are named, one by one or by section."""
    from ...testing.idempotency import ROWS, SECTIONS

    found: list[str] = []
    for name in names:
        name = name.upper()
        if name in SECTIONS:
            found.extend(row for row in ROWS if row[0] == name)
        elif name in ROWS:
            found.append(name)
        else:
            raise click.UsageError(f"there is no row {name!r}: --list prints them all")
    return tuple(found)


def _target(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text):
        raise click.UsageError(
            f"give a target as it stands in a request, /orders, and not {text!r}"
        )
    return text


def _field(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not sign or not name.strip() or not re.fullmatch(r"[\t -\xff]*", text):
        raise click.UsageError(f"give a field as 'Name: value', and not {text!r}")
    return name.strip(), value.strip()


# --- what is printed --------------------------------------------------------------------------


class _Printer:
    """Prints results in the order of the table, as soon as that can be."""

    def __init__(self, rows: tuple[str, ...], *, as_json: bool) -> None:
        from ...testing.idempotency import ROWS

        self._left = [name for name in ROWS if not rows or name in rows]
        self._heard: dict[str, Result] = {}
        self._line = _json if as_json else _line

    def hear(self, result: Result) -> None:
        self._heard[result.row] = result
        while self._left and self._left[0] in self._heard:
            click.echo(self._line(self._heard[self._left.pop(0)]))


def _line(result: Result) -> str:
    from ...testing.idempotency import ROWS

    text = f"{result.row:<4} {result.level}  {result.came:<9}  {ROWS[result.row].sentence}"
    return f"{text}\n{'':19}{plain(result.seen)}" if result.seen else text


def _json(result: Result) -> str:
    from ...testing.idempotency import ROWS

    return msgspec.json.encode(
        {
            "row": result.row,
            "level": result.level,
            "came": result.came,
            "seen": result.seen,
            "took_ms": result.took_ms,
            "sentence": ROWS[result.row].sentence,
        }
    ).decode()


def _summary(results: list[Result]) -> str:
    asked = [result for result in results if result.came in ("passed", "failed")]
    failed = [result for result in asked if result.came == "failed"]
    must = [result.row for result in failed if result.level == "M"]
    should = [result.row for result in failed if result.level == "S"]
    text = f"{len(asked)} of {len(results)} rows asked: {len(asked) - len(failed)} hold"
    if must:
        text += f"; must hold and do not: {', '.join(must)}"
    if should:
        text += f"; should hold and do not: {', '.join(should)}"
    return text + "."


def _list(*, as_json: bool) -> list[str]:
    from ...testing.idempotency import ROWS, sentence_of

    if as_json:
        return [
            msgspec.json.encode({"row": name, **msgspec.to_builtins(row)}).decode()
            for name, row in ROWS.items()
        ]
    lines = []
    for name, row in ROWS.items():
        needs = ", ".join([*row.needs, " | ".join(row.some)]).strip(", ")
        lines.append(f"{name:<4} {row.level}  {row.sentence}{f' [{needs}]' if needs else ''}")
    every = sorted({need for row in ROWS.values() for need in (*row.needs, *row.some)})
    return [*lines, "", *(f"{need:<13} {sentence_of(need)}" for need in every)]
