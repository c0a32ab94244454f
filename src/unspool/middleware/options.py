"""Options: what an application may say about its keys, once, for ASGI, WSGI, Django and `once`.

    rules, tenure, survives = read(options)      `options` are keyword arguments of the middlewares

Each is a field of `Rules`, `Tenure` or `Keeping`, where its sentence is; a test holds the three
lists together. An unknown one is refused with the nearest name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, Final, Literal, TypedDict, get_args, get_type_hints

from ..core.lifecycle import Keeping
from ..core.message import Response
from ..core.tenure import LEASE_MIN_MS, Abandoned, Tenure
from ..errors import Misconfigured
from ..spools.protocol import Survives
from .gate import Rules

NAME_MAX_CHARS: Final = 200

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
    given, keeping, survives = checked(dict(options), Options)
    if "methods" in given:
        given["methods"] = frozenset(method.upper() for method in given["methods"])
    if "abandoned" in given:
        given["abandoned"] = _one_of(Abandoned, "abandoned", given["abandoned"])
    if given.get("lease_ms", LEASE_MIN_MS) < LEASE_MIN_MS:
        raise Misconfigured(
            f"lease_ms={given['lease_ms']} is too short to be renewed in; {LEASE_MIN_MS} will do."
        )
    tenure = Tenure(keeping=keeping, **{name: given[name] for name in given if name in TENURE})
    rules = Rules(**{name: given[name] for name in given if name in RULES})
    return rules, tenure, survives


def checked(given: dict[str, Any], kind: type) -> tuple[dict[str, Any], Keeping, Survives]:
    """Options of this kind (a TypedDict), looked at one by one, and what all kinds have: how long
    what is known is kept, and what the spool must survive."""
    types = get_type_hints(kind)
    for name, value in given.items():
        if name not in types:
            near = get_close_matches(name, sorted(types), n=1)
            there = (
                f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(types))}."
            )
            raise Misconfigured(f"There is no option {name!r}. {there}")
        _refuse_wrong(name, value, types[name])
    survives = str(given.get("survives", "power"))
    if survives not in get_args(Grade):
        raise Misconfigured(f"survives={survives!r}: say one of {', '.join(get_args(Grade))}.")
    usual = Keeping()
    key_ms = given.get("key_ms", usual.key_ms)
    if given.get("answer_ms", 0) > key_ms:
        raise Misconfigured("An answer cannot be kept for longer than its key: see key_ms.")
    keeping = Keeping(
        answer_ms=given.get("answer_ms", min(usual.answer_ms, key_ms)),
        key_ms=key_ms,
        answer_max_bytes=given.get("answer_max_bytes", usual.answer_max_bytes),
    )
    return given, keeping, Survives[survives.upper()]


def _refuse_wrong(name: str, value: object, kind: object) -> None:
    """What Python would let through, and only a request would find."""
    if isinstance(kind, type) and kind in (int, bool, str) and type(value) is not kind:
        raise Misconfigured(f"{name}={value!r}: that takes a {kind.__name__}.")
    if isinstance(value, int) and value < 0:
        raise Misconfigured(f"{name}={value}: it cannot be less than 0.")
    if name == "name" and not (isinstance(value, str) and 0 < len(value) <= NAME_MAX_CHARS):
        raise Misconfigured(f"name={value!r}: 1 to {NAME_MAX_CHARS} characters, please.")
    if name == "unstored" and not callable(value):
        raise Misconfigured("unstored takes a function of the response that says True or False.")
    if kind == Collection[str] and (
        isinstance(value, str)
        or not isinstance(value, Collection)
        or not all(isinstance(word, str) for word in value)
    ):
        raise Misconfigured(f'{name}={value!r}: give several words, as in {{"POST", "PATCH"}}.')


def _one_of(kind: type[Abandoned], name: str, value: object) -> Abandoned:
    try:
        return kind(str(value))
    except ValueError:
        raise Misconfigured(f"{name}={value!r}: say one of {', '.join(kind)}.") from None
