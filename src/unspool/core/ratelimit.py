"""Rate limits as servers tell them: is anything left, and when is there more?

    exhausted_ms(answer) -> int | None      nothing is left, for so long; None: there is, or unsaid

Reads `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10: a list, `"hour";r=0;t=1800`), the
older one (`RateLimit: limit=10, remaining=0, reset=30`), and the three fields before both
(`RateLimit-Remaining`, `RateLimit-Reset`, with or without `X-`). Of several policies the one that
waits longest counts. A reset that is an instant (GitHub) and not a number of seconds is not
believed: who sends one sends Retry-After too.
"""

from __future__ import annotations

from typing import Any, Final

import http_sf

from .fields import values
from .message import Answer, Failure, Response
from .outcome import RETRY_AFTER_MAX_MS

SECONDS_MAX: Final = 10 * 24 * 3600
"""A larger number is an instant."""


def exhausted_ms(answer: Answer) -> int | None:
    """Milliseconds until there is more; None where there is some left, or nobody says."""
    if isinstance(answer, Failure):
        return None
    waits = [*_listed(answer), *_three(answer)]
    return min(max(waits), RETRY_AFTER_MAX_MS) if waits else None


def _listed(answer: Response) -> list[int]:
    found = values(answer.fields, b"ratelimit")
    if not found:
        return []
    value = b", ".join(found)
    waits = []
    try:
        parsed: Any = http_sf.parse(value, tltype="list")
        for _item, parameters in parsed:
            if parameters.get("r") == 0:
                waits += _seconds(parameters.get("t"))
    except (http_sf.StructuredFieldError, ValueError, IndexError, TypeError, AttributeError):
        pass
    if waits:
        return waits
    try:
        table: Any = http_sf.parse(value, tltype="dictionary")
        if table.get("remaining", (None,))[0] == 0:
            return _seconds(table.get("reset", (None,))[0])
    except (http_sf.StructuredFieldError, ValueError, IndexError, TypeError, AttributeError):
        pass
    return []


def _three(answer: Response) -> list[int]:
    for prefix in (b"ratelimit-", b"x-ratelimit-"):
        remaining = values(answer.fields, prefix + b"remaining")
        reset = values(answer.fields, prefix + b"reset")
        if len(remaining) == len(reset) == 1 and remaining[0].strip() == b"0":
            text = reset[0].strip()
            return _seconds(int(text)) if text.isdigit() and len(text) <= 10 else []
    return []


def _seconds(value: object) -> list[int]:
    if isinstance(value, int) and 0 <= value <= SECONDS_MAX:
        return [value * 1000]
    return []
