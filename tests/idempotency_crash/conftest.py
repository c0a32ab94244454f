"""One program that has everything imported: the processes of all tests of a file are its forks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from crash.launch import Quick

from .fleet import quick


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[Quick]:
    launcher = quick()
    yield launcher
    await launcher.end()
