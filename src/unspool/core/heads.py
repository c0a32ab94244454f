"""Heads: the ordinary ones, read and written in one pass, in C where that was compiled.

    request(data, kinds)        a whole request and nothing behind it -> its parts, or None
    answer(data, kinds)         the same of an answer to anything but HEAD
    onward(fields, kinds)       what of a request's fields goes on, its host, its key; or None
    request_head(…)             the bytes of a head that goes to a service, or None
    answer_head(…)              the bytes of a head that goes to a caller, or None

`_heads.pyx` has no policy and no leniency. A byte that is not plainly allowed, a field that
somebody has to think about, a body that is not all here, and the answer is None. **Whoever gets
None takes the long road**, llhttp and the rules in `ingress` and `transports`, which says what is
wrong or does what is unusual. What the names of fields mean is said by `kinds`, a table of the
caller's.

So it can be missing. Where no compiler was at hand at the installation, `COMPILED` is False, all
heads take the long road, and a relay forwards two thirds as much. The tests hold both roads against
each other: what the short one gives, the long one gives, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .kinds import COUNT, HOST, KEY, LENGTH, OURS, Kinds, name_of
from .message import Field

try:
    from . import _heads
except ImportError:  # it was not compiled
    COMPILED = False
else:
    COMPILED = True

Asked = tuple[bytes, bytes, list[Field], bytes, bytes]
"""Method, target, fields, host, body."""
Answered = tuple[int, bytes, list[Field], bytes, None, int]
"""A Response's parts: status, reason, fields (less framing), body, no rest, declared length."""
Onwards = tuple[list[Field], bytes, bytes | None]
"""Fields, host, key (or None)."""


def _no_request(data: bytes, kinds: Kinds, /) -> Asked | None:
    return None


def _no_answer(data: bytes, kinds: Kinds, /) -> Answered | None:
    return None


def sorted_out(fields: Sequence[Field], kinds: Kinds, /) -> Onwards | None:
    """`onward`, in Python."""
    found = list(map(kinds.__getitem__, map(name_of, fields)))
    total = sum(found)
    if total >= OURS or total & COUNT != 1 or total // LENGTH & COUNT > 1 or total // KEY > 1:
        return None
    onwards = list(fields)
    host = onwards[found.index(HOST)][1]
    key = onwards[found.index(KEY)][1] if total >= KEY else None
    if total // LENGTH & COUNT:
        del onwards[found.index(LENGTH)]
    return onwards, host, key


def _no_request_head(
    method: bytes, target: bytes, fields: Sequence[Field], length: int, kinds: Kinds, /
) -> bytes | None:
    return None


def _no_answer_head(
    line: bytes, fields: Sequence[Field], date: bytes, length: int, kinds: Kinds, /
) -> bytes | None:
    return None


request: Final = _heads.request if COMPILED else _no_request
answer: Final = _heads.answer if COMPILED else _no_answer
onward: Final = _heads.onward if COMPILED else sorted_out
request_head: Final = _heads.request_head if COMPILED else _no_request_head
answer_head: Final = _heads.answer_head if COMPILED else _no_answer_head
