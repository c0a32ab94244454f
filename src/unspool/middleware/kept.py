"""What is kept of a result, as bytes and back: values, whole responses, exceptions, or the fact.

    pack(value)                           raises Unkeepable
    pack_error(error, declared)           an exception, for whoever declares it
    FACT                                  it was done; what came of it could not be kept
    unpack(packed, type_, declared)       the value; raises the exception, NotKept, Corrupt

MessagePack by msgspec, never pickle: reading it makes no more than the caller asked for. Numbers,
text, bytes, None, lists, mappings, dates, UUIDs, Decimals, dataclasses and Structs can be kept;
what they were is told by `type_`, or they come back as plain data. An exception is made again only
of a class that the caller declares, or of one below it that is there already: nothing is imported
because a record says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

import msgspec

from ..core.message import Response, Value
from ..core.record import Spoilt, pack_answer, unpack_answer
from ..errors import Corrupt, NotKept, Unkeepable

KEPT_MAX_BYTES: Final = 1024 * 1024

_ANSWER: Final = b"a"
_VALUE: Final = b"v"
_ERROR: Final = b"e"
FACT: Final = b"f"

Classes = Sequence[type[Exception]]


class _Error(Value, frozen=True, array_like=True):
    declared: str
    name: str
    """Its own class, which may be one below the declared."""
    args: list[Any]
    state: dict[str, Any]
    """Its attributes: exceptions are often more than their arguments."""


def pack(value: Any, *, max_bytes: int = KEPT_MAX_BYTES) -> bytes:
    """A value as bytes. Raises `Unkeepable`."""
    try:
        if isinstance(value, Response):
            packed = _ANSWER + pack_answer(value)
        else:
            packed = _VALUE + msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, AssertionError) as error:
        raise Unkeepable(
            f"A {type(value).__qualname__} cannot be kept: {error}. Keep what MessagePack has words"
            " for (numbers, text, bytes, lists, mappings, dataclasses, Structs), such as an id, or"
            " say how: encode=…, decode=…"
        ) from error
    if len(packed) > max_bytes:
        raise Unkeepable(
            f"A value of {len(packed)} bytes is not kept; {max_bytes} may be. Keep its id:"
            " encode=…, decode=…"
        )
    return packed


def pack_error(error: Exception, declared: type[Exception], *, max_bytes: int) -> bytes:
    """An exception under the name it was declared by. What of it cannot be kept is kept as text."""
    state = {name: _plain(value) for name, value in vars(error).items() if name != "__notes__"}
    args = [_plain(one) for one in error.args]
    kept = _Error(declared.__qualname__, _name(type(error)), args, state)
    packed = _ERROR + msgspec.msgpack.encode(kept)
    if len(packed) > max_bytes:
        short = _Error(kept.declared, kept.name, [_text(error)[:1000]], {})
        packed = _ERROR + msgspec.msgpack.encode(short)
    return packed


def _plain(value: Any) -> Any:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _text(value)
    return value


def _text(value: Any) -> str:
    """Whatever it is: an exception that cannot be kept must not take its key along."""
    try:
        found = str(value)
    except Exception:
        found = f"<{type(value).__qualname__}>"
    return found.encode("utf-8", "backslashreplace").decode()


def unpack(packed: bytes, type_: Any = Any, *, declared: Classes = ()) -> Any:
    """The value again. Raises the exception that was kept; `NotKept` where only the fact was;
    `Corrupt` where the bytes are not what was written."""
    kind, rest = packed[:1], packed[1:]
    try:
        if kind == _VALUE:
            return msgspec.msgpack.decode(rest, type=type_)
        if kind == _ANSWER:
            return unpack_answer(rest)
        if kind == _ERROR:
            error = msgspec.msgpack.decode(rest, type=_Error)
    except (Spoilt, msgspec.MsgspecError) as fault:
        raise Corrupt(f"What was kept under a key cannot be read: {fault}. Nothing was run.") from (
            fault
        )
    if kind == _ERROR:
        _raise(error, declared)
    if kind == FACT:
        raise NotKept
    raise Corrupt("What was kept under a key is of no form that is known. Nothing was run.")


def _name(class_: type[Exception]) -> str:
    return f"{class_.__module__}:{class_.__qualname__}"


def _below(class_: type[Exception]) -> Iterator[type[Exception]]:
    yield class_
    for one in class_.__subclasses__():
        yield from _below(one)


def _raise(kept: _Error, declared: Classes) -> NoReturn:
    for class_ in declared:
        if class_.__qualname__ == kept.declared:
            found = next((one for one in _below(class_) if _name(one) == kept.name), class_)
            # Not by its __init__, whose arguments need not be `args`.
            error = found.__new__(found, *kept.args)
            error.args = tuple(kept.args)
            vars(error).update(kept.state)
            raise error
    raise NotKept(
        f"It was done before, and ended in {kept.declared}, which is not among those declared as"
        " final. Nothing was run; do not repeat it."
    )
