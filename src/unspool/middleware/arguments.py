"""Arguments: what a function that is done once was called with, by its signature.

    arguments = Arguments(function)
    bound = arguments.bound(args, kwargs)      each by its name, defaults filled in (L3)
    some(function, bound, ctx=…)               call another with as many of them as it takes
    digest(value)                              a fingerprint of them, or of some
    named(key)                                 what names this work, as text

A parameter called `ctx` is not the caller's to give: it gets the `Running`. One called `self` or
`cls` that comes first is the method's, and tells nothing of the work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from typing import Any, Final, get_type_hints
from uuid import UUID

import msgspec

from ..errors import Misconfigured

CTX: Final = "ctx"
NAME_MAX_CHARS: Final = 1_000
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Bound = Mapping[str, Any]


class Arguments:
    def __init__(self, function: Callable[..., Any]) -> None:
        whole = inspect.signature(function)
        self.takes_ctx: Final = CTX in whole.parameters
        theirs = [one for one in whole.parameters.values() if one.name != CTX]
        self.signature: Final = whole.replace(parameters=theirs)
        """As its callers see it."""
        first = theirs[0].name if theirs else ""
        self.owner: Final = first if first in ("self", "cls") else ""

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Raises TypeError, as the call itself would."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != self.owner}

    def has(self, names: Collection[str]) -> None:
        """Raises `Misconfigured` for a name that is no parameter."""
        for name in names:
            if name not in self.signature.parameters or name == self.owner:
                there = ", ".join(one for one in self.signature.parameters if one != self.owner)
                raise Misconfigured(
                    f"fingerprint names {name!r}, which is no parameter. There are: {there}."
                )


def some(function: Callable[..., Any], bound: Bound, ctx: object = None) -> Any:
    """Call it with the first arguments, as many as it takes, and with `ctx` if it takes that."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some things in C nobody knows
        return function(*list(bound.values())[:1])
    count = sum(one.kind in _POSITIONAL and one.name != CTX for one in parameters.values())
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters.values()):
        count = len(bound)
    given = list(bound.values())[:count]
    return function(*given, **({CTX: ctx} if CTX in parameters else {}))


def _cannot(value: object) -> Any:
    raise Misconfigured(
        f"A {type(value).__qualname__} among the arguments cannot be compared with that of another"
        " call, so nothing was run. Say what tells one work from another: fingerprint=lambda m:"
        " m.body, or the names of parameters, or fingerprint=None to compare nothing"
    )


_encode: Final = msgspec.json.Encoder(order="sorted", enc_hook=_cannot).encode


def digest(value: object) -> bytes:
    """16 bytes that are equal for equal values. Raises `Misconfigured` for what has no words."""
    try:
        encoded = _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Misconfigured(
            f"The arguments cannot be compared with those of another call: {error}. Nothing was"
            " run. Say what tells one work from another: fingerprint=…"
        ) from error
    return blake2b(encoded, digest_size=16, person=b"unspool args").digest()


def result_type(function: Callable[..., Any]) -> Any:
    """What a function says it gives; Any where it does not say, or it cannot be found out.

    Raises `Misconfigured` for what could never be kept, before anything is run.
    """
    try:
        found = get_type_hints(function).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any
    try:
        if _is_plain(msgspec.inspect.type_info(found), set()):
            msgspec.msgpack.Decoder(found)
            return found
    except TypeError:
        pass
    raise Misconfigured(
        f"{function.__qualname__} gives a {getattr(found, '__qualname__', found)}, which cannot be"
        " kept as it is. Say how: encode=lambda order: order.id, decode=find_order"
    )


def _is_plain(info: msgspec.inspect.Type, seen: set[int]) -> bool:
    """Has msgspec words for all of it?"""
    if isinstance(info, msgspec.inspect.CustomType):
        return False
    if id(info) in seen or not isinstance(info, msgspec.Struct):
        return True
    seen.add(id(info))
    for name in info.__struct_fields__:
        held = getattr(info, name)
        for one in held if isinstance(held, tuple) else (held,):
            inner = one.type if isinstance(one, msgspec.inspect.Field) else one
            if isinstance(inner, msgspec.inspect.Type) and not _is_plain(inner, seen):
                return False
    return True


def named(key: object) -> str:
    """A key as text. Raises `Misconfigured` for what cannot tell one work from another."""
    if isinstance(key, bytes):
        key = key.hex()
    if isinstance(key, bool) or not isinstance(key, str | int | UUID) or key == "":
        raise Misconfigured(
            f"The key is a {type(key).__qualname__}: give a str, bytes, int or UUID that names this"
            " work and no other. Nothing was run."
        )
    name = str(key)
    if len(name) > NAME_MAX_CHARS:
        raise Misconfigured(f"A key has at most {NAME_MAX_CHARS} characters. Nothing was run.")
    return name
