"""Imports go down only, and the core decides without doing (design section 2)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "unspool"

LAYERS = {
    "core": ("core",),
    "errors": ("errors",),
    "settings": ("settings", "config"),
    "problems": ("problems",),
    "clock": ("clock", "chance", "outgoing"),
    "door": ("ingress.protocol",),
    "spools": ("spools",),
    "queues": ("queues",),
    "transports": ("transports",),
    "relay": (
        "relay", "dispatcher", "deliveries", "receipts", "custody", "saving", "passage", "answers",
        "gather", "node", "express", "tries", "ledger", "recent", "claims", "endings", "upkeep",
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


def imports(name: str, path: Path) -> Iterator[str]:
    """The full names of what a module imports; `unspool.` before what is ours."""
    package = ["unspool", *name.split(".")]
    if path.stem != "__init__":
        package.pop()
    elif name == "__init__":
        package = ["unspool"]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` may mean the module x or a name in the package.
            yield from (f"{stem}.{alias.name}" for alias in node.names)


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
