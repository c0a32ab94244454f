"""Forks: a client lets go of its outbox before its process forks, and goes on afterwards.

    again = Again(start);  again.watch()      after the portal has begun to watch forks itself

The portal closes an idle client before a fork (its header says why). In the parent nobody may call
the client for hours, and what waits in its outbox would not be sent: so some time after the last of
several forks it is opened again. While that happens a fork waits for it, or the child would find
the client in use.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

log: Final = logging.getLogger("unspool.client")

AFTER_S: Final = 1.0
"""Servers fork their workers one after the other."""
WAITS_S: Final = 5.0


class Again:
    def __init__(self, start: Callable[[], bool]) -> None:
        """`start` goes on, if there is a reason to; it is called in a thread of its own."""
        self._start = start
        self._timer: threading.Timer | None = None
        self._watched = False

    def watch(self) -> None:
        """Twice does nothing."""
        if self._watched:
            return
        self._watched = True
        there = weakref.ref(self)

        def tell(verb: Callable[[Again], None]) -> Callable[[], None]:
            def told() -> None:
                if (one := there()) is not None:
                    verb(one)

            return told

        # Of what is registered later, `before` is called earlier: before the portal looks.
        os.register_at_fork(
            before=tell(Again.stop),
            after_in_parent=tell(Again.soon),
            after_in_child=tell(Again.forget),
        )

    def stop(self) -> None:
        """Not now; and if it is under way, let it end."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join(timeout=WAITS_S)

    def soon(self) -> None:
        self._timer = threading.Timer(AFTER_S, self._go_on)
        self._timer.name = "unspool client again"
        self._timer.daemon = True
        self._timer.start()

    def forget(self) -> None:
        """It is the parent's."""
        self._timer = None

    def _go_on(self) -> None:
        try:
            self._start()
        except Exception as error:
            log.warning("after a fork, what waits in the outbox is not sent yet: %s", error)
