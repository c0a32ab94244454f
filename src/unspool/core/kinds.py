"""Kinds: what a field name is to somebody, as a number that can be added up.

    KINDS = Kinds(classify)        classify(name in lower case) -> int
    KINDS[name]                    of a name as it is spelled
    sum(map(KINDS.__getitem__, map(name_of, fields)))

The numbers are the owner's. Those below belong to heads that come (see heads): a head whose kinds
are added up tells how many fields of each it has, and whether there is any that must be looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Final

from .message import Field

PLAIN: Final = 0
"""It goes on as it is."""
HOST: Final = 1
LENGTH: Final = 1 << 10
"""Content-Length: framing."""
KEY: Final = 1 << 20
"""Idempotency-Key."""
OURS: Final = 1 << 30
"""Somebody behind the parser has to look at it."""
DROP: Final = 1 << 40
"""It ends here, and says nothing to us."""
CONNECTION: Final = 1 << 41
"""It ends here, and is strange where it says more than `keep-alive`."""
STRANGE: Final = 1 << 42
"""It changes how a head, or what follows it, is to be read."""

COUNT: Final = LENGTH - 1
"""Masks how often there was one, once it is shifted down; no head has so many fields."""

name_of: Final[Callable[[Field], bytes]] = itemgetter(0)


class Kinds(dict[bytes, int]):
    """Learnt once for each spelling.

    A look-up costs a third of `name.lower() in …`. It learns a bounded number of short names, so
    that a stranger with many names costs time and no memory.
    """

    NAMES_MAX: Final = 4096
    NAME_MAX_BYTES: Final = 64

    def __init__(self, classify: Callable[[bytes], int]) -> None:
        super().__init__()
        self._classify = classify

    def __missing__(self, name: bytes) -> int:
        kind = self._classify(name.lower())
        if len(self) < self.NAMES_MAX and len(name) <= self.NAME_MAX_BYTES:
            self[name] = kind
        return kind
