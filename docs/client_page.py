"""The page client.md: what a client and a request take, and what comes of it. Each sentence stands
under its field in the code; `generate` writes the page."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from textwrap import dedent

from options import sentences

from unspool.client import events, results
from unspool.client.client import Asked
from unspool.client.options import Options
from unspool.client.receipt import Receipt, Status
from unspool.errors import Reused, Unacceptable, Undelivered

RESULTS = (
    results.Delivered, results.Rejected, results.Accepted, results.Queued, results.Unknown,
    results.FellBack,
)  # fmt: skip
TESTS_ONLY = ("transport", "clock", "luck")


def client(made: str) -> Iterator[str]:
    yield from (
        "# The client", "", made, "",
        "`from unspool import Client, AsyncClient, Delivered, Accepted, Queued, Rejected, Unknown`",
        "",
        "`Client` blocks and may be used from many threads; `AsyncClient` has the same verbs to be",
        "awaited. Both have `get`, `head`, `post`, `put`, `patch`, `delete`, `request`,",
        "`build` (a request that is not sent yet) and `send`; `wait(key, timeout)` and",
        "`drain(timeout, progress=…)` for what was queued; `statistics()`; `close` or `aclose`.",
        "`AsyncClient.settled()` is an async iterator of the news.",
        "", "## Options", "",
        "Keyword arguments of both; `servers` comes first. One that is not known is refused with",
        "the nearest name. Nothing is opened before the first use, `with`, or `start()`.", "",
        "| option | default | |", "|---|---|---|",
    )  # fmt: skip
    told = sentences(Options)
    for name, parameter in inspect.signature(Options).parameters.items():
        if name not in TESTS_ONLY:
            assert told[name], f"Options.{name} has no sentence"
            yield f"| `{name}` | {default(parameter.default)} | {told[name]} |"
    yield from ("", "## A request", "", "| keyword | |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in sentences(Asked).items())
    yield from ("", "## Results", "", "| result | |", "|---|---|")
    for kind in RESULTS:
        fields = ", ".join(kind.__struct_fields__)
        yield f"| `{kind.__name__}({fields})` | {first(kind)} |"
    for kind, title in (
        (results.Response, "Response"), (results.Try, "Try: one attempt or offer"),
        (results.Settled, "Settled: the news"), (Status, "Status: of a receipt"),
    ):  # fmt: skip
        yield from ("", f"### {title}", "", first(kind), "", "| field | |", "|---|---|")
        words = sentences(kind)
        yield from (f"| `{name}` | {words.get(name, '')} |" for name in kind.__struct_fields__)
        yield from (f"| `{name}` | {text} |" for name, text in verbs(kind))
    yield from ("", "### Receipt", "", first(Receipt), "", "| verb | |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in verbs(Receipt))
    yield from ("", "## Exceptions", "", "| exception | |", "|---|---|")
    for kind in (Undelivered, Unacceptable, Reused):
        yield f"| `{kind.__name__}` | {first(kind)} |"
    yield from ("", "`Undelivered` has", "", "| attribute | |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in sentences(Undelivered).items() if text)
    yield from ("", "## Events", "", "What `on_event` is told.", "", "| event | |", "|---|---|")
    for kind in (events.Tried, events.Offered, events.Ended, events.News):
        yield f"| `{kind.__name__}({', '.join(kind.__struct_fields__)})` | {first(kind)} |"


def default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "needed"
    if value in ((), ""):
        return "none"
    return f"`{value}`"


def first(kind: type) -> str:
    """The first paragraph of a class's text, or of its module's where it refers to that."""
    text = dedent(kind.__doc__ or "").strip().split("\n\n")[0]
    if text == "See the head of this file.":
        module = inspect.getmodule(kind)
        assert module is not None
        text = (module.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def verbs(kind: type) -> Iterator[tuple[str, str]]:
    """Its public methods and properties that have a sentence of their own."""
    [thing] = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(thing, ast.ClassDef)
    for one in thing.body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and not one.name.startswith("_"):
            text = ast.get_docstring(one) or ""
            words = [argument.arg for argument in one.args.args if argument.arg != "self"]
            is_property = any(isinstance(d, ast.Name) for d in one.decorator_list)
            name = one.name if is_property else f"{one.name}({', '.join(words)})"
            yield name, " ".join(text.split()).replace("|", "\\|")
