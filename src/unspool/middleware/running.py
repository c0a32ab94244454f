"""Running: what the code that runs under a key may know and say of it.

    running = request.scope["unspool"]       ASGI; environ["unspool"]; Django: request.unspool
    running.child_key("charge")              a key for a call to somebody else, always the same
    running.effect()                         from here on it may have had an effect
    running.forget()                         do not remember this answer: a repeat runs again
    with running.commit(session) as done:    record and rows in one transaction: see `commit`
    running.attempt                          the fencing token

Without a word from the application a handler that raises is taken to have done nothing, and a
repeat runs it again. One that called `effect` (or `child_key`, which says the same) and then raises
ends as unknown: a repeat is told so, and does not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.idempotency import child_key
from .commit import Blocks, Commit


class Running:
    """One run of the application's code under a key."""

    __slots__ = (
        "_blocks",
        "_held",
        "_scope",
        "_secret",
        "affected",
        "attempt",
        "fingerprint",
        "forgotten",
        "key",
        "name",
    )

    def __init__(
        self,
        *,
        key: str,
        name: str,
        fingerprint: bytes,
        attempt: int,
        secret: bytes,
        held: Callable[[], bool] | None = None,
        scope: str = "",
    ) -> None:
        """`held` says whether the right to run is still ours, as far as we know. `scope` is within
        which the name alone tells one work from another; empty: only `key` does."""
        self.key = key
        """The key within its scope: safe to store, and in the log."""
        self.name = name
        """The key as its sender wrote it."""
        self.fingerprint = fingerprint
        self.attempt = attempt
        """1 for the first run; higher where the one before was cut short. Fences co-commits."""
        self.affected = False
        self.forgotten = False
        self._secret = secret
        self._held = held
        self._scope = scope
        self._blocks = Blocks()

    def __repr__(self) -> str:
        return f"<Running {self.key}, attempt {self.attempt}>"

    def child_key(self, step: str) -> str:
        """A key for one step: 32 hex digits, the same at each attempt. Counts as `effect`."""
        self.affected = True
        return child_key(self._secret, key=self.key, step=step)

    def effect(self) -> None:
        """Something outside may be changed from here on, and cannot be taken back."""
        self.affected = True

    def forget(self) -> None:
        """The answer is about the moment, not about the request: a repeat runs again."""
        self.forgotten = True

    def commit(self, session: Any, *, step: str = "", **options: Any) -> Commit:
        """The record of this run and the rows of a block, in one transaction of `session`.

        `with` or `async with`, as the session wants; the options are those of `Commit`. Does not
        count as `effect`: what raises within the block is undone. A run of several blocks names
        each by its `step`.

        Where the name alone tells one work from another (`once`), the record is under it, and
        outlives the spool. Elsewhere it is under `key`, which the spool's secret is part of.
        """
        return Commit(
            session,
            self.name if self._scope else self.key,
            scope=self._scope,
            name=self.name,
            fingerprint=self.fingerprint,
            attempt=self.attempt,
            held=self._held,
            step=step,
            blocks=self._blocks,
            **options,
        )
