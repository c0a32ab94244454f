"""Sole: the right to be the only process that uses something beside a spool's file.

    held = sole("sqlite:///idem.db", "shop")      a file, held until it is closed; None: no file

Whoever writes no claims because it is alone (`Tenure.alone`) would, with a second worker, run a key
twice and never know. So being alone is not believed but held: a lock that goes with its process.

Does not: guard spools that are no files of this machine.
"""

from __future__ import annotations

import fcntl
from hashlib import blake2b
from typing import IO

from ..errors import CannotCreate
from .open import path_of


def sole(url: str, name: str) -> IO[bytes] | None:
    """Raises `CannotCreate` where another process has it."""
    path = path_of(url)
    if path is None or not path.parent.is_dir():
        return None  # opening the spool will say what is wrong, and better
    mark = blake2b(name.encode(), digest_size=4, person=b"unspool sole").hexdigest()
    held = open(f"{path}-alone-{mark}", "ab")  # noqa: SIM115 - it is kept
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise CannotCreate(
            f"Another process of the application {name!r} uses the spool {path}, and each says"
            " alone=True. Nothing was run under a key here, and the other goes on. With several"
            f" worker processes leave alone out. See who it is: fuser -v {held.name}"
        ) from error
    return held
