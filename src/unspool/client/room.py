"""Room: how many bytes may wait in an outbox. What there is no room for is refused.

    room = await open_room(url, max_bytes=…)
    await room.take(size)               raises `Full`: there is no room for so many bytes
    room.took(size, kept=…)             they are in the outbox now, or are not
    await room.aclose()

Several processes have one file, and each knows only of its own: so the file is weighed
(`spools.sqlite.scale`) before something is put in, where anybody has written to it since; once for
all who come together.

Bugs: processes that put something in at the same moment do not know of one another, and each may
exceed the limit by what it is just writing. Where the outbox is no SQLite file there is no limit in
bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ..errors import Full, NotDone, Unavailable, UnspoolError
from ..spools.committer import Committer
from ..spools.open import path_of
from ..spools.sqlite.scale import Scale
from ..spools.thread import OneThread

SQLITE: Final = "sqlite:"
LOOKS_MAX: Final = 512
WAITING_MAX: Final = 20_000
CLOSE_S: Final = 1.0
HANGS: Final = "The outbox has not answered, and is closed."


class Room:
    def __init__(self, scale: Scale, thread: OneThread, *, max_bytes: int) -> None:
        self._scale: Final = scale
        self._thread: Final = thread
        self._max_bytes: Final = max_bytes
        self._weighed = 0
        """What waited when it was last weighed, and what we have put in since."""
        self._coming = 0
        """What is being put in just now."""
        self._looks: Final[Committer[int, bool]] = Committer(
            self._look, batch_max=LOOKS_MAX, waiting_max=WAITING_MAX, patient=True
        )

    async def take(self, size: int) -> None:
        """Raises `Full`; `NotDone` where the file cannot be weighed."""
        try:
            await self._looks.submit(size)
        except NotDone:
            raise
        except Unavailable as error:
            raise NotDone(f"{HANGS} This is not in it.") from error
        would = self._weighed + self._coming + size
        if would > self._max_bytes:
            raise Full(
                f"The outbox takes no more: with this request of {size} bytes {would} bytes would"
                f" wait in it, and at most {self._max_bytes} may (`outbox_max_bytes`). This one"
                " does not. See what waits: unspool outbox list"
            )
        self._coming += size

    def took(self, size: int, *, kept: bool) -> None:
        self._coming -= size
        if kept:
            self._weighed += size

    async def _look(self, sizes: Sequence[int]) -> Sequence[bool]:
        await self._weigh()
        return [True for _ in sizes]

    async def _weigh(self) -> None:
        before = self._weighed
        try:
            found = await self._thread.soon(self._looked)
        except UnspoolError as error:
            raise NotDone(f"The outbox cannot be weighed: {error}") from error
        if found is not None:
            # What came in while it was weighed may have been seen or not: it counts.
            self._weighed += found - before

    def _looked(self) -> int | None:
        return self._scale.weigh() if self._scale.changed() else None

    async def aclose(self) -> None:
        """A disk that hangs is not waited for, and whoever waits for it is told so."""
        self._looks.give_up(HANGS)
        closing = asyncio.ensure_future(self._thread.soon(self._scale.close))
        self._thread.leave()
        await asyncio.wait([closing], timeout=CLOSE_S)


async def open_room(url: str, *, max_bytes: int) -> Room | None:
    """None: it cannot be told how much waits there."""
    path = path_of(url)
    if path is None or not url.startswith(SQLITE):
        return None
    thread = OneThread("unspool-outbox-scale")
    try:
        scale = await thread.soon(Scale, path)
        room = Room(scale, thread, max_bytes=max_bytes)
        await room._weigh()
    except BaseException:
        await thread.stop()
        raise
    return room
