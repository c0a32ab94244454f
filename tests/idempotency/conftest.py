"""Each target is started once and asked every row once; the tests look at what came of it.

Two targets at a time: a relay mostly waits for what it is to send again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from places import BY_DESIGN
from targets import TARGETS

from unspool.testing.idempotency import Result, check

AT_ONCE = 2


@dataclass
class Asked:
    results: dict[str, Result]
    logs: str


@pytest.fixture(scope="session")
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Asked]]:
    """What came of each row at a target."""
    wanted = {
        item.callspec.params["target"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and "asked" in item.fixturenames
        and hasattr(item, "callspec")
        and "target" in item.callspec.params  # others may call something else `asked`
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in TARGETS if name in wanted}

    def ask(name: str) -> Asked:
        with TARGETS[name](folders[name]) as target:
            results = asyncio.run(check(target.service, by_design=BY_DESIGN[name]))
            return Asked({result.row: result for result in results}, target.logs())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        known = {name: pool.submit(ask, name) for name in folders}
        yield lambda name: known[name].result()
