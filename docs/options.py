"""The page options.md: what may be said to the middlewares. Each option's sentence stands under its
field; `generate` writes the page."""

from __future__ import annotations

import ast
import enum
import inspect
from collections.abc import Collection, Iterator

from unspool.core.lifecycle import Keeping
from unspool.core.tenure import Tenure
from unspool.middleware.gate import Rules
from unspool.middleware.options import Options
from unspool.middleware.retry import Habits, RetryOptions


def options(made: str) -> Iterator[str]:
    yield from (
        "# Options of the middlewares", "", made, "",
        "Keyword arguments. One that is not known is refused with the nearest name, one that makes",
        "no sense when the application is made. Durations are milliseconds, sizes bytes.",
        "", "`survives` is the least that the spool must outlive, else nothing runs under a key:",
        "`nothing`, `process`, `power` (the default) or `machine`.",
        "", "## Idempotency", "",
        "For ASGI, WSGI and Django alike. The application must say who is asking: `scope`.", "",
    )  # fmt: skip
    yield from rows(Options.__annotations__, (Rules, Tenure, Keeping))
    yield from ("", "## Retry", "", "For ASGI. `scope` may be left out.", "")
    yield from rows(RetryOptions.__annotations__, (Habits, Keeping))


def rows(names: Collection[str], kinds: Collection[type]) -> Iterator[str]:
    yield from ("| option | default | |", "|---|---|---|")
    for kind in kinds:
        for name, text in sentences(kind).items():
            if name in names:
                assert text, f"{kind.__name__}.{name} has no sentence"
                default = told(inspect.signature(kind).parameters[name].default)
                yield f"| `{name}` | {f'`{default}`' if default else 'none'} | {text} |"


def told(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, frozenset | tuple):
        words = [one.decode() if isinstance(one, bytes) else str(one) for one in value]
        return " ".join(sorted(words) if isinstance(value, frozenset) else words)
    return str(getattr(value, "__name__", value))


def sentences(kind: type) -> dict[str, str]:
    """What stands under each field of a class."""
    [thing] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(thing, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(thing.body, [*thing.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if said else ""  # type: ignore[union-attr]
            found[field.target.id] = " ".join(str(text).split())
    return found
