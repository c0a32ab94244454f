"""Recent: answers that were kept or looked up just now, in memory, within a bound.

    recent.keep(entry) · recent.get(key) · recent.drop(key)

What is delivered never changes until it is swept (I3), so what is known of it here is as good as
what the spool would say; and a repeat mostly comes soon after the first, when its sender lost the
answer. Whether it is too old is judged by its instants, as everywhere; then it is dropped here, and
the spool is asked. Receipts are always looked up in the spool: those who hold them ask what is.

The oldest go first, whoever asks for them: to keep the order of use would cost every look-up.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import Final

from .core.message import Key
from .spools.protocol import Entry

BYTES_MAX: Final = 4 * 1024 * 1024
OVERHEAD_BYTES: Final = 2048
"""Of an entry, besides its answer: trail, and what Python needs to hold them."""
FIELD_BYTES: Final = 160
"""Two strings and a pair, beside what is in them."""
BODY_MAX_BYTES: Final = 64 * 1024


class Recent:
    def __init__(self, *, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        # In a dict the oldest is found by stepping over all that went before it.
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._bytes = 0
        self.get: Final = self._entries.get

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def keep(self, entry: Entry) -> None:
        size = _size(entry)
        if size > BODY_MAX_BYTES:
            return
        key = entry.message.key
        if key in self._entries:
            self.drop(key)
        self._entries[key] = entry
        self._sizes[key] = size
        self._bytes += size
        while self._bytes > self._bytes_max:
            oldest, _ = self._entries.popitem(last=False)
            self._bytes -= self._sizes.pop(oldest)

    def drop(self, key: Key) -> None:
        if self._entries.pop(key, None) is not None:
            self._bytes -= self._sizes.pop(key)


def _size(entry: Entry) -> int:
    answer = entry.answer
    if answer is None:
        return OVERHEAD_BYTES
    fields = sum(map(len, chain.from_iterable(answer.fields)))
    return OVERHEAD_BYTES + len(answer.fields) * FIELD_BYTES + fields + len(answer.body)
