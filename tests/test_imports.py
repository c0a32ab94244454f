"""Imports go down only, and the core decides without doing (design section 2)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "unspool"

LAYERS = {
    "core": ("core",),
    "errors": ("errors",),
    "settings": ("settings", "config"),
    "problems": ("problems",),
    "clock": ("clock", "chance", "outgoing", "untaken"),
    "door": ("ingress.protocol",),
    "spools": ("spools",),
    "queues": ("queues",),
    "transports": ("transports",),
    "relay": (
        "relay", "dispatcher", "deliveries", "settling", "receipts", "custody", "saving", "passage",
        "answers", "gather", "node", "express", "told", "tries", "ledger", "recent", "claims",
        "endings", "upkeep",
    ),
    "ingress": ("ingress",),
    "house": ("house",),
    "middleware": ("middleware",),
    "portal": ("middleware.portal", "middleware.visit"),
    "client": ("client",),
    "adapters": ("client.adapter", "httpx", "requests", "aiohttp"),
    "admin": ("admin", "__main__"),
    "testing": ("testing",),
    "public": ("__init__",),
}  # fmt: skip
"""Layer: its modules, or the packages whose modules are its own. The longest name wins."""

_GROUND = {"core", "errors"}
_EDGE = _GROUND | {"spools", "queues", "transports", "clock"}
_MIDDLE = _EDGE | {"relay", "problems", "settings", "door"}

MAY = {
    "core": set(),
    "errors": set(),
    "settings": _GROUND,
    "problems": {"core"},
    "clock": {"core"},
    "door": {"core"},
    "spools": _GROUND,
    "queues": _GROUND | {"spools"},  # a grade is one word for both
    "transports": _GROUND | {"clock"},
    "relay": _MIDDLE - {"relay"},
    "ingress": _MIDDLE,
    "house": _MIDDLE,
    "middleware": _MIDDLE | {"ingress", "portal"},
    "portal": {"errors"},
    "client": _MIDDLE | {"portal"},
    "adapters": _EDGE | {"client"},
    "admin": {*LAYERS} - {"admin"},
    "testing": _MIDDLE | {"ingress"},
    "public": _GROUND | {"client"},
}
"""Layer: those that it may import besides itself."""

NOT_IN_CORE = {
    "apsw", "asyncio", "atexit", "concurrent", "contextvars", "ctypes", "fcntl", "glob", "http",
    "httptools", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "structlog",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "uuid", "uvloop",
    "warnings",
}  # fmt: skip
"""Whoever needs one of these does something."""

CLOCKS = {"now", "utcnow", "today"}
"""Of `datetime`, which the core may use for reading dates that it is given."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module below `unspool`, by its name there."""
    for path in sorted(SRC.rglob("*.py")):
        parts = list(path.relative_to(SRC).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        yield ".".join(parts), path


def imports(
    name: str, path: Path, of: Callable[[ast.Module], Iterable[ast.AST]] = ast.walk
) -> Iterator[str]:
    """The full names of what a module imports; `unspool.` before what is ours."""
    package = ["unspool", *name.split(".")]
    if path.stem != "__init__":
        package.pop()
    elif name == "__init__":
        package = ["unspool"]
    for node in of(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` may mean the module x or a name in the package.
            yield from (f"{stem}.{alias.name}" for alias in node.names)


CIRCLES = {
    frozenset({"client.receipt", "client.results"}):
        "a result names its receipt, and what became of a receipt is a result: for types alone",
    frozenset({"transports.connection", "transports.home"}):
        "a connection knows where it comes home to, and that holds connections: for types alone",
    frozenset({"ingress.connection", "ingress.http", "ingress.writing"}):
        "a connection names the door that it came through, which makes connections: types alone",
}  # fmt: skip
"""Modules that know one another all the same, and why. None of them imports itself when it runs."""


def at_once(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """What runs when a module is imported: not functions, nor what is for types alone."""
    for node in nodes:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_once(node.orelse)
        else:
            yield from at_once(ast.iter_child_nodes(node))


def graph(of: Callable[[ast.Module], Iterable[ast.AST]]) -> dict[str, set[str]]:
    """Module: the modules of ours that it imports. The package itself is there before them all."""
    paths = dict(modules())
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        names = found[name] = set()
        for full in imports(name, path, of):
            below = full.removeprefix("unspool.")
            if full != below and below != "__version__":
                stem = below.rpartition(".")[0]
                names.add(below if below in paths else stem if stem in paths else "__init__")
    return found


def circles(known: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of modules of which each reaches each."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            new = known[left.pop()] - seen
            seen |= new
            left += new
        return seen

    reached = {name: reach(name) for name in known}
    return {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in known
        if name in reached[name]
    }


def test_no_module_imports_itself() -> None:
    """Over however many others: which of them was imported first would decide what works."""
    assert circles(graph(lambda module: at_once(module.body))) == set()


def test_the_circles_that_remain_are_known() -> None:
    """Neither for types, nor hidden in a function, does a module come back to itself, but for those
    of the table; and one that is undone leaves it."""
    assert circles(graph(ast.walk)) == {*CIRCLES}


def test_circles_are_found() -> None:
    """Of one, of two and of three; and what only leads into one is none."""
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}, "e": set[str]()}
    assert circles(arrows) == {frozenset("bc"), frozenset("d")}


def layer(name: str) -> str:
    """The layer of a module, or of a name in a module."""
    found = [
        (len(module), layer_)
        for layer_, those in LAYERS.items()
        for module in those
        if name == module or name.startswith(module + ".")
    ]
    assert found, f"src/unspool/{name.replace('.', '/')} is in no layer: put it in the table"
    return max(found)[1]


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_go_down(name: str, path: Path) -> None:
    ours = layer(name)
    for found in imports(name, path):
        if found.split(".")[0] != "unspool":
            continue
        below = found.removeprefix("unspool").removeprefix(".")
        if not below or below in ("__version__",):
            continue
        theirs = layer(below)
        assert theirs == ours or theirs in MAY[ours], f"{name} ({ours}) imports {found} ({theirs})"


def test_the_table_has_no_way_up() -> None:
    """No two layers may import one another, over however many others."""

    def reach(start: str, seen: frozenset[str]) -> frozenset[str]:
        for other in MAY[start] - seen:
            seen = reach(other, seen | {other})
        return seen

    for name in LAYERS:
        assert name not in reach(name, frozenset()), name


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, path in modules() if layer(name) == "core"]
)
def test_the_core_does_nothing(name: str, path: Path) -> None:
    for found in imports(name, path):
        parts = found.split(".")
        names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        assert not names & NOT_IN_CORE, f"{name} imports {found}"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                assert called.id not in ("open", "print", "input", "exec", "eval"), name
            elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                assert not (called.value.id in ("datetime", "date") and called.attr in CLOCKS), name


def test_the_package_alone_needs_nothing_but_msgspec() -> None:
    code = (
        "import sys; before = set(sys.modules); import unspool; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    foreign = set(out.split()) - set(sys.stdlib_module_names) - {"unspool", "msgspec"}
    assert not foreign


def test_the_command_line_opens_no_driver_before_it_must() -> None:
    code = "import sys, unspool.admin.cli; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not {"apsw", "httptools", "uvloop", "ssl"} & set(out.split())
