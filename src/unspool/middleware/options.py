"""Options: what an application may say about its keys, once, for ASGI, WSGI, Django and `once`.

    rules, tenure, survives = read(options)      `options` are keyword arguments of the middlewares

Each is a field of `Rules`, `Tenure` or `Keeping`, where its sentence is; a test holds the three
lists together. An unknown one is refused with the nearest name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Final, Literal, TypedDict, get_args

from ..core.lifecycle import Keeping
from ..core.message import Response
from ..core.tenure import LEASE_MIN_MS, Abandoned, Tenure
from ..errors import Misconfigured
from ..spools.protocol import Survives
from .gate import Rules

Grade = Literal["nothing", "process", "power", "machine"]


class Options(TypedDict, total=False):
    name: str
    methods: Collection[str]
    required: bool
    key_max_chars: int
    body_max_bytes: int
    wait_max_ms: int
    store_errors: bool
    docs: str
    unstored: Callable[[Response], bool]
    lease_ms: int
    abandoned: Literal["run", "unknown"]
    alone: bool
    answer_ms: int
    key_ms: int
    answer_max_bytes: int
    survives: Grade


RULES: Final = frozenset(Rules.__struct_fields__)
TENURE: Final = frozenset(Tenure.__struct_fields__) - {"keeping"}
KEEPING: Final = frozenset(Keeping.__struct_fields__)


def read(options: Options) -> tuple[Rules, Tenure, Survives]:
    """Raises `Misconfigured` for what makes no sense."""
    given = dict(options)
    known = {*RULES, *TENURE, *KEEPING, "survives"}
    for name in given:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1)
            there = (
                f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(known))}."
            )
            raise Misconfigured(f"There is no option {name!r}. {there}")
    if "methods" in given:
        given["methods"] = frozenset(str(method).upper() for method in options["methods"])
    if "abandoned" in given:
        given["abandoned"] = _one_of(Abandoned, "abandoned", given["abandoned"])
    survives = str(given.pop("survives", "power"))
    if survives not in get_args(Grade):
        raise Misconfigured(f"survives={survives!r}: say one of {', '.join(get_args(Grade))}.")
    if options.get("lease_ms", LEASE_MIN_MS) < LEASE_MIN_MS:
        raise Misconfigured(
            f"lease_ms={options['lease_ms']} is too short to be renewed in; {LEASE_MIN_MS} will do."
        )
    if options.get("answer_ms", 0) > options.get("key_ms", Keeping().key_ms):
        raise Misconfigured("An answer cannot be kept for longer than its key: see key_ms.")
    keeping = Keeping(**{name: given[name] for name in given if name in KEEPING})  # type: ignore[arg-type]
    tenure = Tenure(
        keeping=keeping,
        **{name: given[name] for name in given if name in TENURE},  # type: ignore[arg-type]
    )
    rules = Rules(**{name: given[name] for name in given if name in RULES})  # type: ignore[arg-type]
    return rules, tenure, Survives[survives.upper()]


def _one_of(kind: type[Abandoned], name: str, value: object) -> Abandoned:
    try:
        return kind(str(value))
    except ValueError:
        raise Misconfigured(f"{name}={value!r}: say one of {', '.join(kind)}.") from None
