"""Whose turn it is: of the processes that have one outbox open, one sends what waits in it.

    turn = Turn.at(url, destination);  turn.take() -> bool;  turn.give_up()

A lock on a file beside the outbox's, which goes with its process however that ends. It is for
thrift, not for safety: two who send by mistake take leases like everybody, and under a key.
Where the outbox is no file of this machine it is always everybody's turn.

Bugs: on a network file system flock is as good as the server.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from hashlib import blake2b
from pathlib import Path
from typing import Final

from ..core.message import Destination
from ..errors import CannotCreate
from ..spools.open import of_one_process, path_of


class Turn:
    def __init__(self, path: Path | None) -> None:
        self._path: Final = path
        self._held: int | None = None

    @classmethod
    def at(cls, url: str, destination: Destination) -> Turn:
        path = path_of(url)
        if path is None or of_one_process(url):
            return cls(None)
        mark = blake2b(destination.encode(), digest_size=4, person=b"unspool turn").hexdigest()
        return cls(Path(f"{path}-turn-{mark}"))

    def take(self) -> bool:
        """Is it ours? Asked again, it stays ours. Raises `CannotCreate`."""
        if self._path is None or self._held is not None:
            return True
        try:
            held = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise CannotCreate(
                f"The file {self._path} cannot be made: {error.strerror}. What is in the outbox"
                " is kept, and not sent from here. See who may write there:"
                f" ls -ld {shlex.quote(str(self._path.parent))}"
            ) from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            return False
        self._held = held
        return True

    def give_up(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)
