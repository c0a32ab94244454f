"""Once: a thing is done once for each key.

with once.commit(session, key, scope="orders") as done: …      see `commit`
once.create(session) · once.table(metadata) · once.sweep(session)
"""

from __future__ import annotations

from typing import Final

from . import commit_table
from .commit import Commit


class Once:
    """See the head of this file."""

    commit = Commit
    create = staticmethod(commit_table.create)
    table = staticmethod(commit_table.table)
    sweep = staticmethod(commit_table.sweep)
    DDL = commit_table.DDL


once: Final = Once()
