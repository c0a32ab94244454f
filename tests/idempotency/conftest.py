"""Each target is started once and asked every row once; the tests look at what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from places import BY_DESIGN
from targets import TARGETS

from unspool.testing.idempotency import Result, check


@dataclass
class Asked:
    results: dict[str, Result]
    logs: str


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Asked]:
    """What came of each row at a target."""
    known: dict[str, Asked] = {}

    def ask(name: str) -> Asked:
        if name not in known:
            folder: Path = tmp_path_factory.mktemp(name)
            with TARGETS[name](folder) as target:
                results = asyncio.run(check(target.service, by_design=BY_DESIGN[name]))
                known[name] = Asked({result.row: result for result in results}, target.logs())
        return known[name]

    return ask
