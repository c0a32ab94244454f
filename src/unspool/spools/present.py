"""Present: is what a spool has open still what its name leads to?

    present = Present(path)      a file or a folder, as it is now
    present.check()              raises `NotDone` where it was removed, or another has its name

What is written to a file without a name survives nothing (I1): it goes when its process goes. A
look costs a microsecond, for a whole batch. Of a path where nothing is (a simulated disk's) nothing
is told.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import NotDone


class Present:
    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._seen: os.stat_result | None = None
        with suppress(OSError):
            self._seen = os.stat(path)

    def check(self) -> None:
        if self._seen is None:
            return
        with suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._seen):
                return
        raise NotDone(
            f"The spool {self._path} was removed, or something else has its name. Nothing of this"
            " was done. What was accepted before is delivered, as far as it can be, while this"
            " process runs, and is lost when it ends: put it back before that, then start again."
            f" See: ls -lid {shlex.quote(str(self._path))}"
        )
